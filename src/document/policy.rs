//! Reads the host's policy, all but its groups.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::{
    address, calendar,
    experiment::MOST_GROUPS,
    groups, later,
    reader::{Failed, Read, Report, Shape, Table},
    steps::LONGEST_STEP,
    tree::{Node, Value},
    values,
};
use crate::{
    config::{
        ApiPolicy, DEFAULT_STATE, HeadroomLimits, Limits, NetworkPolicy, Policy, Role, TlsPolicy,
        TokenPolicy,
    },
    experiment::Percent,
};

const KEYS: &[&str] =
    &["leashed", "state", "experiments", "api", "limits", "network", "group", "freeze", "schedule"];

/// Bytes in the path of a Unix socket, without the final zero: unix(7).
const LONGEST_SOCKET: usize = 107;

/// Bits of the packet mark that are vervet's, where the policy does not say.
const MARK_MASK: u32 = 0xff00_0000;

/// Reads the root of a policy file. An empty file is a policy too: leashed, without groups.
pub fn policy(root: &Node, report: &Report) -> Read<Policy> {
    let shape = Shape { what: "a policy", keys: &[KEYS], known: later::in_policy };
    let table = Table::open(root, report, &shape)?;
    let leashed = table.or("leashed", true, values::boolean);
    let state = table.or("state", PathBuf::from(DEFAULT_STATE), values::path);
    let experiments = PathBuf::from("/etc/vervet/experiments");
    let experiments = table.or("experiments", experiments, values::path);
    let api = table.find("api", api);
    let limits = table.find("limits", limits);
    let network = table.or("network", NetworkPolicy { mark_mask: MARK_MASK }, network);
    let groups = table.or("group", Vec::new(), values::list(MOST_GROUPS, "groups", groups::group));
    let freezes = table.or("freeze", Vec::new(), values::list(256, "freezes", calendar::freeze));
    let schedules = values::list(256, "schedules", calendar::schedule);
    let schedules = table.or("schedule", Vec::new(), schedules);
    check_names(&table, "group", |node| text(node, "name"));
    check_names(&table, "freeze", |node| text(node, "name"));
    check_names(&table, "schedule", calendar::schedule_name);
    Ok(Policy {
        leashed: leashed?,
        state: state?,
        experiments: experiments?,
        api: api?.unwrap_or_else(default_api),
        limits: limits?.unwrap_or_else(default_limits),
        network: network?,
        groups: groups?,
        freezes: freezes?,
        schedules: schedules?,
    })
}

fn check_names(table: &Table<'_>, key: &str, name: impl Fn(&Node) -> Option<String>) {
    let Some(Value::List(items)) = table.node(key).map(|node| &node.value) else { return };
    if items.len() <= MOST_GROUPS {
        values::unique(items, table.report, "the name", "name", name);
    }
}

fn text(node: &Node, key: &str) -> Option<String> {
    match node.get(key).map(|node| &node.value) {
        Some(Value::Text(text)) => Some(text.clone()),
        _ => None,
    }
}

fn default_api() -> ApiPolicy {
    ApiPolicy {
        socket: PathBuf::from("/run/vervet/vervet.sock"),
        listen: None,
        tls: None,
        tokens: Vec::new(),
        hosts: Vec::new(),
    }
}

fn api(node: &Node, report: &Report) -> Read<ApiPolicy> {
    let keys: &[&[&str]] = &[&["socket", "listen", "tls", "token", "hosts"]];
    let table = Table::open(node, report, &Shape { what: "`[api]`", keys, known: later::nothing })?;
    let default = default_api();
    let socket = table.or("socket", default.socket, socket);
    let listen = table.find("listen", address::listen);
    let tls = table.find("tls", tls);
    let tokens = table.or("token", Vec::new(), values::list(64, "tokens", token));
    let hosts = table.or("hosts", Vec::new(), values::one_or_more(64, "hosts", address::host));
    check_names(&table, "token", |node| text(node, "name"));
    if let Some(Value::List(items)) = table.node("token").map(|node| &node.value) {
        let secret = |node: &Node| text(node, "sha256").map(|digits| digits.to_lowercase());
        if items.len() <= MOST_GROUPS {
            values::unique(items, report, "the secret", "sha256", secret);
        }
    }
    check_listen(&table, listen.ok().flatten());
    let (socket, listen, tls) = (socket?, listen?, tls?);
    Ok(ApiPolicy { socket, listen, tls, tokens: tokens?, hosts: hosts? })
}

fn check_listen(table: &Table<'_>, listen: Option<SocketAddr>) {
    let report = table.report;
    let absent = |key: &str| !table.has(key) && !table.meant(key);
    if let (Some(address), Some(node)) = (listen, table.node("listen")) {
        let none = matches!(table.node("token").map(|node| &node.value), Some(Value::List(list)) if list.is_empty());
        if absent("token") || none {
            let message =
                "a TCP address needs at least one token: without one nobody could be told apart";
            report.advise(node, message, "`vervet token new NAME` prints the section to add");
        }
        if !address.ip().to_canonical().is_loopback() && absent("tls") {
            let message = format!("{} is not a loopback address, so it needs TLS", address.ip());
            let help = "add `tls = { cert = \"…\", key = \"…\" }`, or listen on 127.0.0.1";
            report.advise(node, message, help);
        }
    }
    if let (Some(node), true) = (table.node("tls"), absent("listen")) {
        let message = "`tls` would do nothing: there is no TCP address";
        report.advise(node, message, "add `listen = \"ADDRESS:7667\"`");
    }
}

fn socket(node: &Node, report: &Report) -> Read<PathBuf> {
    let path = values::absolute(node, report)?;
    if path.len() > LONGEST_SOCKET {
        let message = format!("the path of a socket has at most {LONGEST_SOCKET} bytes");
        return Err(report.error(node, message));
    }
    Ok(PathBuf::from(path))
}

fn tls(node: &Node, report: &Report) -> Read<TlsPolicy> {
    let keys: &[&[&str]] = &[&["cert", "key", "client_ca"]];
    let table = Table::open(node, report, &Shape { what: "`tls`", keys, known: later::nothing })?;
    let cert = table.need("cert", "cert = \"/etc/vervet/tls.crt\"", values::path);
    let key = table.need("key", "key = \"/etc/vervet/tls.key\"", values::path);
    let client_ca = table.find("client_ca", values::path);
    Ok(TlsPolicy { cert: cert?, key: key?, client_ca: client_ca? })
}

fn token(node: &Node, report: &Report) -> Read<TokenPolicy> {
    const ROLES: &[(&str, Role)] =
        &[("observer", Role::Observer), ("operator", Role::Operator), ("owner", Role::Owner)];
    let keys: &[&[&str]] = &[&["name", "role", "sha256"]];
    let table = Table::open(node, report, &Shape { what: "a token", keys, known: later::nothing })?;
    let name = table.need("name", "name = \"ci\"", values::identifier);
    let role = table.need("role", "role = \"operator\"", values::word("a role", ROLES));
    let sha256 = table.need("sha256", "the line that `vervet token new` prints", sha256);
    Ok(TokenPolicy { name: name?, role: role?, sha256: sha256? })
}

fn sha256(node: &Node, report: &Report) -> Read<[u8; 32]> {
    let text = values::string(node, report, "64 hexadecimal digits")?;
    let bad = |why: String| {
        report.advise(
            node,
            format!("expected 64 hexadecimal digits, {why}"),
            "`vervet token new` prints them",
        )
    };
    if let Some(odd) = text.chars().find(|c| !c.is_ascii_hexdigit()) {
        return Err(bad(format!("found {odd:?}")));
    }
    if text.len() != 64 {
        return Err(bad(format!("found {}", text.len())));
    }
    let mut digest = [0; 32];
    for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| Failed)?;
    }
    Ok(digest)
}

fn default_limits() -> Limits {
    Limits {
        duration: Duration::from_mins(15),
        wait: Duration::from_mins(5),
        concurrent_runs: 1,
        targets_per_step: 10,
        headroom: default_headroom(),
    }
}

fn limits(node: &Node, report: &Report) -> Read<Limits> {
    let keys: &[&[&str]] = &[&["duration", "wait", "concurrent_runs", "targets_per_step", "headroom"]];
    let table = Table::open(node, report, &Shape { what: "`[limits]`", keys, known: later::nothing })?;
    let default = default_limits();
    let spans = || values::duration(Duration::from_millis(10)..=LONGEST_STEP);
    let duration = table.or("duration", default.duration, spans());
    let wait = table.or("wait", default.wait, spans());
    let runs = table.or("concurrent_runs", default.concurrent_runs, values::count(1..=64, "runs"));
    let targets = values::count(1..=10_000, "targets");
    let targets = table.or("targets_per_step", default.targets_per_step, targets);
    let headroom = table.or("headroom", default.headroom, headroom);
    Ok(Limits {
        duration: duration?,
        wait: wait?,
        concurrent_runs: runs?,
        targets_per_step: targets?,
        headroom: headroom?,
    })
}

fn default_headroom() -> HeadroomLimits {
    let percent = |number| Percent::new(number).unwrap_or(Percent::ZERO);
    let (memory, pids, file_handles) = (percent(5.0), percent(5.0), percent(5.0));
    HeadroomLimits { memory, pids, file_handles, conntrack: percent(10.0) }
}

fn headroom(node: &Node, report: &Report) -> Read<HeadroomLimits> {
    let keys: &[&[&str]] = &[&["memory", "pids", "file_handles", "conntrack"]];
    let table = Table::open(node, report, &Shape { what: "`headroom`", keys, known: later::nothing })?;
    let default = default_headroom();
    let memory = table.or("memory", default.memory, values::percent);
    let pids = table.or("pids", default.pids, values::percent);
    let file_handles = table.or("file_handles", default.file_handles, values::percent);
    let conntrack = table.or("conntrack", default.conntrack, values::percent);
    Ok(HeadroomLimits {
        memory: memory?,
        pids: pids?,
        file_handles: file_handles?,
        conntrack: conntrack?,
    })
}

fn network(node: &Node, report: &Report) -> Read<NetworkPolicy> {
    let keys: &[&[&str]] = &[&["mark_mask"]];
    let table = Table::open(node, report, &Shape { what: "`[network]`", keys, known: later::nothing })?;
    let mark_mask = table.or("mark_mask", MARK_MASK, mark_mask)?;
    Ok(NetworkPolicy { mark_mask })
}

fn mark_mask(node: &Node, report: &Report) -> Read<u32> {
    let expected = "a mask of 32 bits such as \"0xff000000\"";
    let mask = match &node.value {
        Value::Integer(number) => u32::try_from(*number).ok(),
        Value::Text(text) => text
            .strip_prefix("0x")
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|digits| u32::from_str_radix(digits, 16).ok()),
        _ => return Err(report.mismatch(node, expected)),
    };
    let Some(mask) = mask else { return Err(report.error(node, format!("expected {expected}"))) };
    let solid = mask >> mask.trailing_zeros().min(31);
    if mask.count_ones() < 2 || solid.trailing_ones() != mask.count_ones() {
        let message = format!("{mask:#010x} is not a mask of at least two bits side by side");
        return Err(report.advise(node, message, "the default is \"0xff000000\""));
    }
    Ok(mask)
}
