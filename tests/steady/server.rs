//! A real server of the packages: started with a configuration of the test's own, stopped, hung, and
//! ended by its pid whatever becomes of the test.

use std::{
    fs::File,
    future::Future,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use vervet::{
    config::{GroupPolicy, ReadySource, Removal},
    experiment::{Check, ProcessSelector},
    host::linux::process::Processes,
    policy::capacity::Reading,
    probe::{
        Asker,
        monitor::{Monitors, Observation},
    },
};

use crate::harness::{PATIENCE, send};

const LOOK: Duration = Duration::from_millis(20);

/// Why this machine has no such programs, if one of them is missing.
pub fn missing(programs: &[&str]) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    programs.iter().find(|program| !there(program)).map(|program| format!("there is no {program} here"))
}

/// One process.
#[derive(Debug)]
pub struct Server {
    command: Vec<String>,
    log: std::path::PathBuf,
    child: Option<Child>,
}

impl Server {
    /// Starts the program. Its words go to a file in `dir`.
    pub fn start(dir: &Path, command: &[&str]) -> Self {
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let log = dir.join(format!("{}.log", command[0]));
        let mut server = Self { command, log, child: None };
        server.start_again();
        server
    }

    pub fn start_again(&mut self) {
        self.stop();
        let log = File::options().create(true).append(true).open(&self.log).expect("a log");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(&self.command)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("starts"));
    }

    /// Waits until it takes connections.
    pub fn listening(&mut self, port: u16) -> &mut Self {
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().expect("asked"));
            let log = || std::fs::read_to_string(&self.log).unwrap_or_default();
            assert!(ended.is_none(), "{:?} ended: {}", self.command, log());
            assert!(begun.elapsed() < PATIENCE, "{:?} does not listen: {}", self.command, log());
            std::thread::sleep(LOOK);
        }
        self
    }

    pub fn signal(&self, signal: Signal) {
        send(self.child.as_ref().expect("it runs").id(), signal);
    }

    /// It is there, and answers nobody.
    pub fn hang(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Nobody is there any more.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs to the end on this thread, and on others that are in the same namespaces.
pub fn play<T>(scene: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(scene)
}

/// The answer to a check, which comes in time.
pub async fn ask(check: &Check) -> Result<(), String> {
    let begun = Instant::now();
    let answer = Asker::new(check).ask().await.expect("an answer");
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    answer
}

/// Asks until the answer is a good one.
pub async fn good(check: &Check) {
    let begun = Instant::now();
    while let Err(error) = ask(check).await {
        assert!(begun.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks until the answer is a miss that says this.
pub async fn miss(check: &Check, said: &str) {
    let (begun, mut last) = (Instant::now(), Ok(()));
    while !last.as_ref().is_err_and(|error: &String| error.contains(said)) {
        assert!(begun.elapsed() < PATIENCE, "{last:?}, not {said:?}");
        last = ask(check).await;
        tokio::time::sleep(LOOK).await;
    }
}

/// A group of four that counts this way.
pub fn group(ready: ReadySource) -> GroupPolicy {
    GroupPolicy {
        name: "g".into(),
        floor: 3,
        expected: Some(4),
        members: ProcessSelector { name: Some("vvtest-nobody".to_owned()), ..Default::default() },
        ready,
        poll: Duration::from_millis(50),
        stale_after: Duration::from_secs(2),
        settle: Duration::from_secs(1),
        removal: Removal { at_once: 1, every: Duration::from_secs(1) },
        monkey: false,
        spare: Vec::new(),
    }
}

/// The monitor of the agent over one group.
pub struct Watch {
    _monitors: Monitors,
    seen: tokio::sync::mpsc::UnboundedReceiver<Observation>,
}

impl Watch {
    pub fn start(group: &GroupPolicy) -> Self {
        let (sender, seen) = tokio::sync::mpsc::unbounded_channel();
        let processes = std::sync::Arc::new(Processes::new(Path::new("/proc")).expect("/proc"));
        let monitors = Monitors::start(std::slice::from_ref(group), &processes, sender);
        Self { _monitors: monitors.expect("started"), seen }
    }

    /// Waits for a reading of so many.
    pub async fn ready(&mut self, ready: u32, total: u32) {
        let seen = |result: &Result<Reading, String>| {
            result.as_ref().is_ok_and(|reading| (reading.ready, reading.total) == (ready, total))
        };
        self.until(&format!("{ready} of {total}"), seen).await;
    }

    /// Waits for a look that fails and says this.
    pub async fn fails(&mut self, said: &str) {
        self.until(said, |result| result.as_ref().is_err_and(|error| error.contains(said))).await;
    }

    async fn until(&mut self, what: &str, is: impl Fn(&Result<Reading, String>) -> bool) {
        let (begun, mut last) = (Instant::now(), None);
        loop {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let seen = tokio::time::timeout(left, self.seen.recv()).await;
            let seen = seen.unwrap_or_else(|_| panic!("not {what:?}, but {last:?}"));
            if let Observation::Reading { result, .. } = seen.expect("monitors live") {
                if is(&result) {
                    return;
                }
                last = Some(result);
            }
        }
    }
}
