//! Every fault against every way to die: what ends it, after how long, and is the host as it was.
//!
//! All faults are in force at once, in one run, then the deed is done. Someone who knows nothing of
//! vervet sees when each is gone (`guest/gone.py`). The table in docs/undo.md is made of these rows:
//! `VERVET_WRITE_DOCS=1` writes them there. Without it a row that is missing there fails the test; the
//! times may differ.

use std::{fmt::Write as _, fs, path::Path};

use nix::fcntl::{Flock, FlockArg};

use crate::{
    guest::Guest,
    prepared::{PACKAGE, Stage},
    state::State,
    story::story,
    workload::{SOON, experiment, web_unit},
};

/// A worker of its own for every fault.
const PORTS: [u16; 6] = [8001, 8002, 8003, 8004, 8005, 8006];

const GROUP: &str = "\
[limits]
concurrent_runs = 1
targets_per_step = 10
[[group]]
name = \"web\"
expected = 6
floor = 2
members = { unit = \"web@*.service\" }
poll = \"1s\"
stale_after = \"20s\"
settle = \"3s\"
removal = { at_once = 6, every = \"1s\" }
";

/// What of a step differs: its heading in the table, the document's lines, how `gone.py` sees it.
struct Fault {
    heading: &'static str,
    step: &'static str,
    seen: Seen,
}

#[derive(Clone, Copy)]
enum Seen {
    Is(&'static str),
    /// `stopped=`, with the main process of this unit.
    Pid(&'static str),
}

const FAULTS: [Fault; 6] = [
    Fault {
        heading: "`latency` (netem)",
        step: "fault = \"latency\"\nengine = \"netem\"\ntraffic = { listen = 8001 }\ndelay = \"200ms\"",
        seen: Seen::Is("slow=8001"),
    },
    Fault {
        heading: "`latency` (tap)",
        step: "fault = \"latency\"\nengine = \"tap\"\ntraffic = { listen = 8002 }\ndelay = \"200ms\"",
        seen: Seen::Is("slow=8002"),
    },
    Fault {
        heading: "`connections`",
        step: "fault = \"connections\"\ntraffic = { listen = 8003 }\nmax = 1\nexcess = \"reset\"",
        seen: Seen::Is("capped=8003"),
    },
    Fault {
        heading: "`pause` (process)",
        step: "fault = \"pause\"\ntarget = { listen = 8004 }",
        seen: Seen::Pid("web@8004.service"),
    },
    Fault {
        heading: "`pause` (unit)",
        step: "fault = \"pause\"\ntarget = { unit = \"web@8005.service\" }",
        seen: Seen::Is("frozen=web@8005.service"),
    },
    Fault {
        heading: "`unit` (stop)",
        step: "fault = \"unit\"\naction = \"stop\"\ntarget = { unit = \"web@8006.service\" }",
        seen: Seen::Is("down=web@8006.service"),
    },
];

/// All workers serve, over IPv4 and IPv6.
const LISTENING: &str = "[ $(ss -Hltn | grep -c ':800') = 12 ]";

/// No fault may outlive any of these deaths for longer, in seconds of an emulated processor's.
const LONGEST: f64 = 30.0;

#[test]
fn agent_killed() {
    by("agent_killed", "agent killed (SIGKILL)", |guest| {
        let agent = guest.main_pid("vervet.service");
        format!("kill {agent}")
    });
}

#[test]
fn agent_and_warden_killed() {
    by("agent_and_warden_killed", "agent and warden killed at once", |guest| {
        let agent = guest.main_pid("vervet.service");
        let warden = guest.check("pgrep -x vervet-warden");
        format!("kill {warden} {agent}")
    });
}

#[test]
fn service_killed() {
    by("service_killed", "`systemctl kill -s KILL vervet`", |_| {
        "systemctl kill -s KILL vervet".to_owned()
    });
}

#[test]
fn service_stopped() {
    by("service_stopped", "`systemctl stop vervet`", |_| "systemctl stop vervet".to_owned());
}

#[test]
fn package_upgraded() {
    by("package_upgraded", "package upgraded", |guest| {
        // The same files under a later version.
        guest.check(&format!(
            "cd /root && dpkg-deb -R {PACKAGE} next && sed -i 's/^Version: .*/&+next/' next/DEBIAN/control \
             && dpkg-deb -Znone -b next next.deb && rm -r next"
        ));
        "dpkg -i /root/next.deb".to_owned()
    });
}

#[test]
fn power_cut() {
    story("power_cut", Stage::Installed, |guest| {
        let before = host(guest);
        let places = injected(guest);
        guest.check(&format!(
            "/opt/test/gone.py {} -- nothing | grep -c there | grep -x 6",
            places.join(" ")
        ));
        guest.power_cut();
        guest.wait_for("all workers are up", SOON, LISTENING);
        let places = self::places(guest);
        let said = guest.check(&format!("/opt/test/gone.py {} -- nothing", places.join(" ")));
        assert_eq!(said.matches("gone").count(), FAULTS.len(), "after the boot:\n{said}");
        as_before(guest, &before);
        row("power cut", &FAULTS.each_ref().map(|_| "with the boot".to_owned()));
    });
}

/// Has all faults in force, does a deed of the guest's, and writes down what became of them.
fn by(name: &str, way: &str, deed: impl FnOnce(&mut Guest) -> String) {
    story(name, Stage::Installed, |guest| {
        let before = host(guest);
        let places = injected(guest);
        let deed = deed(guest);
        let said = guest.check(&format!("/opt/test/gone.py {} -- {deed}", places.join(" ")));
        println!("{way}:\n{said}");
        let journal = guest.check("journalctl -u vervet -o short-monotonic --no-pager -n 80");
        let times: Vec<Option<f64>> =
            said.lines().take(FAULTS.len()).map(|line| line.split(' ').nth(1)?.parse().ok()).collect();
        for (fault, time) in FAULTS.iter().zip(&times) {
            let gone = time.is_some_and(|time| time < LONGEST);
            assert!(gone, "{} outlived it: {time:?}\n{said}\n{journal}", fault.heading);
        }
        as_before(guest, &before);
        let cells = times.iter().map(|time| format!("{:.2} s", time.unwrap_or(f64::NAN)));
        row(way, &cells.collect::<Vec<_>>());
    });
}

/// A host with its workers and an unleashed agent, as it is without a fault.
fn host(guest: &mut Guest) -> State {
    guest.web(&PORTS);
    // So that they are back after a boot.
    guest.check(&format!("systemctl enable {}", PORTS.map(web_unit).join(" ")));
    guest.unleash(GROUP);
    guest.wait_ready("web", 6);
    // What the story has set up is to survive the power's end, as it would on a host that is set up once.
    guest.check("sync");
    guest.snapshot()
}

fn places(guest: &mut Guest) -> Vec<String> {
    let place = |fault: &Fault| match fault.seen {
        Seen::Is(place) => place.to_owned(),
        Seen::Pid(unit) => format!("stopped={}", guest.main_pid(unit)),
    };
    FAULTS.iter().map(place).collect()
}

/// Begins the run; how each of its faults is seen.
fn injected(guest: &mut Guest) -> Vec<String> {
    let places = places(guest);
    let steps: Vec<String> = FAULTS
        .iter()
        .enumerate()
        .map(|(at, fault)| {
            let start = if at == 0 { "" } else { "\nstart = \"with previous\"" };
            format!("{}\nduration = \"5m\"{start}", fault.step)
        })
        .collect();
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    guest.in_force(&experiment(&["web"], &steps));
    places
}

/// The service runs again and is clean, and so is the host.
fn as_before(guest: &mut Guest, before: &State) {
    // polkit is up in every story; after a boot it starts with the first question.
    guest.check("systemctl start vervet polkit");
    guest.wait_for("all workers are up", SOON, LISTENING);
    assert_eq!(guest.vervet("faults").value, serde_json::json!([]), "the agent still counts faults");
    guest.check("rm -f /root/next.deb");
    // What the package manager and the service manager keep for themselves.
    let theirs = ["/var/lib/dpkg", "/var/cache", "/usr/share/man", "/run/"];
    guest.must_be_as_but_for(before, &theirs);
}

/// Writes a row into the documentation, or makes sure that it has one.
fn row(way: &str, cells: &[String]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/undo.md");
    let lock = fs::File::open(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).expect("a lock");
    let text = fs::read_to_string(&path).expect("docs/undo.md");
    let start = format!("| {way} |");
    let mut line = start.clone();
    cells.iter().for_each(|cell| write!(line, " {cell} |").expect("a text"));
    println!("{line}");
    if std::env::var_os("VERVET_WRITE_DOCS").is_none() {
        assert!(text.lines().any(|line| line.starts_with(&start)), "docs/undo.md has no row `{start}`");
        return;
    }
    let mut lines: Vec<&str> = text.lines().collect();
    match lines.iter().position(|line| line.starts_with(&start)) {
        Some(at) => lines[at] = &line,
        None => {
            let end = lines.iter().rposition(|line| line.starts_with('|')).expect("a table");
            lines.insert(end + 1, &line);
        }
    }
    fs::write(&path, lines.join("\n") + "\n").expect("written");
}
