//! Bytes on disk stay those of the `reed-solomon-erasure` crate, today and for every later version of ours.
//!
//! `codec_golden.txt` holds one line per stripe: code, length, then either all parity bytes (short stripes) or the BLAKE3
//! of each parity shard. Content is BLAKE3's extended output of its length, so that others can make it too.

use std::fmt::Write as _;

use bytes::Bytes;
use pacsvault_core::codec::{Coder, KernelKind};
use pacsvault_core::layout::profile::Code;
use reed_solomon_erasure::galois_8::ReedSolomon;

const GOLDEN: &str = include_str!("codec_golden.txt");
const CODES: [(u8, u8); 8] = [(4, 2), (5, 4), (3, 3), (2, 2), (2, 4), (1, 1), (10, 4), (17, 15)];
const LENGTHS: [usize; 8] = [1, 2, 3, 63, 64, 65, 1_000, 65_537];

fn content(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let name = format!("pacsvault golden stripe of {len} bytes");
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn line(code: Code, len: usize, parity: &[Vec<u8>]) -> String {
    let mut line = format!("{code} {len}");
    for shard in parity {
        line.push(' ');
        if shard.len() <= 32 {
            shard.iter().for_each(|byte| write!(line, "{byte:02x}").expect("strings take all"));
        } else {
            write!(line, "blake3:{}", blake3::hash(shard)).expect("strings take all");
        }
    }
    line
}

fn all_lines(parity: impl Fn(Code, Vec<u8>) -> Vec<Vec<u8>>) -> Vec<String> {
    let codes = CODES.map(|(data, parity)| Code::new(data, parity).expect("within the limit"));
    let stripes = codes.into_iter().flat_map(|code| LENGTHS.map(|len| (code, len)));
    stripes.map(|(code, len)| line(code, len, &parity(code, content(len)))).collect()
}

#[test]
fn the_crate_gives_the_golden_bytes() {
    let lines = all_lines(|code, mut content| {
        let crate_coder = ReedSolomon::new(code.data(), code.parity()).expect("a code of ours is one of theirs");
        let width = content.len().div_ceil(code.data());
        content.resize(width * code.total(), 0);
        let mut shards: Vec<Vec<u8>> = content.chunks(width).map(<[u8]>::to_vec).collect();
        crate_coder.encode(&mut shards).expect("shards of one length");
        shards.split_off(code.data())
    });
    assert_eq!(lines, GOLDEN.lines().collect::<Vec<_>>(), "\n{}\n", lines.join("\n"));
}

#[test]
fn every_kernel_gives_the_golden_bytes() {
    for kind in KernelKind::ALL.into_iter().filter(|kind| kind.is_available()) {
        let lines = all_lines(|code, content| {
            let coder = Coder::with_kernel(code, kind).expect("it is available");
            let shards = coder.encode(Bytes::from(content)).expect("short enough");
            shards[code.data()..].iter().map(|shard| shard.to_vec()).collect()
        });
        assert_eq!(lines, GOLDEN.lines().collect::<Vec<_>>(), "kernel {kind}");
    }
}
