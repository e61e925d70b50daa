//! The service as systemd runs it: its privileges, its story in the journal, its watchdog, its policy.

use serde_json::Value;

use crate::{
    guest::Guest,
    prepared::{PACKAGE, Stage},
    story::story,
    workload::{KILL_ONE, POLICY, SOON, experiment, web_group},
};

const PORTS: [u16; 4] = [8001, 8002, 8003, 8004];

/// capabilities(7): KILL is 5, DAC_OVERRIDE 1, NET_ADMIN 12, NET_RAW 13, SYS_PTRACE 19
const CAPABILITIES: &str = "0000000000083022";

/// systemd's figure, times ten, of how exposed the running unit is. It may be lowered, never raised.
const EXPOSURE: u32 = 32;

const SLOW: &str =
    "fault = \"latency\"\ntraffic = { listen = 8001 }\ndelay = \"100ms\"\nduration = \"10m\"";

#[test]
fn the_service_has_few_privileges() {
    story("the_service_has_few_privileges", Stage::Installed, |guest| {
        let pid = guest.main_pid("vervet");
        let warden = guest.check(&format!("pgrep -P {pid} -f warden"));
        for process in [pid.to_string(), warden] {
            let status =
                guest.check(&format!("grep -E '^(Uid|CapEff|NoNewPrivs)' /proc/{process}/status"));
            assert!(status.contains(CAPABILITIES), "{status}");
            assert!(status.contains("NoNewPrivs:\t1") && !status.contains("Uid:\t0"), "{status}");
        }
        let user = guest.check(&format!("ps -o user= -p {pid}"));
        assert_eq!(user, "vervet");
        guest.check(&format!("systemd-analyze security --no-pager --threshold={EXPOSURE} vervet"));
        // Members of the group are operators, nobody else is let in.
        assert_eq!(guest.check("stat -c '%U %G %a' /run/vervet/vervet.sock"), "vervet vervet 660");
        guest.check("useradd anna && useradd -G vervet berta");
        assert_eq!(guest.run("setpriv --reuid anna --regid anna --clear-groups vervet status").code, 7);
        guest.check("setpriv --reuid berta --regid berta --init-groups vervet status");
    });
}

#[test]
fn the_journal_answers_is_this_chaos() {
    story("the_journal_answers_is_this_chaos", Stage::Installed, |guest| {
        guest.web(&PORTS);
        guest.unleash(&web_group(4, 3, "1s"));
        guest.wait_ready("web", 4);
        let (code, run) = guest.play(&experiment(&["web"], &[KILL_ONE]));
        assert_eq!(code, 0, "{run:#}");
        let id = run["id"].as_str().expect("an id").to_owned();
        let story = records(guest, &format!("RUN_ID={id}"));
        let said = |what: &str| -> Vec<&Value> {
            story.iter().filter(|r| r["MESSAGE"].as_str().is_some_and(|m| m.starts_with(what))).collect()
        };
        let (begins, ends) = (said("CHAOS BEGINS"), said("CHAOS ENDS"));
        assert_eq!((begins.len(), ends.len()), (1, 1), "{story:#?}");
        assert_eq!(begins[0]["GROUP"], "web");
        assert_eq!(begins[0]["FAULT"], "kill");
        assert_eq!(begins[0]["STEP"], "step 0");
        assert_eq!(begins[0]["PRIORITY"], "4");
        let two = KILL_ONE.replace("pick = 1", "pick = 2");
        let (code, run) = guest.play(&experiment(&["web"], &[&two]));
        assert_eq!(code, 3, "{run:#}");
        let refused = records(guest, "EVENT=refused");
        assert!(refused.iter().any(|record| record["REASON"] == run["why"]["reason"]), "{refused:#?}");
        let answer = guest.check("vervet status | head -2");
        assert!(answer.starts_with("No: vervet changes nothing"), "{answer}");
    });
}

#[test]
fn an_agent_that_hangs_is_started_again_and_leaves_nothing() {
    story("an_agent_that_hangs_is_started_again_and_leaves_nothing", Stage::Installed, |guest| {
        guest.web(&PORTS);
        guest.unleash("");
        guest.in_force(&experiment(&[], &[SLOW]));
        let answer = guest.check("vervet status | head -1");
        assert!(answer.starts_with("Yes: 1 fault of vervet is active"), "{answer}");
        let pid = guest.main_pid("vervet");
        guest.check(&format!("kill -STOP {pid}"));
        let again = format!(
            "[ \"$(systemctl show -P MainPID vervet)\" != {pid} ] && systemctl is-active vervet && vervet status"
        );
        guest.wait_for("the agent is another one", 3 * SOON, &again);
        assert_eq!(guest.check("systemctl show -P NRestarts vervet"), "1");
        assert_eq!(guest.check("nft list ruleset"), "");
        assert_eq!(guest.check("vervet faults --json"), "[]");
    });
}

#[test]
fn a_broken_policy_changes_nothing_and_is_not_tried_for_ever() {
    story("a_broken_policy_changes_nothing_and_is_not_tried_for_ever", Stage::Installed, |guest| {
        guest.unleash("[limits]\ntargets_per_step = 3\n");
        let pid = guest.main_pid("vervet");
        guest.check(&format!("echo 'florr = 3' >>{POLICY}"));
        assert_ne!(guest.run("systemctl reload vervet").code, 0);
        assert_eq!(guest.main_pid("vervet"), pid);
        assert_eq!(guest.vervet("status")["host"]["leashed"], false);
        let said = guest.check("journalctl -u vervet -n 30 --no-pager -o cat");
        assert!(said.contains("florr"), "{said}");

        guest.run("systemctl restart vervet");
        guest.wait_for("it is given up", SOON, "systemctl is-failed vervet");
        assert_eq!(guest.check("systemctl show -P NRestarts vervet"), "0");
        let said = guest.check("journalctl -u vervet -n 30 --no-pager -o cat");
        assert!(said.contains("vervet.toml") && said.contains("florr"), "{said}");
        guest.check(&format!("sed -i '/florr/d' {POLICY} && systemctl restart vervet && vervet status"));
    });
}

#[test]
fn an_upgrade_stops_where_nobody_knows_what_is_in_force() {
    story("an_upgrade_stops_where_nobody_knows_what_is_in_force", Stage::Installed, |guest| {
        let journal = "/var/lib/vervet/vervet.db";
        guest.check(&format!("systemctl stop vervet && cp -a {journal} /root/ && : >{journal}"));
        guest.check("systemctl start vervet");
        let pid = guest.main_pid("vervet");
        let upgrade = guest.run(&format!("dpkg -i {PACKAGE}"));
        assert_ne!(upgrade.code, 0, "{upgrade:?}");
        assert!(upgrade.stderr.contains("could not be undone"), "{upgrade:?}");
        assert_eq!(guest.check("dpkg-query -W -f '${Status}' vervet"), "install ok installed");
        // The one that was there goes on: stopped for the upgrade, started again by its end.
        guest.wait_for("the service is active again", SOON, "systemctl is-active vervet");
        assert_ne!(guest.main_pid("vervet"), pid);
        // An owner who knows better, and one who has mended it.
        guest.check(&format!("VERVET_UPGRADE_ANYWAY=1 dpkg -i {PACKAGE}"));
        guest.check(&format!("systemctl stop vervet && cp -a /root/vervet.db {journal}"));
        guest.check(&format!(
            "systemctl start vervet && dpkg -i {PACKAGE} && systemctl is-active vervet"
        ));
    });
}

/// What the service wrote to the journal with this field.
fn records(guest: &mut Guest, field: &str) -> Vec<Value> {
    let text = guest.check(&format!("journalctl -u vervet {field} -o json --no-pager"));
    text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect()
}
