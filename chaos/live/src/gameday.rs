//! Commands that need no cluster of ours: reports over runs, and game days on a cluster that is there.
//!
//! **Invariants.** What a game day breaks is lifted when its time is over, on Ctrl-C and SIGTERM, and when a step fails. Nothing is
//! broken before everything that was asked for is known to be possible.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::{
    driver::{
        Ability, Driver,
        kubectl::{Kubectl, Options},
    },
    interrupt::Interrupt,
    net::{Conditions, LinkState},
    record::NodeInfo,
    report,
};

/// Makes pages anew and an index over them.
#[derive(Debug, Args)]
pub struct Report {
    /// Directories of runs, or directories that hold such.
    #[arg(required = true)]
    dirs: Vec<PathBuf>,
    /// The index.
    #[arg(long, default_value = "index.html")]
    out: PathBuf,
}

impl Report {
    /// True when every run passed.
    ///
    /// # Errors
    /// No run is found, or a file cannot be written.
    pub fn run(&self) -> anyhow::Result<bool> {
        let index = report::write_index(&self.dirs, &self.out)?;
        println!(
            "{} runs, {} failed, {} unreadable: {}",
            index.runs,
            index.failed,
            index.unreadable,
            self.out.display()
        );
        Ok(index.failed == 0 && index.unreadable == 0)
    }
}

/// Breaks a cluster on Kubernetes for a while.
#[derive(Debug, Args)]
pub struct Attach {
    /// Namespace of the pods.
    #[arg(long)]
    namespace: String,
    /// Labels of the pods.
    #[arg(long, default_value = "app.kubernetes.io/name=pacsvault")]
    selector: String,
    /// Container of the node in these pods; the pod's default one when absent.
    #[arg(long)]
    container: Option<String>,
    /// Context of kubectl's configuration.
    #[arg(long)]
    context: Option<String>,
    /// The program.
    #[arg(long, default_value = "kubectl")]
    kubectl: PathBuf,
    /// Only remove the policies that an earlier run left behind, and have paused nodes go on.
    #[arg(long, conflicts_with_all = ["cut", "kill", "pause"])]
    clean: bool,
    /// Print the commands that change something, and do not run them.
    #[arg(long)]
    dry_run: bool,
    /// Cut a site off from all others (`a`), or two from each other (`a:b`). May be repeated.
    #[arg(long, value_name = "SITE[:SITE]")]
    cut: Vec<String>,
    /// Kill a node, or all of a site (`site:a`). May be repeated.
    #[arg(long, value_name = "NODE")]
    kill: Vec<String>,
    /// Pause a node, or all of a site (`site:a`). May be repeated.
    #[arg(long, value_name = "NODE")]
    pause: Vec<String>,
    /// Lift everything after so many seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

impl Attach {
    /// Breaks what was asked for, waits, and lifts it.
    ///
    /// # Errors
    /// The driver cannot do it, `kubectl` fails, or a signal ended it before its time; all is lifted then.
    pub fn run(&self) -> anyhow::Result<bool> {
        let mut options = Options::new(&self.namespace, &self.selector);
        (options.program, options.context, options.dry_run) =
            (self.kubectl.clone(), self.context.clone(), self.dry_run);
        options.container = self.container.clone();
        if self.clean {
            let removed = Kubectl::clean(&options)?;
            println!("{} policies removed", removed.len());
            return Ok(true);
        }
        let mut driver = Kubectl::attach(&options)?;
        let nodes = driver.nodes();
        for node in &nodes {
            println!("{:<24} site {}", node.name, node.site);
        }
        let abilities: Vec<String> = driver.abilities().iter().map(ToString::to_string).collect();
        println!("can {}", abilities.join(", "));
        if let Some(why) = driver.no_cuts() {
            println!("cannot {}: {why}", Ability::Network);
        }
        let plan = Plan {
            conditions: conditions(&nodes, &self.cut)?,
            kill: whom(&nodes, &self.kill)?,
            pause: whom(&nodes, &self.pause)?,
        };
        plan.possible(&driver.abilities())?;
        if plan.is_empty() {
            return Ok(true);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let lasts = Duration::from_secs(if self.dry_run { 0 } else { self.seconds });
        runtime.block_on(plan.carry_out(&mut driver, lasts, &Interrupt::listen()?))?;
        Ok(true)
    }
}

/// What is to be broken.
#[derive(Debug, Default)]
struct Plan {
    conditions: Conditions,
    kill: Vec<String>,
    pause: Vec<String>,
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.conditions.links.is_empty() && self.kill.is_empty() && self.pause.is_empty()
    }

    fn possible(&self, abilities: &BTreeSet<Ability>) -> anyhow::Result<()> {
        let needs = [
            (Ability::Network, !self.conditions.links.is_empty()),
            (Ability::Kill, !self.kill.is_empty()),
            (Ability::Pause, !self.pause.is_empty()),
        ];
        for (ability, needed) in needs {
            ensure!(!needed || abilities.contains(&ability), "this cluster's driver cannot {ability}");
        }
        Ok(())
    }

    async fn carry_out(&self, driver: &mut dyn Driver, lasts: Duration, interrupt: &Interrupt) -> anyhow::Result<()> {
        let broken = self.begin(driver, interrupt);
        if broken.is_ok() {
            println!("broken for {} s; Ctrl-C lifts it at once", lasts.as_secs());
            // Told below.
            let _ = interrupt.or(tokio::time::sleep(lasts)).await;
        }
        let lifted = self.lift(driver);
        broken.and(lifted)?;
        println!("lifted; every node is ready");
        Ok(interrupt.check()?)
    }

    fn begin(&self, driver: &mut dyn Driver, interrupt: &Interrupt) -> anyhow::Result<()> {
        if !self.conditions.links.is_empty() {
            driver.shape(&self.conditions)?;
        }
        interrupt.check()?;
        if !self.pause.is_empty() {
            driver.pause(&self.pause)?;
        }
        interrupt.check()?;
        if !self.kill.is_empty() {
            driver.kill(&self.kill)?;
        }
        Ok(())
    }

    /// Everything is tried, whatever fails; the first error is told.
    fn lift(&self, driver: &mut dyn Driver) -> anyhow::Result<()> {
        let network = if self.conditions.links.is_empty() { Ok(()) } else { driver.shape(&Conditions::default()) };
        let awake = if self.pause.is_empty() { Ok(()) } else { driver.resume(&self.pause) };
        let alive = if self.kill.is_empty() { Ok(()) } else { driver.start(&self.kill) };
        network.and(awake).and(alive)
    }
}

fn of_site(nodes: &[NodeInfo], site: &str) -> anyhow::Result<Vec<String>> {
    let found: Vec<String> = nodes.iter().filter(|node| node.site == site).map(|node| node.name.clone()).collect();
    ensure!(!found.is_empty(), "there is no site {site}");
    Ok(found)
}

/// Names of nodes; those of a site for `site:NAME`.
fn whom(nodes: &[NodeInfo], named: &[String]) -> anyhow::Result<Vec<String>> {
    let mut found = BTreeSet::new();
    for name in named {
        match name.strip_prefix("site:") {
            Some(site) => found.extend(of_site(nodes, site)?),
            None if nodes.iter().any(|node| node.name == *name) => {
                found.insert(name.clone());
            }
            None => bail!("there is no node {name}"),
        }
    }
    Ok(found.into_iter().collect())
}

/// Both directions of every link between the sites that are named.
fn conditions(nodes: &[NodeInfo], cuts: &[String]) -> anyhow::Result<Conditions> {
    let mut conditions = Conditions::default();
    for cut in cuts {
        let (site, other) = cut.split_once(':').map_or((cut.as_str(), None), |(site, other)| (site, Some(other)));
        let inside = of_site(nodes, site).with_context(|| format!("cannot cut {cut}"))?;
        let outside = match other {
            Some(other) => of_site(nodes, other).with_context(|| format!("cannot cut {cut}"))?,
            None => nodes.iter().filter(|node| node.site != site).map(|node| node.name.clone()).collect(),
        };
        ensure!(other != Some(site), "cannot cut site {site} off from itself");
        let state = LinkState { cut: true, ..LinkState::default() };
        for (one, two) in inside.iter().flat_map(|one| outside.iter().map(move |two| (one, two))) {
            conditions.links.insert((one.clone(), two.clone()), state.clone());
            conditions.links.insert((two.clone(), one.clone()), state.clone());
        }
    }
    Ok(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::Interrupted;

    fn nodes() -> Vec<NodeInfo> {
        ["a1", "a2", "b1", "c1"].map(|name| NodeInfo { name: name.into(), site: name[..1].into() }).into()
    }

    /// Notes what it is told; pausing fails.
    #[derive(Default)]
    struct Noting(Vec<String>);

    impl Driver for Noting {
        fn nodes(&self) -> Vec<NodeInfo> {
            nodes()
        }

        fn abilities(&self) -> BTreeSet<Ability> {
            BTreeSet::from([Ability::Kill, Ability::Network])
        }

        fn kill(&mut self, nodes: &[String]) -> anyhow::Result<()> {
            self.0.push(format!("kill {}", nodes.join(" ")));
            Ok(())
        }

        fn start(&mut self, nodes: &[String]) -> anyhow::Result<()> {
            self.0.push(format!("start {}", nodes.join(" ")));
            Ok(())
        }

        fn shape(&mut self, conditions: &Conditions) -> anyhow::Result<()> {
            self.0.push(format!("shape {}", conditions.links.len()));
            Ok(())
        }
    }

    fn plan(cut: &[&str], kill: &[&str], pause: &[&str]) -> anyhow::Result<Plan> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        Ok(Plan {
            conditions: conditions(&nodes(), &owned(cut))?,
            kill: whom(&nodes(), &owned(kill))?,
            pause: whom(&nodes(), &owned(pause))?,
        })
    }

    #[tokio::test]
    async fn what_is_broken_is_lifted() {
        let mut driver = Noting::default();
        let plan = plan(&["a"], &["site:b", "c1"], &[]).expect("a plan");
        plan.possible(&driver.abilities()).expect("possible");
        plan.carry_out(&mut driver, Duration::ZERO, &Interrupt::fixed(None)).await.expect("done");
        assert_eq!(driver.0, ["shape 8", "kill b1 c1", "shape 0", "start b1 c1"]);
    }

    #[tokio::test]
    async fn a_step_that_fails_lifts_the_ones_before_it() {
        let mut driver = Noting::default();
        let plan = plan(&["a:c"], &["b1"], &["a1"]).expect("a plan");
        assert!(plan.possible(&driver.abilities()).is_err(), "known before anything is done");
        let never = Interrupt::fixed(None);
        assert!(plan.carry_out(&mut driver, Duration::from_secs(3600), &never).await.is_err());
        assert_eq!(driver.0, ["shape 4", "shape 0", "start b1"]);
    }

    #[tokio::test]
    async fn who_is_interrupted_lifts_all_begins_no_more_and_says_so() {
        let mut driver = Noting::default();
        let plan = plan(&["a"], &["c1"], &[]).expect("a plan");
        let told = Interrupt::fixed(Some(Interrupted::TERMINATE));
        let error = plan.carry_out(&mut driver, Duration::from_secs(3600), &told).await.expect_err("was told");
        assert_eq!(error.downcast_ref(), Some(&Interrupted::TERMINATE));
        assert_eq!(driver.0, ["shape 8", "shape 0", "start c1"]);
    }

    #[test]
    fn names_that_are_not_there_are_refused() {
        for (cut, kill) in [(&["x"][..], &[][..]), (&["a:a"], &[]), (&["a:x"], &[]), (&[], &["z9"]), (&[], &["site:z"])]
        {
            assert!(plan(cut, kill, &[]).is_err(), "{cut:?} {kill:?}");
        }
        assert!(plan(&[], &[], &[]).expect("nothing").is_empty());
    }
}
