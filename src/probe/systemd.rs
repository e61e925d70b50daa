//! `systemd`: a member is ready while its unit is active. Reloading, activating, deactivating and
//! failed are not ready, and neither is a unit whose main process is another one by now.
//!
//! One question for all units of a group. A bus that does not answer in time is a missing reading.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::Notify, time};

use crate::host::{
    Candidate, Unit,
    linux::{process::Processes, systemd::Systemd},
};

/// For an answer; what comes later is not waited for.
pub const WITHIN: Duration = Duration::from_secs(1);

/// Between two questions about units whose main process is gone.
const PAUSE: Duration = Duration::from_millis(250);

/// The units that match a pattern, by name.
///
/// # Errors
/// Why there is no telling, in words for people.
pub async fn units(
    systemd: &Arc<Systemd>,
    patterns: Vec<String>,
) -> Result<BTreeMap<String, Unit>, String> {
    let systemd = Arc::clone(systemd);
    let asked = tokio::task::spawn_blocking(move || {
        let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
        systemd.units(&patterns)
    });
    let answer = time::timeout(WITHIN, asked)
        .await
        .map_err(|_| format!("systemd did not answer within {WITHIN:?}"))?
        .map_err(|error| format!("asking systemd failed: {error}"))?;
    let units = answer.map_err(|error| error.to_string())?;
    Ok(units.into_iter().map(|unit| (unit.name.clone(), unit)).collect())
}

/// Whether systemd takes a member's unit for active, the process itself for its main one where it
/// stands for the unit.
#[must_use]
pub fn is_ready(units: &BTreeMap<String, Unit>, member: &Candidate, stands_for_unit: bool) -> bool {
    let unit = member.unit.as_ref().and_then(|name| units.get(name));
    unit.is_some_and(|unit| {
        let other = unit.main_pid.is_some_and(|pid| pid != member.id.pid);
        unit.active == "active" && !(stands_for_unit && other)
    })
}

/// Asks systemd who the main process is of units that have lost theirs and are not gone. Where it
/// cannot be asked they stay lost.
pub async fn name_mains(processes: Arc<Processes>, systemd: Arc<Systemd>, wish: Arc<Notify>) {
    loop {
        wish.notified().await;
        loop {
            let doubts = processes.doubtful_units();
            if doubts.is_empty() {
                break;
            }
            match units(&systemd, doubts).await {
                Ok(units) => {
                    for unit in units.values() {
                        adopt(&processes, unit);
                    }
                }
                Err(error) => tracing::debug!(%error, "the main processes of units are not known"),
            }
            time::sleep(PAUSE).await;
        }
    }
}

/// Takes systemd's word for who is the main process of a unit.
pub fn adopt(processes: &Processes, unit: &Unit) {
    let Some(pid) = unit.main_pid else { return };
    if let Err(error) = processes.adopt_main(&unit.name, pid) {
        tracing::debug!(%error, unit = unit.name, "its main process cannot be looked at");
    }
}
