//! Acts 7 and 8: what nobody planned. Workers die by themselves; the agent itself is killed.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use tokio::time::{sleep, timeout};

use crate::{
    cli::{
        Failure, render,
        text::{duration, fit},
    },
    demo::{
        kills::unexpected,
        measure::{connect, crowd, millis},
        show::{Act, Show, failed, within},
    },
    experiment::FaultKind,
    view::{AbortedBy, Cleanup, RunState, Verdict},
};

/// The kernel's lease, and what a busy machine may add.
const LEASE: Duration = Duration::from_millis(2500);
/// Slower than this is still delayed.
const PROMPT: Duration = Duration::from_millis(40);

/// Two workers die by themselves during a fault: the run is aborted at the floor.
///
/// # Errors
/// When the agent cannot be asked.
pub async fn workers_die(show: &mut Show) -> Result<Act, Failure> {
    let Some(name) = long_fault(show, false) else { return Ok(Act::Skipped(no_network(show))) };
    show.narrator.tell(
        "A fault is in force that takes no worker away. Then a worker dies, and nobody meant it to. \
         Three are left: that is the floor, the run goes on. Then one more dies.",
    );
    show.calm().await?;
    let run = show.begin(name).await?;
    let id = run.id;
    let following = show.follow(run);
    show.in_force(id).await?;
    let customers = crowd(6).await;
    show.narrator.aside(&format!("{} of 6 customers get in", customers.inside.len()));
    drop(customers);
    show.service.hold(true);
    let result = two_deaths(show, id).await;
    show.service.hold(false);
    let died = result?;
    let run = match timeout(Duration::from_secs(20), following).await {
        Ok(joined) => joined.map_err(|error| failed("follow the run", &error))??,
        Err(_) => return Ok(Act::Broken("the run went on below the floor".to_owned())),
    };
    show.verdict(&run);
    let undone = run.steps.iter().filter_map(|step| step.undone_at).max();
    let took = undone.map(|undone| crate::cli::text::between(died, undone));
    show.narrator.tell("The supervisor brings the workers back; until then nothing is admitted:");
    let blocked = show.client.groups().await?;
    blocked.iter().for_each(|group| show.show_group(group));
    show.calm().await?;
    Ok(match (run.verdict, run.aborted_by, run.cleanup, took) {
        (Some(Verdict::Aborted), Some(AbortedBy::Limiter), Cleanup::Clean, Some(took)) => {
            Act::Kept(format!("from the second death to the last fault undone: {}", millis(took)))
        }
        _ => Act::Broken(unexpected(&run, "it should have been aborted by the limiter")),
    })
}

async fn two_deaths(show: &Show, run: uuid::Uuid) -> Result<jiff::Timestamp, Failure> {
    let workers = show.service.pids();
    let [first, second, ..] = workers[..] else {
        return Err(Failure::failed("there are not enough workers to lose".to_owned()));
    };
    show.narrator.aside(&format!("worker pid {first} dies by itself"));
    show.service.crash(first);
    let group = show.group("three ready workers", |group| group.ready == Some(3)).await?;
    show.show_group(&group);
    // Some more readings: at the floor is not below it.
    sleep(Duration::from_millis(500)).await;
    let view = show.client.run(run).await?;
    if view.state != RunState::Running {
        return Err(Failure::failed(unexpected(&view, "it ended at the floor, not below it")));
    }
    show.narrator.aside(&format!("worker pid {second} dies by itself"));
    let died = jiff::Timestamp::now();
    show.service.crash(second);
    Ok(died)
}

/// The agent is killed with faults in force: they end all the same, and the next start says so.
///
/// # Errors
/// When the agent cannot be asked or started.
pub async fn agent_dies(show: &mut Show) -> Result<Act, Failure> {
    let Some(name) = long_fault(show, true) else { return Ok(Act::Skipped(no_network(show))) };
    show.narrator.tell(
        "Faults are in force for the next 40 seconds. The agent is killed; it has no chance to undo \
         anything. Its warden, a second tiny process, notices the broken pipe; and if that died as well, \
         the kernel itself would end the faults within two seconds.",
    );
    show.calm().await?;
    let run = show.begin(name).await?;
    let id = run.id;
    show.in_force(id).await?;
    if let Ok((time, _)) = connect().await {
        show.narrator.aside(&format!("a customer's connect takes {}", millis(time)));
    }
    // Four that stay, so that the door is shut for the fifth.
    let customers = crowd(5).await;
    show.narrator.aside(&format!("{} of 5 customers get in, and stay", customers.inside.len()));
    show.narrator.command(&format!("kill -9 {}   # the agent", show.agent));
    let killed = Instant::now();
    kill(show.agent, Signal::SIGKILL).map_err(|error| failed("kill the agent", &error))?;
    show.reaper.ended(show.agent).await;
    let gone = within("the faults to end", async || {
        // A packet may be lost at the moment when its detour ends, and is sent again a second later:
        // so every look is a customer of its own.
        let prompt = matches!(timeout(PROMPT, connect()).await, Ok(Ok(_)));
        Ok(prompt.then(|| killed.elapsed()))
    })
    .await?;
    drop(customers);
    // Renewed twice a second, the lease cannot have run out within the first second and a half.
    let warden = gone < Duration::from_millis(1400) || show.logged().contains("vervet-warden: undid");
    let who = if warden { "the warden" } else { "the kernel's lease" };
    show.narrator.tell(&format!(
        "Gone {} after the kill, ended by {who}: customers connect at once again.",
        millis(gone)
    ));
    let (started, word) = recovered(show, id).await?;
    let numbers = format!(
        "faults gone {} after kill -9; the next agent was ready in {} and the run is recorded as {word}",
        millis(gone),
        millis(started)
    );
    let clean = show.client.faults().await?.is_empty();
    Ok(if gone <= LEASE && clean && word.starts_with("aborted") {
        Act::Kept(numbers)
    } else {
        Act::Broken(format!("{numbers}; expected at most {}", duration(LEASE)))
    })
}

async fn recovered(show: &mut Show, id: uuid::Uuid) -> Result<(Duration, String), Failure> {
    show.narrator.command("vervet agent --config vervet.toml");
    let started = show.restart_agent().await?;
    let report = show.client.report(id).await?;
    let (word, _) = render::verdict_word(&report.run);
    show.narrator.command(&format!("vervet show {}", render::short_id(id)));
    if let Some(event) = report.events.last() {
        let line = format!("{}: {}", event.kind, event.message);
        show.narrator.output(&fit(&line, 300));
    }
    show.verdict(&report.run);
    Ok((started, word))
}

/// The fault that stays in force for long, of those that this host allows.
fn long_fault(show: &Show, all: bool) -> Option<&'static str> {
    let delay = show.ability(FaultKind::Latency).is_ok();
    let cap = show.ability(FaultKind::Connections).is_ok();
    match (delay, cap) {
        (true, true) if all => Some("both-long"),
        (true, _) => Some("slow-long"),
        (false, true) => Some("cap-long"),
        (false, false) => None,
    }
}

fn no_network(show: &Show) -> String {
    let why = show.ability(FaultKind::Connections).err().unwrap_or_default();
    format!("no fault that lasts is possible here: {why}")
}
