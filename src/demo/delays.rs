//! Act 5: latency, measured from the customer's side.

use std::time::Duration;

use crate::{
    cli::Failure,
    demo::{
        kills::unexpected,
        measure::{median_connect, millis},
        show::{Act, Show},
    },
    experiment::FaultKind,
    view::Verdict,
};

/// What the experiment adds, less what a coarse timer may take off.
const ADDED: Duration = Duration::from_millis(75);
const TRIES: usize = 15;

/// Slower while the fault is in force, and exactly as before behind it.
///
/// # Errors
/// When the agent cannot be asked.
pub async fn latency(show: &mut Show) -> Result<Act, Failure> {
    show.narrator.tell(
        "80 ms more for whatever leaves port 8080, for four seconds. Nothing is installed on the \
         device itself that was not there: marked packets take another way, for as long as a lease in \
         the kernel is renewed.",
    );
    if let Err(why) = show.ability(FaultKind::Latency) {
        return Ok(Act::Skipped(why));
    }
    show.calm().await?;
    let before = median_connect(TRIES).await;
    let run = show.begin("slow").await?;
    let id = run.id;
    let following = show.follow(run);
    let in_force = show.in_force(id).await;
    let during = if in_force.is_ok() { median_connect(TRIES).await } else { None };
    let run = following.await.map_err(|error| crate::demo::show::failed("follow the run", &error))??;
    let after = median_connect(TRIES).await;
    show.verdict(&run);
    let (Some(before), Some(during), Some(after)) = (before, during, after) else {
        return Ok(Act::Broken(unexpected(&run, "customers could not connect")));
    };
    let numbers = format!(
        "a customer's connect took {} before, {} during, {} after (medians of {TRIES})",
        millis(before),
        millis(during),
        millis(after)
    );
    let kept = run.verdict == Some(Verdict::Passed) && during >= before + ADDED && after < during / 2;
    Ok(if kept { Act::Kept(numbers) } else { Act::Broken(unexpected(&run, &numbers)) })
}
