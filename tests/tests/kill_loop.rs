//! The stores of real nodes against SIGKILL at random moments: rounds of load, all nodes killed in mid-write, restarted,
//! and nothing acknowledged is missing.

use std::{sync::Arc, time::Duration};

use pacsvault_tests::{Bed, Ledger, Load, Shape, long, seed};
use rand::{Rng, SeedableRng, rngs::StdRng};

#[test]
fn no_acknowledged_write_is_lost_over_ten_kills_of_all_nodes() -> anyhow::Result<()> {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    Bed::running(env!("CARGO_TARGET_TMPDIR"), 3, 1)?.run(|bed| {
        let clients = vec![bed.client(false)?, bed.client(true)?];
        let ledger = Arc::new(Ledger::default());
        // Small contents: many commits, and many records torn in the middle.
        let shape = Shape { writers: 8, readers: 1, large_per_mille: 2, bytes_max: 200 << 20, ..Shape::default() };
        for round in 0..if long() { 100 } else { 10 } {
            let load = Load::start(&bed.runtime, &clients, &ledger, shape, seed, round);
            load.until_acked(1, Duration::from_secs(60), &format!("in round {round}"))?;
            load.run_for(Duration::from_millis(random.random_range(100..1_500)));
            bed.cluster.kill(|_| true)?;
            bed.cluster.start(|_| true)?;
            load.stop(&bed.runtime, Duration::from_secs(120))?;
        }
        bed.until_whole(Duration::from_secs(60))?;
        let checked = bed.runtime.block_on(ledger.check(&clients, &bed.ca_pem()?))?;
        assert!(checked.versions >= 10, "too little was acknowledged: {checked:?}");
        bed.until_equal(Duration::from_secs(30))?;
        Ok(())
    })
}
