//! Monitors over real processes: readings, deaths without polling, sources that fail.

#[path = "process_support/mod.rs"]
mod support;

use std::{
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use support::{Kid, PATIENCE, observed, real};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use uuid::Uuid;
use vervet::{
    config::{GroupPolicy, ReadySource, Removal},
    experiment::{Check, GroupName, HttpCheck, Probe, ProcessSelector, Signal},
    host::ProcessId,
    policy::capacity::Reading,
    probe::monitor::{Monitors, Observation},
};

const HOUR: Duration = Duration::from_hours(1);

fn group(name: &str, tag: &str, ready: ReadySource) -> GroupPolicy {
    GroupPolicy {
        name: name.into(),
        floor: 1,
        expected: None,
        members: ProcessSelector { cmdline: Some(format!("^{tag} ")), ..ProcessSelector::default() },
        ready,
        poll: HOUR,
        stale_after: Duration::from_secs(5),
        settle: Duration::from_secs(1),
        removal: Removal { at_once: 1, every: Duration::from_secs(1) },
        monkey: false,
        spare: Vec::new(),
    }
}

fn tag(name: &str) -> String {
    format!("vvtest-{name}-{}", std::process::id())
}

struct Watch {
    monitors: Monitors,
    seen: UnboundedReceiver<Observation>,
}

impl Watch {
    fn start(groups: &[GroupPolicy]) -> Self {
        let (sender, seen) = unbounded_channel();
        let monitors = Monitors::start(groups, &Arc::new(real()), sender).expect("started");
        Self { monitors, seen }
    }

    /// The first observation for which `choose` gives something.
    async fn next<T>(&mut self, choose: impl Fn(Observation) -> Option<T>) -> T {
        observed(&mut self.seen, choose).await
    }

    async fn reading(&mut self, of: &str) -> Result<Reading, String> {
        let of = GroupName::from(of);
        self.next(|seen| match seen {
            Observation::Reading { group, result } if group == of => Some(result),
            _ => None,
        })
        .await
    }

    async fn lost(&mut self) -> (Vec<GroupName>, ProcessId) {
        self.next(|seen| match seen {
            Observation::Lost { groups, process, .. } => Some((groups, process)),
            _ => None,
        })
        .await
    }
}

#[tokio::test]
async fn deaths_are_told_without_any_poll() {
    let tag = tag("deaths");
    let mut kids: Vec<Kid> = (0..4).map(|_| Kid::sleeper(&tag)).collect();
    let both = [group("one", &tag, ReadySource::Process), group("two", &tag, ReadySource::Process)];
    let mut watch = Watch::start(&both);
    for name in ["one", "two"] {
        let reading = watch.reading(name).await.expect("a reading");
        assert_eq!((reading.ready, reading.total), (4, 4));
    }
    let first = kids[0].id();
    let began = Instant::now();
    kids[0].0.kill().expect("killed");
    let (groups, process) = watch.lost().await;
    assert!(began.elapsed() < Duration::from_secs(1), "polls are an hour apart");
    assert_eq!((groups, process), (vec!["one".into(), "two".into()], first));
    watch.monitors.refresh(&"one".into());
    let reading = watch.reading("one").await.expect("a reading");
    assert_eq!((reading.ready, reading.total), (3, 3));
}

#[tokio::test]
async fn a_refresh_sees_new_members_and_watches_them() {
    let tag = tag("refresh");
    let mut watch = Watch::start(&[group("g", &tag, ReadySource::Process)]);
    let reading = watch.reading("g").await.expect("a reading");
    assert_eq!((reading.ready, reading.total), (0, 0));
    let mut kid = Kid::sleeper(&tag);
    let id = kid.id();
    let asked = vervet::host::linux::clock::boottime();
    watch.monitors.refresh(&"g".into());
    let reading = watch.reading("g").await.expect("a reading");
    assert!(reading.taken_at >= asked);
    assert_eq!((reading.ready, reading.total), (1, 1));
    assert_eq!(reading.members.expect("members")[0].process.id, id);
    kid.0.kill().expect("killed");
    assert_eq!(watch.lost().await, (vec!["g".into()], id));
}

#[tokio::test]
async fn a_stopped_member_is_there_but_not_ready() {
    let tag = tag("stopped");
    let kids = [Kid::sleeper(&tag), Kid::sleeper(&tag)];
    let stop = Signal::from_name("SIGSTOP").expect("a signal");
    real().signal(kids[0].id(), stop).expect("stopped");
    while real().state(kids[0].id()) != Ok(vervet::host::ProcessState::Stopped) {
        tokio::task::yield_now().await;
    }
    let mut watch = Watch::start(&[group("g", &tag, ReadySource::Process)]);
    let reading = watch.reading("g").await.expect("a reading");
    assert_eq!((reading.ready, reading.total), (1, 2));
}

#[tokio::test]
async fn a_process_is_watched_for_its_own_sake() {
    let mut watch = Watch::start(&[]);
    let (mut kid, mut other) = (Kid::sleeper("vvtest-target"), Kid::sleeper("vvtest-target"));
    let (id, unwatched) = (kid.id(), other.id());
    watch.monitors.watch(id).expect("watched");
    watch.monitors.watch(unwatched).expect("watched");
    watch.monitors.unwatch(unwatched);
    other.end();
    kid.end();
    assert_eq!(watch.lost().await, (vec![], id));
    watch.monitors.watch(id).expect("watched");
    assert_eq!(watch.lost().await, (vec![], id), "gone already");
}

#[tokio::test]
async fn programs_count_and_members_are_watched_all_the_same() {
    let tag = tag("count");
    let mut kid = Kid::sleeper(&tag);
    let id = kid.id();
    let argv = ["/bin/echo", "7", "9"].map(str::to_owned).to_vec();
    let ready = ReadySource::Command { argv, within: Duration::from_secs(5) };
    let expected = GroupPolicy { expected: Some(7), ..group("g", &tag, ready) };
    let mut watch = Watch::start(&[expected]);
    let reading = watch.reading("g").await.expect("a reading");
    assert_eq!((reading.ready, reading.total, reading.members), (7, 9, None));
    kid.end();
    assert_eq!(watch.lost().await, (vec!["g".into()], id));
}

/// A program that counts what is in a file, which the test changes.
fn counting(dir: &std::path::Path) -> ReadySource {
    let argv = vec!["/bin/cat".to_owned(), dir.join("count").display().to_string()];
    ReadySource::Command { argv, within: Duration::from_secs(5) }
}

#[tokio::test]
async fn a_count_above_the_expected_is_not_believed() {
    let (tag, dir) = (tag("above"), tempfile::tempdir().expect("a directory"));
    let (count, _kid) = (dir.path().join("count"), Kid::sleeper(&tag));
    let policy = GroupPolicy { expected: Some(4), ..group("g", &tag, counting(dir.path())) };
    std::fs::write(&count, "4").expect("written");
    let mut watch = Watch::start(&[policy]);
    assert_eq!(watch.reading("g").await.expect("a reading").ready, 4);
    std::fs::write(&count, "5").expect("written");
    watch.monitors.refresh(&"g".into());
    let error = watch.reading("g").await.expect_err("more than there can be");
    assert_eq!(error, "the source counts 5 ready in g, and 4 are expected at most");
}

#[tokio::test]
async fn a_count_above_what_is_found_is_believed_for_as_long_as_it_may_be_late() {
    let (tag, dir) = (tag("late"), tempfile::tempdir().expect("a directory"));
    let count = dir.path().join("count");
    let mut kids = [Kid::sleeper(&tag), Kid::sleeper(&tag)];
    let settle = Duration::from_millis(400);
    let policy = GroupPolicy { settle, ..group("g", &tag, counting(dir.path())) };
    std::fs::write(&count, "2").expect("written");
    let mut watch = Watch::start(&[policy]);
    let reading = watch.reading("g").await.expect("a reading");
    assert_eq!((reading.ready, reading.total), (2, 2));
    // One dies; the program has not noticed yet.
    kids[1].end();
    watch.monitors.refresh(&"g".into());
    assert_eq!(watch.reading("g").await.expect("a reading").ready, 2);
    // It never does.
    let begun = Instant::now();
    let lie = loop {
        assert!(begun.elapsed() < PATIENCE, "it is believed for ever");
        tokio::time::sleep(settle / 4).await;
        watch.monitors.refresh(&"g".into());
        if let Err(lie) = watch.reading("g").await {
            break lie;
        }
    };
    assert!(lie.starts_with("the source counts 2 ready in g, and 1 are found"), "{lie}");
    std::fs::write(&count, "1").expect("written");
    watch.monitors.refresh(&"g".into());
    assert_eq!(watch.reading("g").await.expect("a reading").ready, 1);
}

#[tokio::test]
async fn sources_that_fail_or_hang_are_missing_readings() {
    let tag = tag("fail");
    let command = |script: &str, within| {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        ReadySource::Command { argv, within }
    };
    let failing = group("failing", &tag, command("exit 1", PATIENCE));
    let mut hanging = group("hanging", &tag, command("sleep 600", Duration::from_secs(3)));
    hanging.stale_after = Duration::from_millis(200);
    // An answer that comes after readings of its age are stale is none.
    let mut slow = group("slow", &tag, command("sleep 1; echo 4", PATIENCE));
    slow.stale_after = Duration::from_millis(300);
    slow.expected = Some(4);
    let mut watch = Watch::start(std::slice::from_ref(&failing));
    assert!(watch.reading("failing").await.expect_err("failed").contains("status 1"));
    let mut watch = Watch::start(&[hanging]);
    assert!(watch.reading("hanging").await.expect_err("hangs").contains("still waiting"));
    let mut watch = Watch::start(&[slow]);
    assert!(watch.reading("slow").await.expect_err("slow").contains("still waiting"));
    loop {
        let error = watch.reading("slow").await.expect_err("too old");
        if !error.contains("still waiting") {
            assert!(error.contains("took"), "{error}");
            break;
        }
    }
    let mut lost = group("lost", &tag, ReadySource::Process);
    lost.members = ProcessSelector { pidfile: Some("/nonexistent".into()), ..Default::default() };
    let mut watch = Watch::start(&[failing, lost]);
    assert!(watch.reading("lost").await.expect_err("no pidfile").contains("pidfile"));
}

/// This test binary again, as a server: see `serve`.
fn server(tag: &str, ready: bool) -> Kid {
    let exe = std::env::current_exe().expect("exe");
    let mut command = Command::new(exe);
    command.arg0(tag).args(["--exact", "serve", "--nocapture", "--ignored"]);
    command.env("VVTEST_SERVE", if ready { "200 OK" } else { "hang" });
    let child = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let kid = Kid(child.spawn().expect("a server"));
    let pid = kid.0.id();
    let listens = || {
        let own = ProcessSelector { cmdline: Some(format!("^{tag} ")), ..Default::default() };
        let found = real().find(
            &ProcessSelector { group: Some("g".into()), ..Default::default() },
            &[GroupPolicy { members: own, ..group("g", tag, ReadySource::Process) }],
        );
        found.expect("found").iter().any(|kid| kid.id.pid == pid && !kid.listens.is_empty())
    };
    let until = Instant::now() + PATIENCE;
    while !listens() {
        assert!(Instant::now() < until, "the server listens");
        std::thread::sleep(Duration::from_millis(5));
    }
    kid
}

/// Not a test of its own: what [`server`] starts. Answers until its standard input is closed.
#[test]
#[ignore = "a helper of the other tests"]
fn serve() {
    use std::io::{Read as _, Write as _};
    let Ok(answer) = std::env::var("VVTEST_SERVE") else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            if answer == "hang" {
                kept.push(stream);
            } else {
                let _ = write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 2\r\n\r\nok");
            }
        }
    });
    let _ = std::io::stdin().read(&mut [0]);
}

#[tokio::test]
async fn members_that_hang_are_not_ready_and_hold_nobody_up() {
    let tag = tag("http");
    let kids = [server(&tag, true), server(&tag, true), server(&tag, false)];
    let within = Duration::from_millis(500);
    let url = "http://127.0.0.1:{port}/healthz?pid={pid}".to_owned();
    let http = HttpCheck { body: Some("ok".into()), ..HttpCheck::new(url, within) };
    let http = ReadySource::Http(http);
    let tcp = ReadySource::Tcp { port: None, within };
    let other = ReadySource::Tcp { port: Some(1), within };
    let groups = [group("http", &tag, http), group("tcp", &tag, tcp), group("port", &tag, other)];
    for (index, ready) in [(0, 2), (1, 3), (2, 0)] {
        let mut watch = Watch::start(&groups[index..=index]);
        let began = Instant::now();
        let reading = watch.reading(&groups[index].name.0).await.expect("a reading");
        assert_eq!((reading.ready, reading.total), (ready, 3), "{}", groups[index].name);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        let members = reading.members.expect("members");
        let hung = members.iter().find(|member| member.process.id == kids[2].id()).expect("it");
        assert_eq!(hung.ready, index == 1);
        assert_eq!(hung.process.listens.len(), 1);
    }
}

#[tokio::test]
async fn probes_run_until_they_are_stopped() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address: SocketAddr = listener.local_addr().expect("address");
    let within = Duration::from_secs(2);
    let probe = |check| Probe { name: "p".into(), check, every: Duration::from_millis(20), tolerate: 0 };
    let probes = [
        probe(Check::Group { group: "g".into(), ready: 1 }),
        probe(Check::Tcp { address: address.to_string(), within }),
        probe(Check::Command { argv: vec!["/bin/false".into()], within }),
    ];
    let mut watch = Watch::start(&[]);
    let run = Uuid::now_v7();
    watch.monitors.start_probes(run, &probes);
    for wanted in [1, 2, 1, 2, 1, 2] {
        let outcome = watch
            .next(|seen| match seen {
                Observation::Probe { run: of, probe, outcome, .. } if of == run => {
                    assert_ne!(probe, 0, "groups are policy's");
                    (probe == wanted).then_some(outcome)
                }
                _ => None,
            })
            .await;
        assert_eq!(outcome.is_ok(), wanted == 1, "{outcome:?}");
    }
    watch.monitors.stop_probes(run);
    // What was on its way when they were stopped; then headroom alone goes on.
    tokio::time::sleep(Duration::from_millis(50)).await;
    while watch.seen.try_recv().is_ok() {}
    let next = watch.next(Some).await;
    assert!(matches!(next, Observation::Headroom(Ok(_))), "{next:?}");
}

#[tokio::test]
async fn stopped_monitors_say_nothing_more() {
    let tag = tag("silent");
    let mut kid = Kid::sleeper(&tag);
    let mut watch = Watch::start(&[group("g", &tag, ReadySource::Process)]);
    watch.reading("g").await.expect("a reading");
    watch.monitors.stop();
    kid.end();
    drop(watch.monitors);
    let rest = async {
        while let Some(seen) = watch.seen.recv().await {
            assert!(!matches!(seen, Observation::Lost { .. }), "{seen:?}");
        }
    };
    tokio::time::timeout(PATIENCE, rest).await.expect("all senders are gone");
}
