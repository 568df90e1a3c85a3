//! How fast the emulated networks are: an echo at a node, asked from a client's address.
//!
//! **Invariants.** What comes back is compared with what was sent: a network that is fast and wrong is an error.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use super::{Host, SiteLatency, Wan};

/// Bytes sent through a network, which come back.
const BULK_BYTES: usize = 256 << 20;
/// Words sent, each after the answer to the one before.
const WORDS: usize = 2_000;
/// The same where each takes two ways of [`FAR`].
const FAR_WORDS: usize = 100;
/// One way to the other site.
const FAR: Duration = Duration::from_millis(20);
/// How long a connection may take.
const DIAL_WITHIN: Duration = Duration::from_secs(2);
/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// What an echo says once it can be called.
const READY: &str = "listens\n";

/// Sends back whatever comes in at `address`, for as long as the process lives. Says when it can be called.
///
/// # Errors
/// The address is not free.
pub fn echo(address: &str) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
    print!("{READY}");
    io::stdout().flush()?;
    serve(&listener);
    Ok(())
}

fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        thread::spawn(move || {
            stream.set_nodelay(true)?;
            let mut back = stream.try_clone()?;
            io::copy(&mut stream, &mut back)
        });
    }
}

/// A host that sends back what it is sent.
pub struct Echo(Option<Child>);

impl Echo {
    /// At a host of the network: in this process, or, where its namespace is another stack, as `program echo ADDRESS` there.
    ///
    /// # Errors
    /// The address is not free, or the program does not start.
    pub fn start(wan: &dyn Wan, host: &str, program: &Path) -> anyhow::Result<Self> {
        let place = wan.place(host);
        let Some(namespace) = &place.namespace else {
            let listener = TcpListener::bind(&place.bind)?;
            thread::spawn(move || serve(&listener));
            return Ok(Self(None));
        };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program).args(["echo", &place.bind]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut out = child.stdout.take().context("a pipe")?;
        let started = Self(Some(child));
        let mut told = [0; READY.len()];
        out.read_exact(&mut told).with_context(|| format!("the echo of {host} ended"))?;
        ensure!(told == *READY.as_bytes(), "the echo of {host} said {}", String::from_utf8_lossy(&told));
        Ok(started)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // One that has ended already is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Opens a connection, from an address of this machine if one is given.
///
/// # Errors
/// Nobody answers in time.
pub fn dial(source: Option<IpAddr>, target: &str) -> io::Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let target: SocketAddr = target.parse().map_err(io::Error::other)?;
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        if let Some(source) = source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let dial = tokio::time::timeout(DIAL_WITHIN, socket.connect(target));
        dial.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    })?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends all of `bytes` to an echo and returns what came back within `limit` between two pieces.
///
/// # Errors
/// The connection broke, or nothing came for so long.
pub fn echoed(mut stream: TcpStream, bytes: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
    let mut reader = stream.try_clone()?;
    reader.set_read_timeout(Some(limit))?;
    thread::scope(|scope| {
        let received = scope.spawn(move || {
            let mut back = Vec::with_capacity(bytes.len());
            reader.read_to_end(&mut back).map(|_| back)
        });
        let sent = stream.write_all(bytes).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
        let back = received.join().map_err(|_| io::Error::other("the reader panicked"))?;
        sent.and(back)
    })
}

/// Sends a word and waits for it; how long that took.
///
/// # Errors
/// Something else came back, or nothing within `limit`.
pub fn word(stream: &mut TcpStream, limit: Duration) -> io::Result<Duration> {
    let began = Instant::now();
    stream.write_all(b"word")?;
    hear(stream, limit)?;
    Ok(began.elapsed())
}

/// Waits for a word that was sent.
///
/// # Errors
/// Something else came back, or nothing within `limit`.
pub fn hear(stream: &mut TcpStream, limit: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(limit))?;
    let mut back = [0; 4];
    stream.read_exact(&mut back)?;
    if back == *b"word" { Ok(()) } else { Err(io::Error::other("something else came back")) }
}

/// Measures the machine without a network in between, and each network that works here. Tells in lines.
///
/// # Errors
/// A network cannot be made, or brings something else back.
pub fn measure(program: &Path) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let direct = listener.local_addr()?.to_string();
    thread::spawn(move || serve(&listener));
    bulk("direct", || dial(None, &direct))?;
    words("direct", WORDS, "no latency", dial(None, &direct)?)?;
    let host = |name: &str| Host { name: name.to_owned(), site: name.trim_start_matches("client-")[..1].to_owned() };
    let hosts = ["a1", "b1", "client-a"].map(host);
    let latency = SiteLatency::from([(("a".to_owned(), "b".to_owned()), FAR)]);
    through(&super::proxy(&hosts, &latency)?, program)?;
    match super::namespaces_refused() {
        Some(why) => println!("namespaces: {why}"),
        None => through(&super::namespaces(&hosts, &latency)?, program)?,
    }
    Ok(())
}

fn through(wan: &Arc<dyn Wan>, program: &Path) -> anyhow::Result<()> {
    let _echoes = [Echo::start(&**wan, "a1", program)?, Echo::start(&**wan, "b1", program)?];
    let open = |to: &str| dial(Some(wan.place("client-a").source), &wan.place(to).advertise);
    bulk(wan.name(), || open("a1"))?;
    words(wan.name(), WORDS, "no latency", open("a1")?)?;
    words(wan.name(), FAR_WORDS, "20 ms one way", open("b1")?)
}

fn bulk(name: &str, open: impl FnOnce() -> io::Result<TcpStream>) -> anyhow::Result<()> {
    let bytes: Vec<u8> = (0..BULK_BYTES / 8).flat_map(|number| (number as u64).to_le_bytes()).collect();
    let stream = open()?;
    let began = Instant::now();
    let back = echoed(stream, &bytes, ANSWER_WITHIN)?;
    let took = began.elapsed().as_secs_f64();
    ensure!(back == bytes, "{name} brought something else back");
    println!("{name:<10}  {:>5.0} MiB/s each way, both ways at once", (BULK_BYTES >> 20) as f64 / took);
    Ok(())
}

fn words(name: &str, count: usize, what: &str, mut stream: TcpStream) -> anyhow::Result<()> {
    let took: io::Result<Vec<Duration>> = (0..count).map(|_| word(&mut stream, ANSWER_WITHIN)).collect();
    let mut took = took?;
    took.sort();
    let (median, most) = (took[count / 2].as_secs_f64() * 1e3, took[count * 99 / 100].as_secs_f64() * 1e3);
    println!("{name:<10}  {median:>7.3} ms for a word and its echo, {most:>7.3} ms for 99 of 100; {what}");
    Ok(())
}
