#!/usr/bin/env bash
# Catalog commits of three pacsvault nodes beside puts of 600 bytes into three etcd members: same machine, same disk, one
# after the other in one run. Needs Debian's etcd-server and etcd-client. pacsvault runs with mutual TLS and seals new
# instances (record, indexes, survivability checked in apply); etcd runs in clear text, with its defaults, and is asked at
# its leader. Every client waits for its answer; 16 clients share a connection.
#
# usage: tests/etcd_bench.sh [SECONDS per measurement, 10] [ROUNDS, 3]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-10} rounds=${2:-3} clients=1,64,256
target=${CARGO_TARGET_DIR:-$PWD/target}
for program in etcd etcdctl; do
    command -v "$program" >/dev/null || { echo "install it first: apt-get install etcd-server etcd-client" >&2; exit 1; }
done
cargo build --release --quiet --package pacsvault-tests --example etcd_bench
cargo build --release --quiet --package pacsvault-tests --example metadata_cluster
[ -x "$target/release/pacsvault-node" ] && [ -x "$target/release/pacsvault" ] || {
    echo "build first: cargo build --release -p pacsvault-node -p pacsvault-client" >&2; exit 1; }

mkdir -p "$target/tmp"
dir=$(mktemp -d "$target/tmp/etcd-XXXXXX")
pids=()
clean() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$dir"
}
trap clean EXIT

run_etcd() {
    local base=$((20000 + RANDOM % 20000)) cluster="" number
    for number in 0 1 2; do cluster+="m$number=http://127.0.0.1:$((base + 10 + number)),"; done
    for number in 0 1 2; do
        etcd --name "m$number" --data-dir "$dir/m$number" --log-level error --logger zap \
            --listen-client-urls "http://127.0.0.1:$((base + number))" \
            --advertise-client-urls "http://127.0.0.1:$((base + number))" \
            --listen-peer-urls "http://127.0.0.1:$((base + 10 + number))" \
            --initial-advertise-peer-urls "http://127.0.0.1:$((base + 10 + number))" \
            --initial-cluster "${cluster%,}" --initial-cluster-state new --quota-backend-bytes 8000000000 \
            >"$dir/m$number.log" 2>&1 &
        pids+=($!)
    done
    local all="http://127.0.0.1:$base,http://127.0.0.1:$((base + 1)),http://127.0.0.1:$((base + 2))" leader="" tries=0
    until leader=$(ETCDCTL_API=3 etcdctl --endpoints "$all" endpoint status 2>/dev/null |
        awk -F', ' '$5 == "true" || $6 == "true" { print $1; exit }') && [ -n "$leader" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 150 ] || { echo "etcd did not start:" >&2; cat "$dir"/m*.log >&2; exit 1; }
        sleep 0.2
    done
    # Straight to the leader: the most that etcd can do.
    "$target/release/examples/etcd_bench" "$leader" "$clients" "$seconds"
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait "${pids[@]}" 2>/dev/null || true
    pids=()
    rm -rf "$dir"/m*
}

run_pacsvault() {
    "$target/release/examples/metadata_cluster" "$dir/pacsvault" "$clients" "$seconds"
}

echo "etcd: $(etcd --version | head -1); $(nproc) cores; $seconds s each, $rounds rounds in turn"
for round in $(seq "$rounds"); do
    echo "== round $round: etcd, 3 members, clear text, to the leader"
    run_etcd
    echo "== round $round: pacsvault, 3 nodes, mutual TLS"
    run_pacsvault
done
