//! Traffic control over netlink: `clsact`, the filter that redirects a mark, the `netem` qdisc.
//!
//! Layouts: linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h. Touches
//! only what it is asked to by exact device, priority and target; a foreign qdisc is never replaced.

use std::time::Duration;

use super::{
    netlink::{
        Answer, Attrs, Message, NLM_F_CREATE, NLM_F_EXCL, NetlinkError, Socket, attribute, text, u32_at,
    },
    shape::Shape,
};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

const ROOT: u32 = 0xffff_ffff;
/// Parent of `clsact` and of `ingress`.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// `ETH_P_ALL`
const ALL_PROTOCOLS: u16 = 3;
/// tcm_parent and other fields that the netlink header of a message carries.
const TCMSG: usize = 20;
/// A tick of the packet scheduler is 64 ns (`PSCHED_SHIFT`).
const TICK_NS: u128 = 64;

/// The classifiers that can match a mark under a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Classifier {
    Fw,
    /// Classic BPF in cls_bpf.
    Bpf,
}

/// The filter of one fault on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redirect {
    /// Index of the device whose egress is classified.
    pub device: u32,
    pub priority: u16,
    pub mark: u32,
    pub mask: u32,
    /// Index of the device that marked packets go to.
    pub to: u32,
}

/// A filter that was found on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub priority: u16,
    pub kind: String,
    /// Index of the device that it redirects to; zero when that device is gone. `None`: it does not redirect.
    pub to: Option<u32>,
    /// Mark and mask, where they could be read back.
    pub matches: Option<(u32, u32)>,
    /// Packets that its redirection took.
    pub packets: u64,
}

/// struct tcmsg: family, padding, device, handle, parent, info
fn header(device: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut bytes = [0; TCMSG];
    for (at, field) in (1..).zip([device, handle, parent, info]) {
        bytes[at * 4..at * 4 + 4].copy_from_slice(&field.to_ne_bytes());
    }
    bytes
}

/// Kind of the qdisc that sits at the clsact's place, if any: `clsact` or `ingress`.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn ingress_qdisc(socket: &mut Socket, device: u32) -> Result<Option<String>, NetlinkError> {
    let answers =
        socket.dump(&Message::new(RTM_GETQDISC, 0, &header(device, 0, 0, 0), &Attrs::default()))?;
    let here = |answer: &&Answer| {
        u32_at(&answer.body, 4) == Some(device) && u32_at(&answer.body, 12) == Some(CLSACT)
    };
    Ok(answers.iter().find(here).and_then(kind))
}

/// Makes a `clsact`; one that is there already is an error of its own (EEXIST).
///
/// # Errors
/// What the kernel answered.
pub fn make_clsact(socket: &mut Socket, device: u32) -> Result<(), NetlinkError> {
    let attrs = Attrs::default().text(1, "clsact");
    let header = header(device, CLSACT_HANDLE, CLSACT, 0);
    socket.request(&Message::new(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &header, &attrs))
}

/// Deletes the `clsact` with everything on it.
///
/// # Errors
/// What the kernel answered.
pub fn delete_clsact(socket: &mut Socket, device: u32) -> Result<(), NetlinkError> {
    let attrs = Attrs::default().text(1, "clsact");
    socket.request(&Message::new(RTM_DELQDISC, 0, &header(device, CLSACT_HANDLE, CLSACT, 0), &attrs))
}

/// Whether anybody's filter is on the `clsact`, in either direction.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn has_filters(socket: &mut Socket, device: u32) -> Result<bool, NetlinkError> {
    for parent in [INGRESS, EGRESS] {
        if !dump_filters(socket, device, parent)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Installs the filter. One that has its priority already is an error (EEXIST).
///
/// # Errors
/// What the kernel answered.
pub fn add_redirect(
    socket: &mut Socket,
    classifier: Classifier,
    redirect: &Redirect,
) -> Result<(), NetlinkError> {
    let action = Attrs::default().nest(1, &mirred(redirect.to));
    let (name, handle, options) = match classifier {
        // TCA_FW_ACT = 4, TCA_FW_MASK = 5; the handle is the mark
        Classifier::Fw => {
            ("fw", redirect.mark, Attrs::default().nest(4, &action).ne32(5, redirect.mask))
        }
        // TCA_BPF_ACT = 1, TCA_BPF_OPS_LEN = 4, TCA_BPF_OPS = 5
        Classifier::Bpf => {
            let program = program(redirect.mark, redirect.mask);
            let count = u16::try_from(program.len() / 8).unwrap_or_default();
            let options =
                Attrs::default().nest(1, &action).bytes(4, &count.to_ne_bytes()).bytes(5, &program);
            ("bpf", 0, options)
        }
    };
    let info = (u32::from(redirect.priority) << 16) | u32::from(ALL_PROTOCOLS.to_be());
    let attrs = Attrs::default().text(1, name).nest(2, &options);
    let header = header(redirect.device, handle, EGRESS, info);
    socket.request(&Message::new(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &header, &attrs))
}

/// Deletes every filter of one priority on the egress of a device.
///
/// # Errors
/// What the kernel answered.
pub fn delete_filter(
    socket: &mut Socket,
    device: u32,
    priority: u16,
    kind: &str,
) -> Result<(), NetlinkError> {
    let info = (u32::from(priority) << 16) | u32::from(ALL_PROTOCOLS.to_be());
    let attrs = Attrs::default().text(1, kind);
    socket.request(&Message::new(RTM_DELTFILTER, 0, &header(device, 0, EGRESS, info), &attrs))
}

/// The filters on the egress of a device.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn egress_filters(socket: &mut Socket, device: u32) -> Result<Vec<Found>, NetlinkError> {
    Ok(dump_filters(socket, device, EGRESS)?.iter().filter_map(found).collect())
}

/// Makes `netem` the root qdisc of vervet's own device.
///
/// # Errors
/// What the kernel answered.
pub fn make_netem(
    socket: &mut Socket,
    device: u32,
    shape: &Shape,
    limit: u32,
) -> Result<(), NetlinkError> {
    let ticks = |time: Duration| u32::try_from(time.as_nanos() / TICK_NS).unwrap_or(u32::MAX);
    let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX).to_ne_bytes();
    // struct tc_netem_qopt: latency, limit, loss, gap, duplicate, jitter
    let mut options = Vec::new();
    for field in [ticks(shape.delay), limit, 0, 0, 0, ticks(shape.jitter)] {
        options.extend(field.to_ne_bytes());
    }
    // TCA_NETEM_CORR = 1 (delay, loss, duplicate), _DELAY_DIST = 2, _LATENCY64 = 10, _JITTER64 = 11
    let mut correlation = shape.rho().to_ne_bytes().to_vec();
    correlation.resize(12, 0);
    let mut attrs = Attrs::default().bytes(1, &correlation);
    if let Some(table) = shape.table() {
        let bytes: Vec<u8> = table.iter().flat_map(|value| value.to_ne_bytes()).collect();
        attrs = attrs.bytes(2, &bytes);
    }
    attrs = attrs.bytes(10, &nanos(shape.delay)).bytes(11, &nanos(shape.jitter));
    options.extend(attrs.0);
    let attrs = Attrs::default().text(1, "netem").bytes(2, &options);
    let header = header(device, 0x0001_0000, ROOT, 0);
    socket.request(&Message::new(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &header, &attrs))
}

fn dump_filters(socket: &mut Socket, device: u32, parent: u32) -> Result<Vec<Answer>, NetlinkError> {
    let message = Message::new(RTM_GETTFILTER, 0, &header(device, 0, parent, 0), &Attrs::default());
    let mut answers = socket.dump(&message)?;
    answers.retain(|answer| u32_at(&answer.body, 4) == Some(device));
    Ok(answers)
}

fn kind(answer: &Answer) -> Option<String> {
    attribute(answer.body.get(TCMSG..)?, 1).map(text)
}

/// An action list of one entry: `mirred egress redirect`.
fn mirred(to: u32) -> Attrs {
    // struct tc_mirred: index, capab, action TC_ACT_STOLEN, refcnt, bindcnt, TCA_EGRESS_REDIR, device
    let mut parameters = Vec::new();
    for field in [0, 0, 4, 0, 0, 1, to] {
        parameters.extend(field.to_ne_bytes());
    }
    // TCA_ACT_KIND = 1, TCA_ACT_OPTIONS = 2, TCA_MIRRED_PARMS = 2
    Attrs::default().text(1, "mirred").nest(2, &Attrs::default().bytes(2, &parameters))
}

const BPF_LOAD_WORD: u16 = 0x20;
const BPF_AND: u16 = 0x54;
const BPF_JUMP_IF_EQUAL: u16 = 0x15;
const BPF_RETURN: u16 = 0x06;
/// `SKF_AD_OFF + SKF_AD_MARK`, linux/filter.h
const MARK_OF_PACKET: u32 = (-0x1000_i32 + 20).cast_unsigned();

/// `struct sock_filter` by `struct sock_filter`: does the masked mark equal `value`?
fn program(value: u32, mask: u32) -> Vec<u8> {
    let instructions: [(u16, u8, u8, u32); 5] = [
        (BPF_LOAD_WORD, 0, 0, MARK_OF_PACKET),
        (BPF_AND, 0, 0, mask),
        (BPF_JUMP_IF_EQUAL, 0, 1, value),
        (BPF_RETURN, 0, 0, u32::MAX),
        (BPF_RETURN, 0, 0, 0),
    ];
    let mut bytes = Vec::new();
    for (code, yes, no, operand) in instructions {
        bytes.extend(code.to_ne_bytes());
        bytes.extend([yes, no]);
        bytes.extend(operand.to_ne_bytes());
    }
    bytes
}

/// Reads an answer about a filter; `None` for the head of a classifier that holds no filter.
fn found(answer: &Answer) -> Option<Found> {
    let attrs = answer.body.get(TCMSG..)?;
    let kind = text(attribute(attrs, 1)?);
    let options = attribute(attrs, 2)?;
    let handle = u32_at(&answer.body, 8)?;
    let priority = u16::try_from(u32_at(&answer.body, 16)? >> 16).ok()?;
    let (action, matches) = match kind.as_str() {
        "fw" => {
            let mask = attribute(options, 5).and_then(|mask| u32_at(mask, 0)).unwrap_or(u32::MAX);
            (attribute(options, 4), Some((handle, mask)))
        }
        "bpf" => (attribute(options, 1), attribute(options, 5).and_then(read_program)),
        _ => (None, None),
    };
    let action = action.and_then(|list| attribute(list, 1));
    let redirects = action.filter(|action| attribute(action, 1).map(text).as_deref() == Some("mirred"));
    let to = redirects
        .and_then(|action| attribute(attribute(action, 2)?, 2))
        .and_then(|parameters| u32_at(parameters, 24));
    // TCA_ACT_STATS = 4, TCA_STATS_BASIC = 1: struct gnet_stats_basic, bytes u64, packets u32
    let packets = redirects
        .and_then(|action| attribute(attribute(action, 4)?, 1))
        .and_then(|basic| u32_at(basic, 8))
        .unwrap_or_default();
    Some(Found { priority, kind, to, matches, packets: packets.into() })
}

/// Mark and mask, if the program is one of [`program`]'s.
fn read_program(bytes: &[u8]) -> Option<(u32, u32)> {
    let (mask, value) = (u32_at(bytes, 12)?, u32_at(bytes, 20)?);
    (bytes == program(value, mask)).then_some((value, mask))
}
