//! `vervet runs`, `show`, `watch` and `abort`: runs that exist.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;
use uuid::Uuid;

use crate::{
    cli::{
        Failure, Outcome,
        args::{Runs, Show, StateFilter},
        client::Client,
        exit::Exit,
        feed::is_over,
        follow::{Followed, Interrupts, OnInterrupt, event_line, follow},
        render,
        run::conclude,
        text::count,
        ui::Ui,
    },
    view::RunView,
};

/// How many runs an abbreviated id is looked for in.
const RECENT: u32 = 1000;
/// How often it is looked whether a run has begun.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Lists runs.
///
/// # Errors
/// When the agent cannot be asked.
pub async fn runs(client: &Client, args: &Runs, ui: &Ui) -> Outcome {
    let runs = client.runs(args.state.map(StateFilter::as_str), args.limit).await?;
    if ui.json {
        ui.print_json(&runs);
    } else if runs.is_empty() {
        ui.say("no runs");
    } else {
        ui.say(render::runs(&runs, Timestamp::now(), ui.style).join("\n"));
    }
    Ok(Exit::Passed)
}

/// Shows one run.
///
/// # Errors
/// When there is no such run, or the agent cannot be asked.
pub async fn show(client: &Client, args: &Show, ui: &Ui) -> Outcome {
    let id = resolve(client, &args.run.id).await?;
    let report = client.report(id).await?;
    if ui.json {
        ui.print_json(&report);
        return Ok(Exit::Passed);
    }
    let (run, now) = (&report.run, Timestamp::now());
    ui.say(&run.title);
    ui.say(format!("hypothesis: {}", run.hypothesis));
    ui.say(format!("begun {} by {}", run.created_at, run.caller));
    ui.say(render::steps(&run.steps, now, ui.style).join("\n"));
    for (at, step) in run.steps.iter().enumerate() {
        for text in step.targets.iter().chain(&step.errors) {
            ui.say(crate::cli::text::indent(&format!("{}: {text}", at + 1), 4, ui.style.width));
        }
    }
    if !run.probes.is_empty() {
        ui.say(render::probes(&run.probes, ui.style).join("\n"));
    }
    if args.events {
        ui.say(format!("\n{}", count(report.events.len(), "event")));
        report.events.iter().for_each(|event| ui.say(event_line(event, run)));
    }
    ui.say(String::new());
    ui.say(render::verdict(run, ui.style).join("\n"));
    Ok(Exit::Passed)
}

/// Follows a run; the exit code is the run's. Ctrl-C ends the watching, not the run.
///
/// # Errors
/// When there is no such run, or the agent cannot be asked.
pub async fn watch(client: &Client, id: Option<&str>, ui: &Ui) -> Outcome {
    let mut interrupts = Interrupts::new()?;
    let run = match id {
        Some(id) => client.run(resolve(client, id).await?).await?,
        None => match next(client, ui, &mut interrupts).await? {
            Some(run) => run,
            None => return Ok(Exit::Passed),
        },
    };
    match follow(client, ui, run, &mut interrupts, OnInterrupt::Leave).await? {
        Followed::Finished(run) => conclude(client, &run, ui).await,
        Followed::Left => Ok(Exit::Passed),
    }
}

/// The run that is active, or the next one to begin; `None` when the user left.
async fn next(
    client: &Client,
    ui: &Ui,
    interrupts: &mut Interrupts,
) -> Result<Option<RunView>, Failure> {
    let known = client.runs(None, 1).await?.first().map(|run| run.id);
    let mut said = false;
    loop {
        if let Some(run) = client.runs(None, 20).await?.into_iter().find(|run| !is_over(run)) {
            return Ok(Some(run));
        }
        // One that began and ended between two looks counts as well.
        if let Some(run) = client.runs(None, 1).await?.into_iter().find(|run| Some(run.id) != known) {
            return Ok(Some(run));
        }
        if !said {
            ui.warn("no run is active: waiting for the next one");
            said = true;
        }
        tokio::select! {
            () = sleep(LOOK_AGAIN) => {}
            () = interrupts.recv() => return Ok(None),
        }
    }
}

/// Aborts a run.
///
/// # Errors
/// When there is no such run, or the agent cannot be asked.
pub async fn abort(client: &Client, id: &str, ui: &Ui) -> Outcome {
    let id = resolve(client, id).await?;
    let run = client.abort(id).await?;
    if ui.json {
        ui.print_json(&run);
    } else {
        ui.say(render::verdict(&run, ui.style).join("\n"));
    }
    Ok(if Exit::of_run(&run) == Exit::Stuck { Exit::Stuck } else { Exit::Passed })
}

/// A whole id, or the only one that begins like this.
async fn resolve(client: &Client, id: &str) -> Result<Uuid, Failure> {
    if let Ok(id) = id.parse::<Uuid>() {
        return Ok(id);
    }
    let digits: String = id.chars().filter(|c| *c != '-').collect::<String>().to_lowercase();
    if digits.is_empty() || digits.len() > 32 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(Failure::usage(format!("not the id of a run: {id}")));
    }
    let runs = client.runs(None, RECENT).await?;
    let matches: Vec<Uuid> = runs
        .iter()
        .map(|run| run.id)
        .filter(|id| id.simple().to_string().starts_with(&digits))
        .collect();
    match matches[..] {
        [id] => Ok(id),
        [] => Err(Failure::usage(format!("no run begins with {id}; `vervet runs` lists them"))),
        _ => Err(Failure::usage(format!(
            "{} begin with {id}: give more digits",
            count(matches.len(), "run")
        ))),
    }
}
