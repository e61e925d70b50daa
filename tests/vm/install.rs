//! From nothing to a fault: the package is installed as an owner would, and does nothing until told so.

use crate::{
    guest::Guest,
    prepared::{PACKAGE, Stage},
    story::story,
    workload::{KILL_ONE, POLICY, experiment, web_group, web_unit},
};

const PORTS: [u16; 4] = [8001, 8002, 8003, 8004];

#[test]
fn installed_leashed_unleashed_and_removed() {
    story("installed_leashed_unleashed_and_removed", Stage::Booted, |guest| {
        let untouched = guest.snapshot();
        guest.check(&format!("apt-get install -y {PACKAGE}"));
        is_ready_when_systemd_says_so(guest);
        guest.web(&PORTS);
        decides_and_touches_nothing(guest);
        acts_when_unleashed(guest);
        leaves_nothing_when_purged(guest, &untouched);
    });
}

fn is_ready_when_systemd_says_so(guest: &mut Guest) {
    let show = "systemctl show vervet -P Type,NRestarts,ActiveState,SubState,UnitFileState";
    assert_eq!(guest.check(show), "notify\n0\nactive\nrunning\nenabled");
    // Type=notify: no waiting for the socket is needed.
    let status = guest.vervet("status");
    assert_eq!(status.code, 0, "{}{}", status.text, status.stderr);
    assert_eq!(status["host"]["leashed"], true, "{}", status.text);
    assert_eq!(status["host"]["problems"], serde_json::json!([]), "{}", status.text);
    for fault in status["host"]["faults"].as_array().expect("a list") {
        assert_eq!(fault["available"], true, "this kernel has everything: {fault:#}");
    }
}

fn decides_and_touches_nothing(guest: &mut Guest) {
    guest.policy(true, &web_group(4, 3, "1s"));
    guest.reload("\"name\": \"web\"");
    guest.wait_ready("web", 4);
    let (before, pids) = (guest.snapshot(), pids(guest));
    let slow = "fault = \"latency\"\ntraffic = { listen = 8001 }\ndelay = \"100ms\"\nduration = \"2s\"";
    let (code, run) = guest.play(&experiment(&["web"], &[KILL_ONE, slow]));
    assert_eq!((code, &run["verdict"]), (5, &"inconclusive".into()), "{run:#}");
    assert_eq!((&run["why"]["reason"], &run["leashed"]), (&"leashed".into(), &true.into()), "{run:#}");
    // It had decided whom to kill, and what would be slowed.
    assert!(run["steps"][0]["targets"][0].as_str().is_some_and(|pid| pid.contains("net.py")), "{run:#}");
    assert_eq!(pids, self::pids(guest));
    guest.must_be_as(&before);
    // It refuses as it would without the leash.
    let two = KILL_ONE.replace("pick = 1", "pick = 2");
    let (code, run) = guest.play(&experiment(&["web"], &[&two]));
    assert_eq!((code, &run["verdict"]), (3, &"refused".into()), "{run:#}");
}

fn acts_when_unleashed(guest: &mut Guest) {
    let (before, pids) = (guest.snapshot(), pids(guest));
    guest.check(&format!("sed -i 's/^leashed = true/leashed = false/' {POLICY}"));
    guest.reload("\"leashed\": false");
    guest.wait_ready("web", 4);
    let (code, run) = guest.play(&experiment(&["web"], &[KILL_ONE]));
    assert_eq!((code, &run["verdict"]), (0, &"passed".into()), "{run:#}");
    assert_eq!(run["steps"][0]["effect"]["proven"], true, "{run:#}");
    let after = self::pids(guest);
    let changed = pids.iter().zip(&after).filter(|(before, after)| before != after).count();
    assert_eq!(changed, 1, "one of {pids:?} was to be killed, and to be started again: {after:?}");
    // Only the owner's policy is another.
    guest.must_be_as_but_for(&before, &[POLICY]);
}

/// What is left is what Debian leaves of any service: its user, and what systemd remembers.
fn leaves_nothing_when_purged(guest: &mut Guest, untouched: &crate::state::State) {
    guest.check("systemctl stop 'web@*' && rm /etc/systemd/system/web@.service");
    guest.check("apt-get purge -y vervet && systemctl daemon-reload && systemctl reset-failed");
    let expected = [
        "/etc/passwd",
        "/etc/group",
        "/etc/shadow",
        "/etc/gshadow",
        "/var/lib/dpkg",
        "/var/lib/apt",
        "/var/cache",
        // deb-systemd-helper takes empty ones away, whoever left them.
        ".target.wants drwx",
    ];
    guest.must_be_as_but_for(untouched, &expected);
    let left =
        guest.check("find / -xdev -iname '*vervet*' -not -path '/root/*' -not -path '/var/lib/dpkg/*'");
    assert_eq!(left, "", "files that were left");
}

fn pids(guest: &mut Guest) -> Vec<u32> {
    PORTS.iter().map(|port| guest.main_pid(&web_unit(*port))).collect()
}
