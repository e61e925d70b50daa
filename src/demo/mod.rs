//! `vervet demo`: all of it in a private sandbox, without root, touching nothing of the host.
//!
//! Three processes deep: [`start`] makes namespaces and spawns itself into them ([`sandbox`]); the
//! first process in there prepares them ([`stage`]), starts a service of four workers behind a
//! load balancer ([`service`], [`supervisor`]) and the real agent, and plays the acts through the
//! same client as the command line. When the outer process ends, however it ends, the kernel ends
//! all the others with their namespaces.

use crate::cli::{
    Outcome,
    args::{ColorWhen, Demo, DemoPart, Global},
    ui::Ui,
};

mod acts;
mod caps;
mod delays;
mod documents;
mod kills;
mod measure;
mod narrator;
mod reaper;
mod sandbox;
mod service;
mod show;
mod snapshot;
mod stage;
mod supervisor;
mod trouble;

/// Plays the demo.
///
/// # Errors
/// When there can be no sandbox here; the message says how to allow one.
pub fn start(args: &Demo, global: &Global, ui: &Ui) -> Outcome {
    let ui = if args.no_color { Ui::detect(global.json, ColorWhen::Never) } else { *ui };
    sandbox::enter(args, &ui)
}

/// A part of the demo: what the sandbox is made of.
///
/// # Errors
/// When the part cannot do its work.
pub fn part(part: DemoPart, ui: &Ui) -> Outcome {
    match part {
        DemoPart::Stage { fast, out } => stage::play(&out, fast, ui),
        DemoPart::Worker { port } => service::worker(port),
        DemoPart::Front { port, workers } => service::front(port, workers),
    }
}
