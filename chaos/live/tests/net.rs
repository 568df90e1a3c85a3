//! Both emulated networks, each by the same tests: what is asked of a link happens to what passes it, and to nothing else.
//!
//! Times are asserted from below only ("at least the asked delay"): a busy machine may always be later.

use std::{
    io::{self, BufRead, BufReader},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use pacsvault_chaos_live::net::{
    self, Conditions, Host, SiteLatency, Wan,
    speed::{self, Echo, echoed, hear, word},
};

/// Its hidden commands are the other processes of these tests.
const PROGRAM: &str = env!("CARGO_BIN_EXE_pacsvault-chaos");
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
fn echo(wan: &Arc<dyn Wan>, host: &str) -> Echo {
    Echo::start(&**wan, host, Path::new(PROGRAM)).expect("starts")
}

#[test]
fn namespaces_go_also_when_their_process_is_killed() {
    if let Some(why) = net::namespaces_refused() {
        eprintln!("skipped: {why}");
        return;
    }
    let mut process =
        Command::new(PROGRAM).arg("hold-network").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let mut told = String::new();
    BufReader::new(process.stdout.take().expect("a pipe")).read_line(&mut told).expect("it says where");
    let told = told.trim();
    let namespace = Path::new("/run/netns").join(told);
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
    speed::dial(Some(wan.place(from).source), &wan.place(to).advertise)
}

fn is_silence(result: &io::Result<impl std::fmt::Debug>) -> bool {
    let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
    result.as_ref().err().is_some_and(|error| kinds.contains(&error.kind()))
}

#[test]
fn a_word_takes_the_time_of_its_link_both_ways() {
    on_each(|wan| {
        let (_b, _a) = (echo(wan, "b1"), echo(wan, "a2"));
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
        word(&mut speed::dial(None, &wan.place("b1").advertise).expect("open"), PATIENCE).expect("answers");
    });
}

#[test]
fn a_cut_is_silence_one_way_or_both_and_the_connection_goes_on_when_mended() {
    on_each(|wan| {
        let _b = echo(wan, "b1");
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
            hear(&mut stream, PATIENCE).expect("what was sent into the cut arrives, once mended");
            word(&mut stream, PATIENCE).expect("and the connection goes on");
            word(&mut dial(wan, "client-a", "b1").expect("open"), PATIENCE).expect("answers");
        }
    });
}

#[test]
fn what_arrives_is_counted_with_its_time_and_through_a_cut_nothing_does() {
    on_each(|wan| {
        let _b = echo(wan, "b1");
        let link = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        let mut stream = dial(wan, "client-a", "b1").expect("open");
        word(&mut stream, PATIENCE).expect("answers");
        // Counted a moment after it arrived, once the relay runs again.
        let counted = |from: &str, to: &str| {
            let began = Instant::now();
            loop {
                match wan.traffic().get(&link(from, to)) {
                    Some(carried) if carried.bytes >= 4 && carried.pieces > 0 => return *carried,
                    other => assert!(began.elapsed() < PATIENCE, "{}: {other:?}", wan.name()),
                }
                thread::sleep(BASE / 10);
            }
        };
        let there = counted("client-a", "b1");
        let base_us = u64::try_from(BASE.as_micros()).expect("short");
        assert!(there.under_way_us / there.pieces >= base_us, "{}: {there:?}", wan.name());
        counted("b1", "client-a");
        let mut conditions = Conditions::default();
        conditions.link("client-a", "b1").cut = true;
        wan.apply(&conditions).expect("known hosts");
        // What was under way when it was cut may have been counted a moment later.
        thread::sleep(BASE);
        let before = wan.traffic();
        assert!(is_silence(&word(&mut stream, SILENCE)), "{}", wan.name());
        let since = wan.traffic()[&link("client-a", "b1")].since(before[&link("client-a", "b1")]);
        assert_eq!((since.bytes, since.pieces), (0, 0), "{}", wan.name());
        assert!(!wan.traffic().contains_key(&link("client-c", "b1")), "{}", wan.name());
    });
}

#[test]
fn a_site_that_is_cut_off_is_cut_off_alone() {
    on_each(|wan| {
        let _nodes: Vec<_> = ["a2", "b1", "c1"].map(|host| echo(wan, host)).into_iter().collect();
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
        let _b = echo(wan, "b1");
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
        let _b = echo(wan, "b1");
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
        assert_eq!(echoed(stream, &bytes, PATIENCE * 3).expect("an answer"), bytes, "{}", wan.name());
        // A megabyte at four a second, less what a link's queue lets through at once.
        assert!(began.elapsed() >= Duration::from_millis(190), "{} was too fast: {:?}", wan.name(), began.elapsed());
    });
}
