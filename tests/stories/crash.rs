//! The agent is killed or stopped in the middle of each fault: somebody or the kernel ends it, and
//! the next start finds nothing and says what it found.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    harness::{
        PROMPT, SLOW, Stage, cap_step, experiment, guests, is_warden, kill_step, send, slow_step,
        snapshot, story, visit,
    },
    worker::Worker,
};

/// The kernel's lease of 2 s, and what a busy machine may add to a measurement.
const LEASE: Duration = Duration::from_millis(2300);

/// Whether a customer of this port is harmed.
#[derive(Clone, Copy)]
enum Harm {
    Slow,
    Capped,
}

impl Harm {
    fn step(self) -> String {
        match self {
            Self::Slow => slow_step(8001, "30s"),
            Self::Capped => cap_step(8001, "30s"),
        }
    }

    fn is_felt(self) -> bool {
        match self {
            Self::Slow => visit(8001).map_or(true, |time| time > SLOW),
            Self::Capped => guests(8001, 3).len() < 3,
        }
    }

    /// Waits until customers are served as before; how long after `since` the first of them came.
    ///
    /// They come one after the other without waiting: a packet that dies with the agent is sent again
    /// a second later, and says nothing about those who come after it.
    fn gone_after(self, since: Instant) -> Duration {
        let (served, first) = mpsc::channel();
        loop {
            let (came, served) = (since.elapsed(), served.clone());
            assert!(came < Duration::from_secs(10), "it never ended");
            std::thread::spawn(move || {
                if !self.is_felt() {
                    let _ = served.send(came);
                }
            });
            if let Ok(came) = first.recv_timeout(Duration::from_millis(10)) {
                return came;
            }
        }
    }
}

/// The next start has nothing to do or does it, and says how the run ended.
fn next_start(stage: &mut Stage, id: &str, before: &str) -> Value {
    stage.start();
    let run = stage.run(id);
    assert_eq!(run["state"], "finished", "{run:#}");
    assert_eq!(run["aborted_by"], "crash", "{run:#}");
    assert_eq!(run["cleanup"], "clean", "{run:#}");
    assert_eq!(run["why"]["reason"], "agent_died", "{run:#}");
    assert_eq!(stage.active(), 0);
    let last = stage.events(id).pop().expect("events");
    assert!(last["message"].as_str().is_some_and(|text| !text.is_empty()), "{last:#}");
    eprintln!("the next start says: {}: {}", last["kind"], last["message"]);
    stage.assert_as_before(before);
    // It is fit for the next run.
    let pulled = stage.get("/v1/host");
    assert_eq!(pulled["problems"].as_array().map(Vec::len), Some(0), "{pulled:#}");
    last
}

fn agent_dies(name: &str, harm: Harm) {
    story(name, |stage| {
        stage.four_workers("1h");
        let before = snapshot();
        let id = stage.in_force(&experiment("\"shop\"", &harm.step()));
        assert!(harm.is_felt());
        let warden = stage.agent().warden();
        let since = Instant::now();
        stage.agent().kill();
        let gone = harm.gone_after(since);
        eprintln!("the agent killed: gone after {} ms", gone.as_millis());
        assert!(gone < PROMPT * 2, "only after {gone:?}: that was not the warden");
        stage.until("the warden is done", |_| (!is_warden(warden)).then_some(()));
        // By now, and before anybody starts again.
        stage.assert_as_before(&before);
        next_start(stage, &id, &before);
    });
}

#[test]
fn the_agent_dies_and_the_delay_with_it() {
    agent_dies("the_agent_dies_and_the_delay_with_it", Harm::Slow);
}

#[test]
fn the_agent_dies_and_the_cap_with_it() {
    agent_dies("the_agent_dies_and_the_cap_with_it", Harm::Capped);
}

#[test]
fn the_agent_dies_and_no_second_signal_follows() {
    story("the_agent_dies_and_no_second_signal_follows", |stage| {
        let marker = stage.marker("shop");
        for port in 8001..=8004 {
            stage.workers.push(Worker::start(&marker, port, true));
        }
        stage.policy("leashed = false", "", &stage.group("shop", 3, "1h"));
        stage.start();
        stage.calm("shop", 4);
        let before = snapshot();
        let then =
            "signal = \"SIGTERM\"\nthen = { signal = \"SIGKILL\", after = \"1s\" }\nduration = \"5s\"\n";
        let id = stage.in_force(&experiment("\"shop\"", &format!("{}{then}", kill_step("shop", 1))));
        let warden = stage.agent().warden();
        stage.agent().kill();
        stage.until("the warden is done", |_| (!is_warden(warden)).then_some(()));
        // The time of the second signal passes while nobody of vervet lives, and while the next one does.
        let last = next_start(stage, &id, &before);
        assert!(!last.is_null());
        std::thread::sleep(Duration::from_millis(1500));
        assert!(
            stage.workers.iter_mut().all(|worker| worker.lives()),
            "the second signal came after all"
        );
        // What was taken is still charged: the budget survives.
        let run = stage.play(&experiment("\"shop\"", &kill_step("shop", 1)));
        assert_eq!(run["verdict"], "refused", "{run:#}");
    });
}

fn both_die(name: &str, harm: Harm) {
    story(name, |stage| {
        stage.four_workers("1h");
        let before = snapshot();
        let id = stage.in_force(&experiment("\"shop\"", &harm.step()));
        assert!(harm.is_felt());
        let warden = stage.agent().warden();
        let since = Instant::now();
        // The warden first, and stopped: it must have no chance to notice.
        send(warden, Signal::SIGSTOP);
        stage.agent().kill();
        send(warden, Signal::SIGKILL);
        let gone = harm.gone_after(since);
        eprintln!("agent and warden killed: gone after {} ms", gone.as_millis());
        assert!(gone < LEASE, "only after {gone:?}");
        stage.until("the warden is gone", |_| (!is_warden(warden)).then_some(()));
        next_start(stage, &id, &before);
    });
}

#[test]
fn both_die_and_the_kernel_ends_the_delay() {
    both_die("both_die_and_the_kernel_ends_the_delay", Harm::Slow);
}

#[test]
fn both_die_and_the_kernel_ends_the_cap() {
    both_die("both_die_and_the_kernel_ends_the_cap", Harm::Capped);
}

fn both_hang(name: &str, harm: Harm) {
    story(name, |stage| {
        stage.four_workers("1h");
        let before = snapshot();
        let id = stage.in_force(&experiment("\"shop\"", &harm.step()));
        assert!(harm.is_felt());
        let warden = stage.agent().warden();
        let since = Instant::now();
        send(warden, Signal::SIGSTOP);
        stage.agent().signal(Signal::SIGSTOP);
        let gone = harm.gone_after(since);
        eprintln!("agent and warden stopped: gone after {} ms", gone.as_millis());
        assert!(gone < LEASE, "only after {gone:?}");
        stage.agent().kill();
        send(warden, Signal::SIGKILL);
        stage.until("the warden is gone", |_| (!is_warden(warden)).then_some(()));
        next_start(stage, &id, &before);
    });
}

#[test]
fn both_hang_and_the_kernel_ends_the_delay() {
    both_hang("both_hang_and_the_kernel_ends_the_delay", Harm::Slow);
}

#[test]
fn both_hang_and_the_kernel_ends_the_cap() {
    both_hang("both_hang_and_the_kernel_ends_the_cap", Harm::Capped);
}
