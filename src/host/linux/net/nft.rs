//! nf_tables over netlink: the messages and expressions that vervet's tables are made of.
//!
//! Numbers and layouts: linux/netfilter/nf_tables.h; the types of set keys are those of nftables'
//! `enum datatypes`, so that `nft list ruleset` prints what was meant. Builds and reads messages
//! only; what they mean together is `rules`'s work.

use super::netlink::{
    Answer, Attrs, Message, NFTABLES, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, attribute, attributes,
    be64, text,
};

const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
const NEWOBJ: u16 = 18;
const GETOBJ: u16 = 19;

/// `NFPROTO_INET`
const INET: u8 = 1;
pub const NFPROTO_IPV4: u8 = 2;
pub const NFPROTO_IPV6: u8 = 10;

/// The first 32-bit register; the following ones are behind it.
pub const REG: u32 = 8;

pub const SET_INTERVAL: u32 = 0x4;
pub const SET_CONSTANT: u32 = 0x2;
pub const SET_TIMEOUT: u32 = 0x10;
/// Rules may add elements (`flags dynamic`).
pub const SET_DYNAMIC: u32 = 0x20;

/// What a set's keys are: nftables' number of the type, and the length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyType(pub u32, pub u32);

pub const KEY_NFPROTO: KeyType = KeyType(2, 1);
pub const KEY_IPV4: KeyType = KeyType(7, 4);
pub const KEY_IPV6: KeyType = KeyType(8, 16);
pub const KEY_SERVICE: KeyType = KeyType(13, 2);
/// `cgroupsv2`
pub const KEY_CGROUP: KeyType = KeyType(46, 8);
/// `iface_index`
pub const KEY_DEVICE: KeyType = KeyType(20, 4);
/// Address and port, each padded to four bytes: a concatenation of two types.
pub const KEY_IPV4_SERVICE: KeyType = KeyType((KEY_IPV4.0 << 6) | KEY_SERVICE.0, 8);
pub const KEY_IPV6_SERVICE: KeyType = KeyType((KEY_IPV6.0 << 6) | KEY_SERVICE.0, 20);

/// Where a base chain is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    Input,
    Output,
}

impl Hook {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
        }
    }

    /// `NF_INET_LOCAL_IN`, `NF_INET_LOCAL_OUT`
    fn number(self) -> u32 {
        match self {
            Self::Input => 1,
            Self::Output => 3,
        }
    }
}

fn message(kind: u16, flags: u16, attrs: &Attrs) -> Message {
    // struct nfgenmsg: family, version, resource
    Message::new((NFTABLES << 8) | kind, flags, &[INET, 0, 0, 0], attrs)
}

/// A new table; `comment` is shown by `nft list`.
#[must_use]
pub fn new_table(name: &str, comment: &str) -> Message {
    // A type-length-value entry: type 0 is the comment, with its zero byte.
    let mut user = vec![0, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
    user.extend(comment.as_bytes().iter().take(usize::from(u8::MAX) - 1));
    user.push(0);
    let attrs = Attrs::default().text(1, name).be32(2, 0).bytes(6, &user);
    message(NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, &attrs)
}

/// One table.
#[must_use]
pub fn get_table(name: &str) -> Message {
    message(GETTABLE, 0, &Attrs::default().text(1, name))
}

#[must_use]
pub fn delete_table(name: &str) -> Message {
    message(DELTABLE, 0, &Attrs::default().text(1, name))
}

/// By the handle that a listing gave: the kernel compares names of tables one by one.
#[must_use]
pub fn delete_table_by_handle(handle: u64) -> Message {
    message(DELTABLE, 0, &Attrs::default().be64(4, handle))
}

/// All tables of the family `inet`.
#[must_use]
pub fn list_tables() -> Message {
    message(GETTABLE, 0, &Attrs::default())
}

/// Name and handle in an answer about a table.
#[must_use]
pub fn table(answer: &Answer) -> Option<(String, u64)> {
    let body = answer.body.get(4..)?;
    Some((text(attribute(body, 1)?), be64(attribute(body, 4)?)?))
}

/// A base chain of type `filter` with policy accept.
#[must_use]
pub fn base_chain(table: &str, name: &str, hook: Hook, priority: i32) -> Message {
    let place = Attrs::default().be32(1, hook.number()).be32(2, priority.cast_unsigned());
    let attrs =
        Attrs::default().text(1, table).text(3, name).nest(4, &place).be32(5, 1).text(7, "filter");
    message(NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL, &attrs)
}

/// A chain that rules go to.
#[must_use]
pub fn chain(table: &str, name: &str) -> Message {
    message(NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL, &Attrs::default().text(1, table).text(3, name))
}

/// A set of this table. `id` is any number unique in the batch.
#[must_use]
pub fn new_set(
    table: &str,
    name: &str,
    id: u32,
    key: KeyType,
    flags: u32,
    size: Option<u32>,
) -> Message {
    let mut attrs = Attrs::default()
        .text(1, table)
        .text(2, name)
        .be32(3, flags)
        .be32(4, key.0)
        .be32(5, key.1)
        .be32(10, id);
    if let Some(size) = size {
        attrs = attrs.nest(9, &Attrs::default().be32(1, size));
    }
    if key == KEY_DEVICE {
        // For `nft list`: type 0 of the user data, four bytes, says that keys are in the host's order.
        attrs = attrs.bytes(13, &[&[0, 4][..], &1_u32.to_ne_bytes()].concat());
    }
    message(NEWSET, NLM_F_CREATE | NLM_F_EXCL, &attrs)
}

/// One element of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub key: Vec<u8>,
    /// Milliseconds.
    pub timeout: Option<u64>,
    /// The first key behind an interval.
    pub ends_interval: bool,
}

impl Element {
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        Self { key: key.to_vec(), timeout: None, ends_interval: false }
    }
}

#[must_use]
pub fn add_elements(table: &str, set: &str, elements: &[Element]) -> Message {
    message(NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, &element_attrs(table, set, elements))
}

/// Adds those that are not there; the others are no error.
#[must_use]
pub fn ensure_elements(table: &str, set: &str, elements: &[Element]) -> Message {
    message(NEWSETELEM, NLM_F_CREATE, &element_attrs(table, set, elements))
}

#[must_use]
pub fn delete_elements(table: &str, set: &str, elements: &[Element]) -> Message {
    message(DELSETELEM, 0, &element_attrs(table, set, elements))
}

/// All elements of a set.
#[must_use]
pub fn list_elements(table: &str, set: &str) -> Message {
    message(GETSETELEM, 0, &Attrs::default().text(1, table).text(2, set))
}

/// How many elements the answers of [`list_elements`] hold.
#[must_use]
pub fn count_elements(answers: &[Answer]) -> usize {
    let lists = answers.iter().filter_map(|answer| attribute(answer.body.get(4..)?, 3));
    lists.map(|list| attributes(list).count()).sum()
}

fn element_attrs(table: &str, set: &str, elements: &[Element]) -> Attrs {
    let mut list = Attrs::default();
    for element in elements {
        let mut attrs = Attrs::default().nest(1, &Attrs::default().bytes(1, &element.key));
        if element.ends_interval {
            attrs = attrs.be32(3, 1);
        }
        if let Some(timeout) = element.timeout {
            attrs = attrs.be64(4, timeout);
        }
        list = list.nest(1, &attrs);
    }
    Attrs::default().text(1, table).text(2, set).nest(3, &list)
}

/// A named counter.
#[must_use]
pub fn new_counter(table: &str, name: &str) -> Message {
    let zero = Attrs::default().be64(1, 0).be64(2, 0);
    let attrs = Attrs::default().text(1, table).text(2, name).be32(3, 1).nest(4, &zero);
    message(NEWOBJ, NLM_F_CREATE | NLM_F_EXCL, &attrs)
}

/// All named objects of a table.
#[must_use]
pub fn list_objects(table: &str) -> Message {
    message(GETOBJ, 0, &Attrs::default().text(1, table))
}

/// Table, name and packets in an answer about a counter.
#[must_use]
pub fn counter(answer: &Answer) -> Option<(String, String, u64)> {
    let body = answer.body.get(4..)?;
    let packets = be64(attribute(attribute(body, 4)?, 2)?)?;
    Some((text(attribute(body, 1)?), text(attribute(body, 2)?), packets))
}

/// A rule at the end of a chain.
#[must_use]
pub fn append_rule(table: &str, chain: &str, expressions: &Expressions) -> Message {
    let attrs = Attrs::default().text(1, table).text(2, chain).nest(4, &expressions.0);
    message(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, &attrs)
}

/// What `meta` reads, `enum nft_meta_keys`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    Mark = 3,
    Oif = 5,
    IifName = 6,
    OifName = 7,
    SkUid = 10,
    NfProto = 15,
    L4Proto = 16,
}

/// The header that `payload` counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Network = 1,
    Transport = 2,
}

/// Where a rule ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    Drop,
    Return,
    Goto(&'a str),
}

/// The expressions of one rule, in order.
#[derive(Debug, Clone, Default)]
pub struct Expressions(Attrs);

impl Expressions {
    fn push(self, name: &str, data: &Attrs) -> Self {
        Self(self.0.nest(1, &Attrs::default().text(1, name).nest(2, data)))
    }

    /// These, and then the others.
    #[must_use]
    pub fn and(self, others: &Self) -> Self {
        Self(self.0.append(&others.0))
    }

    #[must_use]
    pub fn meta(self, key: Meta, register: u32) -> Self {
        self.push("meta", &Attrs::default().be32(1, register).be32(2, key as u32))
    }

    #[must_use]
    pub fn meta_set(self, key: Meta, register: u32) -> Self {
        self.push("meta", &Attrs::default().be32(2, key as u32).be32(3, register))
    }

    #[must_use]
    pub fn payload(self, base: Base, offset: u32, length: u32, register: u32) -> Self {
        let data =
            Attrs::default().be32(1, register).be32(2, base as u32).be32(3, offset).be32(4, length);
        self.push("payload", &data)
    }

    #[must_use]
    pub fn equals(self, value: &[u8], register: u32) -> Self {
        let value = Attrs::default().bytes(1, value);
        self.push("cmp", &Attrs::default().be32(1, register).be32(2, 0).nest(3, &value))
    }

    /// `register = (register & mask) ^ xor`
    #[must_use]
    pub fn bitwise(self, mask: &[u8], xor: &[u8], register: u32) -> Self {
        let data = Attrs::default()
            .be32(1, register)
            .be32(2, register)
            .be32(3, u32::try_from(mask.len()).unwrap_or_default())
            .nest(4, &Attrs::default().bytes(1, mask))
            .nest(5, &Attrs::default().bytes(1, xor));
        self.push("bitwise", &data)
    }

    #[must_use]
    pub fn lookup(self, set: &str, register: u32, inverted: bool) -> Self {
        self.push(
            "lookup",
            &Attrs::default().text(1, set).be32(2, register).be32(5, u32::from(inverted)),
        )
    }

    /// The ancestor of the socket's cgroup at `level`, as eight bytes in the host's order.
    #[must_use]
    pub fn socket_cgroup(self, level: u32, register: u32) -> Self {
        self.push("socket", &Attrs::default().be32(1, 3).be32(2, register).be32(3, level))
    }

    #[must_use]
    pub fn counter(self, name: &str) -> Self {
        self.push("objref", &Attrs::default().be32(1, 1).text(2, name))
    }

    /// Goes on when more connections than `limit` are open, this packet's included.
    #[must_use]
    pub fn connections_over(self, limit: u32) -> Self {
        self.push("connlimit", &connlimit(limit))
    }

    /// Adds the key to a dynamic set; goes on unless the set is full.
    #[must_use]
    pub fn add_to_set(self, set: &str, register: u32, timeout_ms: u64) -> Self {
        let data = Attrs::default().text(1, set).be32(3, 0).be32(4, register).be64(6, timeout_ms);
        self.push("dynset", &data)
    }

    /// As [`Self::connections_over`], with a count for each key in a dynamic set.
    #[must_use]
    pub fn connections_over_each(self, set: &str, register: u32, limit: u32) -> Self {
        let expression = Attrs::default().text(1, "connlimit").nest(2, &connlimit(limit));
        let data = Attrs::default().text(1, set).be32(3, 0).be32(4, register).nest(7, &expression);
        self.push("dynset", &data)
    }

    /// Goes on when more than `rate` packets come in a second, after a burst of as many.
    #[must_use]
    pub fn rate_over(self, rate: u32) -> Self {
        let data = Attrs::default().be64(1, rate.into()).be64(2, 1).be32(3, rate).be32(4, 0).be32(5, 1);
        self.push("limit", &data)
    }

    #[must_use]
    pub fn reset(self) -> Self {
        self.push("reject", &Attrs::default().be32(1, 1))
    }

    #[must_use]
    pub fn verdict(self, verdict: Verdict<'_>) -> Self {
        let code = match verdict {
            Verdict::Drop => Attrs::default().be32(1, 0),
            Verdict::Return => Attrs::default().be32(1, (-5_i32).cast_unsigned()),
            Verdict::Goto(chain) => Attrs::default().be32(1, (-4_i32).cast_unsigned()).text(2, chain),
        };
        let data = Attrs::default().be32(1, 0).nest(2, &Attrs::default().nest(2, &code));
        self.push("immediate", &data)
    }
}

fn connlimit(limit: u32) -> Attrs {
    Attrs::default().be32(1, limit).be32(2, 1)
}
