//! A host in trouble while a fault is in force: the fault goes, the reason is said, nothing is left.

use serde_json::{Value, json};

use crate::{
    guest::Guest,
    prepared::Stage,
    state::State,
    story::story,
    workload::{KILL_ONE, SOON, experiment, web_group},
};

const PORTS: [u16; 2] = [8001, 8002];

fn slow(duration: &str) -> String {
    let step = format!(
        "fault = \"latency\"\ntraffic = {{ listen = 8001 }}\ndelay = \"100ms\"\nduration = \"{duration}\""
    );
    experiment(&["web"], &[&step])
}

fn set_up(guest: &mut Guest) -> State {
    guest.web(&PORTS);
    guest.unleash(&web_group(2, 1, "1s"));
    guest.wait_ready("web", 2);
    guest.snapshot()
}

fn is_slow(guest: &mut Guest) -> bool {
    guest.round_trips("", "127.0.0.1", 8001, 5).least() >= 100.0
}

fn assert_over(guest: &mut Guest, before: &State, but: &[&str]) {
    guest.wait_for("no table of vervet's is left", SOON, "! nft list tables | grep vervet");
    assert!(!is_slow(guest));
    guest.must_be_as_but_for(before, but);
}

#[test]
fn a_disk_that_fills_up_keeps_nothing_in_force() {
    story("a_disk_that_fills_up_keeps_nothing_in_force", Stage::Installed, |guest| {
        let before = set_up(guest);
        let run = guest.in_force(&slow("5m"));
        assert!(is_slow(guest));
        guest.run(
            "dd if=/dev/zero of=/full bs=1M status=none; dd if=/dev/zero of=/full2 bs=512 status=none",
        );
        // What is in force goes when it is told to, whether or not that can be written down.
        let abort = guest.vervet(&format!("abort {run}"));
        assert!([0, 4].contains(&abort.code), "{}{}", abort.text, abort.stderr);
        assert_over(guest, &before, &["/full", "/var/cache"]);
        // Nothing begins that could not be written down first.
        let refused = guest.vervet("run /run/test/experiment.toml");
        let said = format!("{}{}", refused.text, refused.stderr);
        assert_ne!(refused.code, 0, "{said}");
        assert!(said.contains("journal") || said.contains("disk") || said.contains("full"), "{said}");
        assert_over(guest, &before, &["/full", "/var/cache"]);
        // With room again all is well, perhaps after a moment.
        guest.check("rm /full /full2");
        let again = "vervet run /run/test/experiment.toml --detach";
        let id = guest.wait_for("a run begins again", 2 * SOON, again);
        guest.abort(&id);
        guest.must_be_as(&before);
    });
}

#[test]
fn a_clock_that_leaps_ends_a_fault_neither_early_nor_late() {
    story("a_clock_that_leaps_ends_a_fault_neither_early_nor_late", Stage::Installed, |guest| {
        let before = set_up(guest);
        for leap in ["1 hour", "-1 hour"] {
            let begun = uptime(guest);
            let run = guest.in_force(&slow("15s"));
            guest.check(&format!("date -s \"$(date -d '{leap}')\""));
            assert!(is_slow(guest), "{leap}: it ended early");
            assert_eq!(guest.run_view(&run)["state"], "running", "{leap}");
            guest.wait_for(
                "its end",
                2 * SOON,
                &format!("vervet show {run} --json | grep '\"verdict\": \"'"),
            );
            let took = uptime(guest) - begun;
            assert!((15.0..40.0).contains(&took), "{leap}: it took {took} s");
            let view = guest.run_view(&run);
            assert_eq!(
                (&view["verdict"], &view["cleanup"]),
                (&json!("passed"), &json!("clean")),
                "{view:#}"
            );
            assert_over(guest, &before, &[]);
            guest.wait_ready("web", 2);
        }
    });
}

fn uptime(guest: &mut Guest) -> f64 {
    guest.check("cut -d' ' -f1 /proc/uptime").parse().expect("seconds")
}

#[test]
fn a_disk_that_becomes_read_only_keeps_nothing_in_force() {
    story("a_disk_that_becomes_read_only_keeps_nothing_in_force", Stage::Installed, |guest| {
        let before = set_up(guest);
        let run = guest.in_force(&slow("5m"));
        assert!(is_slow(guest));
        // As the kernel does it when a disk fails: at once, whoever is writing.
        guest.check("sync; echo u >/proc/sysrq-trigger");
        guest.wait_for("it cannot be written", SOON, "! touch /var/lib/test");
        let abort = guest.vervet(&format!("abort {run}"));
        assert!([0, 4].contains(&abort.code), "{}{}", abort.text, abort.stderr);
        assert_over(guest, &before, &[]);
        let refused = guest.vervet("run /run/test/experiment.toml");
        let said = format!("{}{}", refused.text, refused.stderr);
        assert_ne!(refused.code, 0, "{said}");
        assert!(
            said.contains("journal") || said.contains("read-only") || said.contains("readonly"),
            "{said}"
        );
        assert_over(guest, &before, &[]);
        // A start says what is wrong, and with what.
        guest.run("systemctl restart vervet");
        let journal = guest.check("journalctl -u vervet --no-pager -n 40");
        assert!(journal.contains("/var/lib/vervet"), "{journal}");
    });
}

#[test]
fn without_cap_net_admin_a_delay_is_refused_and_a_kill_is_not() {
    story("without_cap_net_admin_a_delay_is_refused_and_a_kill_is_not", Stage::Installed, |guest| {
        guest.write_file(
            "/etc/systemd/system/vervet.service.d/less.conf",
            "[Service]\nCapabilityBoundingSet=~CAP_NET_ADMIN\nAmbientCapabilities=~CAP_NET_ADMIN\n",
        );
        guest.check("systemctl daemon-reload && systemctl restart vervet");
        let before = set_up(guest);
        let status = guest.vervet("status");
        let faults = status["host"]["faults"].as_array().cloned().unwrap_or_default();
        let of = |kind: &str| -> Vec<&Value> {
            faults.iter().filter(|fault| fault["fault"] == kind).collect()
        };
        assert!(of("kill").iter().all(|fault| fault["available"] == true), "{faults:#?}");
        for fault in of("latency") {
            let reason = fault["reason"].as_str().unwrap_or_default();
            assert!(fault["available"] == false && reason.contains("CAP_NET_ADMIN"), "{fault:#}");
        }
        let (code, run) = guest.play(&slow("10s"));
        let why = run["why"]["message"].as_str().unwrap_or_default();
        assert!(code == 3 && why.contains("CAP_NET_ADMIN"), "{code} {run:#}");
        assert_over(guest, &before, &[]);
        let (code, run) = guest.play(&experiment(&["web"], &[KILL_ONE]));
        assert_eq!((code, &run["verdict"]), (0, &json!("passed")), "{run:#}");
        guest.must_be_as(&before);
    });
}

#[test]
fn a_power_cut_leaves_nothing_and_is_told() {
    story("a_power_cut_leaves_nothing_and_is_told", Stage::Installed, |guest| {
        guest.web(&PORTS);
        guest.check("systemctl enable web@8001 web@8002");
        guest.unleash(&web_group(2, 1, "1s"));
        guest.wait_ready("web", 2);
        // The story's own files are to survive; the journal's must by themselves.
        guest.check("sync");
        let run = guest.in_force(&slow("5m"));
        assert!(is_slow(guest));
        guest.power_cut();
        guest.wait_for("the service is active", SOON, "systemctl is-active vervet");
        guest.wait_ready("web", 2);
        assert!(!is_slow(guest));
        let state = guest.snapshot();
        assert_eq!((state.of("nft").len(), state.of("filter").len()), (0, 0), "{state:?}");
        let view = guest.run_view(&run);
        assert_eq!(
            (&view["verdict"], &view["aborted_by"]),
            (&json!("aborted"), &json!("crash")),
            "{view:#}"
        );
        assert_eq!(view["cleanup"], "clean", "{view:#}");
    });
}
