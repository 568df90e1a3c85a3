//! The space-time trace of one run: what happened on which machine, told so that a person can follow it.
//!
//! One row per event, time down; one column per machine, with the clients, the people and the one who breaks things to the
//! left. A message is an arrow from its sender's column to its receiver's, in words at the right. A machine's column has a
//! line while its process lives.
//!
//! **Invariants.** Recording changes nothing: [`Event`]s are taken down beside the trace hash, which does not know whether
//! anybody listens. A row is one event; rows left out are counted.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write as _,
    time::Duration,
};

use pacsvault_core::catalog::{Command, Outcome};
use pacsvault_ports::peer::{Fault, Reply, Request};

/// Rows between two headings.
const HEADING_EVERY: usize = 45;
/// Characters of one column.
const LANE: usize = 6;
/// Longest text of one row.
const TEXT_MAX: usize = 240;
/// Hexadecimal digits of an id that a row shows.
const ID_SHOWN: usize = 6;
/// How much of a failing run is shown at once: so long before its first violation, and at most so many rows.
const TAIL: Duration = Duration::from_secs(1);
const TAIL_ROWS_MAX: usize = 200;
/// What goes on all the time, and is shown only when asked for.
const CHATTER: [&str; 7] = ["raft", "heartbeat", "read-index", "layout", "status", "log", "not whole"];

/// What `--help` says of rows.
pub const LEGEND: &str = "\
Reading a trace: time down, one column per machine; nemesis (faults), people (operators) and clients to the left.
  |        the process lives           (blank) it is down
  o--->    a request arrives (in words: a-0 -> b-1 put-shard ...)       o...>    an answer sets out
  o--x     lost on the way             +    the process starts          X    it is killed or loses power
  !        a fault strikes, with its number for --skip-fault            *    everything else, in words
Kinds of rows, for --kind:
  deliver  a request reaches a node; its own kinds can be named as well: put-shard, get-shard, lookup, list, propose,
           layout, raft, heartbeat, read-index, repair, verify-shards, snapshot-read, join, health, ...
  answer   the node has answered; ok, or class and code of the fault     lost     a message vanishes
  call     a client begins an operation                                  told     what it was told
  acked    a write was acknowledged: where its shards really lie         violation  an oracle objects
  fault    the nemesis strikes       cut, mend, heal   links of the network
  start, kill   of a process         wipe, refit, replace volume, node ended, fatal   of machines
  leader   leadership as seen        drain, operator refused, not whole   what people see
  phase    what the run is about now                log      what nodes log
Without --kind or --all, chatter (raft, heartbeat, read-index, layout, status, log, not whole) is left out and counted.";

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// True time.
    pub at: Duration,
    /// Whose life it happened in.
    pub life: String,
    /// What.
    pub kind: &'static str,
    /// Its numbers; of messages the hosts from and to.
    pub numbers: Vec<u64>,
    /// In words.
    pub text: String,
}

/// Which rows to show.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only of these machines or clients.
    pub nodes: Vec<String>,
    /// Only of these kinds, of events or of messages.
    pub kinds: Vec<String>,
    /// Only so long before the first violation, or before the end.
    pub last: Option<Duration>,
    /// Only what names one of these texts: a key, and all its attempts.
    pub key: Option<String>,
    /// Chatter as well.
    pub all: bool,
}

/// Which column, from the left: 0 nemesis, 1 people, 2 clients, then machines.
type Lane = usize;

struct Lanes {
    machines: Vec<String>,
    hosts: BTreeMap<u64, String>,
}

impl Lanes {
    fn of(events: &[Event]) -> Self {
        let hosts = events.iter().filter(|event| event.kind == "host");
        let hosts: BTreeMap<u64, String> = hosts.map(|event| (event.numbers[0], event.text.clone())).collect();
        let machine = |name: &&String| !name.starts_with("client") && *name != "operator";
        let machines: BTreeSet<String> = hosts.values().filter(machine).cloned().collect();
        Self { machines: machines.into_iter().collect(), hosts }
    }

    fn named(&self, name: &str) -> Lane {
        match name {
            "operator" => 1,
            name if name.starts_with("client") => 2,
            name => self.machines.iter().position(|machine| machine == name).map_or(0, |at| at + 3),
        }
    }

    fn host(&self, number: u64) -> &str {
        self.hosts.get(&number).map_or("?", String::as_str)
    }

    /// Sender and receiver of a message.
    fn ends(&self, event: &Event) -> Option<(&str, &str)> {
        let message = matches!(event.kind, "deliver" | "answer" | "lost" | "cut" | "mend");
        (message && event.numbers.len() == 2).then(|| (self.host(event.numbers[0]), self.host(event.numbers[1])))
    }

    fn lane(&self, event: &Event) -> Lane {
        match event.kind {
            "fault" | "heal" | "violation" => 0,
            "drain" | "operator refused" | "not whole" | "layout" | "wipe" | "refit" | "replace volume" => 1,
            "call" | "told" | "acked" => 2,
            "leader" => self.named(event.text.split(' ').next().unwrap_or_default()),
            _ => self.named(&event.life),
        }
    }

    fn heading(&self) -> String {
        let mut line = format!("{:>12} ", "seconds");
        for name in ["nemesis", "people", "clients"].into_iter().chain(self.machines.iter().map(String::as_str)) {
            let shown: String = name.chars().take(LANE - 1).collect();
            let _ = write!(line, "{shown:<LANE$}");
        }
        line.trim_end().to_owned()
    }
}

/// First word of a message's text: its own kind.
fn message_kind(event: &Event) -> &str {
    match event.kind {
        "deliver" | "answer" => event.text.split([' ', ':']).next().unwrap_or_default(),
        kind => kind,
    }
}

struct Choice<'a> {
    filter: &'a Filter,
    needles: BTreeSet<String>,
    from: Duration,
    to: Duration,
}

impl<'a> Choice<'a> {
    fn of(filter: &'a Filter, events: &[Event]) -> Self {
        let end = events.iter().find(|event| event.kind == "violation").or(events.last());
        let end = end.map_or(Duration::ZERO, |event| event.at);
        let from = filter.last.map_or(Duration::ZERO, |last| end.saturating_sub(last));
        let to = if filter.last.is_some() { end } else { Duration::MAX };
        let mut needles: BTreeSet<String> = filter.key.iter().cloned().collect();
        if let Some(key) = &filter.key {
            // The ids of all attempts at the key: rows that name an id belong to its story.
            for event in events.iter().filter(|event| event.kind == "call" && event.text.contains(key.as_str())) {
                needles.extend(event.text.split_whitespace().filter(|word| is_id(word)).map(str::to_owned));
            }
        }
        Self { filter, needles, from, to }
    }

    fn shows(&self, event: &Event, lanes: &Lanes) -> bool {
        let filter = self.filter;
        if event.at < self.from || event.at > self.to || event.kind == "host" {
            return false;
        }
        // These frame every story.
        if matches!(event.kind, "violation" | "phase" | "fault" | "kill" | "start" | "leader")
            && filter.kinds.is_empty()
        {
            let client = event.text.starts_with("client") || event.life.starts_with("client");
            return filter.nodes.is_empty() && !client || self.touches(event, lanes);
        }
        let own = message_kind(event);
        if filter.kinds.is_empty() {
            if !filter.all && (CHATTER.contains(&own) || CHATTER.contains(&event.kind)) {
                return false;
            }
        } else if !filter.kinds.iter().any(|kind| kind == event.kind || kind == own) {
            return false;
        }
        let told = self.needles.is_empty() || self.needles.iter().any(|needle| event.text.contains(needle.as_str()));
        told && (filter.nodes.is_empty() || self.touches(event, lanes))
    }

    fn touches(&self, event: &Event, lanes: &Lanes) -> bool {
        let ends = lanes.ends(event);
        self.filter.nodes.iter().any(|node| {
            ends.is_some_and(|(from, to)| from == node || to == node)
                || event.life == *node
                || event.text.split([' ', ',']).any(|word| word == node)
        })
    }
}

fn is_id(word: &str) -> bool {
    word.len() >= 24 && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Renders the rows that `filter` shows, line by line into `line`.
pub fn render(events: &[Event], filter: &Filter, mut line: impl FnMut(&str)) {
    let lanes = Lanes::of(events);
    let choice = Choice::of(filter, events);
    let mut alive: BTreeSet<Lane> = BTreeSet::new();
    let mut left_out: BTreeMap<&str, usize> = BTreeMap::new();
    let mut shown = 0;
    for event in events {
        let lane = lanes.lane(event);
        if event.kind == "start" && lane > 2 {
            alive.insert(lane);
        }
        if choice.shows(event, &lanes) {
            if shown % HEADING_EVERY == 0 {
                line(&lanes.heading());
            }
            shown += 1;
            line(&row(event, &lanes, &alive));
        } else if event.kind != "host" {
            *left_out.entry(message_kind(event)).or_default() += 1;
        }
        if event.kind == "kill" {
            alive.remove(&lane);
        }
    }
    let left: Vec<String> = left_out.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    line(&format!("{shown} rows; left out: {}", if left.is_empty() { "none".to_owned() } else { left.join(", ") }));
}

/// The last second before the first violation (or the end), as the last rows of it that fit on a few screens.
pub fn tail(events: &[Event]) -> String {
    let (mut heading, mut rows) = (None, VecDeque::new());
    let filter = Filter { last: Some(TAIL), ..Filter::default() };
    render(events, &filter, |line| {
        heading.get_or_insert_with(|| line.to_owned());
        rows.push_back(line.to_owned());
        if rows.len() > TAIL_ROWS_MAX {
            rows.pop_front();
        }
    });
    // Columns need their names.
    let heading = heading.filter(|heading| rows.front() != Some(heading));
    heading.into_iter().chain(rows).map(|line| line + "\n").collect()
}

fn row(event: &Event, lanes: &Lanes, alive: &BTreeSet<Lane>) -> String {
    let width = (lanes.machines.len() + 3) * LANE;
    let mut cells: Vec<char> = vec![' '; width];
    for lane in alive {
        cells[lane * LANE] = '|';
    }
    let text = match lanes.ends(event) {
        Some((from, to)) => {
            arrow(&mut cells, lanes.named(from), lanes.named(to), event.kind);
            let sign = if event.kind == "answer" { "=>" } else { "->" };
            let before =
                if matches!(event.kind, "deliver" | "answer") { String::new() } else { format!("{} ", event.kind) };
            format!("{before}{from} {sign} {to} {}", event.text)
        }
        None => {
            cells[lanes.lane(event) * LANE] = match event.kind {
                "start" => '+',
                "kill" => 'X',
                "fault" | "violation" => '!',
                _ => '*',
            };
            let numbers = if event.kind == "fault" { format!(" #{}", event.numbers[0]) } else { String::new() };
            let kind = if event.kind == "violation" { "VIOLATION" } else { event.kind };
            let life =
                if matches!(event.kind, "kill" | "start" | "log") { format!(" {}", event.life) } else { String::new() };
            format!("{kind}{numbers}{life} {}", event.text)
        }
    };
    let cells: String = cells.into_iter().collect();
    let text = shortened(&text);
    format!("{:>12.6} {cells} {}", event.at.as_secs_f64(), text.trim_end())
}

fn arrow(cells: &mut [char], from: Lane, to: Lane, kind: &str) {
    let (a, b) = (from * LANE, to * LANE);
    let stroke = if kind == "answer" { '.' } else { '-' };
    let (low, high) = (a.min(b), a.max(b));
    for (at, cell) in cells.iter_mut().enumerate().take(high).skip(low + 1) {
        // Lines of the machines in between are crossed, not cut.
        if at % LANE != 0 || *cell == ' ' {
            *cell = stroke;
        }
    }
    cells[a] = 'o';
    cells[b] = match (kind, b >= a) {
        ("lost" | "cut", _) => 'x',
        (_, true) => '>',
        (_, false) => '<',
    };
}

/// One line, with long ids cut short.
fn shortened(text: &str) -> String {
    let mut out = String::new();
    let mut hex = String::new();
    for letter in text.chars().map(|letter| if letter == '\n' { ' ' } else { letter }).chain(std::iter::once(' ')) {
        if letter.is_ascii_hexdigit() {
            hex.push(letter);
            continue;
        }
        if hex.len() >= 24 {
            // The end: ids of attempts begin with their time.
            out.push('~');
            out.push_str(&hex[hex.len() - ID_SHOWN..]);
        } else {
            out.push_str(&hex);
        }
        hex.clear();
        out.push(letter);
    }
    if out.chars().count() > TEXT_MAX { out.chars().take(TEXT_MAX).chain("...".chars()).collect() } else { out }
}

/// A request in words, its kind first.
pub fn words(kind: &str, request: &Request) -> String {
    let told = match request {
        Request::PutShard(put) => {
            let repair = if put.repair { " for repair" } else { "" };
            format!("{} to volume {}{repair}", put.header.id, put.volume)
        }
        Request::GetShard(get) => format!("{} of volume {}", get.id, get.volume),
        Request::Lookup(lookup) => {
            format!("{} version {:?} {:?}", lookup.key, lookup.version.map(|version| version.0), lookup.freshness)
        }
        Request::List(list) => format!("study {:?} {:?}", list.study.as_ref().map(ToString::to_string), list.freshness),
        Request::Propose(commands) => commands.iter().map(command).collect::<Vec<_>>().join("; "),
        Request::SnapshotRead { id, offset_bytes, .. } => format!("{id} from {offset_bytes}"),
        Request::TransferLeader { to } => format!("to node {to}"),
        Request::Repair(task) => format!("{task:?}"),
        Request::DrainPlan(target) => format!("{target:?}"),
        Request::VerifyShards { volume, shards } => {
            let shards: Vec<String> = shards.iter().map(ToString::to_string).collect();
            format!("on volume {volume}: {}", shards.join(" "))
        }
        _ => String::new(),
    };
    format!("{kind} {told}")
}

fn command(command: &Command) -> String {
    match command {
        Command::Seal(seal) => format!("seal {} as {}", seal.instance, seal.key),
        Command::Delete { key, version } => format!("delete {key} version {:?}", version.map(|version| version.0)),
        Command::Reseat(reseat) => {
            let moves: Vec<String> = reseat.moves.iter().map(|(shard, to)| format!("{shard} to {to}")).collect();
            format!("reseat {}/{}: {}", reseat.instance, reseat.stripe, moves.join(", "))
        }
        Command::ReportDamage { volume, shards } => {
            let shards: Vec<String> = shards.iter().map(ToString::to_string).collect();
            format!("report-damage on {volume}: {}", shards.join(" "))
        }
        other => format!("{other:?}"),
    }
}

/// An answer in words.
pub fn answer(result: &Result<Reply, Fault>) -> String {
    match result {
        Ok(Reply::Found { sealed: Some(sealed), applied }) => {
            format!("found version {} {} at index {applied}", sealed.version, sealed.seal.instance)
        }
        Ok(Reply::Found { sealed: None, applied }) => format!("nothing at index {applied}"),
        Ok(Reply::Outcomes(outcomes)) => outcomes.iter().map(outcome).collect::<Vec<_>>().join("; "),
        Ok(Reply::Verified(proofs)) => format!("{proofs:?}"),
        Ok(Reply::Repaired(done)) => format!("{done:?}"),
        Ok(_) => "ok".to_owned(),
        Err(fault) => format!("{:?} {} {}", fault.class, fault.code, fault.message),
    }
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Sealed { sealed, first } => {
            let again = if *first { "" } else { ", as before" };
            format!("sealed version {} {} at index {}{again}", sealed.version, sealed.seal.instance, sealed.index)
        }
        Outcome::Deleted { versions, index } => {
            let versions: Vec<u32> = versions.iter().map(|version| version.0).collect();
            format!("deleted versions {versions:?} at index {index}")
        }
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(millis: u64, life: &str, kind: &'static str, numbers: &[u64], text: &str) -> Event {
        let at = Duration::from_millis(millis);
        Event { at, life: life.to_owned(), kind, numbers: numbers.to_vec(), text: text.to_owned() }
    }

    const ID: &str = "00112233445566778899aabbccddeeff";

    fn story() -> Vec<Event> {
        vec![
            event(0, "harness", "host", &[0], "a-0"),
            event(0, "harness", "host", &[1], "b-0"),
            event(0, "harness", "host", &[2], "client-1"),
            event(0, "a-0", "start", &[1], ""),
            event(0, "b-0", "start", &[2], ""),
            event(1, "harness", "call", &[1], &format!("client-1 put main/1.2/1.3/1.4 {ID} 5 bytes")),
            event(2, "client-1", "deliver", &[2, 1], &format!("put-shard {ID}/0/0 to volume 7")),
            event(3, "a-0", "deliver", &[0, 1], "raft "),
            event(4, "b-0", "answer", &[1, 2], &format!("put-shard {ID}/0/0 to volume 7: ok")),
            event(5, "b-0", "kill", &[2, 9], ""),
            event(9_000, "harness", "violation", &[], "version 1 of key 3 is gone"),
        ]
    }

    fn lines(filter: &Filter) -> Vec<String> {
        let mut lines = Vec::new();
        render(&story(), filter, |line| lines.push(line.to_owned()));
        lines
    }

    #[test]
    fn messages_are_arrows_between_columns_of_living_machines() {
        let lines = lines(&Filter::default());
        assert!(lines[0].ends_with("clien a-0   b-0"));
        assert!(lines[4].contains("o-----|----->"), "{}", lines[4]);
        assert!(lines[4].ends_with("client-1 -> b-0 put-shard ~ddeeff/0/0 to volume 7"), "{}", lines[4]);
        assert!(lines[5].contains("<.....|.....o"), "{}", lines[5]);
        assert!(lines.iter().any(|line| line.ends_with("VIOLATION version 1 of key 3 is gone")));
        assert!(lines.last().is_some_and(|line| line.ends_with("left out: raft 1")));
    }

    #[test]
    fn filters_keep_one_node_one_kind_one_key_and_the_end() {
        let only = |filter: Filter| lines(&filter).len();
        assert!(lines(&Filter { kinds: vec!["raft".to_owned()], ..Filter::default() })[1].contains("a-0 -> b-0 raft"));
        let key = Filter { key: Some("main/1.2/1.3/1.4".to_owned()), ..Filter::default() };
        assert!(lines(&key).iter().any(|line| line.contains("put-shard")), "an attempt's id belongs to its key");
        let last = Filter { last: Some(Duration::from_secs(1)), ..Filter::default() };
        assert_eq!(only(last), 3, "a heading, the violation, and the count");
        let node = Filter { nodes: vec!["a-0".to_owned()], all: true, ..Filter::default() };
        assert!(lines(&node).iter().all(|line| !line.contains("put-shard ~ddeeff/0/0 to volume 7: ok")));
    }

    #[test]
    fn the_tail_of_a_story_is_bounded_and_has_a_heading() {
        let short = tail(&story());
        assert_eq!(short.lines().count(), 3, "a heading, the violation, and the count");
        let calls = (0..1_000).map(|_| event(8_500, "harness", "call", &[1], "client-1 get"));
        let mut long = story();
        let violation = long.pop();
        long.extend(calls.chain(violation));
        let long = tail(&long);
        assert_eq!(long.lines().count(), TAIL_ROWS_MAX + 1);
        assert!(long.starts_with(short.lines().next().unwrap_or_default()) && long.contains("VIOLATION"));
    }
}
