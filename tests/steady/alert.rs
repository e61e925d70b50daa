//! An alert that fires in a real Prometheus aborts a running fault within one poll.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::{
    harness::{PROMPT, cap_step, experiment, snapshot, story},
    metrics::{PROMETHEUS, prometheus, tell},
    server::missing,
    web::nginx,
};

/// How often the probe asks.
const EVERY: Duration = Duration::from_millis(500);

/// Whether Prometheus says that the alert is firing.
fn firing() -> bool {
    let answer = (|| {
        let mut stream = TcpStream::connect(("127.0.0.1", PROMETHEUS))?;
        stream.write_all(b"GET /api/v1/alerts HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    })();
    answer.is_ok_and(|answer| answer.contains("HighErrors") && answer.contains("\"firing\""))
}

#[test]
fn an_alert_that_fires_aborts_a_fault_within_one_poll() {
    let name = "an_alert_that_fires_aborts_a_fault_within_one_poll";
    story(name, |stage| {
        if let Some(why) = missing(&["prometheus", "nginx", "setpriv"]) {
            return eprintln!("SKIPPED: {name}: {why}");
        }
        let dir = stage.dir.path().to_owned();
        let _nginx = nginx(&dir);
        tell(&dir, &["1"; 4], 0);
        let _prometheus = prometheus(&dir);
        stage.four_workers("1h");
        let before = snapshot();
        let probe = format!(
            "[[probe]]\nname = \"no errors\"\nprometheus = \"http://127.0.0.1:{PROMETHEUS}\"\n\
             quiet = \"HighErrors\"\nexpect = {{ within = \"2s\" }}\nevery = \"{}ms\"\n",
            EVERY.as_millis()
        );
        let probed = experiment("\"shop\"", &format!("{probe}{}", cap_step(8001, "60s")));
        // Prometheus has just started: its first scrape and evaluation are awaited.
        stage.until("the steady state holds", |stage| {
            let id = stage.begin(&probed);
            stage.until("decided", |stage| {
                let run = stage.run(&id);
                let running = run["steps"][0]["state"] == "in_force";
                (running || run["state"] == "finished").then_some(())
            });
            (stage.run(&id)["state"] != "finished").then_some(())
        });
        assert_eq!(stage.active(), 1);

        tell(&dir, &["1"; 4], 9);
        stage.until("the alert fires", |_| firing().then_some(()));
        let fired = Instant::now();
        stage.until("nothing is in force any more", |stage| (stage.active() == 0).then_some(()));
        let took = fired.elapsed();
        let run = stage.get("/v1/runs")["runs"][0].clone();
        let run = stage.finished(run["id"].as_str().expect("an id"));
        assert_eq!((&run["verdict"], &run["cleanup"]), (&"failed".into(), &"clean".into()), "{run:#}");
        assert!(run["why"]["message"].to_string().contains("HighErrors"), "{run:#}");
        stage.assert_as_before(&before);
        println!("from the alert's firing to the last fault undone: {} ms", took.as_millis());
        // The probe may just have asked when the alert began to fire. To its next attempt come two
        // answers of Prometheus and the undoing, a few milliseconds each; the rest is for a machine
        // that is busy with other tests.
        assert!(took <= EVERY + PROMPT, "{took:?} is more than one poll of {EVERY:?}");
    });
}
