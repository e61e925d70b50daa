//! `vervet plan`: what a run would do, decided as a run decides.

use jiff::Timestamp;

use crate::cli::{Outcome, args::Plan, client::Client, exit::Exit, render, source, ui::Ui};

/// Shows exact targets, charges, the limiter's answer and the digest. Touches nothing.
///
/// # Errors
/// When the file is not valid, or the agent cannot resolve it.
pub async fn plan(client: &Client, args: &Plan, ui: &Ui) -> Outcome {
    let document = source::experiment(&args.experiment, ui)?;
    let plan = client.plan(&document, args.seed).await?;
    if ui.json {
        ui.print_json(&plan);
    } else {
        ui.say(render::plan(&plan, Timestamp::now(), ui.style).join("\n"));
        if Exit::of_decision(&plan.decision) == Exit::Passed {
            let seed = plan.seed;
            ui.say(format!(
                "to run exactly this: vervet run {} --seed {seed} --plan {}",
                args.experiment, plan.digest
            ));
        }
    }
    Ok(Exit::of_decision(&plan.decision))
}
