//! What the acts share: the client, the service, the narrator, and ways to run, follow and wait.

use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::time::sleep;
use uuid::Uuid;

use crate::{
    cli::{
        Failure,
        client::{Client, Document, Start},
        feed::{self, Update},
        follow::event_line,
        render,
        text::duration,
        ui::Tone,
    },
    demo::{acts::Set, documents, narrator::Narrator, reaper::Reaper, supervisor::Supervisor},
    experiment::FaultKind,
    view::{GroupView, HostView, RunState, RunView, StepState},
};

/// The most that anything in the play may take.
pub const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);

/// How an act came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// It did what it promised; with the numbers.
    Kept(String),
    /// This kernel or this user may not do it; with the reason.
    Skipped(String),
    /// It did not do what it promised.
    Broken(String),
}

/// Everything the acts play with.
#[derive(Debug)]
pub struct Show {
    pub client: Client,
    pub service: Supervisor,
    pub narrator: Narrator,
    pub reaper: Reaper,
    pub host: HostView,
    pub fast: bool,
    pub agent: Pid,
    program: PathBuf,
    base: PathBuf,
    log: fs::File,
    log_path: PathBuf,
    runs: Vec<Uuid>,
    pub acts: Vec<Value>,
}

impl Show {
    /// Writes the documents, starts the service and the agent.
    ///
    /// # Errors
    /// When the play cannot begin.
    pub async fn open(set: &Set<'_>, narrator: Narrator) -> Result<Self, Failure> {
        let policy = documents::policy(set.base, set.fast);
        for dir in [set.base, set.out] {
            write(dir, "vervet.toml", &policy)?;
        }
        for (name, text) in documents::EXPERIMENTS {
            write(&set.base.join("experiments"), &format!("{name}.toml"), text)?;
            write(set.out, &format!("{name}.toml"), text)?;
        }
        let log_path = set.out.join("agent.log");
        let log = fs::File::create(&log_path).map_err(|error| failed("make agent.log", &error))?;
        let (program, reaper) = (set.program.clone(), set.reaper.clone());
        let service = Supervisor::start(program.clone(), reaper.clone(), narrator.clone())?;
        let client = Client::on_socket(&set.base.join("vervet.sock"))?;
        let base = set.base.to_owned();
        let agent = start_agent(&program, &base, &log, &reaper)?;
        let host = ready(&client, &reaper, agent).await?;
        let (fast, runs, acts) = (set.fast, Vec::new(), Vec::new());
        Ok(Self {
            client,
            service,
            narrator,
            reaper,
            host,
            fast,
            agent,
            program,
            base,
            log,
            log_path,
            runs,
            acts,
        })
    }

    /// Plays an act and says how it came out.
    ///
    /// # Errors
    /// Never: what fails in one act is said, and the others are played.
    pub async fn act<F>(&mut self, title: &str, act: F) -> Result<(), Failure>
    where
        F: AsyncFnOnce(&mut Self) -> Result<Act, Failure>,
    {
        self.narrator.title(title);
        let (begun, first) = (Instant::now(), self.runs.len());
        // What fails in one act is said, and the others are played.
        let outcome = act(self).await.unwrap_or_else(|failure| Act::Broken(failure.message));
        let (tone, word, text) = match &outcome {
            Act::Kept(text) => (Tone::Good, "kept", text),
            Act::Skipped(text) => (Tone::Warn, "skipped", text),
            Act::Broken(text) => (Tone::Bad, "broken", text),
        };
        self.narrator.mark(tone, word, text);
        let mut reports = Vec::new();
        for run in &self.runs[first..] {
            reports.extend(self.client.report(*run).await.ok());
        }
        self.acts.push(json!({
            "act": title, "outcome": word, "text": text, "ms": begun.elapsed().as_millis(), "runs": reports,
        }));
        Ok(())
    }

    /// Whether a fault is possible here, or why not.
    pub fn ability(&self, fault: FaultKind) -> Result<(), String> {
        let abilities: Vec<_> =
            self.host.faults.iter().filter(|ability| ability.fault == fault).collect();
        if abilities.iter().any(|ability| ability.available) {
            return Ok(());
        }
        let reasons: Vec<&str> =
            abilities.iter().filter_map(|ability| ability.reason.as_deref()).collect();
        Err(format!("no {fault} here: {}", reasons.join("; ")))
    }

    /// Says the command and begins the run.
    ///
    /// # Errors
    /// When the agent does not take it.
    pub async fn begin(&mut self, name: &str) -> Result<RunView, Failure> {
        self.narrator.command(&format!("vervet run {name}.toml"));
        let run = self.client.start(&document(name), &Start::default()).await?;
        self.runs.push(run.id);
        Ok(run)
    }

    /// Tells the events of a run until it is over, and its verdict.
    ///
    /// # Errors
    /// When the agent is lost.
    pub async fn finish(&self, run: RunView) -> Result<RunView, Failure> {
        let finished = follow(self.client.clone(), self.narrator.clone(), run).await?;
        self.narrator.rendered(&render::verdict(&finished, self.narrator.inner()));
        Ok(finished)
    }

    /// Tells the events of a run in the background.
    pub fn follow(&self, run: RunView) -> tokio::task::JoinHandle<Result<RunView, Failure>> {
        tokio::spawn(follow(self.client.clone(), self.narrator.clone(), run))
    }

    /// Says a verdict.
    pub fn verdict(&self, run: &RunView) {
        self.narrator.rendered(&render::verdict(run, self.narrator.inner()));
    }

    /// Waits until every step of a run is in force.
    ///
    /// # Errors
    /// When it ends before, or takes too long.
    pub async fn in_force(&self, run: Uuid) -> Result<RunView, Failure> {
        let what = "the fault to be in force";
        within(what, async || {
            let view = self.client.run(run).await?;
            if view.state == RunState::Finished {
                let why = view.why.map_or(String::new(), |why| format!(": {}", why.message));
                return Err(Failure::failed(format!(
                    "the run ended before its fault was in force{why}"
                )));
            }
            let all = view.steps.iter().all(|step| step.state == StepState::InForce);
            Ok(all.then_some(view))
        })
        .await
    }

    /// Waits until the group is as asked.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn group(
        &self,
        what: &str,
        is_so: impl Fn(&GroupView) -> bool,
    ) -> Result<GroupView, Failure> {
        within(what, async || Ok(self.client.groups().await?.into_iter().find(|group| is_so(group))))
            .await
    }

    /// Waits until all workers are ready, nothing is charged, and there is room in the budget.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn calm(&self) -> Result<GroupView, Failure> {
        let calm = |group: &GroupView| {
            group.fresh
                && group.effective == Some(4)
                && group.charged == 0
                && group.budget.left > 0
                && group.blocked.is_none()
        };
        self.group("four ready workers", calm).await
    }

    /// Shows the group as `vervet status` does.
    pub fn show_group(&self, group: &GroupView) {
        let lines = render::groups(std::slice::from_ref(group), Timestamp::now(), self.narrator.inner());
        self.narrator.rendered(&lines);
    }

    /// What the agent and its warden have logged so far.
    #[must_use]
    pub fn logged(&self) -> String {
        fs::read_to_string(&self.log_path).unwrap_or_default()
    }

    /// Starts another agent in place of a dead one, and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn restart_agent(&mut self) -> Result<Duration, Failure> {
        let begun = Instant::now();
        self.agent = start_agent(&self.program, &self.base, &self.log, &self.reaper)?;
        self.host = ready(&self.client, &self.reaper, self.agent).await?;
        Ok(begun.elapsed())
    }

    /// Everything that was played.
    #[must_use]
    pub fn report(&self, took: Duration) -> Value {
        json!({
            "vervet": env!("CARGO_PKG_VERSION"),
            "host": self.host,
            "ms": took.as_millis(),
            "acts": self.acts,
            "transcript": self.narrator.transcript(),
        })
    }
}

/// Asks again and again until there is an answer.
///
/// # Errors
/// The first error, or when it takes too long.
pub async fn within<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        sleep(LOOK).await;
    }
    Err(Failure::failed(format!("waited {} for {what}", duration(PATIENCE))))
}

/// The failure of a thing of the operating system.
pub fn failed(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::failed(format!("failed to {what}: {error}"))
}

/// An experiment of the demo.
#[must_use]
pub fn document(name: &str) -> Document {
    let found = documents::EXPERIMENTS.iter().find(|(known, _)| *known == name);
    found.map_or_else(|| Document::Name(name.to_owned()), |(_, text)| Document::Toml((*text).to_owned()))
}

fn follow(
    client: Client,
    narrator: Narrator,
    run: RunView,
) -> impl Future<Output = Result<RunView, Failure>> + Send {
    let mut updates = feed::start(client, run.id, false);
    async move {
        while let Some(update) = updates.recv().await {
            match update {
                Update::Event(event) => narrator.aside(&event_line(&event, &run)),
                Update::Over(result) => return Ok(*result?),
                Update::State(..) | Update::Notice(_) => {}
            }
        }
        Err(Failure::failed("the event feed ended by itself".to_owned()))
    }
}

fn start_agent(program: &Path, base: &Path, log: &fs::File, reaper: &Reaper) -> Result<Pid, Failure> {
    let stderr = log.try_clone().map_err(|error| failed("share agent.log", &error))?;
    let mut command = Command::new(program);
    command.args(["agent", "--log", "info", "--config"]).arg(base.join("vervet.toml"));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    reaper.spawn(&mut command).map_err(|error| failed("start the agent", &error))
}

async fn ready(client: &Client, reaper: &Reaper, agent: Pid) -> Result<HostView, Failure> {
    within("the agent to answer", async || {
        if reaper.has_ended(agent) {
            return Err(Failure::failed("the agent ended at once; agent.log says why".to_owned()));
        }
        Ok(client.host().await.ok())
    })
    .await
}

/// Writes a file.
///
/// # Errors
/// When it cannot be written.
pub fn write(dir: &Path, name: &str, text: &str) -> Result<(), Failure> {
    let path = dir.join(name);
    fs::write(&path, text).map_err(|error| failed(&format!("write {}", path.display()), &error))
}
