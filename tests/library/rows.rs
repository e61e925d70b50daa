//! The table of the library: how each experiment is played here, and what finds it wanting.
//!
//! An experiment is played as it is in its file. What is shortened is its times (`duration` of steps and
//! `every` of probes); what is exchanged stands in its row.

use std::{collections::BTreeSet, fs, path::Path};

use crate::shop::Habit;

/// Where an experiment is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    /// Instances are processes.
    Processes,
    /// Instances are units of a service manager.
    Units,
}

pub struct Row {
    /// By the library's name.
    pub name: &'static str,
    pub scene: Scene,
    /// In the place of each step's duration, and of each probe's interval.
    pub duration: &'static str,
    pub every: &'static str,
    /// Texts and what stands for them here; each must occur.
    pub swaps: &'static [(&'static str, &'static str)],
    /// A bad habit, and the probe that misses because of it.
    pub finds: Option<(Habit, &'static str)>,
}

const fn row(name: &'static str) -> Row {
    let (duration, every) = ("1500ms", "100ms");
    Row { name, scene: Scene::Processes, duration, every, swaps: &[], finds: None }
}

const fn unit(name: &'static str) -> Row {
    Row { scene: Scene::Units, ..row(name) }
}

impl Row {
    const fn finds(self, habit: Habit, probe: &'static str) -> Self {
        Self { finds: Some((habit, probe)), ..self }
    }

    const fn swaps(self, swaps: &'static [(&'static str, &'static str)]) -> Self {
        Self { swaps, ..self }
    }

    const fn times(self, duration: &'static str, every: &'static str) -> Self {
        Self { duration, every, ..self }
    }

    /// The experiment as it is played.
    pub fn text(&self) -> String {
        self.lasting(self.duration)
    }

    /// The same, for long enough to find something: it ends with that.
    pub fn longer(&self) -> String {
        self.lasting("5s")
    }

    fn lasting(&self, duration: &str) -> String {
        let path = dir().join(format!("{}.toml", self.name));
        let mut text =
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for (theirs, ours) in self.swaps {
            assert!(text.contains(theirs), "{}: there is no {theirs}", self.name);
            text = text.replace(theirs, ours);
        }
        let line = |line: &str| match line.split_once(" = ") {
            Some(("duration", _)) => format!("duration = \"{duration}\"\n"),
            Some(("every", _)) => format!("every = \"{}\"\n", self.every),
            _ => format!("{line}\n"),
        };
        text.lines().map(line).collect()
    }
}

use Habit::{Brittle, Trusting, Unattended};

pub const ROWS: &[Row] = &[
    row("monkey"),
    row("loss/kill-one-checkout").finds(Brittle, "checkout answers"),
    row("loss/kill-oldest-worker"),
    row("loss/half-of-checkout"),
    row("loss/term-then-kill")
        .swaps(&[("after = \"10s\"", "after = \"1s\"")])
        .finds(Brittle, "checkout answers"),
    row("loss/replaced-in-time").times("2s", "250ms").finds(Unattended, "all four are back soon"),
    row("loss/killed-while-starting"),
    row("hang/pause-one-worker").finds(Brittle, "checkout answers"),
    row("hang/hiccups"),
    row("hang/back-from-the-dead"),
    row("hang/two-workers-hang"),
    row("slow/slow-database").finds(Trusting, "checkout answers in time"),
    row("slow/slow-service")
        .swaps(&[("within = \"2s\"", "within = \"1s\"")])
        .finds(Trusting, "the shop's front page is up"),
    row("slow/slow-one-instance"),
    row("slow/slow-cache").finds(Trusting, "checkout answers in time"),
    // A delay shows when the first packet has had it.
    row("slow/slow-dns").times("4s", "100ms").finds(Trusting, "checkout answers in time"),
    row("slow/far-away-region").finds(Trusting, "checkout answers in time"),
    row("slow/tail-of-the-database")
        .swaps(&[("window = \"20s\"", "window = \"2s\"")])
        .times("4s", "50ms")
        .finds(Trusting, "checkout answers in time"),
    row("slow/where-is-the-knee"),
    row("full/cap-connections"),
    row("full/one-greedy-client"),
    row("full/pool-exhausted").finds(Trusting, "checkout answers"),
    row("full/silent-firewall").finds(Trusting, "checkout answers in time"),
    row("full/reconnect-storm"),
    unit("units/stop-one-unit"),
    unit("units/restart-one-unit"),
    unit("units/freeze-one-unit"),
    unit("units/slow-one-unit"),
    row("together/worker-lost-while-database-slow").swaps(&[(
        "[\"/usr/local/bin/queue-depth-below\", \"100\"]",
        "[\"/usr/bin/test\", \"7\", \"-lt\", \"100\"]",
    )]),
    row("together/hang-while-far-away"),
    row("together/retries-meet-a-full-database"),
];

fn dir() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/experiments"))
}

/// The library as an agent lists it.
fn library() -> Vec<vervet::document::library::Entry> {
    vervet::document::Library::new(dir()).list().expect("read")
}

#[test]
fn every_experiment_has_a_row_and_every_row_an_experiment() {
    let entries = library();
    for entry in &entries {
        assert_eq!(entry.error, None, "{}", entry.name);
    }
    let files: BTreeSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    let rows: BTreeSet<&str> = ROWS.iter().map(|row| row.name).collect();
    assert_eq!(files, rows);
    assert_eq!(rows.len(), ROWS.len(), "a row is there twice");
}

#[test]
fn the_index_names_every_experiment_by_its_title() {
    let index = fs::read_to_string(dir().join("README.md")).expect("read");
    for entry in library() {
        let line = index.lines().find(|line| line.contains(&format!("({}.toml)", entry.name)));
        assert!(line.is_some(), "{} is not in experiments/README.md", entry.name);
    }
    for link in index.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        assert!(dir().join(link).exists(), "{link}");
    }
}

#[test]
fn every_experiment_explains_itself() {
    for row in ROWS {
        let text = fs::read_to_string(dir().join(format!("{}.toml", row.name))).expect("read");
        let comments = text.lines().take_while(|line| line.starts_with('#')).count();
        assert!(comments >= 4, "{}: {comments} lines of comment before the title", row.name);
        assert!(text.lines().all(|line| line.chars().count() <= 105), "{}", row.name);
    }
}
