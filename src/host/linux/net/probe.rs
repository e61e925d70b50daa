//! What this host's kernel and privileges allow, found out by trying.
//!
//! The trial happens in a new, empty network namespace that ends with it: nothing of the host is
//! touched. Who may not make one gets an answer by reading which modules there are.

use std::{collections::BTreeSet, io, path::Path, time::Duration};

use rustix::io::Errno;

use super::{
    diag,
    line::Ends,
    link, namespace,
    netlink::{Family, NFTABLES, NetlinkError, Socket},
    nft::Hook,
    rules::{self, Cgroup, Deed, Selection},
    shape::Shape,
    tc::{self, Classifier},
};
use crate::experiment::FaultKind;
use crate::{
    experiment::{DelayEngine, Distribution, Excess, Percent, Protocol},
    host::Ability,
};

type Verdict<T = ()> = Result<T, String>;

const LOOPBACK: u32 = 1;
const TABLE: &str = "vervet_probe";

/// Each part that faults are made of: there, or why not and what to do.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The nftables expressions of a cap.
    pub cap: Verdict,
    /// Closing existing connections.
    pub destroy: Verdict,
    /// The nftables expressions of a delay.
    pub mark: Verdict,
    /// Matching the cgroup of a socket.
    pub cgroup: Verdict,
    pub classifier: Verdict<Classifier>,
    pub netem: Verdict,
    pub tap: Verdict,
}

impl Probe {
    /// Tries everything.
    #[must_use]
    pub fn run() -> Self {
        match namespace::within_new(Self::trial) {
            Ok(probe) => probe,
            Err(error) => Self::by_reading(&error),
        }
    }

    /// Everything that could be there is there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.cap.is_ok() && self.mark.is_ok() && self.classifier.is_ok() && self.tap.is_ok()
    }

    /// The engine that delays: the one asked for, else the first that works.
    ///
    /// # Errors
    /// Why there is none.
    pub fn engine(&self, wanted: Option<DelayEngine>) -> Verdict<DelayEngine> {
        self.mark.clone()?;
        self.classifier.clone()?;
        match wanted {
            Some(DelayEngine::Netem) => self.netem.clone().map(|()| DelayEngine::Netem),
            Some(DelayEngine::Tap) => self.tap.clone().map(|()| DelayEngine::Tap),
            None if self.netem.is_ok() => Ok(DelayEngine::Netem),
            None => match &self.tap {
                Ok(()) => Ok(DelayEngine::Tap),
                Err(tap) => {
                    let netem = self.netem.as_ref().err().map(String::as_str).unwrap_or_default();
                    Err(format!("no engine can delay: netem: {netem}; tap: {tap}"))
                }
            },
        }
    }

    /// The same for people.
    #[must_use]
    pub fn abilities(&self) -> Vec<Ability> {
        let common = self.mark.clone().and(self.classifier.clone().map(drop));
        let ability = |fault, variant: Option<&str>, verdict: Verdict| Ability {
            fault,
            variant: variant.map(str::to_owned),
            available: verdict.is_ok(),
            reason: verdict.err(),
        };
        vec![
            ability(FaultKind::Latency, Some("netem"), common.clone().and(self.netem.clone())),
            ability(FaultKind::Latency, Some("tap"), common.and(self.tap.clone())),
            ability(FaultKind::Connections, None, self.cap.clone()),
            ability(FaultKind::Connections, Some("existing = close"), self.destroy.clone()),
        ]
    }

    fn trial() -> Self {
        let delay = Deed::Mark { mark: 1, mask: 0xff, devices: vec![LOOPBACK] };
        let cap = Deed::Cap {
            max: Some(1),
            per_source: Some(1),
            new_per_second: Some(1),
            excess: Excess::Reset,
        };
        let mut route = match Socket::open(Family::Route) {
            Ok(socket) => socket,
            Err(error) => return Self::none(&format!("rtnetlink: {error}")),
        };
        let clsact =
            tc::make_clsact(&mut route, LOOPBACK).map_err(|error| no_module("sch_ingress", &error));
        Self {
            cap: table(&selection(Hook::Input), &cap),
            destroy: diag::can_destroy().map_err(|error| {
                format!(
                    "closing open connections: {error}; needs a kernel with CONFIG_INET_DIAG_DESTROY"
                )
            }),
            mark: table(&selection(Hook::Output), &delay),
            cgroup: table(
                &Selection {
                    cgroup: Some(Cgroup { id: 1, level: 1, path: "probe".to_owned() }),
                    ..selection(Hook::Output)
                },
                &delay,
            ),
            classifier: clsact.and_then(|()| classifier(&mut route)),
            netem: netem(&mut route),
            tap: Ends::open("vvprobe", LOOPBACK).map(drop).map_err(|error| no_tap(&error)),
        }
    }

    fn none(why: &str) -> Self {
        let no = || Err(why.to_owned());
        Self {
            cap: no(),
            destroy: no(),
            mark: no(),
            cgroup: no(),
            classifier: Err(why.to_owned()),
            netem: no(),
            tap: no(),
        }
    }

    fn by_reading(error: &io::Error) -> Self {
        // capabilities(7): CAP_NET_ADMIN is 12, CAP_NET_RAW is 13
        if !has_capability(12) {
            return Self::none(&format!(
                "not permitted ({error}); run vervet as root, or give it CAP_NET_ADMIN, CAP_NET_RAW and \
                 CAP_SYS_ADMIN"
            ));
        }
        let listed = Modules::of_this_kernel();
        let module = |name: &str| {
            let missing =
                || format!("the kernel has no {name}; `modprobe {name}` or another kernel brings it");
            // Where there is no list, the kernel says so itself when the fault is prepared.
            listed.as_ref().is_none_or(|listed| listed.have(name)).then_some(()).ok_or_else(missing)
        };
        // Both are known of everywhere that has no list, but of the first a kernel may ignore the
        // match, and that shows only in a trial.
        let classifier = match &listed {
            None => Ok(Classifier::Bpf),
            Some(_) => module("cls_fw")
                .map(|()| Classifier::Fw)
                .or_else(|_| module("cls_bpf").map(|()| Classifier::Bpf)),
        };
        let netem = match &listed {
            None => Err(format!(
                "cannot tell whether the kernel has sch_netem: it has no list below /lib/modules, and a \
                 trial needs CAP_SYS_ADMIN ({error})"
            )),
            Some(_) => module("ifb").and_then(|()| module("sch_netem")),
        };
        let raw = if has_capability(13) { Ok(()) } else { Err("give it CAP_NET_RAW".to_owned()) };
        let tun = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
        Self {
            cap: module("nf_tables"),
            destroy: Ok(()),
            mark: module("nf_tables"),
            cgroup: module("nft_socket"),
            classifier,
            netem,
            tap: raw.and_then(|()| tun.map(drop).map_err(|error| no_tap(&error))),
        }
    }
}

fn selection(hook: Hook) -> Selection {
    Selection {
        hook,
        protocol: Some(Protocol::Tcp),
        local_port: None,
        remote_port: None,
        peers: Vec::new(),
        uid: None,
        cgroup: None,
        units: None,
        interface: None,
        exempt: vec![22],
    }
}

/// Makes and deletes the table of a fault in one batch: the kernel has checked every expression.
fn table(selection: &Selection, deed: &Deed) -> Verdict {
    let program = rules::program(selection, deed);
    let mut messages = program.messages(TABLE, "vervet probe", selection.hook, Duration::from_secs(1));
    messages.push(super::nft::delete_table(TABLE));
    let mut socket = Socket::open(Family::Netfilter).map_err(|error| {
        format!("nf_tables: {error}; `modprobe nf_tables`, or a kernel with CONFIG_NF_TABLES_INET")
    })?;
    socket.batch(NFTABLES, &messages).map_err(|errors| {
        let why = errors.first().map(|(_, error)| error.to_string()).unwrap_or_default();
        format!(
            "nftables: {why}; needs CAP_NET_ADMIN and a kernel with the modules nf_tables, nft_ct, \
             nft_connlimit, nft_limit, nft_reject_inet and nft_socket"
        )
    })
}

/// `fw` where the kernel has it, else cls_bpf; read back, because kernels ignore what they do not know.
fn classifier(route: &mut Socket) -> Verdict<Classifier> {
    let mut why = String::new();
    for classifier in [Classifier::Fw, Classifier::Bpf] {
        let filter =
            tc::Redirect { device: LOOPBACK, priority: 1, mark: 0x10, mask: 0xf0, to: LOOPBACK };
        let found = tc::add_redirect(route, classifier, &filter)
            .and_then(|()| tc::egress_filters(route, LOOPBACK))
            .map_err(|error| error.to_string());
        match found {
            Ok(found) if found.iter().any(|found| found.matches == Some((0x10, 0xf0))) => {
                return Ok(classifier);
            }
            Ok(found) => {
                why = String::from("the kernel ignored the match");
                if let Some(found) = found.first() {
                    let _ = tc::delete_filter(route, LOOPBACK, 1, &found.kind);
                }
            }
            Err(error) => why = error,
        }
    }
    Err(format!(
        "no classifier matches packet marks: {why}; `modprobe cls_fw act_mirred`, or cls_bpf instead of cls_fw"
    ))
}

fn netem(route: &mut Socket) -> Verdict {
    let shape = Shape {
        delay: Duration::from_millis(1),
        jitter: Duration::ZERO,
        correlation: Percent::ZERO,
        distribution: Distribution::Normal,
    };
    link::make_ifb(route, "vvprobe-ifb").map_err(|error| no_module("ifb", &error))?;
    let links = link::list(route).map_err(|error| error.to_string())?;
    let index = links.iter().find(|link| link.name == "vvprobe-ifb").map_or(0, |link| link.index);
    tc::make_netem(route, index, &shape, 10).map_err(|error| no_module("sch_netem", &error))
}

fn no_module(name: &str, error: &NetlinkError) -> String {
    if error.errno == Errno::PERM {
        return "not permitted; run vervet as root, or give it CAP_NET_ADMIN".to_owned();
    }
    let extra = if name == "sch_netem" {
        " (on RHEL and Fedora after installing kernel-modules-extra)"
    } else {
        ""
    };
    format!("the kernel has no {name} ({error}); try `modprobe {name}`{extra}")
}

fn no_tap(error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::NotFound => "`modprobe tun` makes /dev/net/tun",
        io::ErrorKind::PermissionDenied => {
            "it needs CAP_NET_ADMIN, CAP_NET_RAW and a /dev/net/tun that it may open (mode 0666 on ordinary \
             hosts)"
        }
        _ => "it needs a kernel with CONFIG_TUN and CONFIG_PACKET",
    };
    format!("the TAP device: {error}; {advice}")
}

fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or_default();
    set & (1 << number) != 0
}

/// What modules this kernel has, loaded, built in, or there to be loaded.
struct Modules {
    names: BTreeSet<String>,
}

impl Modules {
    /// `None` where nobody wrote them down, as for kernels without modules.
    fn of_this_kernel() -> Option<Self> {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let directory = Path::new("/lib/modules").join(release.trim_end());
        let builtin = std::fs::read_to_string(directory.join("modules.builtin")).ok()?;
        let loadable = std::fs::read_to_string(directory.join("modules.dep")).unwrap_or_default();
        // `kernel/net/sched/sch_netem.ko.xz: …`
        let name = |line: &str| {
            let path = line.split(':').next().unwrap_or_default();
            let file = path.rsplit('/').next().unwrap_or_default();
            file.split('.').next().unwrap_or_default().to_owned()
        };
        Some(Self { names: builtin.lines().chain(loadable.lines()).map(name).collect() })
    }

    fn have(&self, name: &str) -> bool {
        Path::new("/sys/module").join(name).exists() || self.names.contains(name)
    }
}
