//! What the agent says about one run, as a channel of updates: events in order and without gaps,
//! whatever becomes of the connection, and fresh views after each of them.

use std::time::Duration;

use reqwest::Response;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use uuid::Uuid;

use crate::{
    cli::{
        client::{Client, ClientError},
        sse::Decoder,
        text::clean,
    },
    view::{Cleanup, EventView, GroupView, RunState, RunView},
};

/// How often the views are fetched while nothing happens.
const REFRESH: Duration = Duration::from_millis(500);
/// How soon after an event.
const FRESHEN: Duration = Duration::from_millis(100);
/// A stream that is silent for this long (keep-alives included) is taken for dead.
const SILENCE: Duration = Duration::from_secs(45);
/// How long a lost agent is looked for.
const GIVE_UP: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(250);

/// One thing to show.
#[derive(Debug)]
pub enum Update {
    Event(Box<EventView>),
    State(Box<RunView>, Vec<GroupView>),
    /// What the user should know about the connection; `None`: it is well again.
    Notice(Option<String>),
    /// The end, with the run as it came out.
    Over(Result<Box<RunView>, ClientError>),
}

/// Starts following `run`. `live`: also fetch views while nothing happens.
#[must_use]
pub fn start(client: Client, run: Uuid, live: bool) -> mpsc::Receiver<Update> {
    let (updates, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        let mut feed = Feed { client, run, live, last: 0, updates };
        let result = feed.follow().await;
        // Nobody listens any more when the user has left.
        let _ = feed.updates.send(Update::Over(result)).await;
    });
    receiver
}

/// The run needs no more watching.
#[must_use]
pub fn is_over(run: &RunView) -> bool {
    run.state == RunState::Finished || run.cleanup == Cleanup::Stuck
}

struct Feed {
    client: Client,
    run: Uuid,
    live: bool,
    /// Number of the last event that was passed on.
    last: u64,
    updates: mpsc::Sender<Update>,
}

impl Feed {
    async fn follow(&mut self) -> Result<Box<RunView>, ClientError> {
        let mut lost_since: Option<Instant> = None;
        loop {
            match self.once().await {
                Ok(Some(run)) => return Ok(run),
                Ok(None) => lost_since = None,
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => {
                    let since = *lost_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > GIVE_UP {
                        return Err(error);
                    }
                    let first = error.to_string();
                    let first = first.lines().next().unwrap_or_default();
                    self.send(Update::Notice(Some(format!("lost the agent, trying again: {first}"))))
                        .await;
                }
            }
            sleep(RETRY).await;
        }
    }

    /// One connection: until the run is over, or the connection is.
    async fn once(&mut self) -> Result<Option<Box<RunView>>, ClientError> {
        let mut response = self.client.events(self.run, self.last).await?;
        self.send(Update::Notice(None)).await;
        let mut decoder = Decoder::default();
        let mut refresh = interval(REFRESH);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        while let Some(step) = self.step(&mut response, &mut decoder, &mut refresh).await {
            match step {
                Step::Heard => heard = Instant::now(),
                Step::Quiet if heard.elapsed() > SILENCE => break,
                Step::Quiet => {}
            }
        }
        let run = self.client.run(self.run).await?;
        if is_over(&run) {
            return Ok(Some(Box::new(run)));
        }
        Ok(None)
    }

    async fn step(
        &mut self,
        response: &mut Response,
        decoder: &mut Decoder,
        refresh: &mut tokio::time::Interval,
    ) -> Option<Step> {
        tokio::select! {
            chunk = response.chunk() => {
                let events = decoder.feed(&chunk.ok()??).ok()?;
                if !events.is_empty() {
                    for message in events {
                        self.pass_on(&message.data).await;
                    }
                    refresh.reset_after(FRESHEN);
                }
                Some(Step::Heard)
            }
            _ = refresh.tick() => {
                self.refresh().await?;
                Some(Step::Quiet)
            }
        }
    }

    async fn pass_on(&mut self, data: &str) {
        let Ok(mut event) = serde_json::from_str::<EventView>(data) else { return };
        // A resumed stream may repeat itself.
        if event.seq <= self.last {
            return;
        }
        self.last = event.seq;
        event.message = clean(&event.message);
        event.kind = clean(&event.kind);
        self.send(Update::Event(Box::new(event))).await;
    }

    /// `None` when the connection is not worth keeping: the agent is gone, or the run is over.
    async fn refresh(&mut self) -> Option<()> {
        let run = self.client.run(self.run).await.ok()?;
        let over = is_over(&run);
        let groups = if self.live { self.client.groups().await.ok()? } else { Vec::new() };
        self.send(Update::State(Box::new(run), groups)).await;
        if over {
            self.drain_ended().await;
            return None;
        }
        Some(())
    }

    /// The run is over: the last events may still be on their way; reads what is there.
    async fn drain_ended(&mut self) {
        let Ok(mut response) = self.client.events(self.run, self.last).await else { return };
        let mut decoder = Decoder::default();
        while let Ok(Ok(Some(chunk))) = timeout(FRESHEN, response.chunk()).await {
            let Ok(events) = decoder.feed(&chunk) else { return };
            for message in events {
                self.pass_on(&message.data).await;
            }
        }
    }

    async fn send(&self, update: Update) {
        // The loop that shows it may have ended; then nothing needs to be shown.
        let _ = self.updates.send(update).await;
    }
}

enum Step {
    Heard,
    Quiet,
}

/// Asking again will not help.
fn is_final(error: &ClientError) -> bool {
    match error {
        ClientError::Problem(problem) => problem.status < 500,
        ClientError::Setup(_)
        | ClientError::Denied(_)
        | ClientError::Tls { .. }
        | ClientError::Skew { .. } => true,
        ClientError::NotRunning(_) | ClientError::Unreachable { .. } | ClientError::Timeout { .. } => {
            false
        }
    }
}
