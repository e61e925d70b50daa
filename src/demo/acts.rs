//! The play: its order, what the acts share, and the report that it leaves.

use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
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
        text::{count, duration},
        ui::{Tone, Ui},
    },
    demo::{
        caps, delays, documents, kills, narrator::Narrator, reaper::Reaper, snapshot,
        supervisor::Supervisor, trouble,
    },
    experiment::FaultKind,
    view::{GroupView, HostView, RunState, RunView, StepState},
};

/// The most that anything in the play may take.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);

/// What the stage hands over.
#[derive(Debug)]
pub struct Set<'a> {
    pub out: &'a Path,
    pub base: &'a Path,
    pub program: PathBuf,
    pub reaper: Reaper,
    pub fast: bool,
    pub ui: Ui,
}

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
    acts: Vec<Value>,
}

/// Plays all acts; false when a promise was broken.
///
/// # Errors
/// When the play cannot begin.
pub async fn play(set: Set<'_>) -> Result<bool, Failure> {
    let begun = Instant::now();
    let narrator = Narrator::new(&set.ui);
    narrator.title("vervet demo");
    narrator.tell(
        "A sandbox of its own: private processes, network and files. Nothing of this host can be touched \
         from here. In it: a small shop with four checkout workers behind a load balancer, and an agent \
         whose policy says that at least three workers must stay ready, and that at most one may be \
         removed at a time.",
    );
    let before = snapshot::take().map_err(|error| failed("look at the sandbox", &error))?;
    let mut show = Show::open(&set, narrator).await?;
    let result = acts(&mut show, &before).await;
    let out = set.out;
    let broken = show.acts.iter().filter(|act| act["outcome"] == "broken").count();
    let skipped = show.acts.iter().filter(|act| act["outcome"] == "skipped").count();
    let kept = show.acts.len() - broken - skipped;
    let narrator = show.narrator.clone();
    narrator.title("The end");
    let numbers = format!("{} kept, {skipped} skipped, {broken} broken", count(kept, "promise"));
    narrator.tell(&format!("{numbers}, in {}.", duration(begun.elapsed())));
    narrator.tell(&format!("In {}:", out.display()));
    narrator.rendered(&[
        "report.json   every act with its numbers, every run with its events".to_owned(),
        "agent.log     what the agent logged".to_owned(),
        "*.toml        the policy and the experiments, to read and to change".to_owned(),
    ]);
    write(out, "report.json", &show.report(begun.elapsed()).to_string())?;
    result.map(|()| broken == 0)
}

async fn acts(show: &mut Show, before: &[String]) -> Result<(), Failure> {
    show.act("1. What does this host allow?", looks).await?;
    show.act("2. Two workers at once?", kills::two).await?;
    show.act("3. One worker", kills::one).await?;
    show.act("4. And another one, at once?", kills::another).await?;
    show.act("5. Latency", delays::latency).await?;
    show.act("6. Forty connections and no more", caps::cap).await?;
    show.act("7. Something else goes wrong", trouble::workers_die).await?;
    show.act("8. The agent itself dies", trouble::agent_dies).await?;
    let before = before.to_vec();
    show.act("9. Is everything as it was?", async move |show: &mut Show| leaves(show, &before).await)
        .await
}

impl Show {
    async fn open(set: &Set<'_>, narrator: Narrator) -> Result<Self, Failure> {
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
        Ok(Self { client, service, narrator, reaper, host, fast, agent, program, base, log, log_path, runs, acts })
    }

    async fn act<F>(&mut self, title: &str, act: F) -> Result<(), Failure>
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

    fn report(&self, took: Duration) -> Value {
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

async fn looks(show: &mut Show) -> Result<Act, Failure> {
    show.narrator.tell("Every fault that this host, kernel and user allow, or why not:");
    show.narrator.command("vervet doctor");
    for ability in &show.host.faults {
        let variant = ability.variant.as_ref().map_or(String::new(), |variant| format!(" ({variant})"));
        let answer = if ability.available { "yes" } else { "no" };
        let why = ability.reason.as_ref().map_or(String::new(), |why| format!(": {why}"));
        show.narrator.output(&format!("{}{variant}: {answer}{why}", ability.fault));
    }
    let group = show.calm().await?;
    show.narrator.command("vervet status");
    show.show_group(&group);
    show.narrator.tell(
        "Each full block is a ready worker. The bar stands at the floor: what is right of it may be risked.",
    );
    Ok(Act::Kept(format!("{} ready, floor {}", group.ready.unwrap_or(0), group.floor)))
}

async fn leaves(show: &mut Show, before: &[String]) -> Result<Act, Failure> {
    show.narrator
        .tell("The agent is stopped; then the kernel is asked what there is, as before it started.");
    kill(show.agent, Signal::SIGTERM).map_err(|error| failed("stop the agent", &error))?;
    if tokio::time::timeout(PATIENCE, show.reaper.ended(show.agent)).await.is_err() {
        return Ok(Act::Broken("the agent does not end on SIGTERM".to_owned()));
    }
    let after = snapshot::take().map_err(|error| failed("look at the sandbox", &error))?;
    let left: Vec<&String> = after.iter().filter(|line| !before.contains(line)).collect();
    let gone: Vec<&String> = before.iter().filter(|line| !after.contains(line)).collect();
    for line in &left {
        show.narrator.output(&format!("+ {line}"));
    }
    for line in &gone {
        show.narrator.output(&format!("- {line}"));
    }
    if after != before {
        return Ok(Act::Broken(format!("{} left behind, {} gone", left.len(), gone.len())));
    }
    let what = "links, qdiscs, filters, nftables and settings";
    Ok(Act::Kept(format!(
        "{what}: {} before and after, the same",
        count(after.len(), "entry")
    )))
}

fn write(dir: &Path, name: &str, text: &str) -> Result<(), Failure> {
    let path = dir.join(name);
    fs::write(&path, text).map_err(|error| failed(&format!("write {}", path.display()), &error))
}
