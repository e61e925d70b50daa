//! HAProxy as a source of capacity and as the way out of the rotation: the real one, and what only
//! pretends to be one.

use std::{
    io::Read as _,
    net::TcpListener,
    os::unix::net::UnixListener,
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use vervet::host::{
    haproxy::{Health, Pool},
    linux::haproxy::servers,
};

use crate::{
    balanced::{Balanced, PORTS, missing, open},
    harness::{PROMPT, Stage, experiment, is_warden, kill_step, story},
};

const SOON: Duration = Duration::from_millis(500);

/// Plays with four nginx behind an HAProxy and the agent, calm; `extra` are more lines of the backend.
fn balanced(name: &str, extra: &str, play: impl FnOnce(&mut Stage, &mut Balanced) + Send) {
    if let Some(why) = missing() {
        return eprintln!("SKIPPED: {name}: {why}");
    }
    story(name, |stage| {
        let mut balanced = Balanced::start(stage, extra);
        stage.policy("leashed = false", "wait = \"20s\"", &balanced.group("1s"));
        stage.start();
        stage.calm("shop", 4);
        play(stage, &mut balanced);
        // It ends before what it undoes at.
        stage.agent = None;
    });
}

fn complaint(pool: &Pool) -> String {
    String::from(servers(pool, SOON).expect_err("no answer"))
}

fn shop_complains(stage: &mut Stage, of: &str) -> String {
    let words = stage.until(&format!("the group complains of {of}"), |stage| {
        let group = stage.group_now("shop");
        let text = group.to_string();
        text.contains(of).then_some(text)
    });
    assert_eq!(stage.group_now("shop")["fresh"], false, "{words}");
    words
}

#[test]
fn the_load_balancer_says_who_is_up() {
    // HAProxy has six servers up. Two of them are no capacity: a second name, and somebody else.
    let lie = "  server twice 127.0.0.1:8001 check inter 100ms\n  server alien 127.0.0.1:8009 check inter 100ms\n";
    balanced("the_load_balancer_says_who_is_up", lie, |stage, balanced| {
        let _alien = TcpListener::bind("127.0.0.1:8009").expect("a port");
        stage.until("HAProxy has six up", |_| (balanced.up() == 6).then_some(()));
        stage.calm("shop", 4);
        let group = stage.group_now("shop");
        assert_eq!((&group["ready"], &group["total"]), (&4.into(), &4.into()), "{group:#}");

        // Out of the rotation is out of the count, though the process is as well as before.
        assert_eq!(balanced.ask("set server web/s2 state maint"), "\n");
        stage.until("three are ready", |stage| (stage.group_now("shop")["ready"] == 3).then_some(()));
        let run = stage.play(&experiment("\"shop\"", &kill_step("shop", 1)));
        assert_eq!(run["verdict"], "refused", "{run:#}");
        assert_eq!(run["why"]["reason"], "floor", "{run:#}");

        // One that HAProxy has no server for, though six are up again, is none either.
        balanced.ask("set server web/s2 state ready");
        stage.calm("shop", 4);
        balanced.ask("set server web/s4 addr 127.0.0.1 port 8009");
        stage.until("nobody leads to the fourth", |stage| {
            (balanced.up() == 6 && stage.group_now("shop")["ready"] == 3).then_some(())
        });
        balanced.ask("set server web/s4 addr 127.0.0.1 port 8004");
        stage.calm("shop", 4);

        // Nor is the weight of nothing.
        balanced.ask("set server web/s3 weight 0");
        stage.until("s3 has no weight", |stage| {
            let found = servers(&balanced.pool(), SOON).expect("answers");
            let s3 = found.iter().find(|server| server.name == "s3").expect("there");
            (s3.health == Health::NotUp && stage.group_now("shop")["ready"] == 3).then_some(())
        });
    });
}

#[test]
fn what_haproxy_does_not_say_is_no_good_news() {
    balanced("what_haproxy_does_not_say_is_no_good_news", "", |stage, balanced| {
        let pool = |socket: &str, backend: &str| Pool {
            haproxy: balanced.dir.join(socket).to_str().expect("UTF-8").to_owned(),
            backend: backend.to_owned(),
        };
        assert_eq!(servers(&pool("operator.sock", "web"), SOON).expect("answers").len(), 4);
        for (socket, backend, says) in [
            ("admin.sock", "nope", "has no backend `nope`"),
            ("user.sock", "web", "level operator"),
            ("none.sock", "web", "does HAProxy run?"),
        ] {
            let words = complaint(&pool(socket, backend));
            assert!(words.contains(says), "{words}");
        }
        // Hung: a missing reading, never the old one; and well again when it is.
        balanced.signal_haproxy(Signal::SIGSTOP);
        shop_complains(stage, "did not answer within 500ms");
        balanced.signal_haproxy(Signal::SIGCONT);
        stage.calm("shop", 4);
        // Stopped, and started again.
        balanced.stop_haproxy();
        shop_complains(stage, "does HAProxy run?");
        balanced.start_haproxy(stage);
        stage.calm("shop", 4);
        // Reloaded: nobody notices.
        balanced.reload_haproxy();
        stage.calm("shop", 4);
    });
}

#[test]
fn a_backend_that_is_not_checked_or_not_here_is_no_reading() {
    let name = "a_backend_that_is_not_checked_or_not_here_is_no_reading";
    if let Some(why) = missing() {
        return eprintln!("SKIPPED: {name}: {why}");
    }
    story(name, |stage| {
        let balanced = Balanced::start(stage, "");
        for (backend, says) in [
            ("unchecked", "add `check` to its line"),
            ("elsewhere", "none of the 4 members listens where a server of the backend `elsewhere` is"),
        ] {
            let group =
                balanced.group("1s").replace("backend = \"web\"", &format!("backend = \"{backend}\""));
            stage.policy("leashed = false", "", &group);
            stage.start();
            let words = shop_complains(stage, says);
            eprintln!("{words}");
            let run = stage.play(&experiment("\"shop\"", &kill_step("shop", 1)));
            assert_eq!(run["verdict"], "refused", "{run:#}");
            stage.agent = None;
        }
    });
}

/// Listens where HAProxy would, and answers each connection so.
fn pretend(dir: &Path, name: &str, answer: impl Fn(&mut dyn std::io::Write) + Send + 'static) -> Pool {
    let path = dir.join(name);
    let listener = UnixListener::bind(&path).expect("a socket");
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.read(&mut [0; 256]);
            answer(&mut client);
        }
    });
    Pool { haproxy: path.to_str().expect("UTF-8").to_owned(), backend: "web".to_owned() }
}

#[test]
fn answers_that_are_slow_cut_or_endless() {
    let dir = tempfile::tempdir().expect("a directory");
    let within = |pool: &Pool, says: &str| {
        let begun = Instant::now();
        let words = complaint(pool);
        assert!(words.contains(says), "{words}");
        assert!(begun.elapsed() < SOON + PROMPT, "took {:?}", begun.elapsed());
    };
    within(
        &pretend(dir.path(), "mute", |_| std::thread::sleep(SOON * 4)),
        "did not answer within 500ms",
    );
    let drip = |client: &mut dyn std::io::Write| {
        while client.write_all(b"#").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    within(&pretend(dir.path(), "drip", drip), "did not answer within 500ms");
    let cut = |client: &mut dyn std::io::Write| drop(client.write_all(b"# pxname,svname\nweb,s1"));
    within(&pretend(dir.path(), "cut", cut), "breaks off");
    let flood = |client: &mut dyn std::io::Write| while client.write_all(&[b'x'; 4096]).is_ok() {};
    let words = complaint(&pretend(dir.path(), "flood", flood));
    assert!(words.contains("longer than") || words.contains("did not answer"), "{words}");
    let other = |client: &mut dyn std::io::Write| drop(client.write_all(b"hello\n\n"));
    within(&pretend(dir.path(), "other", other), "is no table");
    // A queue that is full takes nobody: that must not hold anybody up either.
    let path = dir.path().join("full");
    let _listener = UnixListener::bind(&path).expect("a socket");
    let _crowd: Vec<_> = (0..400)
        .map_while(|_| {
            use rustix::net::{
                AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
            };
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("one");
            connect(&socket, &SocketAddrUnix::new(&path).expect("a path")).ok().map(|()| socket)
        })
        .collect();
    let pool = Pool { haproxy: path.to_str().expect("UTF-8").to_owned(), backend: "web".to_owned() };
    within(&pool, "did not answer within 500ms");
}

/// A session on each server that does not end by itself.
fn guests(stage: &mut Stage, balanced: &Balanced) -> Vec<std::net::TcpStream> {
    let guests: Vec<_> = PORTS.iter().map(|_| open("/endless").expect("a customer")).collect();
    stage.until("each server has a guest", |_| {
        let found = servers(&balanced.pool(), SOON).ok()?;
        found.iter().all(|server| server.sessions > 0).then_some(())
    });
    guests
}

/// Begins a run and waits until HAProxy drains its victim.
fn draining(stage: &mut Stage, balanced: &Balanced, step: &str) -> String {
    let id = stage.begin(&experiment("\"shop\"", step));
    stage.until("one drains", |_| (balanced.draining() == 1).then_some(()));
    id
}

/// Everything is as it was, and nobody was harmed.
fn unharmed(stage: &mut Stage, balanced: &Balanced, before: &(String, Vec<u32>)) {
    stage.until("all are up again", |_| (balanced.up() == 4).then_some(()));
    assert_eq!((balanced.settings(), balanced.masters()), *before);
}

#[test]
fn who_still_has_sessions_is_spared_unless_told_otherwise() {
    let name = "who_still_has_sessions_is_spared_unless_told_otherwise";
    balanced(name, "", |stage, balanced| {
        let before = (balanced.settings(), balanced.masters());
        let _guests = guests(stage, balanced);
        let spare = experiment("\"shop\"", &balanced.drained_kill("400ms", "1s", "spare"));
        let run = stage.play(&spare);
        assert_eq!(run["verdict"], "inconclusive", "{run:#}");
        let why = run["why"].to_string();
        assert!(why.contains("1 sessions were left") && why.contains("nothing was killed"), "{why}");
        assert_eq!(run["cleanup"], "clean", "{run:#}");
        unharmed(stage, balanced, &before);
        // It is not charged for ever.
        stage.calm("shop", 4);

        let kill = experiment("\"shop\"", &balanced.drained_kill("400ms", "1s", "kill"));
        let run = stage.play(&kill);
        assert_eq!(run["verdict"], "passed", "{run:#}");
        assert_ne!(balanced.masters(), before.1);
        stage.calm("shop", 4);
        assert_eq!(balanced.settings(), before.0);
    });
}

#[test]
fn an_abort_cuts_the_drain_short() {
    balanced("an_abort_cuts_the_drain_short", "", |stage, balanced| {
        let before = (balanced.settings(), balanced.masters());
        let _guests = guests(stage, balanced);
        let id = draining(stage, balanced, &balanced.drained_kill("30s", "1s", "spare"));
        let begun = Instant::now();
        stage.call("DELETE", &format!("/v1/runs/{id}"), "");
        assert_eq!(balanced.draining(), 0, "undone when it is answered");
        assert!(begun.elapsed() < PROMPT, "took {:?}", begun.elapsed());
        let run = stage.finished(&id);
        assert_eq!((&run["verdict"], &run["cleanup"]), (&"aborted".into(), &"clean".into()), "{run:#}");
        unharmed(stage, balanced, &before);
        stage.calm("shop", 4);
    });
}

#[test]
fn the_warden_puts_back_what_a_dead_agent_drained() {
    let name = "the_warden_puts_back_what_a_dead_agent_drained";
    balanced(name, "", |stage, balanced| {
        let before = (balanced.settings(), balanced.masters());
        let guests = guests(stage, balanced);
        let id = draining(stage, balanced, &balanced.drained_kill("10s", "1s", "spare"));
        let warden = stage.agent().warden();
        stage.agent().kill();
        stage.until("the warden is done", |_| (!is_warden(warden)).then_some(()));
        assert_eq!(balanced.draining(), 0);
        unharmed(stage, balanced, &before);
        // Both at once: the next start does it.
        drop(guests);
        stage.start();
        let run = stage.run(&id);
        assert_eq!((&run["aborted_by"], &run["cleanup"]), (&"crash".into(), &"clean".into()), "{run:#}");
        stage.calm("shop", 4);
        let _guests = self::guests(stage, balanced);
        draining(stage, balanced, &balanced.drained_kill("10s", "1s", "spare"));
        let warden = stage.agent().warden();
        crate::harness::send(warden, Signal::SIGSTOP);
        stage.agent().kill();
        crate::harness::send(warden, Signal::SIGKILL);
        assert_eq!(balanced.draining(), 1, "nobody was there to do it");
        stage.start();
        assert_eq!(balanced.draining(), 0, "undone before it serves");
        unharmed(stage, balanced, &before);
    });
}

/// Begins a run and waits until its victim is dead and out of the rotation.
fn killed(stage: &mut Stage, balanced: &Balanced) -> String {
    let step = balanced.drained_kill("5s", "10s", "spare");
    let id = stage.begin(&experiment("\"shop\"", &step));
    stage.until("it is in force", |stage| {
        (stage.run(&id)["steps"][0]["state"] == "in_force").then_some(())
    });
    id
}

fn ended(stage: &mut Stage, id: &str, balanced: &Balanced, settings: &str) -> Value {
    let run = stage.finished(id);
    assert_eq!(run["cleanup"], "clean", "{run:#}");
    stage.until("all are up again", |_| (balanced.up() == 4).then_some(()));
    assert_eq!(balanced.settings(), settings);
    run
}

#[test]
fn haproxy_started_anew_or_reloaded_has_nothing_to_undo() {
    let name = "haproxy_started_anew_or_reloaded_has_nothing_to_undo";
    balanced(name, "", |stage, balanced| {
        let settings = balanced.settings();
        let id = killed(stage, balanced);
        balanced.reload_haproxy();
        stage.until("the new one answers", |_| {
            (balanced.draining() == 0 && balanced.up() == 4).then_some(())
        });
        stage.call("DELETE", &format!("/v1/runs/{id}"), "");
        ended(stage, &id, balanced, &settings);
        stage.calm("shop", 4);

        let id = killed(stage, balanced);
        balanced.stop_haproxy();
        // Losing sight ends the run, and nobody is there to be told anything.
        let run = stage.finished(&id);
        assert_eq!((&run["verdict"], &run["cleanup"]), (&"aborted".into(), &"clean".into()), "{run:#}");
        balanced.start_haproxy(stage);
        ended(stage, &id, balanced, &settings);
        stage.calm("shop", 4);

        // In the middle of a drain: nothing is killed that gets requests again.
        let before = (balanced.settings(), balanced.masters());
        let guests = guests(stage, balanced);
        let id = draining(stage, balanced, &balanced.drained_kill("20s", "1s", "kill"));
        balanced.reload_haproxy();
        let run = stage.finished(&id);
        // Whoever notices first: the question to the drain, or the watch, for which servers that are
        // checked anew are not ready yet.
        assert!(
            ["inconclusive", "aborted"].contains(&run["verdict"].as_str().unwrap_or_default()),
            "{run:#}"
        );
        assert_eq!(run["cleanup"], "clean", "{run:#}");
        let why = run["why"].to_string();
        assert!(run["verdict"] == "aborted" || why.contains("does not drain any more"), "{run:#}");
        drop(guests);
        unharmed(stage, balanced, &before);
    });
}

#[test]
fn a_hung_haproxy_is_stuck_until_it_is_not() {
    balanced("a_hung_haproxy_is_stuck_until_it_is_not", "", |stage, balanced| {
        let settings = balanced.settings();
        let id = killed(stage, balanced);
        balanced.signal_haproxy(Signal::SIGSTOP);
        stage.until("it is said to be stuck", |stage| {
            let run = stage.run(&id);
            (run["cleanup"] == "stuck").then_some(run)
        });
        // Meanwhile the way out is open.
        let begun = Instant::now();
        stage.get("/v1/groups");
        assert!(begun.elapsed() < PROMPT);
        balanced.signal_haproxy(Signal::SIGCONT);
        stage.until("it is undone", |stage| (stage.run(&id)["cleanup"] == "clean").then_some(()));
        ended(stage, &id, balanced, &settings);
    });
}

#[test]
fn everything_down_at_once_is_distrusted_and_put_back() {
    balanced("everything_down_at_once_is_distrusted_and_put_back", "", |stage, balanced| {
        let id = killed(stage, balanced);
        for port in 1..=4 {
            balanced.ask(&format!("set server web/s{port} state maint"));
        }
        let run = stage.finished(&id);
        assert_eq!(
            (&run["verdict"], &run["aborted_by"]),
            (&"aborted".into(), &"limiter".into()),
            "{run:#}"
        );
        assert_eq!(run["cleanup"], "clean", "{run:#}");
        // What others put away meanwhile stays away.
        assert_eq!(balanced.states(), ["MAINT"; 4]);
    });
}

#[test]
fn what_cannot_be_drained_is_refused_before_anything_is_touched() {
    let name = "what_cannot_be_drained_is_refused_before_anything_is_touched";
    balanced(name, "", |stage, balanced| {
        let before = (balanced.settings(), balanced.masters());
        let step = balanced.drained_kill("5s", "1s", "spare");
        // What the group's own readings would not see.
        for (from, to) in [
            ("admin.sock", "operator.sock"),
            ("backend = \"web\"", "backend = \"nope\""),
            ("backend = \"web\"", "backend = \"elsewhere\""),
        ] {
            let run = stage.play(&experiment("\"shop\"", &step.replace(from, to)));
            assert_eq!(run["verdict"], "refused", "{run:#}");
            assert_eq!(run["why"]["reason"], "drain_unseen", "{run:#}");
            unharmed(stage, balanced, &before);
            stage.calm("shop", 4);
        }
        stage.agent = None;
        let operator = balanced.group("1s").replace("admin.sock", "operator.sock");
        stage.policy("leashed = false", "", &operator);
        stage.start();
        stage.calm("shop", 4);
        let run = stage.play(&experiment("\"shop\"", &step.replace("admin.sock", "operator.sock")));
        assert_eq!(run["verdict"], "refused", "{run:#}");
        assert!(run["why"].to_string().contains("needs `level admin`"), "{run:#}");
        unharmed(stage, balanced, &before);
        // Somebody else's drain is not vervet's to end.
        balanced.ask("set server web/s1 state drain");
        let before = (balanced.settings(), balanced.masters());
        // With room for one more, so that it is not the floor that refuses.
        stage.agent = None;
        stage.policy("leashed = false", "", &balanced.group("1s").replace("floor = 3", "floor = 1"));
        stage.start();
        stage.calm("shop", 3);
        let one = step.replace("group = \"shop\"", "listen = 8001, cmdline = \"master process\"");
        let run = stage.play(&experiment("\"shop\"", &one));
        assert_eq!(run["verdict"], "refused", "{run:#}");
        assert!(run["why"].to_string().contains("by somebody else (DRAIN)"), "{run:#}");
        assert_eq!((balanced.settings(), balanced.masters()), before);
    });
}
