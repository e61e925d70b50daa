//! Reads selectors of processes and of traffic. An empty one is an error: it never means everything.

use std::time::Duration;

use super::{
    address, later,
    reader::{Read, Report, Shape, Table},
    tree::{Node, Value},
    values,
};
use crate::{
    experiment::{Order, Percent, Pick, ProcessSelector, ProcessTarget, Protocol, Traffic},
    host::unit::{Glob, GlobError, complete},
    units::{LONGEST, clip},
};

const PROCESS_KEYS: &[&str] = &[
    "group",
    "unit",
    "container",
    "name",
    "exe",
    "cmdline",
    "user",
    "listen",
    "cgroup",
    "pidfile",
    "older_than",
];

const TRAFFIC_KEYS: &[&str] =
    &["to", "from", "port", "listen", "protocol", "unit", "cgroup", "user", "interface", "netns"];

/// Peers in one list.
const MOST_PEERS: usize = 256;

/// `comm` holds 15 bytes and a terminator: TASK_COMM_LEN, linux/sched.h.
const LONGEST_COMM: usize = 15;

/// The target of a fault: a selector with `pick` (default: 1) and `order` (default: random).
pub fn target(node: &Node, report: &Report) -> Read<ProcessTarget> {
    const ORDERS: &[(&str, Order)] =
        &[("random", Order::Random), ("oldest", Order::Oldest), ("newest", Order::Newest)];
    let keys: &[&[&str]] = &[PROCESS_KEYS, &["pick", "order"]];
    let shape = Shape { what: "a selector of processes", keys, known: later::nothing };
    let table = Table::open(node, report, &shape)?;
    let select = processes(&table);
    let pick = table.or("pick", Pick::Count(1), pick);
    let order = table.or("order", Order::Random, values::word("an order", ORDERS));
    Ok(ProcessTarget { select: select?, pick: pick?, order: order? })
}

/// The target of a fault that takes whole units: selected by name, by group, or by both.
pub fn unit_target(node: &Node, report: &Report) -> Read<ProcessTarget> {
    let whole = |key: &str| ["unit", "group", "pick", "order"].contains(&key);
    let odd =
        node.entries().iter().find(|entry| PROCESS_KEYS.contains(&&*entry.key) && !whole(&entry.key));
    if let Some(entry) = odd {
        let message =
            format!("the fault `unit` takes whole units, and `{}` selects processes", entry.key);
        return Err(report.advise(&entry.node, message, "select by `unit`, by `group`, or by both"));
    }
    target(node, report)
}

/// The members of a group.
pub fn members(node: &Node, report: &Report) -> Read<ProcessSelector> {
    let what = "a selector of processes";
    let shape = Shape { what, keys: &[PROCESS_KEYS], known: later::nothing };
    let table = Table::open(node, report, &shape)?;
    if let Some(group) = table.node("group") {
        report.error(group, "a group's members are processes, not another group");
    }
    processes(&table)
}

fn processes(table: &Table<'_>) -> Read<ProcessSelector> {
    let group = table.find("group", values::some_group);
    let unit = table.find("unit", unit);
    let container = table.find("container", address::container);
    let name = table.find("name", comm);
    let exe = table.find("exe", values::absolute);
    let cmdline = table.find("cmdline", pattern);
    let user = table.find("user", user);
    let listen = table.find("listen", values::port);
    let cgroup = table.find("cgroup", cgroup);
    let pidfile = table.find("pidfile", values::absolute);
    let older_than = table.find("older_than", values::duration(Duration::from_millis(1)..=LONGEST));
    let narrows = |key: &str| ["pick", "order", "older_than"].contains(&key);
    let selects = table.node.entries().iter().any(|entry| !narrows(&entry.key));
    if !selects {
        let message = "this selects no processes: an empty selector never means everything";
        let help = "add one of `group`, `unit`, `container`, `name`, `exe`, `cmdline`, `user`, `listen`, `cgroup` or `pidfile`";
        return Err(table.report.advise(table.node, message, help));
    }
    Ok(ProcessSelector {
        group: group?,
        unit: unit?,
        container: container?,
        name: name?,
        exe: exe?,
        cmdline: cmdline?,
        user: user?,
        listen: listen?,
        cgroup: cgroup?,
        pidfile: pidfile?,
        older_than: older_than?,
    })
}

/// `3`, `"50%"` or `"all"`.
fn pick(node: &Node, report: &Report) -> Read<Pick> {
    const EXPECTED: &str = "a number, a percentage such as \"50%\", or \"all\"";
    match &node.value {
        Value::Integer(_) => values::count(1..=10_000, "processes")(node, report).map(Pick::Count),
        Value::Text(text) if text == "all" => Ok(Pick::All),
        Value::Text(text) if text.contains('%') => {
            let percent = values::percent(node, report)?;
            if percent == Percent::ZERO {
                return Err(report.error(node, "picking 0% would do nothing"));
            }
            Ok(Pick::Percent(percent))
        }
        Value::Text(text) => {
            let message = format!("expected {EXPECTED}, found \"{}\"", clip(text));
            Err(match text.parse::<u32>() {
                Ok(number) => report.advise(node, message, format!("without quotes: `pick = {number}`")),
                Err(_) => report.error(node, message),
            })
        }
        _ => Err(report.mismatch(node, EXPECTED)),
    }
}

fn comm(node: &Node, report: &Report) -> Read<String> {
    let name = values::line(node, report)?;
    if name.len() <= LONGEST_COMM {
        return Ok(name);
    }
    let short = &name[..name.floor_char_boundary(LONGEST_COMM)];
    let message = format!("no process has this name: the kernel keeps {LONGEST_COMM} bytes of it");
    let help = format!("write `name = \"{short}\"`, or select by `exe` or `cmdline`");
    Err(report.advise(node, message, help))
}

/// The name of a unit, or a pattern of names; without a type it is a service.
fn unit(node: &Node, report: &Report) -> Read<String> {
    let text = values::string(node, report, "the name of a systemd unit such as \"nginx.service\"")?;
    let help = match Glob::new(text) {
        Ok(_) => return Ok(complete(text)),
        Err(GlobError::Everything) => "name something that only the target has".to_owned(),
        Err(GlobError::Slice) => {
            format!("select what is below it by cgroup: `cgroup = \"{}\"`", slice_path(text))
        }
        Err(_) => "write it as `systemctl` lists it; `*`, `?` and `[…]` stand for others".to_owned(),
    };
    let why = Glob::new(text).err().map(|error| error.to_string()).unwrap_or_default();
    Err(report.advise(node, format!("`{}` cannot select units: {why}", clip(text)), help))
}

/// Where systemd puts a slice: `a-b.slice` below `a.slice`, systemd.slice(5).
fn slice_path(slice: &str) -> String {
    let ends = slice.match_indices('-').map(|(at, _)| at).filter(|at| *at > 0);
    let parts = ends.map(|at| format!("{}.slice", &slice[..at])).chain([slice.to_owned()]);
    clip(&format!("/{}", parts.collect::<Vec<_>>().join("/")))
}

/// A regular expression that does not match everything.
fn pattern(node: &Node, report: &Report) -> Read<String> {
    let text = values::string(node, report, "a regular expression")?;
    let regex = regex::Regex::new(text).map_err(|error| {
        let error = error.to_string();
        let why = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
        report.error(node, format!("this is not a regular expression: {why}"))
    })?;
    if regex.is_match("") {
        let message = "this pattern matches every process, even one without arguments";
        return Err(report.advise(node, message, "name something that only the target has"));
    }
    Ok(text.to_owned())
}

/// A user's name or number.
fn user(node: &Node, report: &Report) -> Read<String> {
    if let Value::Integer(_) = node.value {
        return values::count(0..=u32::MAX - 1, "a user")(node, report).map(|uid| uid.to_string());
    }
    let name = values::string(node, report, "the name or number of a user")?;
    if name.len() > 64 || name.contains([':', '/']) || name.chars().any(char::is_whitespace) {
        return Err(report.error(node, format!("`{}` cannot be the name of a user", clip(name))));
    }
    Ok(name.to_owned())
}

/// A path below the cgroup2 mount, always with its first slash.
fn cgroup(node: &Node, report: &Report) -> Read<String> {
    let text = values::string(node, report, "the path of a cgroup below its mount")?;
    if let Some(inner) = text.strip_prefix("/sys/fs/cgroup").filter(|inner| inner.len() > 1) {
        let message = "the path of a cgroup begins below its mount";
        return Err(report.advise(node, message, format!("write \"{inner}\"")));
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Err(report.error(node, "the root of all cgroups holds every process: name one below it"));
    }
    if text.contains('\n') || parts.iter().any(|part| matches!(*part, "." | "..")) {
        return Err(report.error(node, format!("`{}` is not the plain path of a cgroup", clip(text))));
    }
    Ok(format!("/{}", parts.join("/")))
}

/// Whose traffic, and to where.
pub fn traffic(node: &Node, report: &Report) -> Read<Traffic> {
    const PROTOCOLS: &[(&str, Protocol)] =
        &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("icmp", Protocol::Icmp)];
    let what = "a selector of traffic";
    let shape = Shape { what, keys: &[TRAFFIC_KEYS], known: later::in_traffic };
    let table = Table::open(node, report, &shape)?;
    let peers = || values::one_or_more(MOST_PEERS, "peers", address::peer);
    let to = table.or("to", Vec::new(), peers());
    let from = table.or("from", Vec::new(), peers());
    let port = table.find("port", values::port);
    let listen = table.find("listen", values::port);
    let protocol = table.find("protocol", values::word("a protocol", PROTOCOLS));
    let unit = table.find("unit", unit);
    let cgroup = table.find("cgroup", cgroup);
    let user = table.find("user", user);
    let interface = table.find("interface", address::interface);
    let netns = table.find("netns", address::netns);
    check_traffic(&table, protocol.ok().flatten())?;
    Ok(Traffic {
        to: to?,
        from: from?,
        port: port?,
        listen: listen?,
        protocol: protocol?,
        unit: unit?,
        cgroup: cgroup?,
        user: user?,
        interface: interface?,
        netns: netns?,
    })
}

fn check_traffic(table: &Table<'_>, protocol: Option<Protocol>) -> Read<()> {
    if table.node.entries().iter().all(|entry| entry.key == "netns") {
        let message = "this selects no traffic: an empty selector never means everything";
        let help = "add one of `to`, `from`, `port`, `listen`, `protocol`, `unit`, `cgroup`, `user` or `interface`";
        return Err(table.report.advise(table.node, message, help));
    }
    let first = |keys: [&'static str; 2]| keys.into_iter().find(|key| table.has(key));
    if let (Some(calls), Some(called)) = (first(["to", "port"]), first(["from", "listen"])) {
        let message = format!("`{calls}` and `{called}` together match nothing");
        let help = "`to` and `port` are for calls that this host makes, `from` and `listen` for calls made to it";
        return Err(table.report.advise(table.node, message, help));
    }
    let ported = ["port", "listen"].into_iter().find(|key| table.has(key));
    if let (Some(Protocol::Icmp), Some(key)) = (protocol, ported) {
        return Err(table
            .report
            .error(table.node, format!("icmp has no ports, so `{key}` matches nothing")));
    }
    Ok(())
}

/// `3` or `"75%"` of `expected`, rounded up.
pub fn floor(node: &Node, report: &Report, expected: Read<Option<u32>>) -> Read<u32> {
    const EXPECTED: &str = "a number of instances or a percentage such as \"75%\"";
    let text = match &node.value {
        Value::Integer(_) => return values::count(0..=100_000, "instances")(node, report),
        Value::Text(text) => text,
        _ => return Err(report.mismatch(node, EXPECTED)),
    };
    if let Ok(number) = text.parse::<u32>() {
        let message = format!("expected {EXPECTED}, found a string");
        return Err(report.advise(node, message, format!("without quotes: `floor = {number}`")));
    }
    let percent = values::percent(node, report)?;
    let Some(expected) = expected? else {
        let help = "add `expected = N`, the number of instances when all is well";
        return Err(report.advise(node, "a percentage of what? `expected` is missing", help));
    };
    Ok(share(percent, expected))
}

/// The share of `whole`, rounded up, without the errors of binary fractions: 70 % of 10 is 7.
fn share(percent: Percent, whole: u32) -> u32 {
    let millionths = (percent.get() * 1e6 - 1e-3).ceil().max(0.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1e8")]
    let millionths = millionths as u64;
    let share = (u64::from(whole) * millionths).div_ceil(100_000_000);
    u32::try_from(share).unwrap_or(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units;

    #[test]
    fn shares_round_up_and_only_when_needed() {
        let share_of = |text: &str, whole| share(units::percent(text).unwrap(), whole);
        assert_eq!(share_of("75%", 4), 3);
        assert_eq!(share_of("70%", 10), 7);
        assert_eq!(share_of("55%", 100), 55);
        assert_eq!(share_of("71%", 10), 8);
        assert_eq!(share_of("0%", 10), 0);
        assert_eq!(share_of("100%", 10), 10);
        assert_eq!(share_of("0.0000001%", 10), 1);
        assert_eq!(share_of("55.1%", 1000), 551);
    }
}
