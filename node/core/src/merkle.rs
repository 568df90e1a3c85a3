//! Merkle tree over the shard digests of a stripe: any shard proves itself against the one root in the catalog.
//!
//! ```text
//! leaf  = BLAKE3(0x00 ‖ count: u8 ‖ index: u8 ‖ digest: 32 bytes)     35 bytes hashed
//! inner = BLAKE3(0x01 ‖ left: 32 bytes ‖ right: 32 bytes)             65 bytes hashed
//! ```
//!
//! A level of nodes becomes the next by joining neighbours in order; the last node of an odd level moves up
//! unchanged. A path lists the siblings from the leaf's level upwards and skips levels at which the node moved up.
//!
//! **Invariants.** The first byte keeps leaves and inner nodes apart, so no node passes for another kind. Each leaf binds
//! its index and the count of shards, so a proof holds for one place of one code only. 1 to [`SHARDS_MAX`] leaves. Roots
//! and paths are stored with every shard: this layout never changes, a golden root holds it still.

use crate::ids::{Digest, ShardIndex};
use crate::limits::SHARDS_MAX;

const LEAF_TAG: u8 = 0;
const INNER_TAG: u8 = 1;

/// The root over the digests of all shards of a stripe, in shard order.
///
/// Panics unless there are 1 to [`SHARDS_MAX`] digests: a [`crate::layout::profile::Code`] gives no other count.
pub fn root(digests: &[Digest]) -> Digest {
    levels(digests).last().and_then(|level| level.first().copied()).expect("the last level is the root")
}

/// The paths of all shards, in shard order. Panics as [`root`] does.
pub fn paths(digests: &[Digest]) -> Vec<Vec<Digest>> {
    let levels = levels(digests);
    let path = |index: usize| {
        let sibling = |(height, level): (usize, &Vec<Digest>)| level.get((index >> height) ^ 1).copied();
        levels.iter().enumerate().filter_map(sibling).collect()
    };
    (0..digests.len()).map(path).collect()
}

/// The root that a shard claims: of `digest` at place `index` of `count` shards, with siblings `path`.
///
/// `None` when `index` or `count` is impossible or the path has another length than that place requires.
pub fn root_from(digest: Digest, index: ShardIndex, count: usize, path: &[Digest]) -> Option<Digest> {
    let mut position = usize::from(index.0);
    if position >= count || count > SHARDS_MAX {
        return None;
    }
    let mut node = leaf(u8::try_from(count).ok()?, index.0, &digest);
    let mut siblings = path.iter();
    let mut width = count;
    while width > 1 {
        if position ^ 1 < width {
            let sibling = siblings.next()?;
            node = if position & 1 == 0 { inner(&node, sibling) } else { inner(sibling, &node) };
        }
        position /= 2;
        width = width.div_ceil(2);
    }
    siblings.next().is_none().then_some(node)
}

/// Whether a shard with this digest is shard `index` of the `count` under `root`.
pub fn verify(root: Digest, digest: Digest, index: ShardIndex, count: usize, path: &[Digest]) -> bool {
    root_from(digest, index, count, path) == Some(root)
}

/// All levels, leaves first, root last.
fn levels(digests: &[Digest]) -> Vec<Vec<Digest>> {
    assert!((1..=SHARDS_MAX).contains(&digests.len()), "a stripe has 1 to {SHARDS_MAX} shards");
    let count = u8::try_from(digests.len()).expect("SHARDS_MAX fits a byte");
    let mut level: Vec<Digest> = (0..count).zip(digests).map(|(index, digest)| leaf(count, index, digest)).collect();
    let mut levels = Vec::new();
    while level.len() > 1 {
        let above = level.chunks(2).map(|pair| pair.get(1).map_or(pair[0], |right| inner(&pair[0], right))).collect();
        levels.push(std::mem::replace(&mut level, above));
    }
    levels.push(level);
    levels
}

fn leaf(count: u8, index: u8, digest: &Digest) -> Digest {
    let mut bytes = [0; 35];
    bytes[..3].copy_from_slice(&[LEAF_TAG, count, index]);
    bytes[3..].copy_from_slice(&digest.0);
    Digest::of(&bytes)
}

fn inner(left: &Digest, right: &Digest) -> Digest {
    let mut bytes = [0; 65];
    bytes[0] = INNER_TAG;
    bytes[1..33].copy_from_slice(&left.0);
    bytes[33..].copy_from_slice(&right.0);
    Digest::of(&bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digests(count: u8) -> Vec<Digest> {
        (0..count).map(|index| Digest::of(&[index])).collect()
    }

    fn all_indices(count: u8) -> impl Iterator<Item = ShardIndex> {
        (0..count).map(ShardIndex)
    }

    #[test]
    fn the_root_of_six_known_digests_never_changes() {
        let golden = "06fe3b0cf0af456b3ca7c06a2885d564bc3feb50bd0cbc4bfd55c48af70025dc";
        assert_eq!(root(&digests(6)).to_string(), golden);
    }

    #[test]
    fn a_tree_of_three_is_the_documented_one() {
        let [a, b, c] = digests(3)[..] else { unreachable!("three digests") };
        let leaf = |index: u8, digest: Digest| Digest::of(&[&[0, 3, index], &digest.0[..]].concat());
        let inner = |left: Digest, right: Digest| Digest::of(&[&[1], &left.0[..], &right.0[..]].concat());
        let (a, b, c) = (leaf(0, a), leaf(1, b), leaf(2, c));
        assert_eq!(root(&digests(3)), inner(inner(a, b), c));
        assert_eq!(paths(&digests(3)), [vec![b, c], vec![a, c], vec![inner(a, b)]]);
    }

    #[test]
    fn every_leaf_of_every_count_verifies_and_no_other_place_does() {
        for count in 1..=32_u8 {
            let digests = digests(count);
            let (root, paths) = (root(&digests), paths(&digests));
            for (index, path) in all_indices(count).zip(&paths) {
                for claimed in all_indices(33) {
                    let holds = verify(root, digests[usize::from(index.0)], claimed, digests.len(), path);
                    assert_eq!(holds, claimed == index, "leaf {index} of {count} as {claimed}");
                }
                for other in (0..40).filter(|&other| other != usize::from(count)) {
                    assert!(!verify(root, digests[usize::from(index.0)], index, other, path));
                }
            }
        }
    }

    #[test]
    fn a_longer_or_shorter_path_fails() {
        let digests = digests(6);
        let (root, mut paths) = (root(&digests), paths(&digests));
        let path = &mut paths[2];
        path.push(digests[0]);
        assert_eq!(root_from(digests[2], ShardIndex(2), 6, path), None);
        path.truncate(2);
        assert_eq!(root_from(digests[2], ShardIndex(2), 6, path), None);
        assert!(!verify(root, digests[2], ShardIndex(2), 6, &[]));
    }

    proptest! {
        #[test]
        fn any_altered_bit_fails(
            seeds in prop::collection::vec(any::<[u8; 8]>(), 1..=32),
            index in any::<prop::sample::Index>(),
            node in any::<prop::sample::Index>(),
            bit in 0..256_usize,
        ) {
            let mut digests: Vec<Digest> = seeds.iter().map(|seed| Digest::of(seed)).collect();
            let count = digests.len();
            let at = index.index(count);
            let shard = ShardIndex(u8::try_from(at).expect("at most 32"));
            let root = root(&digests);
            let mut path = paths(&digests).swap_remove(at);
            prop_assert!(verify(root, digests[at], shard, count, &path));

            let flip = |digest: &mut Digest| digest.0[bit / 8] ^= 1 << (bit % 8);
            let mut wrong_root = root;
            flip(&mut wrong_root);
            prop_assert!(!verify(wrong_root, digests[at], shard, count, &path));
            flip(&mut digests[at]);
            prop_assert!(!verify(root, digests[at], shard, count, &path));
            flip(&mut digests[at]);
            prop_assert!(!verify(root, digests[at], ShardIndex(shard.0 ^ 1 << (bit % 8)), count, &path));
            if !path.is_empty() {
                let node = node.index(path.len());
                flip(&mut path[node]);
                prop_assert!(!verify(root, digests[at], shard, count, &path));
            }
        }
    }
}
