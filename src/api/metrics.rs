//! `/metrics`: what a dashboard and an alert want to know, counted here or read off the snapshot.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
};

use axum::http::{Method, StatusCode};
use jiff::Timestamp;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};
use uuid::Uuid;

use crate::{
    runner::Snapshot,
    view::{GroupView, RunState, RunView, Verdict},
};

use super::app::App;

/// What only the API can count.
#[derive(Debug, Default)]
pub struct Counters {
    requests: Family<RequestLabels, Counter>,
    runs: Family<VerdictLabels, Counter>,
    /// Finished runs of the last snapshot, which are counted.
    seen: Mutex<HashSet<Uuid>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    verdict: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupLabels {
    group: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ScheduleLabels {
    schedule: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaultLabels {
    fault: &'static str,
}

type Groups = Family<GroupLabels, Gauge>;
type Seconds = Gauge<f64, AtomicU64>;

impl Counters {
    /// One more answer. What a client can choose freely does not become a label.
    pub fn count(&self, method: &Method, route: &str, status: StatusCode) {
        let known = ["GET", "HEAD", "POST", "PUT", "DELETE"].contains(&method.as_str());
        let method = if known { method.as_str() } else { "other" }.to_owned();
        let labels = RequestLabels { method, route: route.to_owned(), status: status.as_u16() };
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts the runs that have finished since the last snapshot.
    fn count_runs(&self, snapshot: &Snapshot) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = |run: &&Arc<RunView>| {
            run.state == RunState::Finished
                && run.finished_at.is_some_and(|at| at >= snapshot.host.started_at)
        };
        let mut now = HashSet::new();
        for run in snapshot.runs.iter().filter(ours) {
            now.insert(run.id);
            if let (Some(verdict), false) = (run.verdict, seen.contains(&run.id)) {
                self.runs.get_or_create(&VerdictLabels { verdict: word(verdict) }).inc();
            }
        }
        *seen = now;
    }
}

/// Follows the snapshots, so that no finished run is missed between two scrapes.
pub async fn count_verdicts(app: Arc<App>) {
    for verdict in ["passed", "failed", "refused", "aborted", "inconclusive"] {
        drop(app.counters.runs.get_or_create(&VerdictLabels { verdict }));
    }
    let mut snapshots = app.handle.snapshot.clone();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        app.counters.count_runs(&snapshot);
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

/// All metrics in OpenMetrics text.
#[must_use]
pub fn render(counters: &Counters, snapshot: &Snapshot, now: Timestamp) -> String {
    counters.count_runs(snapshot);
    let mut registry = Registry::with_prefix("vervet");
    let registry_ref = &mut registry;
    registry_ref.register("http_requests", "Answers by route and status", counters.requests.clone());
    registry_ref.register("runs", "Finished runs by verdict, since start", counters.runs.clone());
    host(registry_ref, snapshot);
    groups(registry_ref, &snapshot.groups, now);
    schedules(registry_ref, snapshot, now);
    faults(registry_ref, snapshot);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

fn host(registry: &mut Registry, snapshot: &Snapshot) {
    let host = &snapshot.host;
    let build = Info::new([("version", host.version.clone()), ("kernel", host.kernel.clone())]);
    registry.register("build", "The agent and its kernel", build);
    let mut flag = |name: &str, help: &str, value: i64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    flag("halted", "The lever is pulled", host.halted.is_some().into());
    flag("leashed", "The agent decides and touches nothing", host.leashed.into());
    flag("frozen", "A freeze is in force", host.frozen.is_some().into());
    flag("problems", "Reasons why nothing can be admitted", count(host.problems.len()));
    let active = snapshot.runs.iter().filter(|run| run.state != RunState::Finished).count();
    flag("runs_active", "Runs that have not finished", count(active));
}

fn groups(registry: &mut Registry, groups: &[GroupView], now: Timestamp) {
    let mut family = |name: &str, help: &str, value: fn(&GroupView) -> Option<u32>| {
        let family = Groups::default();
        for group in groups {
            if let Some(value) = value(group) {
                family.get_or_create(&labels(group)).set(value.into());
            }
        }
        registry.register(name, help, family);
    };
    family("group_ready", "Ready instances by the last reading", |group| group.ready);
    family("group_total", "Instances by the last reading", |group| group.total);
    family("group_floor", "Instances that must stay ready", |group| Some(group.floor));
    family("group_charged", "Instances that runs hold", |group| Some(group.charged));
    family("group_effective", "Ready less charged", |group| group.effective);
    family("group_budget_left", "Removals allowed now", |group| Some(group.budget.left));
    family("group_fresh", "The reading can be decided on", |group| Some(group.fresh.into()));
    family("group_blocked", "Recovering: nothing is admitted", |group| {
        Some(group.blocked.is_some().into())
    });
    let ages = Family::<GroupLabels, Seconds>::default();
    for group in groups {
        if let Some(at) = group.taken_at {
            ages.get_or_create(&labels(group)).set(now.duration_since(at).as_secs_f64().max(0.0));
        }
    }
    registry.register("group_reading_age_seconds", "Age of the last reading", ages);
}

fn schedules(registry: &mut Registry, snapshot: &Snapshot, now: Timestamp) {
    let (paused, next) =
        (Family::<ScheduleLabels, Gauge>::default(), Family::<ScheduleLabels, Seconds>::default());
    for one in snapshot.agenda.planned() {
        let labels = ScheduleLabels { schedule: one.schedule.name.clone() };
        let is_paused = snapshot.agenda.held_back(&one.schedule.name).is_some();
        paused.get_or_create(&labels).set(is_paused.into());
        if let Some(at) = one.next {
            next.get_or_create(&labels).set(at.duration_since(now).as_secs_f64().max(0.0));
        }
    }
    registry.register("schedule_paused", "Somebody paused it", paused);
    registry.register("schedule_next_seconds", "Time to its next slot", next);
}

fn faults(registry: &mut Registry, snapshot: &Snapshot) {
    let family = Family::<FaultLabels, Gauge>::default();
    for ability in &snapshot.host.faults {
        drop(family.get_or_create(&FaultLabels { fault: ability.fault.as_str() }));
    }
    for fault in &snapshot.faults {
        family.get_or_create(&FaultLabels { fault: fault.fault.as_str() }).inc();
    }
    registry.register("faults_active", "Faults in force now", family);
}

fn labels(group: &GroupView) -> GroupLabels {
    GroupLabels { group: group.name.clone() }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "passed",
        Verdict::Failed => "failed",
        Verdict::Refused => "refused",
        Verdict::Aborted => "aborted",
        Verdict::Inconclusive => "inconclusive",
    }
}
