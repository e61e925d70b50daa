//! What HAProxy says of its servers: its answers on the stats socket, read by their column names.
//!
//! Only reads texts; `host/linux/haproxy.rs` has the socket. What cannot be understood is an error,
//! never a guess.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use serde::{Deserialize, Serialize};

/// What `set server … state maint` sets.
const FORCED_MAINTENANCE: u32 = 0x01;
/// The bit of a server's administrative state that `set server … state drain` sets.
const FORCED_DRAIN: u32 = 0x08;
/// Any kind of maintenance: forced, inherited, from the configuration, by DNS or a bad name.
const MAINTENANCE: u32 = FORCED_MAINTENANCE | 0x02 | 0x04 | 0x20 | 0x40;

/// A backend of the HAProxy that answers on a stats socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pool {
    /// Path of the stats socket.
    pub haproxy: String,
    pub backend: String,
}

/// A server of a backend, as HAProxy has it at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub name: String,
    /// `None` for one that is not reached by IP.
    pub address: Option<SocketAddr>,
    /// The address is one of this host's.
    pub here: bool,
    pub health: Health,
    /// HAProxy's own word for its state.
    pub status: String,
    /// Sessions that it serves now, and requests that wait for it.
    pub sessions: u32,
}

/// What HAProxy knows of a server's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It gets new requests, and its last check succeeded.
    Up,
    /// Down, on its way up or down, in maintenance, draining, or without weight.
    NotUp,
    /// Nobody checks it: that it gets requests says nothing.
    Unchecked,
}

/// Who keeps a server from its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aside {
    /// Nobody: health alone decides.
    No,
    Draining,
    Maintenance,
    /// Drains, and somebody or something keeps it in maintenance besides: discovery that does not find
    /// it just now, another server that it follows. When that ends, the drain is still there.
    Both,
}

impl Aside {
    /// It was told to drain, whatever else keeps it from its work.
    #[must_use]
    pub fn drains(self) -> bool {
        matches!(self, Self::Draining | Self::Both)
    }
}

impl Server {
    /// Whether it leads to a process of this host that listens on these addresses.
    #[must_use]
    pub fn leads_to(&self, listens: &[SocketAddr]) -> bool {
        let Some(address) = self.address.filter(|_| self.here) else { return false };
        let ip = address.ip().to_canonical();
        listens.iter().any(|at| {
            let on = at.ip().to_canonical();
            // `[::]` takes connections of both kinds on any ordinary host.
            let any = on == IpAddr::V4(Ipv4Addr::UNSPECIFIED) && ip.is_ipv4()
                || (on.is_unspecified() && on.is_ipv6());
            at.port() == address.port() && (on == ip || any)
        })
    }

    /// `s1 at 127.0.0.1:8080 (UP)`
    #[must_use]
    pub fn describe(&self) -> String {
        match self.address {
            Some(address) => format!("{} at {address} ({})", self.name, self.status),
            None => format!("{} ({})", self.name, self.status),
        }
    }
}

/// Whether a name can be written into a command: HAProxy's own rule for names.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    !name.is_empty() && name.len() <= 128 && name.chars().all(plain)
}

/// Whether an answer is there to its end: HAProxy ends each with an empty line.
#[must_use]
pub fn is_whole(answer: &str) -> bool {
    answer == "\n" || answer.ends_with("\n\n")
}

/// What HAProxy answers about names that it does not have.
#[must_use]
pub fn is_unknown(answer: &str) -> bool {
    let answer = answer.trim();
    ["No such proxy", "No such server", "No such backend", "Can't find backend"]
        .iter()
        .any(|refusal| answer.starts_with(refusal))
}

/// What a refused command was answered, in words for people; `None` for an answer to the question.
#[must_use]
pub fn refusal(pool: &Pool, answer: &str) -> Option<String> {
    let (answer, Pool { haproxy, backend }) = (answer.trim(), pool);
    if answer.starts_with("No such proxy") || answer.starts_with("No such backend") {
        return Some(format!("the HAProxy at {haproxy} has no backend `{backend}`"));
    }
    if answer.starts_with("Can't find backend") {
        return Some(format!("the HAProxy at {haproxy} has no backend `{backend}`"));
    }
    if answer.starts_with("Permission denied") {
        return Some(format!(
            "the socket {haproxy} does not permit it: its `stats socket` line needs `level admin`"
        ));
    }
    if answer.starts_with("Unknown command") {
        return Some(format!("what answers at {haproxy} does not know HAProxy's commands"));
    }
    None
}

/// The servers in an answer to `show stat BACKEND 6 -1`; `own` says whether an address is this host's.
///
/// # Errors
/// When it is not that answer, or not whole, in words for people.
pub fn servers(pool: &Pool, answer: &str, own: &dyn Fn(IpAddr) -> bool) -> Result<Vec<Server>, String> {
    if let Some(refusal) = refusal(pool, answer) {
        return Err(refusal);
    }
    let Pool { haproxy, backend } = pool;
    let strange = |what: &str| format!("the answer of the HAProxy at {haproxy} {what}");
    if !is_whole(answer) {
        return Err(strange("breaks off"));
    }
    let mut lines = answer.lines().filter(|line| !line.is_empty());
    let header = lines.next().and_then(|line| line.strip_prefix("# "));
    let header = fields(header.ok_or_else(|| strange("is no table"))?);
    let column = |name: &str| {
        let at = header.iter().position(|field| field == name);
        at.ok_or_else(|| strange(&format!("has no column `{name}`")))
    };
    let [proxy, server, kind] = [column("pxname")?, column("svname")?, column("type")?];
    let [status, weight, address] = [column("status")?, column("weight")?, column("addr")?];
    let [queued, current] = [column("qcur")?, column("scur")?];
    let (mut servers, mut whole) = (Vec::new(), false);
    for line in lines {
        let row = fields(line);
        if row.len() < header.len() {
            return Err(strange("breaks off"));
        }
        if row[proxy] != *backend {
            return Err(strange(&format!("speaks of `{}`, not of `{backend}`", row[proxy])));
        }
        match row[kind].as_str() {
            "1" => whole = true,
            "2" => {}
            _ => continue,
        }
        if row[kind] == "1" {
            continue;
        }
        let number = |at: usize| {
            let text = if row[at].is_empty() { "0" } else { &row[at] };
            text.parse::<u32>().map_err(|_| strange(&format!("has `{text}` for a number")))
        };
        if row[address].is_empty() {
            return Err(format!(
                "the socket {haproxy} does not tell where the servers are: its `stats socket` line needs \
                 `level operator`, or `admin`"
            ));
        }
        let health = health(&row[status], number(weight)?)
            .ok_or_else(|| strange(&format!("has the unknown state `{}`", row[status])))?;
        let at: Option<SocketAddr> = row[address].parse().ok();
        servers.push(Server {
            name: row[server].clone(),
            address: at,
            here: at.is_some_and(|at| own(at.ip().to_canonical())),
            health,
            status: row[status].clone(),
            sessions: number(current)?.saturating_add(number(queued)?),
        });
    }
    if !whole {
        return Err(strange(&format!("does not speak of the backend `{backend}` itself")));
    }
    Ok(servers)
}

/// The administrative states in an answer to `show servers state BACKEND`, by server.
///
/// # Errors
/// When it is not that answer, or not whole, in words for people.
pub fn asides(pool: &Pool, answer: &str) -> Result<BTreeMap<String, Aside>, String> {
    if let Some(refusal) = refusal(pool, answer) {
        return Err(refusal);
    }
    let strange = || format!("the states that the HAProxy at {} tells cannot be read", pool.haproxy);
    if !is_whole(answer) {
        return Err(strange());
    }
    let mut lines = answer.lines().skip_while(|line| !line.starts_with('#'));
    let header: Vec<&str> = lines.next().ok_or_else(strange)?[1..].split_whitespace().collect();
    let column = |name: &str| header.iter().position(|field| *field == name).ok_or_else(strange);
    let [backend, server, admin] = [column("be_name")?, column("srv_name")?, column("srv_admin_state")?];
    let mut states = BTreeMap::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let row: Vec<&str> = line.split_whitespace().collect();
        if row.len() < header.len() || row[backend] != pool.backend {
            return Err(strange());
        }
        let admin: u32 = row[admin].parse().map_err(|_| strange())?;
        let aside = match admin {
            // Forced maintenance takes the place of a drain.
            admin if admin & FORCED_MAINTENANCE != 0 => Aside::Maintenance,
            admin if admin & MAINTENANCE != 0 && admin & FORCED_DRAIN != 0 => Aside::Both,
            admin if admin & MAINTENANCE != 0 => Aside::Maintenance,
            admin if admin & FORCED_DRAIN != 0 => Aside::Draining,
            _ => Aside::No,
        };
        states.insert(row[server].to_owned(), aside);
    }
    Ok(states)
}

/// `None` for a word that this version does not know.
fn health(status: &str, weight: u32) -> Option<Health> {
    let word = status.split([' ', '(']).next().unwrap_or_default();
    Some(match (status, word) {
        ("no check", _) => Health::Unchecked,
        ("UP", _) if weight > 0 => Health::Up,
        // `UP 1/3`: it failed its last check and is on its way down.
        (_, "UP" | "DOWN" | "MAINT" | "DRAIN" | "NOLB") => Health::NotUp,
        _ => return None,
    })
}

/// The fields of a line of CSV. HAProxy quotes those that hold commas, and doubles quotes in them.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            letter => field.push(letter),
        }
    }
    fields.push(field);
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "# pxname,svname,qcur,scur,status,weight,type,check_desc,addr,\n";

    fn pool() -> Pool {
        Pool { haproxy: "/run/h.sock".to_owned(), backend: "web".to_owned() }
    }

    fn read(rows: &str) -> Result<Vec<Server>, String> {
        let own = |ip: IpAddr| ip.is_loopback();
        servers(&pool(), &format!("{HEADER}{rows}\n"), &own)
    }

    #[test]
    fn states_and_what_they_count() {
        let words = [
            ("UP", 1, Health::Up),
            ("UP 1/3", 1, Health::NotUp),
            ("UP", 0, Health::NotUp),
            ("DOWN", 1, Health::NotUp),
            ("DOWN 1/2", 1, Health::NotUp),
            ("DOWN (agent)", 1, Health::NotUp),
            ("MAINT", 1, Health::NotUp),
            ("MAINT (via a/b)", 1, Health::NotUp),
            ("MAINT(resolution)", 1, Health::NotUp),
            ("DRAIN", 1, Health::NotUp),
            ("DRAIN 2/3", 1, Health::NotUp),
            ("NOLB", 1, Health::NotUp),
            ("no check", 1, Health::Unchecked),
        ];
        for (word, weight, health) in words {
            let row = format!("web,s1,1,2,{word},{weight},2,\"a, \"\"b\"\"\",127.0.0.1:80,\n");
            let found = read(&format!("{row}web,BACKEND,0,0,UP,1,1,,,\n")).unwrap();
            assert_eq!((found[0].health, found[0].sessions), (health, 3), "{word}");
            assert!(found[0].leads_to(&["0.0.0.0:80".parse().unwrap()]));
        }
        let unknown = read("web,s1,0,0,ODD,1,2,,127.0.0.1:80,\nweb,BACKEND,0,0,UP,1,1,,,\n");
        assert!(unknown.unwrap_err().contains("`ODD`"));
    }

    #[test]
    fn what_is_not_whole_is_no_answer() {
        let row = "web,s1,0,0,UP,1,2,,127.0.0.1:80,\n";
        let backend = "web,BACKEND,0,0,UP,1,1,,,\n";
        assert!(read(&format!("{row}{backend}")).is_ok());
        assert!(read(row).unwrap_err().contains("the backend `web` itself"));
        let own = |_: IpAddr| true;
        for cut in 1..(HEADER.len() + row.len() + backend.len()) {
            let whole = format!("{HEADER}{row}{backend}\n");
            assert!(servers(&pool(), &whole[..cut], &own).is_err(), "{}", &whole[..cut]);
        }
        let hidden = read(&format!("web,s1,0,0,UP,1,2,,,\n{backend}")).unwrap_err();
        assert!(hidden.contains("level operator"), "{hidden}");
        let none = servers(&pool(), "No such proxy.\n\n", &own).unwrap_err();
        assert_eq!(none, "the HAProxy at /run/h.sock has no backend `web`");
    }

    #[test]
    fn whose_server_it_is() {
        let at = |address: &str, here| Server {
            name: "s".to_owned(),
            address: address.parse().ok(),
            here,
            health: Health::Up,
            status: "UP".to_owned(),
            sessions: 0,
        };
        let on = |address: &str| [address.parse::<SocketAddr>().unwrap()];
        assert!(at("127.0.0.1:80", true).leads_to(&on("127.0.0.1:80")));
        assert!(at("127.0.0.1:80", true).leads_to(&on("[::]:80")));
        assert!(at("[::1]:80", true).leads_to(&on("[::1]:80")));
        assert!(!at("[::1]:80", true).leads_to(&on("0.0.0.0:80")));
        assert!(!at("127.0.0.1:80", true).leads_to(&on("127.0.0.2:80")));
        assert!(!at("127.0.0.1:80", true).leads_to(&on("127.0.0.1:81")));
        // The same port on another host is another server.
        assert!(!at("10.0.0.1:80", false).leads_to(&on("0.0.0.0:80")));
        assert!(!at("unix", true).leads_to(&on("0.0.0.0:80")));
    }

    #[test]
    fn administrative_states() {
        let text = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state\n\
                    3 web 1 s1 127.0.0.1 2 0\n3 web 2 s2 127.0.0.1 2 8\n3 web 3 s3 127.0.0.1 0 1\n\
                    3 web 4 s4 127.0.0.1 0 40\n\n";
        let states = asides(&pool(), text).unwrap();
        let states: Vec<_> = states.into_values().collect();
        assert_eq!(states, [Aside::No, Aside::Draining, Aside::Maintenance, Aside::Both]);
        assert!(asides(&pool(), &text[..text.len() - 1]).is_err());
        assert!(asides(&pool(), "Can't find backend.\n\n").unwrap_err().contains("no backend"));
        assert!(is_name("web-1.a:b_c") && !is_name("a b") && !is_name("a;b") && !is_name(""));
    }
}
