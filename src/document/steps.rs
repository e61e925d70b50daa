//! Reads steps: what they have in common, and the parameters of each fault.

use std::time::Duration;

use super::{
    checks, later,
    reader::{Failed, Known, Read, Report, Shape, Table},
    select,
    tree::{Node, Value},
    values,
};
use crate::experiment::{
    Connections, DelayEngine, Distribution, Drain, Escalation, Excess, Existing, FaultKind, FaultSpec,
    Kill, Late, Latency, Pause, Percent, Protocol, Signal, Start, Step, Traffic, UnitAction, UnitFault,
};

const COMMON: &[&str] = &["name", "fault", "duration", "start", "charge"];
const KILL: &[&str] = &["target", "signal", "then", "drain"];
const PAUSE: &[&str] = &["target"];
const UNIT: &[&str] = &["target", "action"];
const LATENCY: &[&str] = &["traffic", "delay", "jitter", "correlation", "distribution", "engine"];
const CONNECTIONS: &[&str] = &["traffic", "max", "per_source", "new_per_second", "excess", "existing"];

/// The shortest time that a fault can be in force.
const SHORTEST: Duration = Duration::from_millis(10);
/// The longest; the host's policy allows less.
pub const LONGEST_STEP: Duration = Duration::from_hours(24);
/// Neither delay engine holds packets longer.
const LONGEST_DELAY: Duration = Duration::from_mins(1);
const SHORTEST_DELAY: Duration = Duration::from_micros(1);
/// Connections in a cap.
const MOST_CONNECTIONS: u32 = 10_000_000;

/// A `[[step]]`.
pub fn step(node: &Node, report: &Report) -> Read<Step> {
    let kind = kind(node, report);
    let table = open(node, report, kind)?;
    if !table.has("fault") {
        table.missing("fault", "fault = \"kill\"");
    }
    let name = table.need("name", "name = \"lose a worker\"", values::line);
    let start = table.or("start", Start::AfterPrevious, start);
    let charge = table.or("charge", 0, values::count(0..=10_000, "instances"));
    let duration = table.find("duration", values::duration(SHORTEST..=LONGEST_STEP));
    let fault = fault(&table, kind?);
    if let (Ok(FaultSpec::Kill(Kill { drain: Some(_), .. })), Ok(None)) = (&fault, &duration) {
        let example = "duration = \"20s\", after which the victim is put back into the rotation: long enough for \
                       another to take its place, or for HAProxy's checks to notice";
        table.missing("duration", example);
    }
    if kind != Ok(FaultKind::Kill) && duration == Ok(None) {
        table.missing("duration", "duration = \"60s\", after which the fault is undone");
    }
    let step = Step { name: name?, fault: fault?, duration: duration?, start: start?, charge: charge? };
    check_escalation(&table, &step);
    Ok(step)
}

/// The keys that a step has depend on its fault.
fn open<'a>(node: &'a Node, report: &'a Report, kind: Read<FaultKind>) -> Read<Table<'a>> {
    let Ok(kind) = kind else {
        if node.get("fault").is_some() {
            // Not a fault of this version: nothing can be said about its parameters.
            return Table::open_unchecked(node, report, "a step");
        }
        let keys: &[&[&str]] = &[COMMON, KILL, &["action"], LATENCY, CONNECTIONS];
        return Table::open(node, report, &Shape { what: "a step", keys, known: later::nothing });
    };
    let parameters = match kind {
        FaultKind::Kill => KILL,
        FaultKind::Pause => PAUSE,
        FaultKind::Unit => UNIT,
        FaultKind::Latency => LATENCY,
        FaultKind::Connections => CONNECTIONS,
    };
    let what = format!("a step with the fault `{kind}`");
    Table::open(
        node,
        report,
        &Shape { what: &what, keys: &[COMMON, parameters], known: of_another_fault },
    )
}

/// The fault of a step, looked up before all else because the valid keys depend on it.
fn kind(node: &Node, report: &Report) -> Read<FaultKind> {
    let Some(word) = node.get("fault") else { return Err(Failed) };
    let names = FaultKind::ALL.iter().map(|kind| kind.as_str());
    let text = values::string(word, report, "the name of a fault such as \"kill\"")?;
    match FaultKind::ALL.iter().find(|kind| kind.as_str() == text) {
        Some(kind) => Ok(*kind),
        None => Err(match later::fault(text) {
            Some(known) => report.advise(word, known.message, known.help),
            None => values::no_such(word, report, "a fault", text, names),
        }),
    }
}

/// Explains a key that another fault has.
fn of_another_fault(key: &str) -> Option<Known> {
    let owners: &[&str] = match key {
        "target" => &["kill", "pause", "unit"],
        "signal" | "then" | "drain" => &["kill"],
        "action" => &["unit"],
        "delay" | "jitter" | "correlation" | "distribution" | "engine" => &["latency"],
        "max" | "per_source" | "new_per_second" | "excess" | "existing" => &["connections"],
        "traffic" => &["latency", "connections"],
        _ => return None,
    };
    let owners: Vec<String> = owners.iter().map(|owner| format!("`{owner}`")).collect();
    Some(Known {
        message: format!("`{key}` is not a key of this fault"),
        help: format!("it belongs to {}", listed(&owners)),
    })
}

fn fault(table: &Table<'_>, kind: FaultKind) -> Read<FaultSpec> {
    match kind {
        FaultKind::Kill => kill(table).map(FaultSpec::Kill),
        FaultKind::Pause => pause(table).map(FaultSpec::Pause),
        FaultKind::Unit => unit(table).map(FaultSpec::Unit),
        FaultKind::Latency => latency(table).map(FaultSpec::Latency),
        FaultKind::Connections => connections(table).map(FaultSpec::Connections),
    }
}

fn start(node: &Node, report: &Report) -> Read<Start> {
    const STARTS: &[(&str, Start)] =
        &[("after previous", Start::AfterPrevious), ("with previous", Start::WithPrevious)];
    values::word("a way to start", STARTS)(node, report)
}

fn kill(table: &Table<'_>) -> Read<Kill> {
    let target = table.need("target", "target = { group = \"checkout\", pick = 1 }", select::target);
    let first = table.or("signal", Signal::KILL, signal);
    let then = table.find("then", escalation);
    if let (Ok(Signal::KILL), Some(node), false) = (first, table.node("then"), table.meant("signal")) {
        let message = "nothing survives SIGKILL, so `then` would do nothing";
        table.report.advise(node, message, "give the step a milder signal: `signal = \"SIGTERM\"`");
    }
    let drain = table.find("drain", drain);
    Ok(Kill { target: target?, signal: first?, then: then?, drain: drain? })
}

fn drain(node: &Node, report: &Report) -> Read<Drain> {
    const LATE: &[(&str, Late)] = &[("spare", Late::Spare), ("kill", Late::Kill)];
    let keys: &[&[&str]] = &[&["haproxy", "backend", "within", "late"]];
    let table = Table::open(node, report, &Shape { what: "a drain", keys, known: later::nothing })?;
    let pool = checks::pool(&table);
    let within = values::duration(SHORTEST..=LONGEST_STEP);
    let within = table.need("within", "within = \"10s\"", within);
    let late = table.or("late", Late::Spare, values::word("a choice", LATE));
    Ok(Drain { pool: pool?, within: within?, late: late? })
}

fn pause(table: &Table<'_>) -> Read<Pause> {
    let target = table.need("target", "target = { group = \"checkout\", pick = 1 }", select::target);
    Ok(Pause { target: target? })
}

fn unit(table: &Table<'_>) -> Read<UnitFault> {
    const ACTIONS: &[(&str, UnitAction)] =
        &[("stop", UnitAction::Stop), ("restart", UnitAction::Restart)];
    let example = "target = { unit = \"checkout@*.service\", pick = 1 }";
    let target = table.need("target", example, select::unit_target);
    let action = table.need("action", "action = \"stop\"", values::word("an action", ACTIONS));
    Ok(UnitFault { target: target?, action: action? })
}

/// `a`, `a and b`, `a, b and c`
fn listed(words: &[String]) -> String {
    match words {
        [most @ .., last] if !most.is_empty() => format!("{} and {last}", most.join(", ")),
        _ => words.concat(),
    }
}

fn escalation(node: &Node, report: &Report) -> Read<Escalation> {
    let what = "an escalation";
    let shape = Shape { what, keys: &[&["signal", "after"]], known: later::nothing };
    let table = Table::open(node, report, &shape)?;
    let signal = table.or("signal", Signal::KILL, signal);
    let after = values::duration(Duration::from_millis(1)..=LONGEST_STEP);
    let after = table.need("after", "after = \"10s\"", after);
    Ok(Escalation { signal: signal?, after: after? })
}

fn check_escalation(table: &Table<'_>, step: &Step) {
    let FaultSpec::Kill(Kill { then: Some(then), .. }) = &step.fault else { return };
    let node = table.node("then").unwrap_or(table.node);
    if step.duration.is_some_and(|duration| then.after >= duration) {
        let message = "the step ends before its escalation: `after` must be shorter than `duration`";
        table.report.error(node.get("after").unwrap_or(node), message);
    }
}

fn signal(node: &Node, report: &Report) -> Read<Signal> {
    const EXPECTED: &str = "the name of a signal such as \"SIGTERM\"";
    let zero = "signal 0 only asks whether a process exists: it would do nothing";
    if let Value::Integer(number) = node.value {
        let named = Signal::names().nth(usize::try_from(number - 1).unwrap_or(usize::MAX));
        return Err(match named {
            _ if number == 0 => report.error(node, zero),
            Some(name) => {
                let message = format!("expected {EXPECTED}, found an integer");
                report.advise(node, message, format!("signal {number} is \"{name}\""))
            }
            None => report.mismatch(node, EXPECTED),
        });
    }
    let text = values::string(node, report, EXPECTED)?;
    let Some(signal) = Signal::from_name(text) else {
        if text == "0" {
            return Err(report.error(node, zero));
        }
        return Err(values::no_such(node, report, "a signal", &text.to_uppercase(), Signal::names()));
    };
    if signal.stops() {
        let message = format!("{signal} would leave the process stopped, and a kill undoes nothing");
        let help = "stopping and continuing is the fault `pause`";
        return Err(report.advise(node, message, help));
    }
    Ok(signal)
}

fn latency(table: &Table<'_>) -> Read<Latency> {
    const DISTRIBUTIONS: &[(&str, Distribution)] = &[
        ("uniform", Distribution::Uniform),
        ("normal", Distribution::Normal),
        ("pareto", Distribution::Pareto),
        ("paretonormal", Distribution::ParetoNormal),
    ];
    const ENGINES: &[(&str, DelayEngine)] = &[("netem", DelayEngine::Netem), ("tap", DelayEngine::Tap)];
    let delays = || values::duration(SHORTEST_DELAY..=LONGEST_DELAY);
    let traffic = table.need("traffic", "traffic = { port = 5432 }", select::traffic);
    let delay = table.need("delay", "delay = \"100ms\"", delays());
    let jitter = table.or("jitter", Duration::ZERO, delays());
    let correlation = table.or("correlation", Percent::ZERO, correlation);
    let distribution = values::word("a distribution", DISTRIBUTIONS);
    let distribution = table.or("distribution", Distribution::Uniform, distribution);
    let engine = table.find("engine", values::word("an engine", ENGINES));
    if let (Ok(delay), Ok(jitter), Some(node)) = (delay, jitter, table.node("jitter"))
        && jitter > delay
    {
        let message = "the jitter is larger than the delay: some packets would leave before they came";
        table.report.error(node, message);
    }
    for key in ["correlation", "distribution"] {
        if let (Some(node), false) = (table.node(key), table.has("jitter") || table.meant("jitter")) {
            table.report.error(node, format!("without `jitter`, `{key}` would do nothing"));
        }
    }
    Ok(Latency {
        traffic: traffic?,
        delay: delay?,
        jitter: jitter?,
        correlation: correlation?,
        distribution: distribution?,
        engine: engine?,
    })
}

fn correlation(node: &Node, report: &Report) -> Read<Percent> {
    let percent = values::percent(node, report)?;
    if percent == Percent::ZERO {
        return Err(report.advise(node, "a correlation of 0% would do nothing", "leave the key out"));
    }
    Ok(percent)
}

fn connections(table: &Table<'_>) -> Read<Connections> {
    const EXCESS: &[(&str, Excess)] = &[("reset", Excess::Reset), ("drop", Excess::Drop)];
    const EXISTING: &[(&str, Existing)] = &[("keep", Existing::Keep), ("close", Existing::Close)];
    let count = || values::count(0..=MOST_CONNECTIONS, "connections");
    let traffic = table.need("traffic", "traffic = { listen = 8080 }", capped_traffic);
    let max = table.find("max", count());
    let per_source = table.find("per_source", count());
    let new_per_second = table.find("new_per_second", count());
    let excess = table.or("excess", Excess::Reset, values::word("a way to refuse", EXCESS));
    let existing = table.or("existing", Existing::Keep, values::word("a choice", EXISTING));
    let limits = ["max", "per_source", "new_per_second"];
    if !limits.iter().any(|key| table.has(key) || table.meant(key)) {
        let message = "a cap without a limit would do nothing";
        let help = "add at least one of `max`, `per_source` and `new_per_second`";
        return Err(table.report.advise(table.node, message, help));
    }
    if let (Ok(Some(max)), Ok(Some(per_source))) = (max, per_source)
        && per_source > max
    {
        let node = table.node("per_source").unwrap_or(table.node);
        let message = format!("`max` allows {max} in total, so {per_source} from one source never come");
        table.report.error(node, message);
    }
    Ok(Connections {
        traffic: traffic?,
        max: max?,
        per_source: per_source?,
        new_per_second: new_per_second?,
        excess: excess?,
        existing: existing?,
    })
}

fn capped_traffic(node: &Node, report: &Report) -> Read<Traffic> {
    let traffic = select::traffic(node, report)?;
    match traffic.protocol {
        None | Some(Protocol::Tcp) => Ok(traffic),
        Some(Protocol::Udp | Protocol::Icmp) => {
            let node = node.get("protocol").unwrap_or(node);
            Err(report.error(node, "only tcp has connections to cap"))
        }
    }
}
