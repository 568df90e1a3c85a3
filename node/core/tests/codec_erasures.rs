//! Any `m` shards may go: what is left restores the same bytes, with every kernel this machine has.

use bytes::Bytes;
use pacsvault_core::codec::{Coder, Error, KernelKind};
use pacsvault_core::ids::ShardIndex;
use pacsvault_core::layout::profile::Code;
use pacsvault_core::limits::STRIPE_BYTES_MAX;
use proptest::prelude::*;
use reed_solomon_erasure::galois_8::ReedSolomon;

const DEFAULT_CODES: [(u8, u8); 5] = [(4, 2), (5, 4), (3, 3), (2, 2), (2, 4)];
const LENGTHS: [usize; 8] = [1, 2, 3, 63, 64, 65, 1_000, 65_537];

fn code(data: u8, parity: u8) -> Code {
    Code::new(data, parity).expect("within the limit")
}

fn coders(code: Code) -> Vec<Coder> {
    KernelKind::ALL.into_iter().filter_map(|kind| Coder::with_kernel(code, kind)).collect()
}

fn content(len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(b"erasures").finalize_xof().fill(&mut bytes);
    Bytes::from(bytes)
}

/// The shards of which `lost` has no bit.
fn without(shards: &[Bytes], lost: u32) -> Vec<Option<Bytes>> {
    shards.iter().enumerate().map(|(at, shard)| (lost >> at & 1 == 0).then(|| shard.clone())).collect()
}

fn all_indices(code: Code) -> Vec<ShardIndex> {
    (0..code.data_u8() + code.parity_u8()).map(ShardIndex).collect()
}

#[test]
fn every_loss_of_up_to_m_shards_is_restored_by_every_kernel() {
    for (data, parity) in DEFAULT_CODES {
        let code = code(data, parity);
        for coder in coders(code) {
            for len in LENGTHS {
                let stripe = content(len);
                let shards = coder.encode(stripe.clone()).expect("short enough");
                assert_eq!(&shards[..code.data()].concat()[..len], stripe, "data shards are the stripe");
                for lost in (0..1_u32 << code.total()).filter(|lost| lost.count_ones() <= u32::from(parity)) {
                    let left = without(&shards, lost);
                    let what = || format!("{coder:?}, {len} bytes, lost {lost:b}");
                    assert_eq!(coder.data_shards(&left).as_deref(), Ok(&shards[..code.data()]), "{}", what());
                    assert_eq!(coder.rebuild(&left, &all_indices(code)).as_ref(), Ok(&shards), "{}", what());
                }
            }
        }
    }
}

#[test]
fn losing_more_than_m_shards_is_told_and_not_guessed() {
    for (data, parity) in DEFAULT_CODES {
        let code = code(data, parity);
        let coder = Coder::new(code);
        let shards = coder.encode(content(1_000)).expect("short enough");
        for lost in (0..1_u32 << code.total()).filter(|lost| lost.count_ones() > u32::from(parity)) {
            let left = without(&shards, lost);
            let have = left.iter().flatten().count();
            assert_eq!(coder.data_shards(&left), Err(Error::TooFewShards { have, need: code.data() }));
        }
    }
}

#[test]
fn whole_data_shards_are_never_copied() {
    let coder = Coder::new(code(4, 2));
    let stripe = content(1_000);
    let shards = coder.encode(stripe.clone()).expect("short enough");
    for (at, shard) in shards[..4].iter().enumerate() {
        assert_eq!(shard.as_ptr(), stripe[at * 250..].as_ptr(), "shard {at} lies in the stripe");
    }
    let data = coder.data_shards(&without(&shards, 0b000_100)).expect("one lost");
    for at in [0, 1, 3] {
        assert_eq!(data[at].as_ptr(), shards[at].as_ptr(), "shard {at} is passed through");
    }
}

#[test]
fn empty_content_is_coded_as_one_zero_byte_per_shard() {
    let shards = Coder::new(code(4, 2)).encode(Bytes::new()).expect("short enough");
    assert_eq!(shards, vec![Bytes::from_static(&[0]); 6]);
}

#[test]
fn the_longest_stripe_is_taken_and_one_byte_more_is_refused() {
    let longest = usize::try_from(STRIPE_BYTES_MAX).expect("fits");
    let coder = Coder::new(code(4, 2));
    let stripe = content(longest + 1);
    assert_eq!(coder.encode(stripe.clone()), Err(Error::StripeTooLong { have: longest + 1 }));
    let shards = coder.encode(stripe.slice(..longest)).expect("exactly the limit");
    assert_eq!(coder.data_shards(&without(&shards, 0b000_011)).as_deref(), Ok(&shards[..4]));
}

#[test]
fn malformed_sets_of_shards_are_refused() {
    let code = code(2, 2);
    let coder = Coder::new(code);
    let shards = without(&coder.encode(content(10)).expect("short enough"), 0);
    assert_eq!(coder.data_shards(&shards[..3]), Err(Error::WrongCount { have: 3, want: 4 }));
    let shard = ShardIndex(4);
    assert_eq!(coder.rebuild(&shards, &[shard]), Err(Error::NoSuchShard { shard, code }));
    let shard = ShardIndex(3);
    let mut unequal = shards.clone();
    unequal[3] = Some(Bytes::from_static(b"four"));
    assert_eq!(coder.data_shards(&unequal), Err(Error::UnequalLengths { shard, have: 4, want: 5 }));
    let shard = ShardIndex(0);
    assert_eq!(coder.data_shards(&vec![Some(Bytes::new()); 4]), Err(Error::Empty { shard }));
    assert_eq!(coder.data_shards(&vec![None; 4]), Err(Error::TooFewShards { have: 0, need: 2 }));
}

#[test]
fn repeated_and_present_shards_may_be_wanted() {
    let coder = Coder::new(code(4, 2));
    let shards = coder.encode(content(77)).expect("short enough");
    let wanted = [5, 0, 5, 1].map(ShardIndex);
    let rebuilt = coder.rebuild(&without(&shards, 0b100_001), &wanted).expect("two lost");
    assert_eq!(rebuilt, [5, 0, 5, 1].map(|at: usize| shards[at].clone()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn kernels_agree_with_each_other_and_with_the_crate(
        data in 1..=31_u8,
        parity in 1..=31_u8,
        stripe in prop::collection::vec(any::<u8>(), 1..40_000),
        order in prop::collection::vec(any::<u32>(), 32),
        range in any::<(prop::sample::Index, prop::sample::Index)>(),
    ) {
        let code = code(data, parity.min(32 - data));
        let mut by_crate: Vec<Vec<u8>> = {
            let width = stripe.len().div_ceil(code.data());
            let mut padded = stripe.clone();
            padded.resize(width * code.total(), 0);
            padded.chunks(width).map(<[u8]>::to_vec).collect()
        };
        ReedSolomon::new(code.data(), code.parity()).expect("valid").encode(&mut by_crate).expect("one length");

        let mut places: Vec<usize> = (0..code.total()).collect();
        places.sort_by_key(|&place| order[place]);
        let lost = places[..code.parity()].iter().fold(0, |lost, &place| lost | 1_u32 << place);
        let width = by_crate[0].len();
        let (a, b) = (range.0.index(width), range.1.index(width));
        let (start, end) = (a.min(b), a.max(b) + 1);
        for coder in coders(code) {
            let shards = coder.encode(Bytes::from(stripe.clone())).expect("short enough");
            prop_assert_eq!(&shards, &by_crate, "{:?}", coder);
            let ranges: Vec<Bytes> = shards.iter().map(|shard| shard.slice(start..end)).collect();
            let rebuilt = coder.rebuild(&without(&ranges, lost), &all_indices(code)).expect("k are left");
            prop_assert_eq!(rebuilt, ranges, "{:?}", coder);
        }
    }
}
