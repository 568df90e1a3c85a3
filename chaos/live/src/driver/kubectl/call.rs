//! Calls of `kubectl`.
//!
//! **Invariants.** No call outlives its time limit. A program that cannot be found, a cluster that does not answer and a right that is
//! missing are told apart, each with what to do.

use std::{
    io::{Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};

use super::Options;

/// How often a running call is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Calls one program for one namespace.
pub(super) struct Caller {
    options: Options,
}

impl Caller {
    pub(super) fn new(options: &Options) -> Self {
        Self { options: options.clone() }
    }

    pub(super) fn namespace(&self) -> &str {
        &self.options.namespace
    }

    /// Runs a shell script in a pod; one that changes something, so that a dry run prints it.
    pub(super) fn script(&self, pod: &str, script: &str) -> anyhow::Result<String> {
        self.change(&self.exec(pod, script), None)
    }

    /// The same for one that changes nothing.
    pub(super) fn ask(&self, pod: &str, script: &str) -> anyhow::Result<String> {
        self.read(&self.exec(pod, script))
    }

    /// What the node in a pod has logged since so many seconds, or in its life before that.
    pub(super) fn log(&self, pod: &str, which: &str) -> anyhow::Result<String> {
        let container = self.options.container.iter().flat_map(|container| ["-c", container.as_str()]);
        let command: Vec<&str> = ["logs", pod].into_iter().chain(container).chain([which]).collect();
        self.read(&command)
    }

    fn exec<'a>(&'a self, pod: &'a str, script: &'a str) -> Vec<&'a str> {
        let container = self.options.container.iter().flat_map(|container| ["-c", container.as_str()]);
        ["exec", pod].into_iter().chain(container).chain(["--", "sh", "-c", script]).collect()
    }

    pub(super) fn dry_run(&self) -> bool {
        self.options.dry_run
    }

    /// A call that changes nothing; returns what it printed.
    pub(super) fn read(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.call(arguments, None)
    }

    /// A call that changes something: in a dry run it is printed instead.
    pub(super) fn change(&self, arguments: &[&str], input: Option<&str>) -> anyhow::Result<String> {
        if !self.options.dry_run {
            return self.call(arguments, input);
        }
        let input = input.map_or(String::new(), |text| format!(" <<'EOF'\n{text}\nEOF"));
        println!("{}{input}", self.shown(arguments));
        Ok(String::new())
    }

    fn all<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        let context = self.options.context.iter().flat_map(|context| ["--context", context.as_str()]);
        context.chain(["-n", self.options.namespace.as_str()]).chain(arguments.iter().copied()).collect()
    }

    /// As it could be typed.
    fn shown(&self, arguments: &[&str]) -> String {
        let plain =
            |word: &str| word.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_./=,:!".contains(letter));
        let quoted = |word: &str| match plain(word) && !word.is_empty() {
            true => word.to_owned(),
            false => format!("'{}'", word.replace('\'', "'\\''")),
        };
        let words: Vec<String> = self.all(arguments).into_iter().map(quoted).collect();
        format!("{} {}", self.options.program.display(), words.join(" "))
    }

    fn call(&self, arguments: &[&str], input: Option<&str>) -> anyhow::Result<String> {
        let shown = self.shown(arguments);
        let mut child = Command::new(&self.options.program)
            .args(self.all(arguments))
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // An interrupt from the keyboard is for us, and must not end a change half-way.
            .process_group(0)
            .spawn()
            .with_context(|| {
                format!("cannot start {}: install kubectl, or give --kubectl", self.options.program.display())
            })?;
        if let (Some(mut pipe), Some(text)) = (child.stdin.take(), input) {
            let text = text.to_owned();
            // By its own thread: a child that does not read must not hold up the time limit. If it ends early its error says why.
            thread::spawn(move || pipe.write_all(text.as_bytes()));
        }
        let (out, err) = (gathered(child.stdout.take()), gathered(child.stderr.take()));
        let status = self.wait(&mut child).with_context(|| format!("`{shown}` did not end"))?;
        let text =
            |gathered: thread::JoinHandle<Vec<u8>>| gathered.join().map_err(|_| anyhow!("reading `{shown}` failed"));
        let (out, err) = (text(out)?, text(err)?);
        if status.success() {
            return Ok(String::from_utf8_lossy(&out).into_owned());
        }
        let err = String::from_utf8_lossy(&err).trim().to_owned();
        bail!("`{shown}` failed: {err}{}", advice(&err))
    }

    fn wait(&self, child: &mut Child) -> anyhow::Result<std::process::ExitStatus> {
        let deadline = Instant::now() + self.options.call_within;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                // Gone already is as good.
                let _ = child.kill();
                child.wait()?;
                bail!(
                    "no answer within {} s; does `kubectl get nodes` answer?",
                    self.options.call_within.as_secs_f32()
                );
            }
            thread::sleep(POLL);
        }
    }
}

fn gathered(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read until an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// What to do about an error of `kubectl`.
fn advice(error: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| error.contains(word));
    if has(&["Forbidden", "forbidden"]) {
        "\nthe account needs get, list and delete of pods, get of pods/log, create of pods/exec, and all verbs on networkpolicies in this namespace"
    } else if has(&["connection refused", "no such host", "Unable to connect", "was refused"]) {
        "\nno cluster answers: choose one with --context, or set KUBECONFIG"
    } else if has(&["context was not found", "does not exist"]) {
        "\n`kubectl config get-contexts` lists those that are known"
    } else {
        ""
    }
}
