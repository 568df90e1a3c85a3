//! The simulator's only source of randomness: xoshiro256**, seeded by splitmix64.
//!
//! **Invariants.** The same seed gives the same sequence on every machine. Nothing in a simulated run draws from
//! anything else.

use std::{convert::Infallible, time::Duration};

/// A seeded generator.
#[derive(Debug, Clone)]
pub struct SimRng {
    state: [u64; 4],
}

/// One step of splitmix64: a bijection of `u64` that spreads every input bit over the output.
pub fn splitmix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl SimRng {
    /// A generator for `seed`; neighbouring seeds give unrelated sequences.
    pub fn new(seed: u64) -> Self {
        let mut word = seed;
        let state = std::array::from_fn(|_| {
            word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
            splitmix(word)
        });
        Self { state }
    }

    /// What all draws so far have made of it: equal only when as many numbers were drawn, of the same seed.
    pub fn mark(&self) -> u64 {
        self.state[0] ^ self.state[3].rotate_left(31)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number in `0..bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.bits()) * u128::from(bound);
        u64::try_from(wide >> 64).expect("the high half of a product of two u64 fits")
    }

    /// A number in `low..=high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// A position in a list of `len` elements.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a usize")
    }

    /// True in `per_mille` of 1,000 draws.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }

    /// A duration in `low..=high`, in microseconds.
    pub fn micros(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_micros(self.range(low, high))
    }

    /// One element of `list`.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.index(list.len())]
    }

    /// A position in `weights`, each as likely as its weight says. Not all of them are zero.
    pub fn weighted(&mut self, weights: &[u64]) -> usize {
        let mut drawn = self.below(weights.iter().sum());
        for (at, weight) in weights.iter().enumerate() {
            if drawn < *weight {
                return at;
            }
            drawn -= weight;
        }
        0
    }

    /// `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        for chunk in bytes.chunks_mut(8) {
            let word = self.bits().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        bytes
    }

    /// A generator of its own, so that one user's draws do not shift another's.
    pub fn fork(&mut self) -> Self {
        Self::new(self.bits())
    }
}

/// For openraft, which draws its election timeouts through this trait.
impl rand_core::TryRng for SimRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::try_from(self.bits() >> 32).expect("32 bits remain"))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.bits())
    }

    fn try_fill_bytes(&mut self, target: &mut [u8]) -> Result<(), Infallible> {
        let bytes = self.bytes(target.len());
        target.copy_from_slice(&bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::SimRng;

    #[test]
    fn equal_seeds_draw_equal_numbers_and_others_do_not() {
        let draw =
            |seed| (0..8).map(move |_| ()).scan(SimRng::new(seed), |rng, ()| Some(rng.bits())).collect::<Vec<_>>();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn every_draw_changes_the_mark() {
        let (mut one, other) = (SimRng::new(3), SimRng::new(3));
        assert_eq!(one.mark(), other.mark());
        let marks: std::collections::BTreeSet<u64> = (0..100).map(|_| (one.bits(), one.mark()).1).collect();
        assert!(marks.len() == 100 && !marks.contains(&other.mark()));
    }

    #[test]
    fn weights_decide_and_nothing_of_weight_zero_is_drawn() {
        let mut rng = SimRng::new(1);
        let mut drawn = [0; 3];
        (0..1_000).for_each(|_| drawn[rng.weighted(&[1, 0, 3])] += 1);
        assert!(drawn[1] == 0 && drawn[0] > 150 && drawn[2] > 600, "{drawn:?}");
    }

    #[test]
    fn bounded_draws_stay_in_bounds_and_reach_both_ends() {
        let mut rng = SimRng::new(1);
        let draws: Vec<u64> = (0..500).map(|_| rng.range(3, 6)).collect();
        assert!(draws.iter().all(|draw| (3..=6).contains(draw)));
        assert!(draws.contains(&3) && draws.contains(&6));
    }
}
