//! Units as instances: a template service of several processes each, counted, killed and slowed by unit.

use crate::{
    guest::Guest,
    prepared::Stage,
    story::story,
    workload::{SOON, experiment, unit_group},
};

/// Three processes in each unit; the main one listens nowhere itself.
const SHOP: &str = "\
[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=/bin/sh -c '/opt/test/net.py serve 127.0.0.1 %i & sleep infinity & wait'
Restart=always
RestartSec=300ms
";

const PORTS: [u16; 4] = [8101, 8102, 8103, 8104];

fn kill(pick: u32) -> String {
    format!(
        "fault = \"kill\"\ntarget = {{ group = \"shop\", pick = {pick} }}\nsignal = \"SIGKILL\"\n\
         duration = \"5s\""
    )
}

#[test]
fn a_unit_is_one_instance_however_many_processes_it_has() {
    story("a_unit_is_one_instance_however_many_processes_it_has", Stage::Installed, |guest| {
        open_shop(guest);
        let before = mains(guest);
        let (code, run) = guest.play(&experiment(&["shop"], &[&kill(2)]));
        assert_eq!((code, &run["verdict"]), (3, &"refused".into()), "{run:#}");
        let (code, run) = guest.play(&experiment(&["shop"], &[&kill(1)]));
        assert_eq!((code, &run["verdict"]), (0, &"passed".into()), "{run:#}");
        // Its main process was hit, so systemd has started that unit anew, and no other.
        guest.wait_ready("shop", 4);
        let after = mains(guest);
        let changed = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert_eq!(changed, 1, "{before:?} {after:?}");
        slow_is_the_unit_through_its_restart(guest);
    });
}

fn open_shop(guest: &mut Guest) {
    guest.write_file("/etc/systemd/system/shop@.service", SHOP);
    let units = PORTS.map(|port| format!("shop@{port}")).join(" ");
    guest.check(&format!("systemctl daemon-reload && systemctl start {units}"));
    guest.wait_for("the shop listens", SOON, "[ $(ss -Hltn | grep -c ':810[1-4]') = 4 ]");
    guest.unleash(&unit_group("shop", "1s"));
    guest.wait_ready("shop", 4);
}

fn mains(guest: &mut Guest) -> Vec<u32> {
    PORTS.iter().map(|port| guest.main_pid(&format!("shop@{port}.service"))).collect()
}

/// The quickest of some round trips, in milliseconds.
fn trip(guest: &mut Guest, port: u16) -> f64 {
    let times = guest.check(&format!("/opt/test/net.py time 127.0.0.1 {port} 5"));
    times.lines().filter_map(|line| line.trim().parse().ok()).fold(f64::INFINITY, f64::min)
}

fn slow_is_the_unit_through_its_restart(guest: &mut Guest) {
    let traffic = "traffic = { unit = \"shop@8101.service\" }";
    let slow = format!("fault = \"latency\"\n{traffic}\ndelay = \"200ms\"\nduration = \"5m\"");
    let id = guest.in_force(&experiment(&["shop"], &[&slow]));
    let (slow, quick) = (trip(guest, 8101), trip(guest, 8102));
    assert!(slow >= 200.0 && quick < 200.0, "{slow} {quick}");
    guest.check("systemctl restart shop@8101");
    guest.wait_for("the unit listens again", SOON, "ss -Hltn | grep -q ':8101'");
    // A renewal comes twice a second; the guest is slower than that.
    guest.check("sleep 2");
    let again = trip(guest, 8101);
    assert!(again >= 200.0, "{again}");
    guest.abort(&id);
    assert!(trip(guest, 8101) < 200.0);
}
