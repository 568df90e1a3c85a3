//! Both emulated networks, each by the same tests: what is asked of a link happens to what passes it, and to nothing else.
//!
//! Times are asserted from below only ("at least the asked delay"): a busy machine may always be later.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use pacsvault_chaos_live::net::{self, Conditions, Host, SiteLatency, Wan};

const BASE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for a message that is let through, by far.
const SILENCE: Duration = Duration::from_millis(600);

fn hosts() -> Vec<Host> {
    let host = |name: &str, site: &str| Host { name: name.to_owned(), site: site.to_owned() };
    vec![
        host("a1", "a"),
        host("a2", "a"),
        host("b1", "b"),
        host("c1", "c"),
        host("client-a", "a"),
        host("client-c", "c"),
    ]
}

fn latency() -> SiteLatency {
    let pair = |from: &str, to: &str| ((from.to_owned(), to.to_owned()), BASE);
    [pair("a", "b"), pair("a", "c"), pair("b", "c")].into_iter().collect()
}

/// Runs a test on each network that works here.
fn on_each(test: impl Fn(&Arc<dyn Wan>)) {
    test(&net::proxy(&hosts(), &latency()).expect("needs no rights"));
    match net::namespaces_refused() {
        Some(why) => eprintln!("skipped on namespaces: {why}"),
        None => test(&net::namespaces(&hosts(), &latency()).expect("root may")),
    }
}

/// A node that sends back what it is sent.
struct Echo {
    process: Option<Child>,
}

impl Echo {
    /// In this process, or, where a namespace is another stack, in a process of this test's own program.
    fn start(wan: &Arc<dyn Wan>, host: &str) -> Self {
        let place = wan.place(host);
        let Some(namespace) = &place.namespace else {
            let listener = TcpListener::bind(&place.bind).expect("is free");
            thread::spawn(move || serve(&listener));
            return Self { process: None };
        };
        let own = std::env::current_exe().expect("a program");
        let mut process = Command::new("ip")
            .args(["netns", "exec", namespace])
            .arg(own)
            .args(["--exact", "echo_in_a_namespace", "--nocapture", "--include-ignored"])
            .env("ECHO_AT", &place.bind)
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut told = String::new();
        let mut out = process.stdout.take().expect("a pipe");
        let mut byte = [0];
        while !told.contains("listens") {
            assert_eq!(out.read(&mut byte).expect("readable"), 1, "it ended: {told}");
            told.push(char::from(byte[0]));
        }
        // Kept open, so that the test program may print.
        thread::spawn(move || io::copy(&mut out, &mut io::sink()));
        Self { process: Some(process) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill().expect("runs until now");
            process.wait().expect("ended");
        }
    }
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

#[test]
#[ignore = "the echo of another test, in a process of its own"]
fn echo_in_a_namespace() {
    let Ok(address) = std::env::var("ECHO_AT") else { return };
    let listener = TcpListener::bind(address).expect("is free");
    println!("listens");
    serve(&listener);
}

#[test]
#[ignore = "the network of another test, in a process that is killed"]
fn network_that_is_left_behind() {
    if std::env::var_os("LEFT_BEHIND").is_none() {
        return;
    }
    let wan = net::namespaces(&hosts(), &latency()).expect("root may");
    let _echo = Echo::start(&wan, "b1");
    println!("listens {}", wan.place("b1").namespace.as_deref().unwrap_or_default());
    thread::sleep(PATIENCE * 10);
}

#[test]
fn namespaces_go_also_when_their_process_is_killed() {
    if let Some(why) = net::namespaces_refused() {
        eprintln!("skipped: {why}");
        return;
    }
    let own = std::env::current_exe().expect("a program");
    let mut process = Command::new(own)
        .args(["--exact", "network_that_is_left_behind", "--nocapture", "--include-ignored"])
        .env("LEFT_BEHIND", "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
    let told = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("listens ")?.1.to_owned()));
    let told = told.expect("it says where");
    let namespace = Path::new("/run/netns").join(&told);
    assert!(namespace.exists(), "{told} is there");
    process.kill().expect("runs until now");
    process.wait().expect("ended");
    let began = Instant::now();
    while namespace.exists() {
        assert!(began.elapsed() < PATIENCE, "{told} was left behind");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Opens a connection from a client's address.
fn dial(wan: &Arc<dyn Wan>, from: &str, to: &str) -> io::Result<TcpStream> {
    dial_from(Some(wan.place(from).source), &wan.place(to).advertise)
}

fn dial_from(source: Option<IpAddr>, target: &str) -> io::Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let target: SocketAddr = target.parse().expect("an address");
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        if let Some(source) = source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let dial = tokio::time::timeout(Duration::from_secs(2), socket.connect(target));
        dial.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    })?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends a word and waits for it; how long that took.
fn word(stream: &mut TcpStream, patience: Duration) -> io::Result<Duration> {
    let began = Instant::now();
    stream.write_all(b"word")?;
    wait(stream, patience)?;
    Ok(began.elapsed())
}

fn wait(stream: &mut TcpStream, patience: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(patience))?;
    let mut back = [0; 4];
    stream.read_exact(&mut back)?;
    assert_eq!(&back, b"word");
    Ok(())
}

fn is_silence(result: &io::Result<impl std::fmt::Debug>) -> bool {
    let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
    result.as_ref().err().is_some_and(|error| kinds.contains(&error.kind()))
}

#[test]
fn a_word_takes_the_time_of_its_link_both_ways() {
    on_each(|wan| {
        let (_b, _a) = (Echo::start(wan, "b1"), Echo::start(wan, "a2"));
        let mut far = dial(wan, "client-a", "b1").expect("open");
        let took = word(&mut far, PATIENCE).expect("answers");
        assert!(took >= 2 * BASE, "{} took {took:?} there and back", wan.name());
        let mut conditions = Conditions::default();
        conditions.link("client-a", "b1").extra_delay = Duration::from_millis(30);
        conditions.link("b1", "client-a").jitter = Duration::from_millis(5);
        wan.apply(&conditions).expect("known hosts");
        let took = word(&mut far, PATIENCE).expect("answers");
        assert!(took >= 2 * BASE + Duration::from_millis(30), "{} took {took:?}", wan.name());
        wan.apply(&Conditions::default()).expect("nothing");
        word(&mut far, PATIENCE).expect("answers");
        // Within a site there is no latency; an observer has none anywhere.
        word(&mut dial(wan, "client-a", "a2").expect("open"), PATIENCE).expect("answers");
        word(&mut dial_from(None, &wan.place("b1").advertise).expect("open"), PATIENCE).expect("answers");
    });
}

#[test]
fn a_cut_is_silence_one_way_or_both_and_the_connection_goes_on_when_mended() {
    on_each(|wan| {
        let _b = Echo::start(wan, "b1");
        for (there, back) in [(true, false), (false, true), (true, true)] {
            let mut stream = dial(wan, "client-a", "b1").expect("open");
            word(&mut stream, PATIENCE).expect("answers");
            let mut conditions = Conditions::default();
            conditions.link("client-a", "b1").cut = there;
            conditions.link("b1", "client-a").cut = back;
            wan.apply(&conditions).expect("known hosts");
            let cut = word(&mut stream, SILENCE);
            assert!(is_silence(&cut), "{} {there} {back}: {cut:?}", wan.name());
            // New callers get no answer either; who is not concerned goes on.
            let fresh = dial(wan, "client-a", "b1").and_then(|mut fresh| word(&mut fresh, SILENCE));
            assert!(is_silence(&fresh), "{} {there} {back}: {fresh:?}", wan.name());
            word(&mut dial(wan, "client-c", "b1").expect("open"), PATIENCE).expect("another link answers");
            wan.apply(&Conditions::default()).expect("nothing");
            wait(&mut stream, PATIENCE).expect("what was sent into the cut arrives, once mended");
            word(&mut stream, PATIENCE).expect("and the connection goes on");
            word(&mut dial(wan, "client-a", "b1").expect("open"), PATIENCE).expect("answers");
        }
    });
}

#[test]
fn a_site_that_is_cut_off_is_cut_off_alone() {
    on_each(|wan| {
        let _nodes: Vec<_> = ["a2", "b1", "c1"].map(|host| Echo::start(wan, host)).into_iter().collect();
        let mut conditions = Conditions::default();
        conditions.cut_between(["c1", "client-c"], ["a1", "a2", "b1", "client-a"]);
        wan.apply(&conditions).expect("known hosts");
        let reach = |from: &str, to: &str| dial(wan, from, to).and_then(|mut stream| word(&mut stream, SILENCE));
        for (from, to) in [("client-c", "a2"), ("client-c", "b1"), ("client-a", "c1"), ("c1", "b1")] {
            if wan.place(from).namespace.is_some() {
                continue;
            }
            let result = reach(from, to);
            assert!(is_silence(&result), "{}: {from} to {to}: {result:?}", wan.name());
        }
        for (from, to) in [("client-c", "c1"), ("client-a", "a2"), ("client-a", "b1")] {
            let mut stream = dial(wan, from, to).expect("open");
            word(&mut stream, PATIENCE).expect("answers");
        }
    });
}

#[test]
fn a_reset_is_told_to_both_ends_and_new_connections_are_made() {
    on_each(|wan| {
        let _b = Echo::start(wan, "b1");
        let mut stream = dial(wan, "client-a", "b1").expect("open");
        let mut other = dial(wan, "client-c", "b1").expect("open");
        word(&mut stream, PATIENCE).expect("answers");
        word(&mut other, PATIENCE).expect("answers");
        wan.reset("client-a", "b1").expect("known hosts");
        let broken = (0..50).find_map(|_| word(&mut stream, PATIENCE).err()).expect("it breaks");
        let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        assert!(kinds.contains(&broken.kind()), "{}: {broken:?}", wan.name());
        word(&mut other, PATIENCE).expect("another link goes on");
        let began = Instant::now();
        while dial(wan, "client-a", "b1").and_then(|mut fresh| word(&mut fresh, PATIENCE)).is_err() {
            assert!(began.elapsed() < PATIENCE, "no new connection");
            thread::sleep(Duration::from_millis(50));
        }
    });
}

#[test]
fn a_slow_and_lossy_link_brings_everything_in_order() {
    on_each(|wan| {
        let _b = Echo::start(wan, "b1");
        let mut conditions = Conditions::default();
        *conditions.link("client-a", "b1") = net::LinkState {
            jitter: Duration::from_millis(4),
            loss_per_mille: 10,
            bytes_per_second: Some(4 << 20),
            ..net::LinkState::default()
        };
        wan.apply(&conditions).expect("known hosts");
        let stream = dial(wan, "client-a", "b1").expect("open");
        let bytes: Vec<u8> = (0_u32..1 << 18).flat_map(u32::to_be_bytes).collect();
        let began = Instant::now();
        assert_eq!(echoed(stream, &bytes), bytes, "{}", wan.name());
        // A megabyte at four a second, less what a link's queue lets through at once.
        assert!(began.elapsed() >= Duration::from_millis(190), "{} was too fast: {:?}", wan.name(), began.elapsed());
    });
}

/// Sends all of `bytes` and returns what comes back.
fn echoed(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let (done, received) = mpsc::channel();
    let mut reader = stream.try_clone().expect("a second handle");
    reader.set_read_timeout(Some(PATIENCE * 3)).expect("not zero");
    thread::spawn(move || {
        let mut back = Vec::new();
        let read = reader.read_to_end(&mut back);
        done.send(read.map(|_| back)).expect("is waited for");
    });
    stream.write_all(bytes).expect("is taken");
    stream.shutdown(std::net::Shutdown::Write).expect("open");
    received.recv().expect("an answer").expect("readable")
}

/// `cargo test --release -p pacsvault-chaos-live --test net -- --ignored --nocapture how_fast`
#[test]
#[ignore = "a measurement"]
fn how_fast_the_networks_are() {
    on_each(|wan| {
        let _nodes: Vec<_> = ["a2", "b1"].map(|host| Echo::start(wan, host)).into_iter().collect();
        let bytes = vec![7_u8; 256 << 20];
        for (to, what) in [("a2", "no latency"), ("b1", "20 ms one way")] {
            let began = Instant::now();
            let back = echoed(dial(wan, "client-a", to).expect("open"), &bytes);
            let rate = 2.0 * 256.0 / began.elapsed().as_secs_f64();
            println!("{}, {what}: {rate:.0} MiB/s through the network (both ways together)", wan.name());
            assert_eq!(back.len(), bytes.len());
        }
        let mut stream = dial(wan, "client-a", "a2").expect("open");
        let mut took: Vec<_> = (0..2_000).map(|_| word(&mut stream, PATIENCE).expect("answers")).collect();
        took.sort();
        println!("{}, no latency: a word and its echo take {:?}, 99 of 100 {:?}", wan.name(), took[1_000], took[1_980]);
        let mut stream = dial(wan, "client-a", "b1").expect("open");
        let mut took: Vec<_> = (0..100).map(|_| word(&mut stream, PATIENCE).expect("answers")).collect();
        took.sort();
        println!("{}, 40 ms both ways: {:?}, 99 of 100 {:?}", wan.name(), took[50], took[98]);
    });
}
