#!/usr/bin/env bash
# Builds the programs of the previous release, for the test that upgrades a running cluster from it
# (tests/tests/rolling_upgrade.rs). Prints the folder that holds them, as its only line on the standard output.
#
#   tests/previous_build.sh
#
# Which release that is: the commit in tests/previous-release. It is put there when a release is made.
#
# - The programs are kept in $CARGO_TARGET_DIR/previous/<commit>; when they are there, nothing is done.
# - The target directory is the one of the present tree, so that RocksDB and all other dependencies are not compiled
#   again. Cargo identifies a crate of a workspace by its name, its version and its path below the workspace, not by
#   where the workspace lies: with equal versions it would take the objects of one tree for those of the other. So the
#   copy of the old tree gets a version of its own, "<version>-previous"; nothing else of it is changed.
# - Cargo puts the programs of whichever tree it built last into $CARGO_TARGET_DIR/release. Those of the present tree
#   are put back, and `cargo build` links them there again in any case.
set -euo pipefail

root="$(cd "$(dirname "$0")/.." && pwd)"
commit="$(tr -d '[:space:]' <"$root/tests/previous-release")"
target="${CARGO_TARGET_DIR:-$root/target}"
mkdir -p "$target"
target="$(cd "$target" && pwd)"
kept="$target/previous/$commit"

if [ -x "$kept/pacsvault-node" ] && [ -x "$kept/pacsvault" ]; then
    echo "$kept"
    exit 0
fi
if ! git -C "$root" cat-file -e "$commit^{commit}" 2>/dev/null; then
    cat >&2 <<TEXT
The previous release, commit $commit, is not in this clone, so it cannot be built: probably the clone is shallow. Run

    git fetch --unshallow

or put its programs pacsvault-node and pacsvault into $kept,
or leave the test of upgrades out by setting PACSVAULT_SKIP_UPGRADE=1.
TEXT
    exit 1
fi

mkdir -p "$target/previous"
# One at a time: two would build in each other's folder.
exec 9>"$target/previous/lock"
flock 9
if [ -x "$kept/pacsvault-node" ] && [ -x "$kept/pacsvault" ]; then
    echo "$kept"
    exit 0
fi

tree="$target/previous/tree"
made="$target/previous/made"
present="$target/previous/present"
rm -rf "$tree" "$made" "$present"
mkdir -p "$tree" "$made" "$present"
# With the time of now, not of the commit: cargo compares times.
git -C "$root" archive "$commit" | tar -x -m -C "$tree"
sed -i '0,/^version = "\([^"]*\)"$/s//version = "\1-previous"/' "$tree/Cargo.toml"
grep -q '^version = ".*-previous"$' "$tree/Cargo.toml" || {
    echo "cannot give the copy of $commit a version of its own: its Cargo.toml has no version line" >&2
    exit 1
}

programs=(pacsvault-node pacsvault pacsvault-sim xtask)
restore() {
    for program in "${programs[@]}"; do
        if [ -e "$present/$program" ]; then
            mv -f "$present/$program" "$target/release/$program"
        else
            rm -f "$target/release/$program"
        fi
    done
    rm -rf "$tree" "$made" "$present"
}
for program in "${programs[@]}"; do
    # Another name for the same file: cargo takes the first name away and leaves this one.
    if [ -e "$target/release/$program" ]; then ln "$target/release/$program" "$present/$program"; fi
done
trap restore EXIT

echo "building the previous release, $commit" >&2
# The whole workspace, as everything else is built: another selection would have other features, and compile the
# dependencies again.
(cd "$tree" && CARGO_TARGET_DIR="$target" "${CARGO:-cargo}" build --release --workspace --bins) >&2
cp "$target/release/pacsvault-node" "$target/release/pacsvault" "$made/"
"$made/pacsvault-node" --version | grep -q -e '-previous$' || {
    echo "cargo built another tree than the previous release's: $("$made/pacsvault-node" --version)" >&2
    exit 1
}
mkdir -p "$(dirname "$kept")"
rm -rf "$kept"
mv "$made" "$kept"
echo "$kept"
