//! `probe`: writes and reads without pause, to measure what an outage does to clients.
//!
//! **Invariants.** A gap is the longest time between two successes, from the start to the first and from the last to the end
//! included. Every read is compared with what was acknowledged.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use pacsvault_client::{Client, Source};
use pacsvault_coordinator::{GetQuery, PutHeader};
use pacsvault_core::ids::{Leaf, ObjectKey};
use pacsvault_ports::peer::Fault;
use serde_json::json;
use tokio::sync::watch;

use super::{Context, args::Probe, failure::Failure};

/// One direction of traffic.
struct Track {
    done: u64,
    errors: u64,
    wrong: u64,
    last: Instant,
    gap: Duration,
    first_error: Option<String>,
}

impl Track {
    fn new() -> Self {
        Self { done: 0, errors: 0, wrong: 0, last: Instant::now(), gap: Duration::ZERO, first_error: None }
    }

    fn success(&mut self) {
        self.done += 1;
        self.gap = self.gap.max(self.last.elapsed());
        self.last = Instant::now();
    }

    fn error(&mut self, fault: &Fault) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| format!("{}: {fault}", fault.code));
    }

    fn end(&mut self) -> u128 {
        self.gap = self.gap.max(self.last.elapsed());
        self.gap.as_millis()
    }
}

type Known = Arc<Mutex<Vec<(ObjectKey, Bytes)>>>;

/// Runs until told to stop.
pub async fn run(context: &Context, args: Probe) -> Result<(), Failure> {
    let client = context.connect()?;
    let known: Known = Arc::default();
    let run = client.env().random();
    // What can be read must be there before the clocks start.
    write_one(&client, &args, run, 0, &known).await?;
    let (stop, stopped) = watch::channel(false);
    let every = Duration::from_millis(args.every);
    let began = Instant::now();
    let writing = repeat(stopped.clone(), every, |number| {
        let (client, args, known) = (&client, &args, &known);
        async move { write_one(client, args, run, number + 1, known).await.map(|()| true) }
    });
    let reading = repeat(stopped, every, |turn| read_one(&client, turn, &known));
    let watching = async {
        told_to_stop(args.seconds).await;
        // Both tracks hold a receiver until they end.
        let _ = stop.send(true);
    };
    let (mut writes, mut reads, ()) = tokio::join!(writing, reading, watching);
    tell(context, &mut writes, &mut reads, began.elapsed());
    if reads.wrong > 0 {
        return Err(Failure::failed(
            "PV-CONTENT-DIGEST",
            format!("{} reads gave other bytes than written", reads.wrong),
        ));
    }
    Ok(())
}

/// Does it again and again until stopped; what is under way then is dropped and not counted.
async fn repeat<F>(mut stopped: watch::Receiver<bool>, every: Duration, once: impl Fn(u64) -> F) -> Track
where
    F: Future<Output = Result<bool, Fault>>,
{
    let mut track = Track::new();
    for number in 0.. {
        let turn = async {
            let result = once(number).await;
            match result {
                Ok(true) => track.success(),
                Ok(false) => track.wrong += 1,
                Err(fault) => track.error(&fault),
            }
            tokio::time::sleep(every).await;
        };
        tokio::select! {
            () = turn => {}
            _ = stopped.wait_for(|stopped| *stopped) => break,
        }
    }
    track
}

async fn write_one(client: &Client, args: &Probe, run: u64, number: u64, known: &Known) -> Result<(), Fault> {
    let name = format!("probe-{run:016x}-{number}").parse().map_err(|error| {
        Fault::new(pacsvault_ports::peer::Class::Bug, "PV-BUG", format!("the probe's name: {error}"))
    })?;
    let key =
        ObjectKey { tenant: client.config().tenant.clone(), study: args.study.clone(), leaf: Leaf::Document(name) };
    let content = Bytes::from(format!("probe {run:016x} write {number} {:016x}\n", client.env().random()));
    let header = PutHeader::new(key.clone(), "text/plain");
    client.put(header, &Source::Bytes(content.clone()), &|_| {}).await?;
    known.lock().unwrap_or_else(PoisonError::into_inner).push((key, content));
    Ok(())
}

/// Reads the first document and the newest one in turn. True when the bytes are those written.
async fn read_one(client: &Client, turn: u64, known: &Known) -> Result<bool, Fault> {
    let wanted = {
        let known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = if turn.is_multiple_of(2) { known.first() } else { known.last() };
        wanted.cloned()
    };
    let Some((key, content)) = wanted else { return Ok(true) };
    let read = client.get(GetQuery::whole(key)).await?.bytes().await?;
    Ok(read == content)
}

/// The time is over, or a signal came, or standard input is a pipe and was closed.
async fn told_to_stop(seconds: Option<u64>) {
    use std::os::unix::fs::FileTypeExt;
    let time = async {
        match seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    let input = async {
        let piped = std::fs::metadata("/dev/stdin").is_ok_and(|input| {
            let kind = input.file_type();
            kind.is_fifo() || kind.is_socket()
        });
        if !piped {
            return std::future::pending().await;
        }
        // A thread that may wait for ever: the process does not wait for it at its end.
        let drained = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()));
        drop(drained.await);
    };
    tokio::select! {
        () = time => {}
        () = terminated => {}
        () = input => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

fn tell(context: &Context, writes: &mut Track, reads: &mut Track, took: Duration) {
    let (write_gap, read_gap) = (writes.end(), reads.end());
    let value = json!({
        "writes": writes.done, "reads": reads.done, "write_errors": writes.errors, "read_errors": reads.errors,
        "write_gap_ms": u64::try_from(write_gap).unwrap_or(u64::MAX),
        "read_gap_ms": u64::try_from(read_gap).unwrap_or(u64::MAX), "wrong_bytes": reads.wrong,
        "seconds": took.as_secs_f64(), "first_write_error": writes.first_error, "first_read_error": reads.first_error,
    });
    context.out.either(&value, || {
        let mut lines = vec![
            format!("writes {:>7}  errors {:>4}  longest interruption {write_gap} ms", writes.done, writes.errors),
            format!(
                "reads  {:>7}  errors {:>4}  longest interruption {read_gap} ms  wrong bytes {}",
                reads.done, reads.errors, reads.wrong
            ),
        ];
        for (what, error) in [("write", &writes.first_error), ("read", &reads.first_error)] {
            lines.extend(error.iter().map(|error| format!("first {what} error: {error}")));
        }
        lines.join("\n")
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_reaches_from_the_last_success_to_the_end() {
        let mut track = Track::new();
        track.success();
        track.last = Instant::now().checked_sub(Duration::from_millis(500)).expect("a machine up for half a second");
        assert!(track.end() >= 500);
        assert_eq!(track.done, 1);
    }
}
