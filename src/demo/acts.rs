//! The play: its order, what the acts share, and the report that it leaves.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use nix::sys::signal::{Signal, kill};

use crate::{
    cli::{
        Failure,
        text::{count, duration},
        ui::Ui,
    },
    demo::{
        caps, delays, kills,
        narrator::Narrator,
        reaper::Reaper,
        show::{Act, PATIENCE, Show, failed, write},
        snapshot, trouble,
    },
};

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
    Ok(Act::Kept(format!("{what}: {} before and after, the same", count(after.len(), "entry"))))
}
