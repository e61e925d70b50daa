//! Acts 2 to 4: how many workers may go, and how fast.

use jiff::Timestamp;

use crate::{
    cli::{
        Failure, render,
        text::{between, duration},
    },
    demo::{
        documents::removal_every,
        show::{Act, Show, document},
    },
    view::{Cleanup, DecisionView, RunView, Verdict},
};

/// A plan for two is refused, and nothing is touched.
///
/// # Errors
/// When the agent cannot be asked.
pub async fn two(show: &mut Show) -> Result<Act, Failure> {
    show.narrator
        .tell("A plan is decided exactly as a run is, and touches nothing. This one wants too much:");
    show.narrator.command("vervet plan kill-two.toml");
    let before = show.service.pids();
    let plan = show.client.plan(&document("kill-two"), None).await?;
    show.narrator.rendered(&render::plan(&plan, Timestamp::now(), show.narrator.inner()));
    let unharmed = show.service.pids() == before;
    Ok(match plan.decision {
        DecisionView::Refuse { .. } if unharmed => {
            Act::Kept("refused before anything was touched".to_owned())
        }
        DecisionView::Refuse { .. } => Act::Broken("a plan touched the service".to_owned()),
        _ => Act::Broken("the limiter admitted what must be refused".to_owned()),
    })
}

/// One is admitted, customers notice nothing, the worker is replaced.
///
/// # Errors
/// When the agent cannot be asked.
pub async fn one(show: &mut Show) -> Result<Act, Failure> {
    show.narrator.tell(
        "One of four may go: three are left, and three is the floor. A probe asks for a checkout all the \
         while; the shop's own supervisor replaces what ends.",
    );
    let before = show.service.pids();
    let run = show.begin("kill-one").await?;
    let run = show.finish(run).await?;
    let lost = before.iter().filter(|pid| show.reaper.has_ended(**pid)).count();
    Ok(match (run.verdict, run.cleanup, lost) {
        (Some(Verdict::Passed), Cleanup::Clean, 1) => {
            Act::Kept("exactly one worker was killed, and no customer noticed".to_owned())
        }
        _ => Act::Broken(unexpected(&run, &format!("{lost} workers were lost"))),
    })
}

/// The next one waits for the budget.
///
/// # Errors
/// When the agent cannot be asked.
pub async fn another(show: &mut Show) -> Result<Act, Failure> {
    let every = removal_every(show.fast);
    show.narrator.tell(&format!(
        "The worker is replaced, four are ready again. But the budget is one removal every {}: so the \
         next one waits, and says until when.",
        duration(every)
    ));
    let first = show.last_injection().await?;
    show.group("four ready workers", |group| group.effective == Some(4) && group.charged == 0).await?;
    let run = show.begin("kill-one").await?;
    let run = show.finish(run).await?;
    let second = run.steps.first().and_then(|step| step.injected_at);
    Ok(match (run.verdict, first, second) {
        (Some(Verdict::Passed), Some(first), Some(second)) if between(first, second) >= every => {
            Act::Kept(format!("the two kills were {} apart", duration(between(first, second))))
        }
        (Some(Verdict::Refused), ..) => Act::Kept("refused, with the numbers".to_owned()),
        (_, Some(first), Some(second)) => {
            Act::Broken(unexpected(&run, &format!("{} apart", duration(between(first, second)))))
        }
        _ => Act::Broken(unexpected(&run, "no kill")),
    })
}

impl Show {
    /// When the latest kill of a finished run was.
    async fn last_injection(&self) -> Result<Option<Timestamp>, Failure> {
        let runs = self.client.runs(None, 10).await?;
        Ok(runs.iter().flat_map(|run| &run.steps).filter_map(|step| step.injected_at).max())
    }
}

/// What a run came to, where something else was promised.
#[must_use]
pub fn unexpected(run: &RunView, note: &str) -> String {
    let (word, _) = render::verdict_word(run);
    let why = run.why.as_ref().map_or(String::new(), |why| format!(" ({})", why.message));
    format!("the run came out as {word}{why}; {note}")
}
