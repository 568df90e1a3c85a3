//! `bench`: throughput and latency as a client meets them.
//!
//! **Invariants.** Only acknowledged operations count. Latency is from the call to the acknowledgement, with everything that
//! the client does itself. Contents are random, so that nothing can gain by compressing or by storing them once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::join_all;
use pacsvault_client::{Client, Mode, Source};
use pacsvault_coordinator::{GetQuery, PutHeader};
use pacsvault_core::{
    catalog::{Command, Outcome, Rejection},
    ids::{Leaf, ObjectKey, Uid},
};
use pacsvault_ports::peer::{Class, Fault};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use super::{
    Context,
    args::{Bench, Load},
    failure::Failure,
    output::size_text,
};

/// Without `--seconds` and `--count`.
const SECONDS_DEFAULT: u64 = 10;
/// Clock ticks per second in `/proc/self/stat`; fixed by the kernel's interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// Measures.
pub async fn run(context: &Context, command: Bench) -> Result<(), Failure> {
    let client = context.connect()?;
    match command {
        Bench::Put(load) => put(context, &client, &load).await,
        Bench::Get(load) => get(context, &client, &load).await,
        Bench::Metadata { clients, seconds } => metadata(context, &client, &clients, seconds).await,
    }
}

/// When to stop: after a time, or after a number of operations.
struct Budget {
    until: Option<Instant>,
    left: AtomicU64,
}

impl Budget {
    fn of(load: &Load) -> Self {
        match load.count {
            Some(count) => Self { until: None, left: AtomicU64::new(count) },
            None => Self::seconds(load.seconds.unwrap_or(SECONDS_DEFAULT)),
        }
    }

    fn seconds(seconds: u64) -> Self {
        Self { until: Some(Instant::now() + Duration::from_secs(seconds)), left: AtomicU64::new(u64::MAX) }
    }

    /// True when one more operation may begin.
    fn take(&self) -> bool {
        let in_time = self.until.is_none_or(|until| Instant::now() < until);
        in_time && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

/// What happened.
#[derive(Default)]
struct Measured {
    latencies: Vec<Duration>,
    errors: u64,
    first_error: Option<Fault>,
    took: Duration,
    cpu_seconds: Option<f64>,
}

impl Measured {
    fn error(&mut self, fault: Fault) {
        self.errors += 1;
        self.first_error.get_or_insert(fault);
    }

    fn percentile(&self, percent: usize) -> f64 {
        let index = self.latencies.len().saturating_sub(1) * percent / 100;
        self.latencies.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1000.0)
    }

    fn per_second(&self) -> f64 {
        let operations = u32::try_from(self.latencies.len()).unwrap_or(u32::MAX);
        f64::from(operations) / self.took.as_secs_f64().max(1e-9)
    }
}

/// Runs `clients` workers until the budget is used up.
async fn drive<W>(clients: u16, budget: Budget, worker: impl Fn(u16) -> W) -> Measured
where
    W: AsyncOperation,
{
    let budget = Arc::new(budget);
    let (cpu, began) = (cpu_seconds(), Instant::now());
    let tasks = (0..clients).map(|number| {
        let (budget, mut worker) = (budget.clone(), worker(number));
        tokio::spawn(async move {
            let mut measured = Measured::default();
            while budget.take() {
                let began = Instant::now();
                match worker.once().await {
                    Ok(()) => measured.latencies.push(began.elapsed()),
                    Err(fault) => measured.error(fault),
                }
            }
            measured
        })
    });
    let mut total = Measured::default();
    for part in join_all(tasks).await {
        match part {
            Ok(part) => {
                total.latencies.extend(part.latencies);
                total.errors += part.errors;
                total.first_error = total.first_error.take().or(part.first_error);
            }
            Err(error) => total.error(Fault::new(Class::Bug, "PV-BUG", error.to_string())),
        }
    }
    total.took = began.elapsed();
    total.cpu_seconds = cpu_seconds().zip(cpu).map(|(after, before)| after - before);
    total.latencies.sort_unstable();
    total
}

/// One worker's operation.
trait AsyncOperation: Send + 'static {
    fn once(&mut self) -> impl Future<Output = Result<(), Fault>> + Send;
}

/// CPU that this process has used, user and system.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name, in parentheses, and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u32>().ok();
    Some(f64::from(ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

struct Objects {
    client: Client,
    study: Uid,
    series: Uid,
    profile: Option<pacsvault_core::ids::ProfileName>,
}

impl Objects {
    fn new(client: &Client, load: &Load) -> Result<Arc<Self>, Failure> {
        let wrong = |error| Failure::usage(format!("{error}"));
        let study = match &load.study {
            Some(study) => study.clone(),
            None => format!("2.25.{}", client.env().random()).parse().map_err(wrong)?,
        };
        let series = format!("{study}.1").parse().map_err(wrong)?;
        Ok(Arc::new(Self { client: client.clone(), study, series, profile: load.profile.clone() }))
    }

    fn key(&self, worker: u16, number: u64) -> Result<ObjectKey, Fault> {
        let instance = format!("{}.{worker}.{number}", self.series).parse();
        let instance = instance.map_err(|error| Fault::new(Class::Reject, "PV-INVALID", format!("{error}")))?;
        let leaf = Leaf::Instance { series: self.series.clone(), instance };
        Ok(ObjectKey { tenant: self.client.config().tenant.clone(), study: self.study.clone(), leaf })
    }

    async fn write(&self, key: ObjectKey, content: Bytes) -> Result<(), Fault> {
        let mut header = PutHeader::new(key, "application/octet-stream");
        header.profile = self.profile.clone();
        self.client.put(header, &Source::Bytes(content), &|_| {}).await.map(drop)
    }

    /// Deletes everything written, a few keys at a time. Errors leave objects, which is said.
    async fn delete(&self, workers: u16, counts: &[Arc<AtomicU64>]) -> Result<(), Failure> {
        for (worker, count) in (0..workers).zip(counts) {
            let keys: Result<Vec<ObjectKey>, Fault> =
                (0..count.load(Ordering::Relaxed)).map(|number| self.key(worker, number)).collect();
            for keys in keys?.chunks(64) {
                let commands = keys.iter().map(|key| Command::Delete { key: key.clone(), version: None }).collect();
                self.client.coordinator().propose(commands).await?;
            }
        }
        Ok(())
    }
}

struct Writer {
    objects: Arc<Objects>,
    worker: u16,
    written: Arc<AtomicU64>,
    template: Vec<u8>,
    rng: StdRng,
}

impl Writer {
    fn new(objects: &Arc<Objects>, worker: u16, size: usize, written: Arc<AtomicU64>) -> Self {
        let mut rng = StdRng::seed_from_u64(objects.client.env().random());
        let mut template = vec![0; size];
        rng.fill(template.as_mut_slice());
        Self { objects: objects.clone(), worker, written, template, rng }
    }

    /// As random as the template, and different every time.
    fn content(&mut self) -> Bytes {
        let head = self.template.len().min(16);
        self.rng.fill(&mut self.template[..head]);
        Bytes::copy_from_slice(&self.template)
    }
}

impl AsyncOperation for Writer {
    async fn once(&mut self) -> Result<(), Fault> {
        let key = self.objects.key(self.worker, self.written.fetch_add(1, Ordering::Relaxed))?;
        let content = self.content();
        self.objects.write(key, content).await
    }
}

struct Reader {
    objects: Arc<Objects>,
    keys: Arc<Vec<ObjectKey>>,
    size: u64,
    rng: StdRng,
}

impl AsyncOperation for Reader {
    async fn once(&mut self) -> Result<(), Fault> {
        let key = self.keys[self.rng.random_range(0..self.keys.len())].clone();
        let mut reading = self.objects.client.get(GetQuery::whole(key)).await?;
        let mut bytes = 0;
        while let Some(piece) = reading.next().await {
            bytes += piece?.len() as u64;
        }
        if bytes == self.size { Ok(()) } else { Err(Fault::new(Class::Bug, "PV-BUG", "a read of another length")) }
    }
}

fn usize_of(size: u64) -> Result<usize, Failure> {
    usize::try_from(size).map_err(|_| Failure::usage("the size is larger than memory"))
}

fn counters(count: u16) -> Vec<Arc<AtomicU64>> {
    (0..count).map(|_| Arc::default()).collect()
}

async fn put(context: &Context, client: &Client, load: &Load) -> Result<(), Failure> {
    let objects = Objects::new(client, load)?;
    let size = usize_of(load.size)?;
    let written = counters(load.clients);
    let writer = |worker: u16| Writer::new(&objects, worker, size, written[usize::from(worker)].clone());
    let workers: Vec<Writer> = (0..load.clients).map(writer).collect();
    let workers = std::sync::Mutex::new(workers.into_iter().rev().collect::<Vec<_>>());
    // One warm-up write: connections and the layout are there before the clock starts.
    let warm = counters(1);
    Writer::new(&objects, load.clients, size, warm[0].clone()).once().await?;
    let next = |_| workers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
    let measured = drive(load.clients, Budget::of(load), |number| {
        next(number).unwrap_or_else(|| Writer::new(&objects, number, size, Arc::default()))
    })
    .await;
    tell(context, client, "put", load, &objects.study, &measured);
    if !load.keep {
        let mut all = written;
        all.extend(warm);
        objects.delete(load.clients + 1, &all).await?;
    }
    judge(measured)
}

async fn get(context: &Context, client: &Client, load: &Load) -> Result<(), Failure> {
    let objects = Objects::new(client, load)?;
    let size = usize_of(load.size)?;
    let written = counters(1);
    let mut writer = Writer::new(&objects, 0, size, written[0].clone());
    let mut keys = Vec::new();
    for number in 0..u64::from(load.objects) {
        keys.push(objects.key(0, number)?);
        writer.once().await?;
    }
    drop(writer);
    let keys = Arc::new(keys);
    let reader = |_| Reader {
        objects: objects.clone(),
        keys: keys.clone(),
        size: load.size,
        rng: StdRng::seed_from_u64(client.env().random()),
    };
    let measured = drive(load.clients, Budget::of(load), reader).await;
    tell(context, client, "get", load, &objects.study, &measured);
    if !load.keep {
        objects.delete(1, &written).await?;
    }
    judge(measured)
}

fn judge(measured: Measured) -> Result<(), Failure> {
    let errors = measured.errors;
    match measured.first_error {
        None => Ok(()),
        Some(fault) => {
            let text = format!("{errors} operations failed; the first: {}: {fault}", fault.code);
            Err(Failure::failed("PV-BENCH-ERRORS", text))
        }
    }
}

fn tell(context: &Context, client: &Client, what: &str, load: &Load, study: &Uid, measured: &Measured) {
    let per_second = measured.per_second();
    let size = u32::try_from(load.size).map_or(f64::MAX, f64::from);
    let (megabytes, gigabytes) = (per_second * size / 1e6, per_second * measured.took.as_secs_f64() * size / 1e9);
    let per_gigabyte = measured.cpu_seconds.map(|cpu| cpu / gigabytes.max(1e-9));
    let mode = match client.mode() {
        Mode::Direct => "direct",
        Mode::ViaNode => "via node",
    };
    let value = json!({
        "bench": what, "mode": mode, "size_bytes": load.size, "clients": load.clients, "study": study.as_str(),
        "operations": measured.latencies.len(), "errors": measured.errors, "seconds": measured.took.as_secs_f64(),
        "mb_per_second": megabytes, "per_second": per_second, "p50_ms": measured.percentile(50),
        "p99_ms": measured.percentile(99), "cpu_seconds": measured.cpu_seconds, "cpu_seconds_per_gb": per_gigabyte,
    });
    context.out.either(&value, || {
        let cpu = match per_gigabyte {
            Some(per_gigabyte) => format!(", {per_gigabyte:.2} CPU s/GB in this process"),
            None => String::new(),
        };
        format!(
            "{what} {} x {} ({mode}): {megabytes:.1} MB/s, {per_second:.1} per second, p50 {:.1} ms, p99 {:.1} ms, {} operations, \
             {} errors{cpu}",
            size_text(load.size),
            load.clients,
            measured.percentile(50),
            measured.percentile(99),
            measured.latencies.len(),
            measured.errors
        )
    });
}

struct Proposer {
    client: Client,
    key: ObjectKey,
}

impl AsyncOperation for Proposer {
    async fn once(&mut self) -> Result<(), Fault> {
        let command = Command::Delete { key: self.key.clone(), version: None };
        match self.client.coordinator().propose(vec![command]).await?.first() {
            // A committed entry whose answer is that there was nothing to delete.
            Some(Outcome::Rejected(Rejection::NotFound(_))) => Ok(()),
            _ => Err(Fault::new(Class::Bug, "PV-BUG", "a delete of nothing answered something else")),
        }
    }
}

async fn metadata(context: &Context, client: &Client, clients: &[u16], seconds: u64) -> Result<(), Failure> {
    if !context.out.json {
        eprintln!(
            "note: each commit is a delete of a key that does not exist: it goes through the log and changes nothing"
        );
    }
    let text = format!("{}/2.25.{}/@/nothing", client.config().tenant, client.env().random());
    let key: ObjectKey = text.parse().map_err(|error| Failure::usage(format!("{error}")))?;
    Proposer { client: client.clone(), key: key.clone() }.once().await?;
    for &count in clients {
        let worker = |_| Proposer { client: client.clone(), key: key.clone() };
        let measured = drive(count, Budget::seconds(seconds), worker).await;
        let value: Value = json!({
            "bench": "metadata", "clients": count, "commits": measured.latencies.len(), "errors": measured.errors,
            "seconds": measured.took.as_secs_f64(), "commits_per_second": measured.per_second(),
            "p50_ms": measured.percentile(50), "p99_ms": measured.percentile(99), "cpu_seconds": measured.cpu_seconds,
        });
        context.out.either(&value, || {
            format!(
                "metadata x {count}: {:.0} commits/s, p50 {:.2} ms, p99 {:.2} ms, {} errors, {:.2} CPU s in this process",
                measured.per_second(),
                measured.percentile(50),
                measured.percentile(99),
                measured.errors,
                measured.cpu_seconds.unwrap_or_default()
            )
        });
        judge(measured)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_come_from_the_sorted_latencies() {
        let latencies = (1..=100).map(Duration::from_millis).collect();
        let measured = Measured { latencies, took: Duration::from_secs(10), ..Measured::default() };
        assert!((measured.percentile(50) - 50.0).abs() < 1.0 && (measured.percentile(99) - 99.0).abs() < 1.0);
        assert!((measured.per_second() - 10.0).abs() < 0.1);
        assert!((Measured::default().percentile(99)).abs() < f64::EPSILON);
    }

    #[test]
    fn a_counted_budget_is_used_exactly() {
        let budget = Budget { until: None, left: AtomicU64::new(3) };
        assert_eq!((0..10).filter(|_| budget.take()).count(), 3);
    }

    #[test]
    fn own_cpu_time_is_readable_and_grows() {
        let before = cpu_seconds().expect("Linux");
        assert!(before >= 0.0);
    }
}
