//! What stories have in common: an owner's policy, a service of template units, experiments.

use std::fmt::Write as _;

use serde_json::Value;

use crate::guest::Guest;

/// Where the owner's policy is.
pub const POLICY: &str = "/etc/vervet/vervet.toml";
/// Where experiments are put: not on the disk, which may be full. `guest/state.py` does not look here.
const EXPERIMENT: &str = "/run/test/experiment.toml";
/// The seconds of the guest's in which its service must be what it is told to be.
pub const SOON: u32 = 60;

/// A template of which each instance echoes on the port that it is named after.
const WEB: &str = "\
[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=/opt/test/net.py serve 0.0.0.0 %i :: %i
Restart=always
RestartSec=300ms
[Install]
WantedBy=multi-user.target
";

/// The unit of the worker on this port.
pub fn web_unit(port: u16) -> String {
    format!("web@{port}.service")
}

impl Guest {
    /// Starts workers, one on each port, over IPv4 and IPv6. Systemd restarts whoever dies.
    #[track_caller]
    pub fn web(&mut self, ports: &[u16]) {
        self.write_file("/etc/systemd/system/web@.service", WEB);
        let units: Vec<String> = ports.iter().map(|port| web_unit(*port)).collect();
        self.check(&format!("systemctl daemon-reload && systemctl start {}", units.join(" ")));
        let names: Vec<String> = ports.iter().map(u16::to_string).collect();
        let (names, count) = (names.join("|"), 2 * ports.len());
        let listening = format!("[ \"$(ss -Hltn | grep -cE ':({names}) ')\" = {count} ]");
        self.wait_for("the workers listen", SOON, &listening);
    }

    /// The main process of a unit.
    #[track_caller]
    pub fn main_pid(&mut self, unit: &str) -> u32 {
        let pid = self.check(&format!("systemctl show -P MainPID {unit}"));
        pid.parse().unwrap_or_else(|_| panic!("the main process of {unit}: {pid}"))
    }

    /// Takes the leash off and declares these groups, as an owner does: edits the policy, and reloads.
    #[track_caller]
    pub fn unleash(&mut self, groups: &str) {
        self.policy(false, groups);
        self.reload("\"leashed\": false");
    }

    /// Writes a policy: this leash, then these sections.
    #[track_caller]
    pub fn policy(&mut self, leashed: bool, sections: &str) {
        self.write_file(POLICY, &format!("leashed = {leashed}\n{sections}"));
        self.check(&format!("vervet check {POLICY}"));
    }

    /// Has the service take its policy over, and waits until its status has this text.
    #[track_caller]
    pub fn reload(&mut self, text: &str) {
        self.check("systemctl reload vervet");
        let taken = format!("vervet status --json | grep '{text}'");
        self.wait_for("the agent has taken the policy over", SOON, &taken);
    }

    /// Waits until a group has so many ready members by a fresh reading.
    #[track_caller]
    pub fn wait_ready(&mut self, group: &str, ready: u32) {
        let mut last = Value::Null;
        for _ in 0..SOON {
            last = self.vervet("status").value;
            let all = last["groups"].as_array().cloned().unwrap_or_default();
            let found = all.iter().find(|found| found["name"] == group);
            if found.is_some_and(|found| found["fresh"] == true && found["effective"] == ready) {
                return;
            }
        }
        panic!("{group} never had {ready} ready: {last:#}");
    }

    /// Runs an experiment to its end: the exit code, and the run.
    #[track_caller]
    pub fn play(&mut self, experiment: &str) -> (i64, Value) {
        self.write_file(EXPERIMENT, experiment);
        let mut answer = self.vervet(&format!("run {EXPERIMENT}"));
        assert!(answer.value["run"].is_object(), "{}\n{}", answer.text, answer.stderr);
        (answer.code, answer.value["run"].take())
    }

    /// Begins an experiment and waits until its last step is in force: the run's id.
    #[track_caller]
    pub fn in_force(&mut self, experiment: &str) -> String {
        self.write_file(EXPERIMENT, experiment);
        let begun = self.vervet(&format!("run {EXPERIMENT} --detach"));
        let id =
            begun["id"].as_str().unwrap_or_else(|| panic!("{}{}", begun.text, begun.stderr)).to_owned();
        for _ in 0..SOON {
            let run = self.run_view(&id);
            let steps = run["steps"].as_array().cloned().unwrap_or_default();
            if steps.last().is_some_and(|step| step["state"] == "in_force") {
                return id;
            }
            assert_ne!(run["state"], "finished", "{run:#}");
        }
        panic!("never in force: {:#}", self.run_view(&id));
    }

    /// A run as it is now.
    #[track_caller]
    pub fn run_view(&mut self, id: &str) -> Value {
        let mut answer = self.vervet(&format!("show {id}"));
        answer.value["run"].take()
    }

    /// Aborts a run; it must leave nothing.
    #[track_caller]
    pub fn abort(&mut self, id: &str) {
        self.check(&format!("vervet abort {id}"));
        let run = self.run_view(id);
        assert_eq!((&run["state"], &run["cleanup"]), (&"finished".into(), &"clean".into()), "{run:#}");
    }
}

/// A `[[group]]` of web workers, with a budget of one in `every`.
pub fn web_group(expected: usize, floor: usize, every: &str) -> String {
    format!(
        "[[group]]\nname = \"web\"\nexpected = {expected}\nfloor = {floor}\n\
         members = {{ cmdline = \"^\\\\S*python3 /opt/test/net.py serve 0.0.0.0\" }}\n\
         poll = \"500ms\"\nstale_after = \"10s\"\nsettle = \"3s\"\n\
         removal = {{ at_once = 1, every = \"{every}\" }}\n"
    )
}

/// A `[[group]]` of four units of this template, three of which must stay, each ready as systemd says.
pub fn unit_group(template: &str, every: &str) -> String {
    format!(
        "[[group]]\nname = \"{template}\"\nexpected = 4\nfloor = 3\n\
         members = {{ unit = \"{template}@*.service\" }}\nready = \"systemd\"\n\
         poll = \"500ms\"\nstale_after = \"10s\"\nsettle = \"3s\"\n\
         removal = {{ at_once = 1, every = \"{every}\" }}\n"
    )
}

/// An experiment that names these groups and has these steps.
pub fn experiment(groups: &[&str], steps: &[&str]) -> String {
    let mut text = format!("title = \"A story\"\nhypothesis = \"It holds\"\ngroups = {groups:?}\n");
    for (number, step) in steps.iter().enumerate() {
        write!(text, "[[step]]\nname = \"step {number}\"\n{step}\n").expect("a text");
    }
    text
}

/// A step that kills one of the group with SIGKILL, and watches for some seconds what follows.
pub const KILL_ONE: &str =
    "fault = \"kill\"\ntarget = { group = \"web\", pick = 1 }\nsignal = \"SIGKILL\"\nduration = \"5s\"";
