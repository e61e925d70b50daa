//! What a resolved fault is in nftables: chains, sets, rules, each in words and in netlink.
//!
//! Words and messages are made side by side from one source, so that what a plan shows is what is
//! installed. The shape of every table: a base chain with the cheap matches of the selection, which
//! goes to `body`; there local ports that must stay reachable return first, then everything without
//! a running lease, and only then something happens. Pure: no I/O.

use std::{fmt::Write as _, net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    netlink::Message,
    nft::{
        self, Base, Element, Expressions, Hook, KeyType, Meta, NFPROTO_IPV4, NFPROTO_IPV6, REG,
        SET_CONSTANT, SET_DYNAMIC, SET_INTERVAL, SET_TIMEOUT, Verdict,
    },
};
use crate::experiment::{Cidr, Excess, Protocol};

/// After the `mangle` chains of others: some of those set whole marks.
const OUTPUT_PRIORITY: i32 = -140;
/// With the `filter` chains.
const INPUT_PRIORITY: i32 = 0;

pub const LEASE: &str = "lease";
pub const MATCHED: &str = "matched";
pub const AFFECTED: &str = "affected";

/// Known connections at most; beyond, further ones are no longer counted.
const CONNECTIONS: u32 = 65_536;
/// A connection silent for so long is met anew.
const REMEMBER_MS: u64 = 3_600_000;
/// Index of `lo` in every namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// Which packets. Peers are already split off names; ports are of TCP or UDP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    pub hook: Hook,
    /// `None`: every protocol.
    pub protocol: Option<Protocol>,
    pub local_port: Option<u16>,
    pub remote_port: Option<u16>,
    /// Blocks of remote addresses: alternatives within an entry, all entries must hold.
    pub peers: Vec<Vec<Cidr>>,
    pub uid: Option<u32>,
    pub cgroup: Option<Cgroup>,
    /// The cgroups of units: any of them.
    #[serde(default)]
    pub units: Option<Vec<Cgroup>>,
    pub interface: Option<String>,
    /// Local TCP ports that stay untouched.
    pub exempt: Vec<u16>,
}

/// A cgroup of the unified hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    pub id: u64,
    /// Components of the path.
    pub level: u32,
    pub path: String,
}

/// What happens to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Deed {
    /// Set vervet's bits of the mark to `mark`, on packets that leave by these devices.
    Mark { mark: u32, mask: u32, devices: Vec<u32> },
    /// Judge connection attempts.
    Cap { max: Option<u32>, per_source: Option<u32>, new_per_second: Option<u32>, excess: Excess },
}

/// Everything of one table, ready to be sent but for its name.
#[derive(Debug, Default)]
pub struct Program {
    sets: Vec<Set>,
    rules: Vec<(&'static str, Rule)>,
}

#[derive(Debug)]
struct Set {
    name: String,
    key: KeyType,
    flags: u32,
    size: Option<u32>,
    elements: Vec<Element>,
}

/// A rule in both forms.
#[derive(Debug, Clone, Default)]
pub struct Rule {
    words: String,
    expressions: Expressions,
}

/// An address family with where its headers keep what rules look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ip {
    word: &'static str,
    suffix: &'static str,
    nfproto: u8,
    source: u32,
    destination: u32,
    length: u32,
    address: KeyType,
    connection: KeyType,
}

const V4: Ip = Ip {
    word: "ip",
    suffix: "4",
    nfproto: NFPROTO_IPV4,
    source: 12,
    destination: 16,
    length: 4,
    address: nft::KEY_IPV4,
    connection: nft::KEY_IPV4_SERVICE,
};
const V6: Ip = Ip {
    word: "ip6",
    suffix: "6",
    nfproto: NFPROTO_IPV6,
    source: 8,
    destination: 24,
    length: 16,
    address: nft::KEY_IPV6,
    connection: nft::KEY_IPV6_SERVICE,
};

impl Ip {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { V4 } else { V6 }
    }
}

impl Rule {
    fn then(self, words: impl AsRef<str>, add: impl FnOnce(Expressions) -> Expressions) -> Self {
        let mut all = self.words;
        if !all.is_empty() && !words.as_ref().is_empty() {
            all.push(' ');
        }
        all.push_str(words.as_ref());
        Self { words: all, expressions: add(self.expressions) }
    }

    /// This, and then all of `other`.
    fn and(self, other: &Self) -> Self {
        self.then(&other.words, |own| own.and(&other.expressions))
    }

    fn meta_is(self, words: &str, key: Meta, value: &[u8]) -> Self {
        self.then(words, |e| e.meta(key, REG).equals(value, REG))
    }

    fn tcp(self) -> Self {
        self.meta_is("", Meta::L4Proto, &[TCP])
    }

    /// A new connection: SYN without ACK.
    fn attempt(self) -> Self {
        self.tcp().then("tcp flags & (syn | ack) == syn", |e| {
            e.payload(Base::Transport, 13, 1, REG).bitwise(&[0x12], &[0], REG).equals(&[0x02], REG)
        })
    }

    fn counter(self, name: &str) -> Self {
        self.then(format!("counter {name}"), |e| e.counter(name))
    }

    fn verdict(self, words: &str, verdict: Verdict<'_>) -> Self {
        self.then(words, |e| e.verdict(verdict))
    }

    fn goto(self, chain: &str) -> Self {
        self.then(format!("goto {chain}"), |e| e.verdict(Verdict::Goto(chain)))
    }

    fn excess(self, excess: Excess) -> Self {
        match excess {
            Excess::Reset => self.then("reject with tcp reset", Expressions::reset),
            Excess::Drop => self.verdict("drop", Verdict::Drop),
        }
    }

    /// Loads address and port of the connection's source into registers one after the other.
    fn connection(self, ip: Ip, hook: Hook) -> Self {
        let (words, address, port) = match hook {
            Hook::Input => (format!("{} saddr . tcp sport", ip.word), ip.source, 0),
            Hook::Output => (format!("{} daddr . tcp sport", ip.word), ip.destination, 0),
        };
        self.then(words, |e| {
            e.payload(Base::Network, address, ip.length, REG).payload(
                Base::Transport,
                port,
                2,
                REG + ip.length / 4,
            )
        })
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// The table of a fault.
#[must_use]
pub fn program(selection: &Selection, deed: &Deed) -> Program {
    let mut program = Program::default();
    program.select(selection);
    program.guard(selection);
    match deed {
        Deed::Mark { mark, mask, devices } => program.mark(selection, *mark, *mask, devices),
        Deed::Cap { max, per_source, new_per_second, excess } => {
            program.cap(selection.hook, *max, *per_source, *new_per_second, *excess);
        }
    }
    program
}

impl Program {
    /// Every rule in words. No names of this fault are in them, and nothing else that differs from one
    /// resolution of the same selection to the next.
    #[must_use]
    pub fn words(&self, hook: Hook) -> Vec<String> {
        self.rules
            .iter()
            .map(|(chain, rule)| {
                let chain = if *chain == BASE { hook.as_str() } else { chain };
                format!("{chain}: {}", rule.words)
            })
            .collect()
    }

    /// The batch that makes the table `name`, its lease running for `lease`.
    #[must_use]
    pub fn messages(&self, name: &str, comment: &str, hook: Hook, lease: Duration) -> Vec<Message> {
        let priority = match hook {
            Hook::Input => INPUT_PRIORITY,
            Hook::Output => OUTPUT_PRIORITY,
        };
        let mut out = vec![
            nft::new_table(name, comment),
            nft::new_counter(name, MATCHED),
            nft::new_counter(name, AFFECTED),
            nft::new_set(name, LEASE, 1, nft::KEY_NFPROTO, SET_TIMEOUT, None),
        ];
        for (id, set) in (2..).zip(&self.sets) {
            out.push(nft::new_set(name, &set.name, id, set.key, set.flags, set.size));
            if !set.elements.is_empty() {
                out.push(nft::add_elements(name, &set.name, &set.elements));
            }
        }
        out.extend(self.chains().map(|chain| nft::chain(name, chain)));
        out.push(nft::base_chain(name, BASE, hook, priority));
        let order =
            |(chain, rule): &(&'static str, Rule)| nft::append_rule(name, chain, &rule.expressions);
        out.extend(self.rules.iter().map(order));
        out.push(nft::add_elements(name, LEASE, &lease_elements(Some(lease))));
        out
    }

    fn chains(&self) -> impl Iterator<Item = &'static str> {
        let mut seen = vec![BASE];
        let mut chains = Vec::new();
        for (chain, _) in &self.rules {
            if !seen.contains(chain) {
                seen.push(chain);
                chains.push(*chain);
            }
        }
        chains.into_iter()
    }

    fn rule(&mut self, chain: &'static str, rule: Rule) {
        self.rules.push((chain, rule));
    }

    fn set(&mut self, name: &str, key: KeyType, flags: u32, size: Option<u32>, elements: Vec<Element>) {
        self.sets.push(Set { name: name.to_owned(), key, flags, size, elements });
    }

    /// The base chain: what is cheap and specific, so that other traffic leaves soon. Units are at
    /// several depths; each depth has rules and a set of its own.
    fn select(&mut self, selection: &Selection) {
        for level in selection.levels() {
            let set = unit_set(level);
            let words = format!("socket cgroupv2 level {level} {{ {} }}", selection.units_at(level));
            let owner =
                Rule::default().then(words, |e| e.socket_cgroup(level, REG).lookup(&set, REG, false));
            self.select_of(selection, &owner);
            self.set(&set, nft::KEY_CGROUP, 0, None, unit_elements(selection, level));
        }
        if selection.units.is_none() {
            self.select_of(selection, &Rule::default());
        }
        for (at, peers) in selection.peers.iter().enumerate() {
            for ip in [V4, V6] {
                let blocks = of_family(peers, ip);
                if selection.peers.iter().all(|peers| !of_family(peers, ip).is_empty()) {
                    let name = format!("peers{at}_{}", ip.suffix);
                    self.set(&name, ip.address, SET_CONSTANT | SET_INTERVAL, None, intervals(&blocks));
                }
            }
        }
    }

    /// The rules of one owner, who is matched last: looking for a socket costs most.
    fn select_of(&mut self, selection: &Selection, owner: &Rule) {
        if selection.peers.is_empty() {
            for protocol in protocols(selection, None) {
                let rule = narrow(Rule::default(), selection, protocol);
                self.rule(BASE, rule.and(owner).goto(BODY));
            }
            return;
        }
        for ip in [V4, V6] {
            let peers: Vec<Vec<Cidr>> =
                selection.peers.iter().map(|peers| of_family(peers, ip)).collect();
            if peers.iter().any(Vec::is_empty) {
                continue;
            }
            for protocol in protocols(selection, Some(ip)) {
                let rule = Rule::default().meta_is("", Meta::NfProto, &[ip.nfproto]);
                let mut rule = narrow(rule, selection, protocol);
                for (at, blocks) in peers.iter().enumerate() {
                    rule = match_peers(
                        rule,
                        ip,
                        selection.hook,
                        &format!("peers{at}_{}", ip.suffix),
                        blocks,
                    );
                }
                self.rule(BASE, rule.and(owner).goto(BODY));
            }
        }
    }

    /// The head of `body`: the way out stays open, and without a lease nothing happens.
    fn guard(&mut self, selection: &Selection) {
        if selection.local_port.is_none() && selection.protocol.is_none_or(|p| p == Protocol::Tcp) {
            let ports = list(&selection.exempt);
            let elements =
                selection.exempt.iter().map(|port| Element::of(&port.to_be_bytes())).collect();
            self.set("exempt", nft::KEY_SERVICE, SET_CONSTANT, None, elements);
            let exempt = |rule: Rule, (word, offset): (&str, u32)| {
                let words = format!("tcp {word} {{ {ports} }}");
                let add = |e: Expressions| {
                    e.payload(Base::Transport, offset, 2, REG).lookup("exempt", REG, false)
                };
                rule.tcp().then(words, add).verdict("return", Verdict::Return)
            };
            self.rule(BODY, exempt(Rule::default(), local_port(selection.hook)));
            if selection.hook == Hook::Output {
                // A local client's way to the same ports.
                let local = Rule::default().meta_is("oif \"lo\"", Meta::Oif, &LOOPBACK.to_ne_bytes());
                self.rule(BODY, exempt(local, remote_port(selection.hook)));
            }
        }
        let leased = Rule::default()
            .then("meta nfproto != @lease", |e| e.meta(Meta::NfProto, REG).lookup(LEASE, REG, true));
        self.rule(BODY, leased.verdict("return", Verdict::Return));
    }

    fn mark(&mut self, selection: &Selection, value: u32, mask: u32, devices: &[u32]) {
        let mut rule = Rule::default();
        if selection.interface.is_none() {
            let elements = devices.iter().map(|index| Element::of(&index.to_ne_bytes())).collect();
            self.set("slowed", nft::KEY_DEVICE, SET_CONSTANT, None, elements);
            rule =
                rule.then("meta oif @slowed", |e| e.meta(Meta::Oif, REG).lookup("slowed", REG, false));
        }
        let set = |e: Expressions| {
            e.meta(Meta::Mark, REG)
                .bitwise(&(!mask).to_ne_bytes(), &value.to_ne_bytes(), REG)
                .meta_set(Meta::Mark, REG)
        };
        let words = format!("meta mark set mark & {:#010x} | this fault's bits", !mask);
        self.rule(BODY, rule.counter(MATCHED).then(words, set));
    }

    /// Only attempts are judged. Connections that were open before are counted once each, when they
    /// first speak: older kernels count a connection again for every packet that is shown to them.
    fn cap(
        &mut self,
        hook: Hook,
        max: Option<u32>,
        per_source: Option<u32>,
        rate: Option<u32>,
        excess: Excess,
    ) {
        let refuse = |rule: Rule| rule.counter(AFFECTED).excess(excess);
        self.rule(BODY, Rule::default().attempt().counter(MATCHED));
        if [max, per_source, rate].contains(&Some(0)) {
            self.rule(BODY, refuse(Rule::default().attempt()));
            return;
        }
        if max.is_some() || per_source.is_some() {
            self.know(hook);
        }
        if let Some(max) = max {
            let over = Rule::default().then(format!("ct count over {max}"), |e| e.connections_over(max));
            self.rule(JUDGE, refuse(over.attempt()));
        }
        if let Some(max) = per_source {
            for ip in [V4, V6] {
                let set = format!("sources{}", ip.suffix);
                self.set(&set, ip.address, SET_DYNAMIC, Some(CONNECTIONS), Vec::new());
                let words = format!("add @{set} {{ {} saddr ct count over {max} }}", ip.word);
                let over = Rule::default().meta_is("", Meta::NfProto, &[ip.nfproto]).then(words, |e| {
                    e.payload(Base::Network, ip.source, ip.length, REG)
                        .connections_over_each(&set, REG, max)
                });
                self.rule(JUDGE, refuse(over.attempt()));
            }
        }
        if let Some(rate) = rate {
            let chain = if max.is_some() || per_source.is_some() { JUDGE } else { BODY };
            let words = format!("limit rate over {rate}/second burst {rate} packets");
            self.rule(chain, refuse(Rule::default().attempt().then(words, |e| e.rate_over(rate))));
        }
    }

    /// Attempts, and the first packet of every connection that is not known yet, go to `judge`.
    fn know(&mut self, hook: Hook) {
        let family = |ip: Ip| Rule::default().meta_is("", Meta::NfProto, &[ip.nfproto]);
        let known = |ip: Ip| format!("known{}", ip.suffix);
        let add = |rule: Rule, ip: Ip| {
            let set = known(ip);
            rule.then(format!("add @{set}"), |e| e.add_to_set(&set, REG, REMEMBER_MS))
        };
        for ip in [V4, V6] {
            self.set(
                &known(ip),
                ip.connection,
                SET_DYNAMIC | SET_TIMEOUT,
                Some(CONNECTIONS),
                Vec::new(),
            );
            self.rule(BODY, add(family(ip).attempt().connection(ip, hook), ip));
        }
        // A rule of its own: a full set ends the rule that adds, and must not save an attempt from judgement.
        self.rule(BODY, Rule::default().attempt().goto(JUDGE));
        for ip in [V4, V6] {
            let set = known(ip);
            let stranger = family(ip).tcp().connection(ip, hook);
            let stranger = stranger.then(format!("!= @{set}"), |e| e.lookup(&set, REG, true));
            self.rule(BODY, add(stranger, ip).goto(JUDGE));
        }
    }
}

const BASE: &str = "base";
const BODY: &str = "body";
const JUDGE: &str = "judge";

impl Selection {
    /// The depths at which units are, each once.
    #[must_use]
    pub fn levels(&self) -> Vec<u32> {
        let mut levels: Vec<u32> = self.units.iter().flatten().map(|unit| unit.level).collect();
        levels.sort_unstable();
        levels.dedup();
        levels
    }

    fn units_at(&self, level: u32) -> String {
        let units = self.units.iter().flatten().filter(|unit| unit.level == level);
        list(&units.map(|unit| format!("\"{}\"", unit.path)).collect::<Vec<_>>())
    }
}

/// The set of the units at one depth. Not constant: a unit that starts anew has another cgroup.
#[must_use]
pub fn unit_set(level: u32) -> String {
    format!("units{level}")
}

/// The identifiers of the units at one depth.
#[must_use]
pub fn unit_elements(selection: &Selection, level: u32) -> Vec<Element> {
    let units = selection.units.iter().flatten().filter(|unit| unit.level == level);
    units.map(|unit| Element::of(&unit.id.to_ne_bytes())).collect()
}

fn of_family(peers: &[Cidr], ip: Ip) -> Vec<Cidr> {
    peers.iter().copied().filter(|block| Ip::of(block.address) == ip).collect()
}

/// The elements that hold a lease: one for each address family.
#[must_use]
pub fn lease_elements(lease: Option<Duration>) -> Vec<Element> {
    let timeout = lease.map(|lease| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX).max(1));
    [NFPROTO_IPV4, NFPROTO_IPV6]
        .into_iter()
        .map(|family| Element { timeout, ..Element::of(&[family]) })
        .collect()
}

/// The protocols that need a rule each. ICMP is another number in each address family.
fn protocols(selection: &Selection, ip: Option<Ip>) -> Vec<Option<(u8, &'static str)>> {
    match (selection.protocol, ip) {
        (None, _) => vec![None],
        (Some(Protocol::Tcp), _) => vec![Some((TCP, "tcp"))],
        (Some(Protocol::Udp), _) => vec![Some((UDP, "udp"))],
        (Some(Protocol::Icmp), Some(ip)) if ip == V4 => vec![Some((ICMP, "icmp"))],
        (Some(Protocol::Icmp), Some(_)) => vec![Some((ICMPV6, "ipv6-icmp"))],
        (Some(Protocol::Icmp), None) => vec![Some((ICMP, "icmp")), Some((ICMPV6, "ipv6-icmp"))],
    }
}

/// Everything of a selection but its peers.
fn narrow(rule: Rule, selection: &Selection, protocol: Option<(u8, &'static str)>) -> Rule {
    let mut rule = rule;
    let hook = selection.hook;
    if let Some((number, word)) = protocol {
        let ports = selection.local_port.is_some() || selection.remote_port.is_some();
        let words = if ports { String::new() } else { format!("meta l4proto {word}") };
        rule = rule.meta_is(&words, Meta::L4Proto, &[number]);
        let sides =
            [(selection.local_port, local_port(hook)), (selection.remote_port, remote_port(hook))];
        for (port, (side, offset)) in sides {
            let Some(port) = port else { continue };
            rule = rule.then(format!("{word} {side} {port}"), |e| {
                e.payload(Base::Transport, offset, 2, REG).equals(&port.to_be_bytes(), REG)
            });
        }
    }
    if let Some(uid) = selection.uid {
        rule = rule.meta_is(&format!("meta skuid {uid}"), Meta::SkUid, &uid.to_ne_bytes());
    }
    if let Some(cgroup) = &selection.cgroup {
        let words = format!("socket cgroupv2 level {} \"{}\"", cgroup.level, cgroup.path);
        rule = rule
            .then(words, |e| e.socket_cgroup(cgroup.level, REG).equals(&cgroup.id.to_ne_bytes(), REG));
    }
    if let Some(interface) = &selection.interface {
        // Names are compared over their whole 16 bytes.
        let mut name = interface.as_bytes().to_vec();
        name.resize(16, 0);
        let (word, key) = match hook {
            Hook::Input => ("iifname", Meta::IifName),
            Hook::Output => ("oifname", Meta::OifName),
        };
        rule = rule.meta_is(&format!("{word} \"{interface}\""), key, &name);
    }
    rule
}

fn match_peers(rule: Rule, ip: Ip, hook: Hook, set: &str, blocks: &[Cidr]) -> Rule {
    let (word, offset) = match hook {
        Hook::Input => ("saddr", ip.source),
        Hook::Output => ("daddr", ip.destination),
    };
    let words = format!("{} {word} {{ {} }}", ip.word, list(&sorted(blocks)));
    rule.then(words, |e| e.payload(Base::Network, offset, ip.length, REG).lookup(set, REG, false))
}

/// The word and the offset of the local port in a header of TCP or UDP.
fn local_port(hook: Hook) -> (&'static str, u32) {
    match hook {
        Hook::Input => ("dport", 2),
        Hook::Output => ("sport", 0),
    }
}

fn remote_port(hook: Hook) -> (&'static str, u32) {
    match hook {
        Hook::Input => ("sport", 0),
        Hook::Output => ("dport", 2),
    }
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    let mut out = String::new();
    for (at, item) in items.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(out, "{}{item}", if at == 0 { "" } else { ", " });
    }
    out
}

fn sorted(blocks: &[Cidr]) -> Vec<Cidr> {
    let mut blocks = blocks.to_vec();
    blocks.sort_by_key(|block| (block.address, block.prefix));
    blocks.dedup();
    blocks
}

/// First and last address of a block as numbers.
#[must_use]
pub fn range(block: &Cidr) -> (u128, u128) {
    let (first, bits) = match block.address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    let free = bits - u32::from(block.prefix).min(bits);
    let size = if free == 128 { u128::MAX } else { (1 << free) - 1 };
    (first & !size, first | size)
}

/// Disjoint intervals in order, as a set with `flags interval` wants them: starts, and the keys behind ends.
fn intervals(blocks: &[Cidr]) -> Vec<Element> {
    let Some(first) = blocks.first() else { return Vec::new() };
    let (length, most) =
        if first.address.is_ipv4() { (4, u128::from(u32::MAX)) } else { (16, u128::MAX) };
    let mut ranges: Vec<(u128, u128)> = blocks.iter().map(range).collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (low, high) in ranges {
        match merged.last_mut() {
            Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
            _ => merged.push((low, high)),
        }
    }
    let key = |value: u128| value.to_be_bytes()[16 - length..].to_vec();
    let mut elements = Vec::new();
    for (low, high) in merged {
        elements.push(Element { key: key(low), timeout: None, ends_interval: false });
        if high < most {
            elements.push(Element { key: key(high + 1), timeout: None, ends_interval: true });
        }
    }
    elements
}
