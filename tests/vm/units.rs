//! Faults on whole units, where there are a service manager and a freezer: by a service that is not
//! root, under its own sandbox.

use crate::{
    guest::Guest,
    prepared::Stage,
    story::story,
    workload::{SOON, experiment, web_group, web_unit},
};

const PORTS: [u16; 3] = [8001, 8002, 8003];

fn step(fault: &str, duration: &str) -> String {
    format!("{fault}\ntarget = {{ unit = \"web@*\", pick = 1 }}\nduration = \"{duration}\"")
}

fn three_workers(guest: &mut Guest) {
    guest.web(&PORTS);
    guest.unleash(&web_group(3, 2, "1s"));
    guest.wait_ready("web", 3);
}

/// How many of the units are up.
const ACTIVE: &str = "systemctl list-units 'web@*' --state=active --plain --no-legend | wc -l";
/// How many of the units are frozen, by the kernel's own account.
const FROZEN: &str =
    "cat /sys/fs/cgroup/system.slice/system-web.slice/*/cgroup.events | grep -c 'frozen 1'";

fn count(guest: &mut Guest, script: &str) -> u32 {
    guest.run(script).stdout.trim().parse().expect("a number")
}

fn pids(guest: &mut Guest) -> Vec<u32> {
    PORTS.iter().map(|port| guest.main_pid(&web_unit(*port))).collect()
}

/// The service is killed with all that belongs to it, and is back.
fn agent_dies(guest: &mut Guest) {
    guest.check("systemctl kill -s KILL vervet");
    guest.wait_for("the agent is back", SOON, "vervet status --json");
}

#[test]
fn a_unit_is_stopped_and_started_again_whoever_dies() {
    story("a_unit_is_stopped_and_started_again_whoever_dies", Stage::Installed, |guest| {
        three_workers(guest);
        let before = guest.snapshot();
        let stop = experiment(&["web"], &[&step("fault = \"unit\"\naction = \"stop\"", "5m")]);
        let id = guest.in_force(&stop);
        guest.wait_for("one is stopped", SOON, &format!("[ $({ACTIVE}) = 2 ]"));
        guest.abort(&id);
        assert_eq!(count(guest, ACTIVE), 3, "answered when it was started again");
        guest.must_be_as(&before);
        guest.wait_ready("web", 3);
        guest.in_force(&stop);
        guest.wait_for("one is stopped", SOON, &format!("[ $({ACTIVE}) = 2 ]"));
        agent_dies(guest);
        guest.wait_for("it is started again", SOON, &format!("[ $({ACTIVE}) = 3 ]"));
        guest.must_be_as(&before);
        guest.wait_ready("web", 3);
        let old = pids(guest);
        let restart = step("fault = \"unit\"\naction = \"restart\"", "10s");
        let (code, run) = guest.play(&experiment(&["web"], &[&restart]));
        assert_eq!((code, &run["verdict"]), (0, &"passed".into()), "{run:#}");
        let new = pids(guest);
        assert_eq!(old.iter().zip(&new).filter(|(old, new)| old != new).count(), 1, "{old:?} {new:?}");
        let own = restart.replace("web@*", "dbus.service");
        let (code, run) = guest.play(&experiment(&[], &[&own]));
        assert_eq!((code, &run["why"]["reason"]), (3, &"protected_unit".into()), "{run:#}");
    });
}

#[test]
fn a_unit_freezes_and_thaws_whoever_dies() {
    story("a_unit_freezes_and_thaws_whoever_dies", Stage::Installed, |guest| {
        three_workers(guest);
        let (before, old) = (guest.snapshot(), pids(guest));
        let pause = experiment(&["web"], &[&step("fault = \"pause\"", "5m")]);
        let id = guest.in_force(&pause);
        guest.wait_for("one is frozen", SOON, &format!("[ $({FROZEN}) = 1 ]"));
        guest.abort(&id);
        assert_eq!(count(guest, FROZEN), 0, "answered when it was thawed");
        guest.wait_ready("web", 3);
        guest.in_force(&pause);
        guest.wait_for("one is frozen", SOON, &format!("[ $({FROZEN}) = 1 ]"));
        agent_dies(guest);
        assert_eq!(count(guest, FROZEN), 0);
        guest.must_be_as(&before);
        assert_eq!(old, pids(guest), "nobody was restarted");
        // A frozen unit that systemd restarts has another cgroup: there is nothing left to undo.
        guest.wait_ready("web", 3);
        let id = guest.in_force(&pause);
        guest.check("systemctl kill -s KILL 'web@*'; systemctl restart 'web@*'");
        guest.abort(&id);
        assert_eq!((count(guest, FROZEN), count(guest, ACTIVE)), (0, 3));
    });
}
