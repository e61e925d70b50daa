//! What a story does to its host: run programs, write files, wait, look, cut the power.
//!
//! Everything has a limit, and everything that goes wrong ends the story; `story` then shows what the
//! guest last said. Limits here are real time, for a guest that hangs. How long something took is for
//! the guest to measure, on its own clock: see `guest/`.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    agent::{Agent, Output},
    machine::{Machine, Source},
};

/// The longest that a program may take unless said otherwise.
pub const PATIENCE: Duration = Duration::from_mins(5);
/// The longest that a boot may take.
const BOOT: Duration = Duration::from_mins(4);
/// How long a program is first given, and the longest until it is asked about again: each question
/// costs the guest some of the processor that the program needs.
const LOOKS: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(300)];

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    machine: Machine,
    agent: Agent,
    files: UnixStream,
}

/// A program that runs in the guest meanwhile.
#[derive(Debug)]
#[must_use = "nobody looks how it ended"]
pub struct Job {
    pid: i64,
    what: String,
}

impl Guest {
    /// Boots a guest, or wakes it.
    ///
    /// # Errors
    /// Why there is none, with the end of its console.
    pub fn start(source: &Source) -> Result<Self, String> {
        Self::on(Machine::start(source)?)
    }

    /// The guest of a machine, as soon as it answers.
    ///
    /// # Errors
    /// That it does not, with the end of its console.
    pub fn on(mut machine: Machine) -> Result<Self, String> {
        let (agent, files) = (machine.agent.take(), machine.files.take());
        let (agent, files) = agent.zip(files).ok_or("the machine is somebody else's")?;
        let mut guest = Self { machine, agent: Agent::new(agent), files };
        match guest.agent.sync(BOOT) {
            Ok(()) => Ok(guest),
            Err(why) => Err(format!("{why}; its console:\n{}", guest.machine.console())),
        }
    }

    /// Runs a script of `sh` to its end, whatever it says.
    #[track_caller]
    pub fn run(&mut self, script: &str) -> Output {
        let job = self.begin(script);
        self.finish(job, PATIENCE)
    }

    /// Runs a script that must succeed; what it wrote on its standard output, trimmed.
    #[track_caller]
    pub fn check(&mut self, script: &str) -> String {
        let output = self.run(script);
        assert!(
            output.code == 0,
            "`{script}` ended with {}\nstdout: {}\nstderr: {}",
            output.code,
            output.stdout,
            output.stderr
        );
        output.stdout.trim().to_owned()
    }

    /// Starts a script and leaves it running.
    #[track_caller]
    pub fn begin(&mut self, script: &str) -> Job {
        let pid = self.agent.start("/bin/sh", &["-c", script], b"");
        Job { pid: pid.unwrap_or_else(|why| panic!("start `{script}`: {why}")), what: script.to_owned() }
    }

    /// Waits until a script that was begun has ended.
    #[track_caller]
    pub fn finish(&mut self, job: Job, limit: Duration) -> Output {
        let Job { pid, what } = job;
        let (begun, [mut pause, longest]) = (Instant::now(), LOOKS);
        loop {
            match self.agent.ended(pid) {
                Ok(Some(output)) => return output,
                Ok(None) if begun.elapsed() > limit => panic!("`{what}` is not done after {limit:?}"),
                Ok(None) => {
                    std::thread::sleep(pause);
                    pause = (pause * 3 / 2).min(longest);
                }
                Err(why) => panic!("wait for `{what}`: {why}"),
            }
        }
    }

    /// Ends a script that would go on: its shell, or what it turned into with `exec`.
    #[track_caller]
    pub fn end(&mut self, job: Job) {
        self.check(&format!("kill {}", job.pid));
        self.finish(job, PATIENCE);
    }

    /// Waits until a script succeeds: tried for so many seconds of the guest's.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, seconds: u32, script: &str) -> String {
        let looped = format!(
            "end=$(($(cut -d. -f1 /proc/uptime) + {seconds}))
            until said=$( ( {script}\n) 2>&1); do
                [ $(cut -d. -f1 /proc/uptime) -lt $end ] || {{ echo \"$said\"; exit 1; }}
                sleep 0.3
            done
            echo \"$said\""
        );
        let job = self.begin(&looped);
        let output = self.finish(job, PATIENCE + 4 * Duration::from_secs(seconds.into()));
        assert!(output.code == 0, "not within {seconds} s: {what}\n{}{}", output.stdout, output.stderr);
        output.stdout.trim().to_owned()
    }

    /// Writes a file, with the directories above it.
    #[track_caller]
    pub fn write_file(&mut self, path: &str, text: &str) {
        let script = "mkdir -p \"$(dirname \"$1\")\" && cat >\"$1\"";
        let pid = self.agent.start("/bin/sh", &["-c", script, "sh", path], text.as_bytes());
        let job = Job { pid: pid.expect("an agent"), what: format!("write {path}") };
        let output = self.finish(job, PATIENCE);
        assert!(output.code == 0, "write {path}: {}", output.stderr);
    }

    /// Copies a file of any size into the guest.
    ///
    /// # Errors
    /// When it does not arrive whole.
    pub fn send_file(&mut self, from: &Path, to: &str) -> Result<(), String> {
        let mut file = File::open(from).map_err(|error| format!("{}: {error}", from.display()))?;
        let length = file.metadata().map_err(|error| error.to_string())?.len();
        let script =
            format!("head -c {length} /dev/virtio-ports/vervet.files >'{to}' && stat -c %s '{to}'");
        let job = self.begin(&script);
        let sent = io::copy(&mut file, &mut self.files).and_then(|_| self.files.flush());
        sent.map_err(|error| format!("send {}: {error}", from.display()))?;
        let output = self.finish(job, PATIENCE);
        if output.stdout.trim() == length.to_string() {
            Ok(())
        } else {
            Err(format!("send {}: {output:?}", from.display()))
        }
    }

    /// What `vervet ARGS --json` answered, whatever its exit code: that is under `exit` of the result.
    #[track_caller]
    pub fn vervet(&mut self, args: &str) -> Answer {
        let output = self.run(&format!("vervet {args} --json"));
        let value = serde_json::from_str(&output.stdout).unwrap_or(Value::Null);
        Answer { code: output.code, value, text: output.stdout, stderr: output.stderr }
    }

    /// Cuts the power and waits until the host is up again.
    #[track_caller]
    pub fn power_cut(&mut self) {
        let boot = self.boot_id();
        self.machine.reset().expect("a reset");
        self.agent.sync(BOOT).expect("a guest after the reset");
        assert_ne!(boot, self.boot_id(), "it did not boot again");
        self.up();
    }

    /// Waits until systemd has started everything.
    #[track_caller]
    pub fn up(&mut self) {
        let output = self.run("systemctl is-system-running --wait");
        assert_eq!(
            output.stdout.trim(),
            "running",
            "{}",
            self.run("systemctl --failed --no-pager; systemctl list-jobs --no-pager").stdout
        );
    }

    fn boot_id(&mut self) -> String {
        self.check("cat /proc/sys/kernel/random/boot_id")
    }

    /// The last that the guest said: for people who want to know why a story failed.
    pub fn last_words(&mut self) -> String {
        let console = self.machine.console();
        let journal = match self.agent.sync(Duration::from_secs(10)) {
            Ok(()) => self.run("journalctl --no-pager -n 60 -o short-monotonic").stdout,
            Err(why) => why,
        };
        format!("console of the guest:\n{console}\njournal of the guest:\n{journal}")
    }

    /// Puts the guest to sleep in a file, and ends its machine.
    ///
    /// # Errors
    /// What qemu said.
    pub fn sleep(self, file: &Path) -> Result<(), String> {
        self.machine.sleep(file)
    }
}

/// What a command of vervet's answered.
#[derive(Debug)]
pub struct Answer {
    pub code: i64,
    pub value: Value,
    pub text: String,
    pub stderr: String,
}

impl std::ops::Index<&str> for Answer {
    type Output = Value;

    fn index(&self, key: &str) -> &Value {
        &self.value[key]
    }
}
