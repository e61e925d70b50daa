//! `vervet halt` and `vervet resume`.

use serde_json::json;

use crate::cli::{
    Outcome,
    client::Client,
    exit::Exit,
    ui::{Tone, Ui},
};

/// Stops everything; answers when every fault's effect has ended.
///
/// # Errors
/// When the agent cannot be asked.
pub async fn halt(client: &Client, reason: &str, ui: &Ui) -> Outcome {
    let halt = client.halt(reason).await?;
    if ui.json {
        ui.print_json(&halt);
    } else {
        ui.say(ui.style.paint(Tone::Strong, "halted: nothing is admitted until `vervet resume`"));
        ui.say(format!("reason: {}", halt.reason));
        if !halt.durable {
            ui.say(
                ui.style.paint(Tone::Bad, "not on disk: a restart of the agent would forget this halt"),
            );
        }
    }
    still_stuck(client, ui).await
}

/// Releases the halt.
///
/// # Errors
/// When the agent cannot be asked, or the caller is no owner.
pub async fn resume(client: &Client, ui: &Ui) -> Outcome {
    let released = client.resume().await?;
    match (ui.json, &released) {
        (true, _) => ui.print_json(&json!({ "released": released })),
        (false, Some(halt)) => {
            ui.say(format!(
                "released: was halted since {} by {} ({})",
                halt.since, halt.by, halt.reason
            ));
        }
        (false, None) => ui.say("the host was not halted"),
    }
    Ok(Exit::Passed)
}

/// A halt ends effects at once; what could not be undone is said loudly.
async fn still_stuck(client: &Client, ui: &Ui) -> Outcome {
    let faults = client.faults().await?;
    let stuck = faults.iter().any(|fault| fault.state == crate::view::StepState::Stuck);
    if stuck && !ui.json {
        ui.warn("error: not all faults could be undone; see `vervet faults`");
    }
    Ok(if stuck { Exit::Stuck } else { Exit::Passed })
}
