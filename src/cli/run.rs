//! `vervet run`: begins a run and follows it to its verdict.

use uuid::Uuid;

use crate::{
    cli::{
        Failure, Outcome,
        args::Run,
        client::{Client, ClientError, Document, Start},
        exit::Exit,
        feed::is_over,
        follow::{Followed, Interrupts, OnInterrupt, follow},
        render, source,
        ui::Ui,
    },
    view::RunView,
};

/// Runs an experiment; the exit code is the run's.
///
/// # Errors
/// When the file is not valid, or the agent does not take the run.
pub async fn run(client: &Client, args: &Run, ui: &Ui) -> Outcome {
    let document = source::experiment(&args.experiment, ui)?;
    // From here on Ctrl-C must not leave a run behind that nobody follows.
    let mut interrupts = Interrupts::new()?;
    play(client, &document, args, &mut interrupts, ui).await
}

/// The same, of a document that was read; the interrupts abort it.
///
/// # Errors
/// When the agent does not take the run.
pub async fn play(
    client: &Client,
    document: &Document,
    args: &Run,
    interrupts: &mut Interrupts,
    ui: &Ui,
) -> Outcome {
    let start = Start {
        seed: args.seed,
        plan: args.plan.clone(),
        // A key of our own lets an answer that was lost be asked for again without a second run.
        idempotency_key: Some(
            args.idempotency_key.clone().unwrap_or_else(|| Uuid::now_v7().to_string()),
        ),
    };
    let run = begin(client, document, &start).await?;
    if args.detach {
        if ui.json {
            ui.print_json(&run);
        } else {
            ui.say(run.id.to_string());
        }
        return Ok(if is_over(&run) { Exit::of_run(&run) } else { Exit::Passed });
    }
    if !ui.json && !ui.terminal {
        ui.say(format!("run {}: {}", run.id, run.title));
    }
    let id = run.id;
    match follow(client, ui, run, interrupts, OnInterrupt::Abort).await? {
        Followed::Finished(run) => conclude(client, &run, ui).await,
        Followed::Left => {
            if ui.json {
                ui.print_json(&client.report(id).await?);
            }
            Ok(Exit::Aborted)
        }
    }
}

/// Asks for the run, once more where the connection was lost in the middle.
async fn begin(client: &Client, document: &Document, start: &Start) -> Result<RunView, ClientError> {
    match client.start(document, start).await {
        Err(ClientError::Unreachable { .. } | ClientError::Timeout { .. }) => {
            client.start(document, start).await
        }
        answer => answer,
    }
}

/// The verdict, or with `--json` the whole report; the exit code is the run's.
///
/// # Errors
/// When the report cannot be had.
pub async fn conclude(client: &Client, run: &RunView, ui: &Ui) -> Outcome {
    if ui.json {
        let report = client.report(run.id).await.map_err(Failure::from)?;
        ui.print_json(&report);
        return Ok(Exit::of_run(&report.run));
    }
    ui.say(String::new());
    ui.say(render::verdict(run, ui.style).join("\n"));
    Ok(Exit::of_run(run))
}
