//! The way out: halt, abort, Ctrl-C and SIGTERM end every fault, under any crowd of clients.

use std::{
    io::Write as _,
    os::unix::net::UnixStream,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::Signal,
};

use crate::harness::{
    PROMPT, SLOW, Stage, cap_step, experiment, guests, is_warden, kill_step, send, slow_step, snapshot,
    story, visit,
};

fn both_steps() -> String {
    format!("{}{}start = \"with previous\"\n", slow_step(8001, "30s"), cap_step(8001, "30s"))
}

/// Does something that must not take long.
fn prompt<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    let took = begun.elapsed();
    eprintln!("{what}: {:.1} ms", took.as_secs_f64() * 1e3);
    assert!(took < PROMPT, "{what} took {took:?}");
    result
}

fn assert_unharmed() {
    assert!(visit(8001).expect("answers") < SLOW);
    assert_eq!(guests(8001, 4).len(), 4);
}

fn assert_halted(stage: &mut Stage) {
    let run = stage.play(&experiment("\"shop\"", &slow_step(8001, "1s")));
    assert_eq!(run["verdict"], "refused", "{run:#}");
    assert_eq!(run["why"]["reason"], "halted", "{run:#}");
    assert!(run["why"]["message"].as_str().is_some_and(|text| text.contains("smoke")), "{run:#}");
}

#[test]
fn halt_ends_everything_and_survives_restarts() {
    story("halt_ends_everything_and_survives_restarts", |stage| {
        stage.four_workers("1h");
        let before = snapshot();
        let id = stage.in_force(&experiment("\"shop\"", &both_steps()));
        assert!(visit(8001).expect("answers") > SLOW);
        let halt = prompt("halt with two faults in force", || {
            stage.call("PUT", "/v1/halt", "{\"reason\": \"smoke\"}").expect(200)
        });
        // It answers when everything is gone, not before.
        assert_unharmed();
        assert_eq!(halt["durable"], true, "{halt:#}");
        let run = stage.finished(&id);
        assert_eq!(
            (&run["verdict"], &run["aborted_by"]),
            (&"aborted".into(), &"halt".into()),
            "{run:#}"
        );
        assert_eq!(run["cleanup"], "clean");
        stage.until("nothing is active", |stage| (stage.active() == 0).then_some(()));
        stage.assert_as_before(&before);
        assert_halted(stage);

        stage.agent().signal(Signal::SIGTERM);
        assert_eq!(stage.agent().wait().code(), Some(0));
        stage.start();
        stage.calm("shop", 4);
        assert_halted(stage);
        stage.agent().kill();
        stage.start();
        stage.calm("shop", 4);
        assert_halted(stage);

        let output = stage.cli(&["resume"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let run = stage.play(&experiment("\"shop\"", &kill_step("shop", 1)));
        assert_eq!(run["verdict"], "passed", "{run:#}");
    });
}

#[test]
fn ctrl_c_aborts_the_run_and_waits() {
    story("ctrl_c_aborts_the_run_and_waits", |stage| {
        stage.four_workers("1h");
        let before = snapshot();
        let file = stage.write("both.toml", &experiment("\"shop\"", &both_steps()));
        let mut command = stage.cli_command(&["run", file.to_str().expect("UTF-8")]);
        let mut run = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        stage.until("both faults are in force", |stage| {
            let faults = stage.get("/v1/faults")["faults"].as_array().expect("faults").clone();
            let in_force = faults.iter().filter(|fault| fault["state"] == "in_force").count();
            (in_force == 2).then_some(())
        });
        send(run.id(), Signal::SIGINT);
        let status = run.wait().expect("ended");
        // It waited for the undo: nothing is left when it ends.
        stage.assert_as_before(&before);
        assert_eq!(status.code(), Some(4));
        let runs = stage.get("/v1/runs");
        let run = &runs["runs"][0];
        assert_eq!(
            (&run["verdict"], &run["aborted_by"]),
            (&"aborted".into(), &"operator".into()),
            "{run:#}"
        );
    });
}

fn stops(name: &str, signals: &'static [Signal]) {
    story(name, |stage| {
        stage.four_workers("1h");
        let before = snapshot();
        let id = stage.in_force(&experiment("\"shop\"", &both_steps()));
        let warden = stage.agent().warden();
        for signal in signals {
            stage.agent().signal(*signal);
        }
        let status = stage.agent().wait();
        assert_unharmed();
        assert_eq!(status.code(), Some(0), "{}", stage.log());
        stage.until("the warden is done", |_| (!is_warden(warden)).then_some(()));
        stage.assert_as_before(&before);
        assert!(!stage.socket().exists(), "the socket is left");
        stage.start();
        let run = stage.run(&id);
        assert_eq!(
            (&run["verdict"], &run["aborted_by"]),
            (&"aborted".into(), &"shutdown".into()),
            "{run:#}"
        );
        assert_eq!(run["cleanup"], "clean", "{run:#}");
    });
}

#[test]
fn sigterm_undoes_everything_first() {
    stops("sigterm_undoes_everything_first", &[Signal::SIGTERM]);
}

#[test]
fn a_second_signal_skips_no_undo() {
    let signals = &[Signal::SIGTERM, Signal::SIGINT, Signal::SIGTERM];
    stops("a_second_signal_skips_no_undo", signals);
}

#[test]
fn a_crowd_of_clients_keeps_nobody_from_the_lever() {
    story("a_crowd_of_clients_keeps_nobody_from_the_lever", |stage| {
        const IDLE: usize = 1000;
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("known");
        if most < 4 * IDLE as u64 {
            return eprintln!(
                "SKIPPED: a_crowd_of_clients_keeps_nobody_from_the_lever: {most} files at most"
            );
        }
        setrlimit(Resource::RLIMIT_NOFILE, most.min(1 << 16), most).expect("raised");
        stage.four_workers("1h");
        let before = snapshot();
        let id = stage.in_force(&experiment("\"shop\"", &both_steps()));
        let socket = stage.socket();
        let open = |text: &str| {
            let mut stream = UnixStream::connect(&socket).expect("connects");
            stream.write_all(text.as_bytes()).expect("written");
            stream
        };
        let mut crowd: Vec<_> = (0..IDLE).map(|_| open("")).collect();
        crowd.push(open("DELETE /v1/runs HTTP/1.1\r\nHost: local"));
        crowd.push(open(
            "POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/toml\r\n\
             Content-Length: 1000\r\n\r\ntitle = ",
        ));
        for _ in 0..20 {
            crowd.push(open(&format!(
                "GET /v1/runs/{id}/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
            )));
        }
        prompt("status in a crowd", || stage.get("/v1/host"));
        let run = prompt("abort in a crowd", || stage.call("DELETE", &format!("/v1/runs/{id}"), ""));
        assert_eq!(run.expect(200)["aborted_by"], "operator");
        assert_unharmed();
        stage.assert_as_before(&before);
        let id = stage.in_force(&experiment("\"shop\"", &both_steps()));
        prompt("halt in a crowd", || {
            stage.call("PUT", "/v1/halt", "{\"reason\": \"smoke\"}").expect(200)
        });
        assert_unharmed();
        assert_eq!(stage.finished(&id)["aborted_by"], "halt");
        let output = prompt("status of the command line in a crowd", || stage.cli(&["status"]));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        drop(crowd);
        std::thread::sleep(Duration::from_millis(50));
        stage.assert_as_before(&before);
    });
}
