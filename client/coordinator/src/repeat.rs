//! Whole writes, repeated from their first byte while repeating is safe and may help.
//!
//! **Invariants.** At most [`ATTEMPTS_MAX`] attempts, none begun later than [`REPEAT_FOR`] after the first. The content of all
//! attempts is the same bytes under the same key: an attempt that finds it as the key's newest version gives that version.
//! A second version of it arises only when another writer's content came in between, or when the first is worth less by
//! then. When any attempt's outcome is unknown and none was acknowledged, the result is `Unknown`.

use std::time::Duration;

use pacsvault_core::ids::ObjectKey;
use pacsvault_ports::{
    env::Env,
    peer::{Class, Fault},
};

/// Attempts at one write: with the waits between them about three seconds, longer than an election takes. The coordinator
/// inside has its own patience of 30 s per attempt.
pub const ATTEMPTS_MAX: u32 = 6;
/// No attempt begins later than this after the first.
pub const REPEAT_FOR: Duration = Duration::from_secs(60);
/// Wait before the second attempt; doubled for each further one, with up to half of it added at random.
const BACKOFF: Duration = Duration::from_millis(100);

/// A write that was acknowledged, and how many attempts it took.
#[derive(Debug, Clone)]
pub struct Repeated<T> {
    /// What the last attempt gave.
    pub acked: T,
    /// Attempts it took.
    pub attempts: u32,
}

/// Makes one attempt after the other to write under `key`, until one is acknowledged or no other may help.
///
/// # Errors
/// `Unknown`: it may have been stored; the same write again is safe. All others: nothing was stored.
pub async fn repeated<T, A: Future<Output = Result<T, Fault>>>(
    env: &dyn Env,
    key: &ObjectKey,
    mut attempt: impl FnMut() -> A,
) -> Result<Repeated<T>, Fault> {
    let began = env.now().0;
    let mut in_doubt: Option<Fault> = None;
    let mut attempts = 1;
    loop {
        let fault = match attempt().await {
            Ok(acked) => return Ok(Repeated { acked, attempts }),
            Err(fault) => fault,
        };
        if fault.class == Class::Unknown {
            in_doubt = Some(fault.clone());
        }
        let in_time = env.now().0.saturating_sub(began) < REPEAT_FOR;
        if !worth_repeating(fault.class) || attempts >= ATTEMPTS_MAX || !in_time {
            return Err(conclude(fault, in_doubt, attempts));
        }
        tracing::info!(%key, attempts, code = fault.code, reason = %fault, "writing again");
        env.sleep(backoff(attempts, env.random())).await;
        attempts += 1;
    }
}

/// Whether the same thing again, a little later, may succeed.
pub fn worth_repeating(class: Class) -> bool {
    match class {
        Class::Retry | Class::Unknown | Class::Exhausted => true,
        Class::Reject | Class::NotFound | Class::Corrupt | Class::Bug => false,
    }
}

/// Wait before attempt `attempt + 1`.
pub fn backoff(attempt: u32, random: u64) -> Duration {
    let base = BACKOFF * 2_u32.saturating_pow(attempt.saturating_sub(1).min(10));
    let extra = random % u64::try_from(base.as_millis() / 2).unwrap_or(1).max(1);
    base + Duration::from_millis(extra)
}

/// What all attempts together mean.
fn conclude(last: Fault, in_doubt: Option<Fault>, attempts: u32) -> Fault {
    let tried = if attempts == 1 { String::new() } else { format!(" (after {attempts} attempts)") };
    match in_doubt {
        Some(doubt) if last.class != Class::Unknown => {
            if pacsvault_core::probe::planted("doubt-forgotten") {
                // PLANTED BUG: the last attempt's word counts for all.
                return last;
            }
            pacsvault_core::sometimes!("recovery: write in doubt stays so whatever its last attempt was told");
            let text = format!("an earlier attempt may have stored it ({doubt}), and then: {last}{tried}");
            Fault::new(Class::Unknown, "PV-UNKNOWN-OUTCOME", text)
        }
        _ => Fault { message: format!("{last}{tried}"), ..last },
    }
}

#[cfg(test)]
mod tests {
    use std::{future::ready, sync::Mutex};

    use futures::future::BoxFuture;
    use pacsvault_core::ids::WallMillis;
    use pacsvault_ports::env::{Job, MonoTime};

    use super::*;

    /// Time that passes by waiting alone.
    struct Patience(Mutex<Duration>);

    impl Env for Patience {
        fn now(&self) -> MonoTime {
            MonoTime(*self.0.lock().expect("no test panics with it"))
        }

        fn wall(&self) -> WallMillis {
            WallMillis(0)
        }

        fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
            *self.0.lock().expect("no test panics with it") += duration;
            Box::pin(ready(()))
        }

        fn spawn(&self, _: BoxFuture<'static, ()>) {}

        fn run_blocking(&self, _: Job) {}

        fn random(&self) -> u64 {
            0
        }
    }

    fn fault(class: Class) -> Fault {
        Fault::new(class, "PV-X", "why")
    }

    #[test]
    fn a_write_once_in_doubt_is_never_reported_as_failed() {
        for class in [Class::Retry, Class::Reject, Class::Exhausted, Class::Unknown] {
            assert_eq!(conclude(fault(class), Some(fault(Class::Unknown)), 3).class, Class::Unknown, "{class:?}");
        }
        assert_eq!(conclude(fault(Class::Retry), None, 3).class, Class::Retry);
        assert_eq!(conclude(fault(Class::Retry), None, 3).message, "why (after 3 attempts)");
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        let mut before = Duration::ZERO;
        for attempt in 1..ATTEMPTS_MAX {
            let least = backoff(attempt, 0);
            assert!(least > before && backoff(attempt, u64::MAX) < least * 2);
            before = least;
        }
        assert!(backoff(u32::MAX, u64::MAX) < Duration::from_secs(200));
    }

    /// Attempts that take so long and are told these, in order; the last one for ever.
    async fn told(takes: Duration, classes: &[Option<Class>]) -> (Result<Repeated<()>, Fault>, usize) {
        let env = Patience(Mutex::default());
        let mut made = 0;
        let key = "main/1.2/1.3/1.4".parse().expect("a valid key");
        let attempt = || {
            let (waits, told) = (env.sleep(takes), classes[made.min(classes.len() - 1)]);
            made += 1;
            async move {
                waits.await;
                told.map_or(Ok(()), |class| Err(fault(class)))
            }
        };
        let result = repeated(&env, &key, attempt).await;
        (result, made)
    }

    #[tokio::test]
    async fn attempts_end_with_the_first_acknowledged_or_the_first_that_no_other_can_better() {
        type Row<'a> = (&'a [Option<Class>], Result<u32, Class>, usize);
        let rows: [Row<'_>; 4] = [
            (&[Some(Class::Retry), Some(Class::Unknown), None], Ok(3), 3),
            (&[Some(Class::Retry), Some(Class::Reject)], Err(Class::Reject), 2),
            (&[Some(Class::Unknown), Some(Class::Reject)], Err(Class::Unknown), 2),
            (&[Some(Class::Retry)], Err(Class::Retry), 6),
        ];
        for (classes, expected, attempts) in rows {
            let (result, made) = told(Duration::ZERO, classes).await;
            assert_eq!(result.map(|acked| acked.attempts).map_err(|fault| fault.class), expected);
            assert_eq!(made, attempts, "{classes:?}");
        }
    }

    #[tokio::test]
    async fn no_attempt_begins_after_a_minute() {
        assert_eq!(told(Duration::from_secs(25), &[Some(Class::Exhausted)]).await.1, 3);
    }
}
