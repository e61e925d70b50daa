//! Groups of units, asked of a service manager on a real bus: readiness, main processes, silence.

#[path = "process_support/mod.rs"]
mod process_support;
#[path = "systemd_support/mod.rs"]
mod systemd_support;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use process_support::{observed, real};
use systemd_support::{MockSystemd, MockUnit};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use vervet::{
    config::{GroupPolicy, ReadySource, Removal},
    experiment::ProcessSelector,
    host::{UnitVerb, linux::systemd::Systemd},
    policy::capacity::Reading,
    probe::monitor::{Monitors, Observation},
};

/// Cgroups of units of this test's own.
struct Slice(PathBuf);

impl Slice {
    fn new(test: &str) -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let unified = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let mount = unified.and_then(|line| line.split(' ').nth(4)).unwrap_or("/nowhere");
        let path = PathBuf::from(mount).join(format!("vvtest-{}.slice", std::process::id()));
        if let Err(error) = std::fs::create_dir_all(&path) {
            eprintln!("SKIPPED: {test}: {}: {error}", path.display());
            return None;
        }
        Some(Self(path))
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(entry.path());
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

struct Shop {
    monitors: Monitors,
    seen: UnboundedReceiver<Observation>,
    // Dropped before the slice: the units' processes end first.
    mock: MockSystemd,
    systemd: Systemd,
    _slice: Slice,
}

impl Shop {
    /// Two units that run, watched as one group.
    fn open(test: &str, ready: ReadySource) -> Option<Self> {
        let (mock, slice) = (systemd_support::start(test)?, Slice::new(test)?);
        let systemd = Systemd::at(mock.addresses());
        for at in 1..=2 {
            let name = unit(at);
            let mut one = MockUnit { argv: vec!["sleep".into(), "600".into()], ..MockUnit::default() };
            one.cgroup = format!("/vvtest-{}.slice/{name}", std::process::id());
            one.cgroup_dir = Some(slice.0.join(&name));
            mock.add(&name, one);
            let soon = Some(Instant::now() + Duration::from_secs(10));
            systemd.job(&name, UnitVerb::Start, soon).expect("started");
        }
        let (sender, seen) = unbounded_channel();
        let asked = Arc::new(Systemd::at(mock.addresses()));
        let processes = Arc::new(real());
        let monitors =
            Monitors::start_with(&[group(ready)], &processes, asked, sender).expect("monitors");
        Some(Self { monitors, seen, mock, systemd, _slice: slice })
    }

    async fn next<T>(&mut self, choose: impl Fn(Observation) -> Option<T>) -> T {
        observed(&mut self.seen, choose).await
    }

    /// A reading with so many ready, of so many.
    async fn reads(&mut self, ready: u32, total: u32) -> Reading {
        self.next(|seen| match seen {
            Observation::Reading { result: Ok(reading), .. } => {
                ((reading.ready, reading.total) == (ready, total)).then_some(reading)
            }
            _ => None,
        })
        .await
    }
}

fn unit(at: u32) -> String {
    format!("vvshop-{}@{at}.service", std::process::id())
}

fn group(ready: ReadySource) -> GroupPolicy {
    let unit = Some(format!("vvshop-{}@*.service", std::process::id()));
    GroupPolicy {
        name: "shop".into(),
        floor: 1,
        expected: Some(2),
        members: ProcessSelector { unit, ..ProcessSelector::default() },
        ready,
        poll: Duration::from_millis(100),
        stale_after: Duration::from_secs(3),
        settle: Duration::from_secs(1),
        removal: Removal { at_once: 1, every: Duration::from_secs(1) },
        monkey: false,
        spare: Vec::new(),
    }
}

#[tokio::test]
async fn units_are_ready_while_systemd_calls_them_active() {
    let test = "units_are_ready_while_systemd_calls_them_active";
    let Some(mut shop) = Shop::open(test, ReadySource::Systemd) else { return };
    let reading = shop.reads(2, 2).await;
    let mains: Vec<u32> = reading.members.unwrap().iter().map(|one| one.process.id.pid).collect();
    for at in 1..=2 {
        let pid = shop.mock.with(|state| state.units[&unit(at)].pid());
        assert!(mains.contains(&pid), "{mains:?}");
    }
    // Its process lives, but systemd does not call it active.
    shop.mock.with(|state| state.units.get_mut(&unit(2)).unwrap().active = false);
    shop.reads(1, 2).await;
    shop.mock.with(|state| state.units.get_mut(&unit(2)).unwrap().active = true);
    shop.reads(2, 2).await;
    // Stopped, it is lost: by the death of its main process.
    let main = shop.mock.with(|state| state.units[&unit(1)].pid());
    shop.systemd.job(&unit(1), UnitVerb::Stop, None).expect("stopped");
    let lost = |seen| match seen {
        Observation::Lost { process, groups, .. } => Some((process.pid, groups)),
        _ => None,
    };
    assert_eq!(shop.next(lost).await, (main, vec!["shop".into()]));
    shop.reads(1, 1).await;
    shop.monitors.stop();
}

#[tokio::test]
async fn a_bus_that_says_nothing_is_a_missing_reading() {
    let test = "a_bus_that_says_nothing_is_a_missing_reading";
    let Some(mut shop) = Shop::open(test, ReadySource::Systemd) else { return };
    shop.reads(2, 2).await;
    shop.mock.with(|state| state.mute = true);
    let missing = |seen| match seen {
        Observation::Reading { result: Err(error), .. } => Some(error),
        _ => None,
    };
    let began = Instant::now();
    let error = shop.next(missing).await;
    assert!(error.contains("did not answer"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    shop.monitors.stop();
}

#[tokio::test]
async fn a_bus_that_is_gone_is_a_missing_reading() {
    let test = "a_bus_that_is_gone_is_a_missing_reading";
    let Some(mut shop) = Shop::open(test, ReadySource::Systemd) else { return };
    shop.reads(2, 2).await;
    shop.mock.kill_bus();
    shop.next(|seen| matches!(seen, Observation::Reading { result: Err(_), .. }).then_some(())).await;
    shop.monitors.stop();
}
