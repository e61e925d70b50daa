//! Following a run to its verdict: on a terminal as a picture that is redrawn in place, elsewhere as
//! one line for each event. Ctrl-C and SIGTERM abort the run and wait for the undo.
//!
//! The feed (another task) talks to the agent; the loop here only shows and listens, so a slow
//! agent never delays the answer to a Ctrl-C.

use std::time::Duration;

use jiff::Timestamp;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use crate::{
    cli::{
        Failure,
        client::Client,
        feed::{self, Update},
        live::{Scene, Screen, frame},
        ui::Ui,
    },
    view::{EventView, GroupView, RunView},
};

/// At most ten pictures a second.
const FRAME: Duration = Duration::from_millis(100);
/// How much longer the second Ctrl-C waits for the undo.
const SHORT_WAIT: Duration = Duration::from_secs(3);

const ABORTING: &str = "aborting: waits until everything is undone (again: waits no longer than 3 s)";
const LEAVING: &str = "stopped waiting: the agent goes on undoing; `vervet watch` shows it";

/// Ctrl-C and SIGTERM, from the moment it is made: neither ends the process any more.
#[derive(Debug)]
pub struct Interrupts {
    int: Signal,
    term: Signal,
}

impl Interrupts {
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn new() -> Result<Self, Failure> {
        let install = |kind| {
            signal(kind)
                .map_err(|error| Failure::failed(format!("failed to listen for signals: {error}")))
        };
        Ok(Self { int: install(SignalKind::interrupt())?, term: install(SignalKind::terminate())? })
    }

    /// The next one.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}

/// How following ended.
#[derive(Debug)]
pub enum Followed {
    Finished(Box<RunView>),
    /// The user would not wait any longer for the undo.
    Left,
}

/// Whether an interrupt aborts the run or only ends the watching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInterrupt {
    Abort,
    Leave,
}

/// Shows a run until it is finished and clean, or known stuck.
///
/// # Errors
/// When the agent is lost for good.
pub async fn follow(
    client: &Client,
    ui: &Ui,
    run: RunView,
    interrupts: &mut Interrupts,
    on_interrupt: OnInterrupt,
) -> Result<Followed, Failure> {
    let mut shown = Shown::new(ui, run);
    let mut updates = feed::start(client.clone(), shown.run.id, shown.live);
    let (aborted, mut abort_failed) = mpsc::channel(1);
    let mut ticks = interval(FRAME);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut leave_at: Option<Instant> = None;
    let mut presses = 0_u32;
    loop {
        tokio::select! {
            update = updates.recv() => match update {
                Some(Update::Over(result)) => {
                    shown.clear();
                    return result.map(Followed::Finished).map_err(Failure::from);
                }
                Some(update) => shown.take(update),
                None => return Err(Failure::failed("the event feed ended by itself".to_owned())),
            },
            () = interrupts.recv() => {
                presses += 1;
                match (on_interrupt, presses) {
                    (OnInterrupt::Leave, _) => {
                        shown.clear();
                        return Ok(Followed::Left);
                    }
                    (OnInterrupt::Abort, 1) => {
                        shown.notice(ABORTING);
                        let (client, id, aborted) = (client.clone(), shown.run.id, aborted.clone());
                        tokio::spawn(async move {
                            if let Err(error) = client.abort(id).await {
                                let _ = aborted.send(error.to_string()).await;
                            }
                        });
                    }
                    (OnInterrupt::Abort, _) => {
                        leave_at.get_or_insert_with(|| Instant::now() + SHORT_WAIT);
                    }
                }
            }
            Some(error) = abort_failed.recv() => shown.notice(&format!("the abort failed: {error}")),
            () = leave(leave_at) => {
                shown.clear();
                ui.warn(LEAVING);
                return Ok(Followed::Left);
            }
            _ = ticks.tick() => shown.redraw(),
        }
    }
}

async fn leave(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What is on the screen, or was printed.
#[derive(Debug)]
struct Shown<'a> {
    ui: &'a Ui,
    live: bool,
    run: RunView,
    groups: Vec<GroupView>,
    latest: Option<String>,
    notice: Option<String>,
    screen: Screen,
    dirty: bool,
    second: i64,
}

impl<'a> Shown<'a> {
    fn new(ui: &'a Ui, run: RunView) -> Self {
        let live = ui.terminal && !ui.json;
        let groups = Vec::new();
        let screen = Screen::default();
        Self { ui, live, run, groups, latest: None, notice: None, screen, dirty: true, second: 0 }
    }

    fn take(&mut self, update: Update) {
        self.dirty = true;
        match update {
            Update::Event(event) => self.event(&event),
            Update::State(run, groups) => (self.run, self.groups) = (*run, groups),
            Update::Notice(Some(notice)) => self.notice(&notice),
            Update::Notice(None) => self.notice = None,
            Update::Over(_) => {}
        }
    }

    fn event(&mut self, event: &EventView) {
        let line = event_line(event, &self.run);
        if !self.live && !self.ui.json {
            self.ui.say(&line);
        }
        self.latest = Some(line);
    }

    fn notice(&mut self, text: &str) {
        if !self.live && self.notice.as_deref() != Some(text) {
            self.ui.warn(text);
        }
        self.notice = Some(text.to_owned());
        self.dirty = true;
    }

    /// When something changed, and once a second for what counts down.
    fn redraw(&mut self) {
        let now = Timestamp::now();
        if !self.live || (!self.dirty && now.as_second() == self.second) {
            return;
        }
        (self.dirty, self.second) = (false, now.as_second());
        let scene = Scene {
            run: &self.run,
            groups: &self.groups,
            latest: self.latest.as_deref(),
            notice: self.notice.as_deref(),
            now,
        };
        let (style, height) = self.ui.measure();
        self.screen.draw(self.ui, &frame(scene, style), height.saturating_sub(1));
    }

    fn clear(&mut self) {
        if self.live {
            self.screen.clear(self.ui);
        }
    }
}

/// `   1.204s  lose a worker: SIGKILL sent: 1 gone`
#[must_use]
pub fn event_line(event: &EventView, run: &RunView) -> String {
    let since = crate::cli::text::between(run.created_at, event.at);
    let step = event
        .step
        .and_then(|at| run.steps.get(usize::try_from(at).ok()?))
        .map_or(String::new(), |step| format!("{}: ", step.name));
    let message = event.message.replace('\n', " ");
    // The message may name the step itself.
    let step = if message.contains(step.trim_end_matches(": ")) { String::new() } else { step };
    format!("{:>8.3}s  {:<10}  {step}{message}", since.as_secs_f64(), event.kind)
}
