//! What the network does to its links, as plain data.
//!
//! **Invariants.** [`Conditions`] hold the whole truth: a link that is absent has its base latency and nothing else. Two equal
//! values do the same.

use std::{collections::BTreeMap, time::Duration};

/// What the network does now. Replaces what was applied before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// By (from host, to host); absent: the base latency only.
    pub links: BTreeMap<(String, String), LinkState>,
}

/// What happens on one link, in one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Nothing passes, and nobody is told.
    pub cut: bool,
    /// On top of the base latency.
    pub extra_delay: Duration,
    /// At most this much more, drawn per piece; the order of what is sent stays.
    pub jitter: Duration,
    /// Of a thousand packets, how many are lost.
    pub loss_per_mille: u16,
    /// Bandwidth, if limited.
    pub bytes_per_second: Option<u64>,
}

impl Conditions {
    /// The state of one direction, to be changed.
    pub fn link(&mut self, from: &str, to: &str) -> &mut LinkState {
        self.links.entry((from.to_owned(), to.to_owned())).or_default()
    }

    /// Changes every link that leads from one of `from` to one of `to`.
    pub fn each<'a>(
        &mut self,
        from: impl IntoIterator<Item = &'a str>,
        to: impl IntoIterator<Item = &'a str> + Clone,
        change: impl Fn(&mut LinkState),
    ) {
        for from in from {
            for to in to.clone().into_iter().filter(|to| *to != from) {
                change(self.link(from, to));
            }
        }
    }

    /// Nothing passes from any of `from` to any of `to`; what comes back still does.
    pub fn cut_one_way<'a>(
        &mut self,
        from: impl IntoIterator<Item = &'a str>,
        to: impl IntoIterator<Item = &'a str> + Clone,
    ) {
        self.each(from, to, |link| link.cut = true);
    }

    /// Nothing passes between any of `these` and any of `those`.
    pub fn cut_between<'a>(
        &mut self,
        these: impl IntoIterator<Item = &'a str> + Clone,
        those: impl IntoIterator<Item = &'a str> + Clone,
    ) {
        self.cut_one_way(these.clone(), those.clone());
        self.cut_one_way(those, these);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_between_two_groups_leaves_what_is_within_them() {
        let mut conditions = Conditions::default();
        conditions.cut_between(["a1", "a2"], ["b1"]);
        let cut: Vec<_> = conditions.links.keys().map(|(from, to)| format!("{from}>{to}")).collect();
        assert_eq!(cut, ["a1>b1", "a2>b1", "b1>a1", "b1>a2"]);
        assert!(conditions.links.values().all(|link| link.cut));
    }

    #[test]
    fn a_one_way_cut_leaves_the_way_back() {
        let mut conditions = Conditions::default();
        conditions.cut_one_way(["a1"], ["a1", "b1"]);
        assert_eq!(conditions.links.len(), 1);
        assert!(conditions.link("a1", "b1").cut && !conditions.link("b1", "a1").cut);
    }
}
