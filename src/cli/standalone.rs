//! `vervet run --standalone`: an agent for the time of one run, on a host that has none.
//!
//! The agent is a child of this process, with the policy's own state and socket: halt and status reach
//! it as they reach any other, and what it leaves when it is killed is found in the policy's journal.
//! It stops, and undoes, when this process ends in whatever way: it reads a pipe that only this process
//! holds. What may be done to the host is decided there; here it is started, asked, and waited for.

use std::{
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram as StdDatagram, UnixStream},
    },
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use jiff::Timestamp;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    net::UnixDatagram,
    process::{Child, ChildStdin, Command},
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;

use crate::{
    cli::{
        Failure, Outcome,
        args::{Global, Run},
        client::Client,
        exit::Exit,
        follow::Interrupts,
        recover, run, source,
        text::count,
        ui::Ui,
    },
    config::Policy,
    host::linux::LinuxHost,
    journal::{Journal, JournalError, recovery},
};

/// From the start of the agent until it serves: it may have faults of a former one to undo.
const START: Duration = Duration::from_mins(1);
/// From the order to stop to the end of the agent, whose own limit is a minute.
const STOP: Duration = Duration::from_secs(90);
/// How often a new agent is asked whether it has seen its groups.
const LOOK: Duration = Duration::from_millis(50);
/// The longest that groups are waited for; the limiter then says what is missing.
const SIGHT: Duration = Duration::from_secs(15);

/// Runs an experiment with an agent of its own; the exit code is the run's.
///
/// # Errors
/// When a file is not valid, another agent is there, or none can be started.
pub async fn run(args: &Run, config: &Path, global: &Global, ui: &Ui) -> Outcome {
    let document = source::experiment(&args.experiment, ui)?;
    let policy = recover::policy(config, ui)?;
    free(&policy, config)?;
    // The same ones to the end: what comes between two waits is heard by the second.
    let mut interrupts = Interrupts::new()?;
    let mut agent = Agent::start(config, global, &mut interrupts).await?;
    let client = Client::on_socket(&policy.api.socket)?;
    let outcome = tokio::select! {
        outcome = async {
            tokio::select! {
                biased;
                () = interrupts.recv() => return Err(interrupted()),
                () = agent_sees(&client, &policy) => {}
            }
            run::play(&client, &document, args, &mut interrupts, ui).await
        } => Some(outcome),
        _ = agent.child.wait() => None,
    };
    let status = agent.stop(&mut interrupts, ui).await?;
    match (outcome, status.code()) {
        (Some(outcome), Some(0)) => outcome,
        (Some(Ok(_)), Some(code)) if code == i32::from(Exit::Stuck.code()) => Ok(Exit::Stuck),
        (Some(Err(failure)), Some(_)) => Err(failure),
        _ => Err(died(status, &policy, config)),
    }
}

fn interrupted() -> Failure {
    let message = "interrupted before the run began".to_owned();
    Failure { exit: Exit::Aborted, message, document: None }
}

/// Makes sure that no agent has this state or this socket, and that a journal can be kept.
fn free(policy: &Policy, config: &Path) -> Result<(), Failure> {
    let socket = policy.api.socket.display();
    let help = format!("help: leave out --standalone, and ask that one: --socket {socket}");
    if UnixStream::connect(&policy.api.socket).is_ok() {
        return Err(Failure::usage(format!("an agent is running already, on {socket}\n{help}")));
    }
    match Journal::open(&policy.state) {
        Ok(_) => Ok(()),
        Err(JournalError::Locked { path, holder }) => {
            let path = path.display();
            Err(Failure::usage(format!("an agent is running already: {holder} uses {path}\n{help}")))
        }
        Err(error) => {
            let config = config.display();
            let message = format!(
                "failed to start an agent: {error}\nhelp: `state` in {config} names a directory for its journal"
            );
            let exit = match error {
                JournalError::ReadOnly { .. } => Exit::Unreachable,
                _ => Exit::Failed,
            };
            Err(Failure { exit, message, document: None })
        }
    }
}

/// Waits until every group has been read once: before that nothing would be admitted.
async fn agent_sees(client: &Client, policy: &Policy) {
    let slowest = policy.groups.iter().map(|group| group.poll + group.stale_after).max();
    let until = Instant::now() + slowest.unwrap_or_default().min(SIGHT);
    while Instant::now() < until {
        match client.groups().await {
            Ok(groups) if groups.iter().all(|group| group.fresh) => return,
            _ => sleep(LOOK).await,
        }
    }
}

/// The agent of this run.
struct Agent {
    child: Child,
    /// Closed by this process's end, and that stops the agent.
    lifeline: Option<ChildStdin>,
}

impl Agent {
    /// Starts it, and waits until it serves.
    async fn start(
        config: &Path,
        global: &Global,
        interrupts: &mut Interrupts,
    ) -> Result<Self, Failure> {
        let failed = |why: String| Failure::failed(format!("failed to start an agent: {why}"));
        let (address, notices) = manager().map_err(|error| failed(error.to_string()))?;
        // This very program, even if its file was replaced since.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("vervet").args(["agent", "--until-eof", "--config"]).arg(config);
        match &global.log {
            Some(filter) => drop(command.args(["--log", filter])),
            None if std::env::var_os("RUST_LOG").is_some() => {}
            None => drop(command.args(["--log", "error"])),
        }
        command.env("NOTIFY_SOCKET", address).env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
        // Standard output is the run's. A Ctrl-C is for this process alone, which aborts the run.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        // Waiting for the child would close it.
        let lifeline = child.stdin.take();
        let mut own = Self { child, lifeline };
        let failure = tokio::select! {
            ready = ready(&notices) => match ready {
                Ok(()) => return Ok(own),
                Err(error) => failed(error.to_string()),
            },
            status = own.child.wait() => {
                // It has said why, on standard error.
                let code = status.ok().and_then(|status| status.code());
                let exit = if code == Some(2) { Exit::Usage } else { Exit::Unreachable };
                let message = "the agent of this run did not start".to_owned();
                return Err(Failure { exit, message, document: None });
            }
            () = interrupts.recv() => interrupted(),
            () = sleep(START) => failed(format!("it was not ready within {} s", START.as_secs())),
        };
        own.order_stop();
        let _ = timeout(STOP, own.child.wait()).await;
        Err(failure)
    }

    /// Stops it, and waits until it has undone everything. An interrupt makes it hurry.
    async fn stop(&mut self, interrupts: &mut Interrupts, ui: &Ui) -> Result<ExitStatus, Failure> {
        self.order_stop();
        let until = Instant::now() + STOP;
        loop {
            let why = tokio::select! {
                status = self.child.wait() => match status {
                    Ok(status) => return Ok(status),
                    Err(error) => error.to_string(),
                },
                () = interrupts.recv() => {
                    ui.warn("the agent hurries; it still undoes what it can");
                    self.signal(Signal::SIGTERM);
                    continue;
                }
                () = tokio::time::sleep_until(until) => {
                    format!("it is still undoing after {} s", STOP.as_secs())
                }
            };
            let message = format!("failed to wait for the agent: {why}");
            return Err(Failure { exit: Exit::Stuck, message, document: None });
        }
    }

    fn order_stop(&mut self) {
        self.lifeline = None;
    }

    /// It is not reaped before its end is known here, so the pid is its own.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

/// A socket to be told that the agent serves, as a service manager would be, and its address. The name
/// is nobody's file, and goes with the socket.
fn manager() -> std::io::Result<(String, UnixDatagram)> {
    let name = format!("vervet-{}", Uuid::now_v7());
    let socket = StdDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    socket.set_nonblocking(true)?;
    Ok((format!("@{name}"), UnixDatagram::from_std(socket)?))
}

async fn ready(notices: &UnixDatagram) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let length = notices.recv(&mut buffer).await?;
        if buffer[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
            return Ok(());
        }
    }
}

/// The agent ended in the middle. Its warden undoes; this makes sure, as `vervet recover` does.
fn died(status: ExitStatus, policy: &Policy, config: &Path) -> Failure {
    let config = config.display();
    let recovered =
        Journal::open(&policy.state).map_err(|error| error.to_string()).and_then(|journal| {
            let host = LinuxHost::new().map_err(|error| error.to_string())?;
            recovery::recover(&journal, &host, Timestamp::now()).map_err(|error| error.to_string())
        });
    let (exit, left) = match recovered {
        Ok(recovered) if recovered.stuck.is_empty() => {
            (Exit::Aborted, "what it did is undone: the host is clean".to_owned())
        }
        Ok(recovered) => {
            (Exit::Stuck, format!("{} could not be undone", count(recovered.stuck.len(), "fault")))
        }
        Err(error) => (Exit::Stuck, format!("whether all is undone is not known: {error}")),
    };
    let help = match exit {
        Exit::Stuck => format!("\nhelp: `vervet recover --config {config}` tries again"),
        _ => String::new(),
    };
    let message = format!("the agent of this run died ({status}); {left}{help}");
    Failure { exit, message, document: None }
}
