//! Act 6: a cap on connections, counted from the customers' side.

use crate::{
    cli::Failure,
    demo::{
        kills::unexpected,
        measure::{connect, crowd},
        show::{Act, Show, failed},
    },
    experiment::FaultKind,
    view::Verdict,
};

const CLIENTS: usize = 60;
const MOST: usize = 40;

/// Forty get in, the others are reset at once, and everybody is welcome afterwards.
///
/// # Errors
/// When the agent cannot be asked.
pub async fn cap(show: &mut Show) -> Result<Act, Failure> {
    show.narrator.tell("At most 40 connections to port 8080. Sixty customers come at the same time:");
    if let Err(why) = show.ability(FaultKind::Connections) {
        return Ok(Act::Skipped(why));
    }
    show.calm().await?;
    let run = show.begin("cap").await?;
    let id = run.id;
    let following = show.follow(run);
    let crowd = match show.in_force(id).await {
        Ok(_) => crowd(CLIENTS).await,
        Err(_) => crate::demo::measure::Crowd::default(),
    };
    let (inside, away) = (crowd.inside.len(), crowd.turned_away);
    let run = following.await.map_err(|error| failed("follow the run", &error))??;
    drop(crowd);
    let welcome = connect().await.is_ok();
    show.verdict(&run);
    let numbers = format!("{inside} of {CLIENTS} customers got in, {away} were reset");
    let kept =
        run.verdict == Some(Verdict::Passed) && inside == MOST && inside + away == CLIENTS && welcome;
    Ok(if kept {
        Act::Kept(format!("{numbers}; afterwards the door is open"))
    } else {
        Act::Broken(unexpected(&run, &format!("{numbers}; open afterwards: {welcome}")))
    })
}
