//! Reads what is asked of DNS, and what is expected of the answer.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    super::{
        address::is_host,
        reader::{Read, Report, Table},
        tree::Node,
        values,
    },
    WITHIN, expect, within,
};
use crate::{
    experiment::{Check, DnsCheck, DnsQuestion, DnsRecord},
    units::clip,
};

const RECORDS: &[(&str, DnsRecord)] = &[
    ("A", DnsRecord::A),
    ("AAAA", DnsRecord::Aaaa),
    ("CNAME", DnsRecord::Cname),
    ("MX", DnsRecord::Mx),
    ("NS", DnsRecord::Ns),
    ("PTR", DnsRecord::Ptr),
    ("SRV", DnsRecord::Srv),
    ("TXT", DnsRecord::Txt),
];

/// Those that stand for instances.
const INSTANCES: &[(&str, DnsRecord)] =
    &[("A", DnsRecord::A), ("AAAA", DnsRecord::Aaaa), ("SRV", DnsRecord::Srv)];

/// The keys of a check by DNS.
pub fn check(table: &Table<'_>) -> Read<Check> {
    let name = table.need("dns", "", name);
    let server = table.find("server", server);
    let keys = &["answer", "at_least", "type", "within"];
    let expected = expect(table, "what a dns probe expects", keys, |expect| {
        let Some(table) = expect else { return Ok((DnsRecord::A, Vec::new(), 1, WITHIN)) };
        let record = table.or("type", DnsRecord::A, values::word("a type of record", RECORDS));
        let answer = values::one_or_more(64, "records", values::line);
        let answer = table.or("answer", Vec::new(), answer);
        let at_least = table.or("at_least", 1, values::count(1..=1000, "records"));
        let within = within(table, WITHIN);
        if let (Ok(record), Ok(answer), Some(node)) = (record, &answer, table.node("answer")) {
            check_answer(node, table.report, record, answer)?;
        }
        Ok((record?, answer?, at_least?, within?))
    });
    let (name, server, (record, answer, at_least, within)) = (name?, server?, expected?);
    let question = DnsQuestion { name, server, record, within };
    Ok(Check::Dns(DnsCheck { question, answer, at_least }))
}

/// The keys of a readiness source by DNS.
pub fn source(table: &Table<'_>, within: Read<Duration>) -> Read<DnsQuestion> {
    let name = table.need("dns", "", name);
    let server = table.find("server", server);
    let record = values::word("a type of record that stands for instances", INSTANCES);
    let record = table.or("type", DnsRecord::A, record);
    Ok(DnsQuestion { name: name?, server: server?, record: record?, within: within? })
}

/// What could never be in the answer is a mistake in the document.
fn check_answer(node: &Node, report: &Report, record: DnsRecord, answer: &[String]) -> Read<()> {
    let fits = |text: &String| match (record, text.parse::<IpAddr>()) {
        (DnsRecord::A, address) => matches!(address, Ok(IpAddr::V4(_))),
        (DnsRecord::Aaaa, address) => matches!(address, Ok(IpAddr::V6(_))),
        _ => true,
    };
    match answer.iter().find(|text| !fits(text)) {
        Some(odd) => {
            let message = format!("`{}` cannot be an {record} record", clip(odd));
            let help = "A records are IPv4 addresses, AAAA records IPv6 addresses: see `type`";
            Err(report.advise(node, message, help))
        }
        None => Ok(()),
    }
}

fn name(node: &Node, report: &Report) -> Read<String> {
    let text = values::string(node, report, "a name such as \"db.internal\"")?;
    if is_host(text) {
        return Ok(text.to_owned());
    }
    let message = format!("`{}` is not a name that DNS could know", clip(text));
    Err(report.advise(node, message, "a whole name, for no search domain is added: \"db.internal\""))
}

/// An address, with a port if it is not 53.
fn server(node: &Node, report: &Report) -> Read<SocketAddr> {
    let text = values::string(node, report, "the address of a DNS server such as \"127.0.0.1:53\"")?;
    let alone = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
    let server = text.parse().ok().or(alone.ok()).filter(|server: &SocketAddr| server.port() > 0);
    server.ok_or_else(|| {
        let message = format!("`{}` is not the address of a DNS server", clip(text));
        report.advise(node, message, "write \"127.0.0.1\", \"127.0.0.1:8600\" or \"[::1]:53\"")
    })
}
