//! Nodes that must not start: what they say, and that they end by themselves.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// How long a node may take to refuse its configuration.
const LIMIT: Duration = Duration::from_secs(20);

/// Starts a node that should refuse to start; returns its reason, the line that begins with `error:` and all after it.
pub fn refused(bin: &Path, config: &Path) -> anyhow::Result<String> {
    let log = config.with_extension("refused.log");
    let file = fs::File::create(&log)?;
    let mut child = Command::new(bin.join("pacsvault-node"))
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .context("cannot start the node")?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if began.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let text = fs::read_to_string(&log)?;
    match status {
        None => bail!("the node did not refuse within {} s; it said:\n{text}", LIMIT.as_secs()),
        Some(status) if status.success() => bail!("the node ended without an error; it said:\n{text}"),
        Some(_) => {}
    }
    let reason = text.find("error: ").map(|at| text[at..].trim().to_owned());
    reason.with_context(|| format!("the node gave no reason; it said:\n{text}"))
}

/// Fails unless `text` has all the `words`, in any case.
pub fn says(text: &str, words: &[&str]) -> anyhow::Result<()> {
    let lower = text.to_lowercase();
    let missing: Vec<_> = words.iter().filter(|word| !lower.contains(&word.to_lowercase())).collect();
    if missing.is_empty() { Ok(()) } else { bail!("it should say {missing:?}, but says: {text}") }
}
