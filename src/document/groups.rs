//! Reads capacity groups of a policy.

use std::time::Duration;

use super::{
    checks, later,
    reader::{Failed, Read, Report, Shape, Table},
    select,
    tree::Node,
    values,
};
use crate::{
    config::{GroupPolicy, ReadySource, Removal},
    probe::systemd,
    units::show_duration,
};

const KEYS: &[&str] = &[
    "name",
    "floor",
    "expected",
    "members",
    "ready",
    "poll",
    "stale_after",
    "settle",
    "removal",
    "monkey",
    "spare",
];

const POLL: Duration = Duration::from_millis(250);
const STALE_AFTER: Duration = Duration::from_secs(2);
const SETTLE: Duration = Duration::from_secs(5);
const REMOVAL: Removal = Removal { at_once: 1, every: Duration::from_secs(30) };

/// A `[[group]]`.
pub fn group(node: &Node, report: &Report) -> Read<GroupPolicy> {
    let table =
        Table::open(node, report, &Shape { what: "a group", keys: &[KEYS], known: later::nothing })?;
    let name = table.need("name", "name = \"checkout\"", values::group_name);
    let expected = table.find("expected", values::count(1..=100_000, "instances"));
    let floor = table.need("floor", "floor = 3, or floor = \"75%\" of `expected`", |node, report| {
        // A misspelt `expected` has been reported: a floor in percent then has nothing to say.
        let known = if table.meant("expected") { Err(Failed) } else { expected };
        select::floor(node, report, known)
    });
    let members = table.need("members", "members = { listen = 8080 }", select::members);
    let ready = table.or("ready", ReadySource::Process, checks::ready);
    let poll = values::duration(Duration::from_millis(10)..=Duration::from_mins(1));
    let poll = table.or("poll", POLL, poll);
    let spans = || values::duration(Duration::from_millis(20)..=Duration::from_hours(1));
    let stale_after = table.or("stale_after", STALE_AFTER, spans());
    let settle = table.or("settle", SETTLE, spans());
    let removal = table.or("removal", REMOVAL, removal);
    let monkey = table.or("monkey", false, values::boolean);
    let spare = table.or("spare", Vec::new(), values::one_or_more(32, "selectors", select::members));
    if let (Ok(floor), Ok(Some(expected))) = (floor, expected) {
        check_floor(&table, floor, expected);
    }
    let group = GroupPolicy {
        name: name?,
        floor: floor?,
        expected: expected?,
        members: members?,
        ready: ready?,
        poll: poll?,
        stale_after: stale_after?,
        settle: settle?,
        removal: removal?,
        monkey: monkey?,
        spare: spare?,
    };
    check_staleness(&table, &group);
    check_settling(&table, &group);
    if group.ready == ReadySource::Systemd && group.members.unit.is_none() {
        let node = table.node("ready").unwrap_or(table.node);
        let message = "whose units? systemd can only be asked about members that are selected by unit";
        report.advise(node, message, "for example: `members = { unit = \"checkout@*.service\" }`");
    }
    Ok(group)
}

fn check_floor(table: &Table<'_>, floor: u32, expected: u32) {
    if floor > expected {
        let node = table.node("floor").unwrap_or(table.node);
        let message = format!("the floor of {floor} is above the {expected} that are `expected`");
        table.report.advise(node, message, "nothing could ever be admitted");
    }
}

/// A source that answers in time must never be stale between two polls.
fn check_staleness(table: &Table<'_>, group: &GroupPolicy) {
    let within = match &group.ready {
        ReadySource::Process => Duration::ZERO,
        ReadySource::Systemd => systemd::WITHIN,
        ReadySource::Http(ask) | ReadySource::HttpCount { ask, .. } => ask.within,
        ReadySource::Dns(question) => question.within,
        ReadySource::Prometheus { server, .. } => server.within,
        ReadySource::Tcp { within, .. }
        | ReadySource::Haproxy { within, .. }
        | ReadySource::Command { within, .. } => *within,
    };
    let slowest = group.poll + within;
    if group.stale_after >= slowest {
        return;
    }
    let given = ["stale_after", "poll", "ready"].into_iter().find_map(|key| table.node(key));
    let node = given.unwrap_or(table.node);
    let message = format!(
        "a sound reading may be {} old (`poll` and `within`), and would be stale after {}",
        show_duration(slowest),
        show_duration(group.stale_after),
    );
    table.report.advise(node, message, "raise `stale_after`, or lower the other two");
}

/// A removal is taken to show in what is asked `settle` after it: an older sample may not pass for that.
fn check_settling(table: &Table<'_>, group: &GroupPolicy) {
    let ReadySource::Prometheus { server, .. } = &group.ready else { return };
    if group.settle >= server.max_age || table.meant("settle") {
        return;
    }
    let node = ["settle", "ready"].into_iter().find_map(|key| table.node(key)).unwrap_or(table.node);
    let (settle, max_age) = (show_duration(group.settle), show_duration(server.max_age));
    let message = format!(
        "what prometheus says may be {max_age} old (`max_age`), and a removal is taken to show in it \
         after {settle} (`settle`)"
    );
    let help = format!(
        "`settle = \"{max_age}\"`, or a shorter `max_age`: two intervals at which the group is scraped"
    );
    table.report.advise(node, message, help);
}

fn removal(node: &Node, report: &Report) -> Read<Removal> {
    let keys: &[&[&str]] = &[&["at_once", "every"]];
    let table = Table::open(node, report, &Shape { what: "`removal`", keys, known: later::nothing })?;
    let at_once = table.or("at_once", REMOVAL.at_once, values::count(1..=100_000, "instances"));
    let every = values::duration(Duration::from_millis(10)..=Duration::from_hours(24 * 7));
    let every = table.or("every", REMOVAL.every, every);
    Ok(Removal { at_once: at_once?, every: every? })
}
