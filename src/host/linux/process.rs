//! The process table: who matches, who lives, and signals to exactly one of them.
//!
//! A process is a pid *and* its start time. Whatever can not be told for certain of the right
//! process counts as "gone", and is not signalled. Nothing here decides whether a process *may* be
//! signalled, but for the ones whose end would be the host's or vervet's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fd::OwnedFd,
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal},
};

use super::{
    clock,
    procfs::{Place, ProcFs},
    selector::{Look, Query},
    sockets::{Listens, Namespaces},
    stat::{Stat, catches},
};
use crate::{
    config::GroupPolicy,
    experiment::{ProcessSelector, Signal},
    host::{
        Candidate, Delivery, HostError, Instance, ProcessId, ProcessState, container,
        instances::{Mains, in_units},
    },
};

/// Characters of a command line that are told.
const CMDLINE_TOLD: usize = 200;

/// The processes of this host, as its /proc shows them.
#[derive(Debug)]
pub struct Processes {
    proc: ProcFs,
    /// Clock ticks in a second, the unit of start times.
    ticks: u64,
    /// Processes that were declared untouchable, with the reason.
    pub(super) declared: Mutex<BTreeMap<ProcessId, String>>,
    /// Shared by all who look, so that all speak of the same instances.
    mains: Mutex<Mains>,
}

/// A match, with what a readiness source wants to know of it.
#[derive(Debug, Clone)]
pub struct Found {
    pub candidate: Candidate,
    /// Where it listens, or why that cannot be told. Empty when nobody asked.
    pub listens: Result<Listens, String>,
}

impl Processes {
    /// `root` is `/proc` but for tests.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn new(root: &Path) -> Result<Self, HostError> {
        let proc = ProcFs::open(root)
            .map_err(|error| kernel(format!("open the process table {}", root.display()), error))?;
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
        let ticks = ticks.and_then(|ticks| u64::try_from(ticks).ok()).filter(|ticks| *ticks > 0);
        // 100 on every architecture that Linux runs on: USER_HZ.
        Ok(Self {
            proc,
            ticks: ticks.unwrap_or(100),
            declared: Mutex::default(),
            mains: Mutex::default(),
        })
    }

    /// Processes that match, in order of (start, pid). Never the kernel's threads, never zombies.
    ///
    /// # Errors
    /// When the process table, a user's name or a pidfile cannot be read, or when nothing matched
    /// but processes were there that vervet is not permitted to look at.
    pub fn find(
        &self,
        selector: &ProcessSelector,
        groups: &[GroupPolicy],
    ) -> Result<Vec<Candidate>, HostError> {
        let query = Query::new(selector, groups, self.ticks)?;
        let mut found = self.find_all(&[&query])?;
        let found = found.pop().unwrap_or_else(|| Ok(Vec::new()))?;
        let mut found: Vec<_> = found.into_iter().map(|found| found.candidate).collect();
        let whole = selector.whole_group().and_then(|name| groups.iter().find(|g| g.name == *name));
        if let Some(group) = whole.filter(|group| group.counts_units()) {
            let mains: BTreeSet<_> = self.instances(group)?.into_iter().map(|one| one.id).collect();
            found.retain(|candidate| mains.contains(&candidate.id));
        }
        match &selector.container {
            Some(word) if found.is_empty() => Err(HostError::NotFound(container::unknown(word))),
            _ => Ok(found),
        }
    }

    /// The instances of a group.
    ///
    /// # Errors
    /// As [`Processes::find`].
    pub fn instances(&self, group: &GroupPolicy) -> Result<Vec<Instance>, HostError> {
        let members = self.find(&group.members, &[])?;
        if group.counts_units() {
            return Ok(self.mains().sort_out(&in_units(&members), clock::boottime()));
        }
        Ok(members.into_iter().map(|member| Instance::of(member.id)).collect())
    }

    /// Out of all processes of a group's units, those that stand for them, each with the ports of
    /// its whole unit.
    #[must_use]
    pub fn main_processes(&self, found: Vec<Found>) -> Vec<Found> {
        let units = in_units(found.iter().map(|found| &found.candidate));
        let instances = self.mains().sort_out(&units, clock::boottime());
        let mut found: BTreeMap<_, _> = found.into_iter().map(|one| (one.candidate.id, one)).collect();
        instances.iter().filter_map(|instance| merge(instance, &mut found)).collect()
    }

    /// Units of which it is not known whether they still are instances.
    #[must_use]
    pub fn doubtful_units(&self) -> Vec<String> {
        self.mains().doubts(clock::boottime())
    }

    /// The service manager says that this process is the main one of the unit.
    ///
    /// # Errors
    /// When the process table cannot be read.
    pub fn adopt_main(&self, unit: &str, pid: u32) -> Result<(), HostError> {
        if let Some(id) = self.identify(pid)? {
            self.mains().adopt(unit, id, clock::boottime());
        }
        Ok(())
    }

    fn mains(&self) -> MutexGuard<'_, Mains> {
        // Whole after every statement, so a panic elsewhere does not spoil it.
        self.mains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The members of a group, with where they listen.
    ///
    /// # Errors
    /// When the selector cannot be resolved.
    pub fn members_query(&self, group: &GroupPolicy) -> Result<Query, HostError> {
        let mut query = Query::new(&group.members, &[], self.ticks)?;
        query.listens = true;
        Ok(query)
    }

    /// Brings a query that is used again up to date.
    ///
    /// # Errors
    /// When a pidfile cannot be read.
    pub fn renew(&self, query: &mut Query) -> Result<(), HostError> {
        query.renew(self.ticks)
    }

    /// What several queries match, found in one walk through the table; one result each, in order.
    ///
    /// # Errors
    /// When the table itself cannot be read.
    pub fn find_all(&self, queries: &[&Query]) -> Result<Vec<Result<Vec<Found>, HostError>>, HostError> {
        let mut walk =
            Walk::new(&self.proc, queries, clock::boottime().0 / (1_000_000_000 / self.ticks));
        let pids: Option<Vec<u32>> = queries.iter().map(|query| query.pid()).collect();
        match pids {
            Some(pids) => pids.into_iter().for_each(|pid| walk.visit(pid)),
            None => self
                .proc
                .for_each_pid(|pid| walk.visit(pid))
                .map_err(|error| kernel("list the process table", error))?,
        }
        Ok(walk.finish())
    }

    /// The processes that listen on this TCP port, in any network namespace.
    ///
    /// # Errors
    /// When the process table cannot be read.
    pub fn listening_on(&self, port: u16) -> Result<Vec<Candidate>, HostError> {
        self.find(&ProcessSelector { listen: Some(port), ..ProcessSelector::default() }, &[])
    }

    /// Where exactly this process listens on TCP.
    ///
    /// # Errors
    /// When it is gone, its sockets cannot be read, or they are in another network namespace.
    pub fn listens(&self, id: ProcessId) -> Result<Vec<SocketAddr>, HostError> {
        let doing = || format!("read where process {} listens", id.pid);
        let place = self.proc.by_pid(id.pid);
        let listens = Namespaces::default().listens(&self.proc, place, None);
        // Asked after what was read of it: had the pid been another's meanwhile, it would not be there.
        if self.state(id)? == ProcessState::Gone {
            return Err(HostError::NotFound(format!("process {} has ended", id.pid)));
        }
        let listens = listens.map_err(|error| kernel(doing(), error))?;
        if listens.elsewhere {
            return Err(HostError::Unavailable(format!(
                "process {} is in another network namespace, whose addresses cannot be told from here",
                id.pid
            )));
        }
        Ok(listens.addresses)
    }

    /// Whether the process is there.
    ///
    /// # Errors
    /// When the process table cannot be read.
    pub fn state(&self, id: ProcessId) -> Result<ProcessState, HostError> {
        let mut content = Vec::new();
        match self.proc.by_pid(id.pid).read("stat", &mut content, 4096) {
            Err(error) if vanished(error) => return Ok(ProcessState::Gone),
            read => read.map_err(|error| kernel(format!("read the state of {}", id.pid), error))?,
        }
        let stat = Stat::parse(&content)
            .ok_or_else(|| kernel(format!("read the state of {}", id.pid), Errno::BADMSG))?;
        Ok(match stat {
            stat if stat.start != id.start || stat.is_dead() => ProcessState::Gone,
            stat if stat.is_stopped() => ProcessState::Stopped,
            _ => ProcessState::Running,
        })
    }

    /// The identity of the process that has this pid now; `None` when there is none alive.
    ///
    /// # Errors
    /// When the process table cannot be read.
    pub fn identify(&self, pid: u32) -> Result<Option<ProcessId>, HostError> {
        let mut content = Vec::new();
        match self.proc.by_pid(pid).read("stat", &mut content, 4096) {
            Err(error) if vanished(error) => return Ok(None),
            read => read.map_err(|error| kernel(format!("read the state of {pid}"), error))?,
        }
        let stat = Stat::parse(&content)
            .ok_or_else(|| kernel(format!("read the state of {pid}"), Errno::BADMSG))?;
        Ok((!stat.is_dead()).then_some(ProcessId { pid, start: stat.start }))
    }

    /// A descriptor of exactly this process; `None` when it is gone.
    ///
    /// The start time is compared *after* the descriptor was opened. If it is the right one then,
    /// the descriptor is the right process's: had the pid been used again before, the time would
    /// be another, and afterwards the descriptor does not follow.
    ///
    /// # Errors
    /// When the kernel does not give one (descriptors are used up).
    pub fn open_pidfd(&self, id: ProcessId) -> Result<Option<OwnedFd>, HostError> {
        let Some(pid) = i32::try_from(id.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            // INVAL: by now it is the number of a thread.
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            fd => fd.map_err(|error| kernel(format!("open a descriptor of process {pid}"), error))?,
        };
        Ok((self.state(id)? != ProcessState::Gone).then_some(fd))
    }

    /// Sends `signal` to exactly this process.
    ///
    /// # Errors
    /// When the kernel does not permit it, and always for pid 1 and for vervet itself.
    pub fn signal(&self, id: ProcessId, signal: Signal) -> Result<Delivery, HostError> {
        if id.pid <= 1 || id.pid == std::process::id() {
            return Err(HostError::Unavailable(format!(
                "process {} is never signalled: it is {}",
                id.pid,
                if id.pid <= 1 { "the host's init" } else { "vervet itself" }
            )));
        }
        let number = rustix::process::Signal::from_named_raw(signal.number())
            .ok_or_else(|| HostError::NotFound(format!("{signal} is not a signal of this kernel")))?;
        let Some(fd) = self.open_pidfd(id)? else { return Ok(Delivery::Gone) };
        let mut status = Vec::new();
        let caught = match self.proc.by_pid(id.pid).read("status", &mut status, 64 << 10) {
            Ok(()) => catches(&status, signal.number()).unwrap_or(false),
            Err(_) => false,
        };
        match pidfd_send_signal(&fd, number) {
            Ok(()) => Ok(Delivery::Sent { caught }),
            Err(Errno::SRCH) => Ok(Delivery::Gone),
            Err(Errno::PERM) => Err(HostError::Unavailable(format!(
                "vervet is not permitted to signal process {}: it belongs to another user; run the \
                 agent as root, or give it CAP_KILL",
                id.pid
            ))),
            Err(error) => Err(kernel(format!("send {signal} to process {}", id.pid), error)),
        }
    }

    /// Declares a process untouchable, for example the warden. See [`Processes::protected`].
    pub fn protect(&self, id: ProcessId, reason: &str) {
        let mut declared = self.declared.lock().unwrap_or_else(PoisonError::into_inner);
        declared.insert(id, reason.to_owned());
    }

    pub(super) fn proc(&self) -> &ProcFs {
        &self.proc
    }
}

/// The process that stands for an instance, which listens wherever one of them does.
fn merge(instance: &Instance, found: &mut BTreeMap<ProcessId, Found>) -> Option<Found> {
    let others = instance.processes.iter().filter(|id| **id != instance.id);
    let others: Vec<Found> = others.filter_map(|id| found.remove(id)).collect();
    let mut main = found.remove(&instance.id)?;
    for other in others {
        match (&mut main.listens, other.listens) {
            (Ok(all), Ok(more)) => {
                all.elsewhere |= more.elsewhere;
                all.addresses.extend(more.addresses);
                all.addresses.sort_unstable();
                all.addresses.dedup();
                main.candidate.listens.extend(other.candidate.listens);
            }
            (Ok(_), Err(error)) => main.listens = Err(error),
            (Err(_), _) => {}
        }
    }
    main.candidate.listens.sort_unstable();
    main.candidate.listens.dedup();
    Some(main)
}

/// One walk through the table, for several queries.
struct Walk<'a> {
    proc: &'a ProcFs,
    queries: &'a [&'a Query],
    found: Vec<Result<Vec<Found>, HostError>>,
    /// Processes, by query, that could not be looked at for want of a permission.
    denied: Vec<u32>,
    look: Look,
    namespaces: Namespaces,
    /// The tick at which the walk began.
    began: u64,
}

impl<'a> Walk<'a> {
    fn new(proc: &'a ProcFs, queries: &'a [&'a Query], began: u64) -> Self {
        Self {
            proc,
            began,
            queries,
            found: queries.iter().map(|_| Ok(Vec::new())).collect(),
            denied: vec![0; queries.len()],
            look: Look::default(),
            namespaces: Namespaces::default(),
        }
    }

    /// First a glance by pid, then, for the few that may match, the whole by a descriptor that
    /// stays with one process.
    fn visit(&mut self, pid: u32) {
        self.look.next();
        let mut pinned = None;
        for (at, query) in self.queries.iter().enumerate() {
            if self.found[at].is_err() || query.pid().is_some_and(|named| named != pid) {
                continue;
            }
            let found = self.visit_for(query, pid, &mut pinned);
            match (found, &mut self.found[at]) {
                (Ok(Some(found)), Ok(all)) => all.push(found),
                (Ok(_), _) => {}
                (Err(error), _) if vanished(error) => {}
                (Err(Errno::ACCESS | Errno::PERM), _) => self.denied[at] += 1,
                (Err(error), result) => {
                    *result = Err(kernel(format!("look at process {pid}"), error));
                }
            }
        }
    }

    fn visit_for(
        &mut self,
        query: &Query,
        pid: u32,
        pinned: &mut Option<OwnedFd>,
    ) -> Result<Option<Found>, Errno> {
        let dir = match pinned {
            Some(dir) => dir,
            None if !query.glance(self.proc.by_pid(pid), &mut self.look)? => return Ok(None),
            None => {
                let dir = self.proc.pin(pid)?;
                self.look.forget_stat();
                // Who was there before the walk and is there now was there at the glance: what was
                // read is its own. Of anybody younger it may be a predecessor's.
                if self.look.stat(Place::of(&dir))?.start >= self.began {
                    self.look.next();
                }
                pinned.insert(dir)
            }
        };
        examine(query, self.proc, Place::of(dir), &mut self.look, &mut self.namespaces)
    }

    fn finish(self) -> Vec<Result<Vec<Found>, HostError>> {
        let finish = |(found, denied): (Result<Vec<Found>, HostError>, u32)| {
            let mut found = found?;
            if found.is_empty() && denied > 0 {
                return Err(HostError::Unavailable(format!(
                    "nothing matches, but {denied} processes of other users could not be looked at; \
                     run the agent as root, or give it CAP_SYS_PTRACE"
                )));
            }
            found.sort_unstable_by_key(|found| (found.candidate.id.start, found.candidate.id.pid));
            Ok(found)
        };
        self.found.into_iter().zip(self.denied).map(finish).collect()
    }
}

fn examine(
    query: &Query,
    proc: &ProcFs,
    place: Place<'_>,
    look: &mut Look,
    namespaces: &mut Namespaces,
) -> Result<Option<Found>, Errno> {
    let stat = look.stat(place)?;
    if stat.is_kernel_thread() || stat.is_dead() || !query.matches(place, look)? {
        return Ok(None);
    }
    let listens = match query.listens.then(|| query.listening(proc, place, namespaces)) {
        None => Ok(Listens::default()),
        Some(Ok(None)) => return Ok(None),
        Some(Ok(Some(listens))) => Ok(listens),
        Some(Err(error)) if vanished(error) || query.needs_port() => return Err(error),
        Some(Err(error)) => Err(format!("its sockets cannot be read: {error}")),
    };
    let candidate = describe(place, look, listens.as_ref().ok())?;
    Ok(Some(Found { candidate, listens }))
}

pub(super) fn describe(
    place: Place<'_>,
    look: &mut Look,
    listens: Option<&Listens>,
) -> Result<Candidate, Errno> {
    let stat = look.stat(place)?;
    let id = ProcessId { pid: stat.pid, start: stat.start };
    let (parent, kernel_thread) = (stat.parent, stat.is_kernel_thread());
    let name = String::from_utf8_lossy(stat.comm).into_owned();
    let cmdline = look.cmdline(place)?;
    let cmdline = String::from_utf8_lossy(&cmdline[..cmdline.len().min(4 * CMDLINE_TOLD)]);
    let cmdline = cmdline.chars().take(CMDLINE_TOLD).collect();
    let cgroup = String::from_utf8_lossy(look.cgroup(place)?).into_owned();
    let unit = look.unit(place)?.map(str::to_owned);
    let container = look.container(place)?.map(str::to_owned);
    let uid = look.uid(place)?;
    let mut listens: Vec<u16> = listens
        .map_or_else(Vec::new, |all| all.addresses.iter().map(std::net::SocketAddr::port).collect());
    listens.dedup();
    Ok(Candidate { id, parent, name, cmdline, uid, cgroup, unit, container, listens, kernel_thread })
}

/// The process ended between two looks at it.
pub(super) fn vanished(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::SRCH)
}

pub(super) fn kernel(doing: impl Into<String>, error: Errno) -> HostError {
    HostError::Kernel { doing: doing.into(), error: error.to_string() }
}
