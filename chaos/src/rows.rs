//! Whether replicas hold the same rows, and do not only say so: their digests cover what was changed, not what was lost since,
//! as by a snapshot that lacks something.
//!
//! **Invariants.** Compared at one instant, and only replicas at one position. Nothing is asked of the code under test but the
//! rows of its store.

use std::collections::BTreeMap;

use crate::cluster::Cluster;

/// Rows of the catalog: first bytes `from <= byte < to`.
const CATALOG: (u8, u8) = (0x01, 0x40);

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Compares all replicas that are at the position of the first one with it.
///
/// # Errors
/// The first row that differs.
pub fn compare(cluster: &Cluster) -> Result<(), String> {
    let mut first: Option<(usize, u64, Rows)> = None;
    for at in 0..cluster.count() {
        let Some(replica) = cluster.replica(at) else { continue };
        let applied = replica.status().applied.0;
        let rows = replica.view().scan(&[CATALOG.0], &[CATALOG.1], usize::MAX).map_err(|error| error.to_string())?;
        let rows: Rows = rows.into_iter().collect();
        match &first {
            None => first = Some((at, applied, rows)),
            Some((one, position, known)) if *position == applied => {
                if let Some(row) = difference(known, &rows) {
                    return Err(format!("machines {one} and {at} differ at index {applied} in row {row}"));
                }
            }
            Some(_) => {}
        }
    }
    cluster.sim.hit("rows of all replicas compared");
    Ok(())
}

fn difference(one: &Rows, other: &Rows) -> Option<String> {
    let row = one.iter().find(|(key, value)| other.get(*key) != Some(*value)).map(|(key, _)| key);
    let row = row.or_else(|| other.keys().find(|key| !one.contains_key(*key)))?;
    let of = |rows: &Rows| rows.get(row).map_or("absent", |_| "present");
    Some(format!("{row:02x?}: {} and {}", of(one), of(other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_other_or_on_one_side_only_are_told() {
        let rows = |list: &[(u8, u8)]| list.iter().map(|(key, value)| (vec![*key], vec![*value])).collect::<Rows>();
        assert_eq!(difference(&rows(&[(1, 1)]), &rows(&[(1, 1)])), None);
        assert!(difference(&rows(&[(1, 1)]), &rows(&[(1, 2)])).is_some());
        assert!(difference(&rows(&[(1, 1)]), &rows(&[(1, 1), (2, 1)])).is_some_and(|text| text.contains("absent and")));
        assert!(difference(&rows(&[(1, 1), (2, 1)]), &rows(&[(1, 1)])).is_some_and(|text| text.contains("and absent")));
    }
}
