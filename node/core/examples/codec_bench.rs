//! Prints GB/s of content per kernel for encoding and decoding, and of BLAKE3 and CRC32C, on one core.
//!
//! Each figure is the median of several rounds; within a round everything runs once in turn, so that a
//! neighbour's burst or a change of clock speed hits all alike. Arguments: rounds (default 9).

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pacsvault_core::checksum::chunk_crcs;
use pacsvault_core::codec::{Coder, KernelKind};
use pacsvault_core::ids::Digest;
use pacsvault_core::layout::profile::Code;

/// Least time one measurement runs: thousands of short stripes, a dozen long ones.
const MEASUREMENT: Duration = Duration::from_millis(40);

struct Case {
    name: String,
    stripe_bytes: u32,
    run: Box<dyn Fn()>,
    rates: Vec<f64>,
}

fn main() {
    let rounds: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(9);
    let mut cases: Vec<Case> = [512 << 10, 16 << 20].into_iter().flat_map(cases).collect();
    for _ in 0..rounds {
        for case in &mut cases {
            let rate = measure(case);
            case.rates.push(rate);
        }
    }
    println!("best kernel here: {}; median GB/s of content over {rounds} rounds (lowest, highest)", KernelKind::best());
    for case in &mut cases {
        case.rates.sort_by(f64::total_cmp);
        let (lowest, highest) = (case.rates[0], case.rates[rounds - 1]);
        let median = case.rates[rounds / 2];
        println!("{:>8} KiB  {:<34} {median:6.2}  ({lowest:.2}, {highest:.2})", case.stripe_bytes >> 10, case.name);
    }
}

fn cases(stripe_bytes: u32) -> Vec<Case> {
    let code = Code::new(4, 2).expect("within the limit");
    let mut content = vec![0; usize::try_from(stripe_bytes).expect("fits")];
    blake3::Hasher::new().update(b"benchmark").finalize_xof().fill(&mut content);
    let stripe = Bytes::from(content);
    let case = |name: String, run: Box<dyn Fn()>| Case { name, stripe_bytes, run, rates: Vec::new() };
    let mut cases = Vec::new();
    for kind in KernelKind::ALL {
        let Some(coder) = Coder::with_kernel(code, kind) else { continue };
        let shards = coder.encode(stripe.clone()).expect("within the limit");
        let (encoder, content) = (coder.clone(), stripe.clone());
        cases.push(case(
            format!("{code} encode, {kind}"),
            Box::new(move || drop(black_box(encoder.encode(content.clone()).expect("within the limit")))),
        ));
        for lost in 1..=2 {
            let left: Vec<_> =
                shards.iter().enumerate().map(|(at, shard)| (at >= lost).then(|| shard.clone())).collect();
            let coder = coder.clone();
            cases.push(case(
                format!("{code} decode {lost} lost data, {kind}"),
                Box::new(move || drop(black_box(coder.data_shards(&left).expect("enough are left")))),
            ));
        }
    }
    let content = stripe.clone();
    cases.push(case("BLAKE3".to_owned(), Box::new(move || _ = black_box(Digest::of(&content)))));
    cases.push(case("CRC32C per chunk".to_owned(), Box::new(move || drop(black_box(chunk_crcs(&stripe))))));
    cases
}

fn measure(case: &Case) -> f64 {
    let start = Instant::now();
    let mut stripes = 0.0;
    while start.elapsed() < MEASUREMENT {
        (case.run)();
        stripes += 1.0;
    }
    stripes * f64::from(case.stripe_bytes) / start.elapsed().as_secs_f64() / 1e9
}
