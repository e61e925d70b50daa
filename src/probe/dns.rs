//! `dns`: what a name resolves to, by one server's answer to one question.
//!
//! No cache, no search domains, no following of what the server did not say: the answer is the
//! server's own. It is asked over UDP, twice if need be, and over TCP if it has more to say than fits.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout, timeout_at},
};

use crate::experiment::{DnsCheck, DnsQuestion, DnsRecord};

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Servers of resolv.conf that are asked, as resolv.conf(5) has it.
const SERVERS_MAX: usize = 3;

/// The most that comes in one datagram without EDNS, which is not offered: RFC 1035, 4.2.1.
const DATAGRAM_MAX: usize = 512;

/// Asks, and judges the answer.
///
/// # Errors
/// What was wrong, in a sentence for people.
pub async fn check(check: &DnsCheck) -> Result<(), String> {
    let DnsCheck { question, answer, at_least } = check;
    let records = resolve(question).await?;
    let (name, record) = (&question.name, question.record);
    if records.len() < usize::try_from(*at_least).unwrap_or(usize::MAX) {
        let count = records.len();
        return Err(format!(
            "{name} has {count} {record} records, and at least {at_least} are expected"
        ));
    }
    match answer.iter().find(|wanted| !records.iter().any(|found| same(found, wanted))) {
        Some(missing) => {
            let shown: Vec<&str> = records.iter().take(8).map(String::as_str).collect();
            Err(format!("{name} has no {record} record {missing}, but {}", shown.join(", ")))
        }
        None => Ok(()),
    }
}

/// The distinct records that a name has; none, if it exists without any of that type.
///
/// # Errors
/// When there is no answer, or one that tells nothing: a name that does not exist, too.
pub async fn resolve(question: &DnsQuestion) -> Result<Vec<String>, String> {
    let servers = match question.server {
        Some(server) => vec![server],
        None => host_servers().await?,
    };
    let share = question.within / u32::try_from(servers.len()).unwrap_or(u32::MAX).max(1);
    let mut error = format!("{RESOLV_CONF} names no server");
    for server in servers {
        match ask(question, server, share).await {
            Ok(records) => return Ok(records),
            // It was said with authority: another server would only say it again.
            Err(Wrong::Answer(said)) => return Err(said),
            Err(Wrong::Server(said)) => error = said,
        }
    }
    Err(error)
}

enum Wrong {
    /// The server's fault: another one may know better.
    Server(String),
    Answer(String),
}

async fn host_servers() -> Result<Vec<SocketAddr>, String> {
    let text = tokio::fs::read_to_string(RESOLV_CONF)
        .await
        .map_err(|error| format!("{RESOLV_CONF} cannot be read: {error}"))?;
    Ok(servers_of(&text))
}

fn servers_of(resolv_conf: &str) -> Vec<SocketAddr> {
    let lines = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok())?
    });
    lines.take(SERVERS_MAX).map(|address| SocketAddr::new(address, 53)).collect()
}

async fn ask(
    question: &DnsQuestion,
    server: SocketAddr,
    within: Duration,
) -> Result<Vec<String>, Wrong> {
    let DnsQuestion { name, record, .. } = question;
    let asked = format!("{name} ({record}, asked of {server})");
    let result = timeout(within, exchange(question, server, Instant::now() + within / 2)).await;
    let message = match result {
        Ok(Ok(message)) => message,
        Ok(Err(error)) => return Err(Wrong::Server(format!("{asked}: {error}"))),
        Err(_) => return Err(Wrong::Server(format!("{asked}: no answer within {within:?}"))),
    };
    match message.metadata.response_code {
        ResponseCode::NoError => Ok(records(&message, type_of(*record))),
        ResponseCode::NXDomain => {
            Err(Wrong::Answer(format!("{asked}: the name does not exist (NXDOMAIN)")))
        }
        ResponseCode::ServFail => {
            Err(Wrong::Server(format!("{asked}: the server could not find out (SERVFAIL)")))
        }
        ResponseCode::Refused => {
            Err(Wrong::Server(format!("{asked}: the server refused to answer (REFUSED)")))
        }
        other => Err(Wrong::Server(format!("{asked}: the server answered {other}"))),
    }
}

async fn exchange(
    question: &DnsQuestion,
    server: SocketAddr,
    again: Instant,
) -> Result<Message, String> {
    let mut name = Name::from_ascii(&question.name).map_err(|error| error.to_string())?;
    name.set_fqdn(true);
    let query = Query::query(name, type_of(question.record));
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(query);
    let bytes = message.to_vec().map_err(|error| error.to_string())?;
    let answer = by_udp(&message, &bytes, server, again).await?;
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    let by_tcp = by_tcp(&message, &bytes, server).await;
    by_tcp.map_err(|error| format!("its answer was cut short, and over TCP {error}"))
}

/// Sends once more at `again`, for a datagram may be lost.
async fn by_udp(
    message: &Message,
    bytes: &[u8],
    server: SocketAddr,
    again: Instant,
) -> Result<Message, String> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let said = |error: std::io::Error| format!("no answer: {error}");
    let socket = UdpSocket::bind(any).await.map_err(said)?;
    // Connected: what others send does not arrive, and a port where nobody listens is told.
    socket.connect(server).await.map_err(said)?;
    socket.send(bytes).await.map_err(said)?;
    let mut buffer = [0; DATAGRAM_MAX];
    let mut sent_again = false;
    loop {
        let received = if sent_again {
            socket.recv(&mut buffer).await
        } else {
            match timeout_at(again, socket.recv(&mut buffer)).await {
                Ok(received) => received,
                Err(_) => {
                    sent_again = true;
                    socket.send(bytes).await.map_err(said)?;
                    continue;
                }
            }
        };
        let length = received.map_err(said)?;
        // Not the answer to this question: perhaps a late one to another.
        if let Ok(answer) = Message::from_vec(&buffer[..length])
            && answers(message, &answer)
        {
            return Ok(answer);
        }
        if length >= 4 && buffer[..2] == message.metadata.id.to_be_bytes() && is_cut(&buffer) {
            return Ok(cut(message));
        }
    }
}

/// The bit that says so; a server may cut in the middle of a record, which is then no message.
fn is_cut(bytes: &[u8]) -> bool {
    bytes[2] & 0x82 == 0x82
}

fn cut(message: &Message) -> Message {
    let mut answer = message.clone();
    answer.metadata.truncation = true;
    answer
}

async fn by_tcp(message: &Message, bytes: &[u8], server: SocketAddr) -> Result<Message, String> {
    let said = |error: std::io::Error| format!("there is no answer: {error}");
    let mut stream = TcpStream::connect(server).await.map_err(said)?;
    let length = u16::try_from(bytes.len()).map_err(|error| error.to_string())?;
    stream.write_all(&length.to_be_bytes()).await.map_err(said)?;
    stream.write_all(bytes).await.map_err(said)?;
    let length = stream.read_u16().await.map_err(said)?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.map_err(said)?;
    let answer = Message::from_vec(&answer).map_err(|error| format!("it is no answer: {error}"))?;
    if !answers(message, &answer) || answer.metadata.truncation {
        return Err("it is not the answer to what was asked".to_owned());
    }
    Ok(answer)
}

fn answers(asked: &Message, answer: &Message) -> bool {
    let same_question = match (asked.queries.first(), answer.queries.first()) {
        (Some(asked), Some(repeated)) => asked == repeated,
        // Some servers leave it out when they refuse.
        (_, None) => answer.metadata.response_code != ResponseCode::NoError,
        (None, _) => false,
    };
    answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == asked.metadata.id
        && same_question
}

/// Each once, without the dot at the end of names.
fn records(message: &Message, wanted: RecordType) -> Vec<String> {
    let mut records: Vec<String> = message
        .answers
        .iter()
        .filter(|record| record.record_type() == wanted)
        .map(|record| plain(&record.data.to_string()).to_owned())
        .collect();
    records.sort();
    records.dedup();
    records
}

fn same(found: &str, wanted: &str) -> bool {
    match (found.parse::<IpAddr>(), wanted.parse::<IpAddr>()) {
        (Ok(found), Ok(wanted)) => found == wanted,
        _ => found.eq_ignore_ascii_case(plain(wanted)),
    }
}

fn plain(text: &str) -> &str {
    text.strip_suffix('.').unwrap_or(text)
}

fn type_of(record: DnsRecord) -> RecordType {
    match record {
        DnsRecord::A => RecordType::A,
        DnsRecord::Aaaa => RecordType::AAAA,
        DnsRecord::Cname => RecordType::CNAME,
        DnsRecord::Mx => RecordType::MX,
        DnsRecord::Ns => RecordType::NS,
        DnsRecord::Ptr => RecordType::PTR,
        DnsRecord::Srv => RecordType::SRV,
        DnsRecord::Txt => RecordType::TXT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_the_host() {
        let text = "# x\nsearch a.example\nnameserver 10.0.0.1\nnameserver ::1 \nnameserver fe80::1%eth0\n\
                    options ndots:1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n";
        let wanted = ["10.0.0.1:53", "[::1]:53", "10.0.0.2:53"].map(|text| text.parse().expect("one"));
        assert_eq!(servers_of(text), wanted);
    }

    #[test]
    fn records_are_compared_by_what_they_mean() {
        assert!(same("fd00::1", "fd00:0::1") && same("db.example", "DB.example.") && !same("a", "b"));
    }
}
