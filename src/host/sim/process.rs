//! The processes of the simulated host: born, signalled, dying, born again under old pids.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use regex::Regex;

use crate::{
    config::GroupPolicy,
    experiment::{ProcessSelector, Signal},
    host::{
        Candidate, Delivery, HostError, Instance, ProcessId, ProcessState,
        container::{self, Meant},
        instances::{Mains, in_units},
        unit::{Glob, of_cgroup},
    },
    policy::time::Moment,
};

/// How a process of the simulation is and behaves.
#[derive(Debug, Clone, Default)]
pub struct Spawn {
    /// `comm`; also the last part of its executable, `/usr/bin/<name>`.
    pub name: String,
    pub cmdline: String,
    pub uid: u32,
    /// Empty: `/`.
    pub cgroup: String,
    pub listens: Vec<u16>,
    /// Signals that a handler of its own catches; it lives on after them.
    pub catches: Vec<Signal>,
    /// Signals that it ignores.
    pub ignores: Vec<Signal>,
    /// A supervisor starts another one like it so long after its death.
    pub respawn: Option<Duration>,
    /// Not ready before that long after its start.
    pub warm_up: Duration,
    /// Processes that it starts beside itself, in its cgroup and with its name, and that are ended
    /// when it ends, `linger` later: a supervisor starts it again only after that.
    pub crew: u32,
    pub linger: Duration,
}

/// A signal that reached a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub process: ProcessId,
    pub signal: Signal,
    pub at: Moment,
}

#[derive(Debug, Clone)]
pub(super) struct Process {
    pub candidate: Candidate,
    pub stopped: bool,
    pub ready: bool,
    pub ready_at: Moment,
    born: Moment,
    like: Spawn,
}

/// The process table.
#[derive(Debug)]
pub(super) struct Processes {
    by_pid: BTreeMap<u32, Process>,
    /// Pids to be given out again, lowest first: reuse is the rule here, not the exception.
    free: BTreeSet<u32>,
    next_pid: u32,
    last_start: u64,
    due: BTreeMap<(Moment, u64), Spawn>,
    due_count: u64,
    /// Whose crew somebody is or was of.
    pub led_by: BTreeMap<ProcessId, ProcessId>,
    /// Crews whose leader has ended, and when they will have.
    lingering: BTreeMap<(Moment, ProcessId), ProcessId>,
    pub deaths: Vec<(ProcessId, Moment)>,
    pub sent: Vec<Sent>,
    pub users: BTreeMap<String, u32>,
    pub pidfiles: BTreeMap<String, u32>,
    patterns: BTreeMap<String, Regex>,
    mains: Mains,
}

impl Processes {
    pub(super) fn new() -> Self {
        Self {
            by_pid: BTreeMap::new(),
            free: BTreeSet::new(),
            next_pid: 1,
            last_start: 0,
            due: BTreeMap::new(),
            due_count: 0,
            led_by: BTreeMap::new(),
            lingering: BTreeMap::new(),
            deaths: Vec::new(),
            sent: Vec::new(),
            users: [("root".to_owned(), 0), ("www".to_owned(), 33)].into(),
            pidfiles: BTreeMap::new(),
            patterns: BTreeMap::new(),
            mains: Mains::default(),
        }
    }

    pub(super) fn spawn(&mut self, like: &Spawn, now: Moment) -> ProcessId {
        let pid = self.free.pop_first().unwrap_or_else(|| {
            self.next_pid += 1;
            self.next_pid - 1
        });
        // Start times are unique, so that (pid, start) is, however fast a pid comes back.
        self.last_start = (self.last_start + 1).max(ticks(now));
        let id = ProcessId { pid, start: self.last_start };
        let candidate = Candidate {
            id,
            parent: 1,
            name: like.name.clone(),
            cmdline: like.cmdline.clone(),
            uid: like.uid,
            container: container::of_cgroup(like.cgroup.as_bytes()).map(str::to_owned),
            unit: of_cgroup(like.cgroup.as_bytes()).map(str::to_owned),
            cgroup: if like.cgroup.is_empty() { "/".to_owned() } else { like.cgroup.clone() },
            listens: like.listens.clone(),
            kernel_thread: false,
        };
        let ready_at = now.plus(like.warm_up);
        let process =
            Process { candidate, stopped: false, ready: true, ready_at, born: now, like: like.clone() };
        let crew = Spawn { crew: 0, respawn: None, listens: Vec::new(), ..process.like.clone() };
        let hands = process.like.crew;
        self.by_pid.insert(pid, process);
        for _ in 0..hands {
            let member = self.spawn(&crew, now);
            self.led_by.insert(member, id);
        }
        id
    }

    pub(super) fn die(&mut self, id: ProcessId, now: Moment) {
        if self.get(id).is_none() {
            return;
        }
        let Some(process) = self.by_pid.remove(&id.pid) else { return };
        self.free.insert(id.pid);
        self.deaths.push((id, now));
        let of_crew = |one: &ProcessId| self.led_by.get(one) == Some(&id);
        let crew: Vec<ProcessId> = if process.like.crew == 0 {
            Vec::new()
        } else {
            self.by_pid.values().map(|one| one.candidate.id).filter(of_crew).collect()
        };
        let over = now.plus(if crew.is_empty() { Duration::ZERO } else { process.like.linger });
        for member in crew {
            if over > now {
                self.lingering.insert((over, member), member);
            } else {
                self.die(member, now);
            }
        }
        if let Some(after) = process.like.respawn {
            self.due_count += 1;
            self.due.insert((over.plus(after), self.due_count), process.like);
        }
    }

    /// The processes in this cgroup or below it, and whether a supervisor owes it another one.
    pub(super) fn in_cgroup(&self, cgroup: &str) -> (Vec<ProcessId>, bool) {
        let inside = self.by_pid.values().filter(|each| is_within(&each.candidate.cgroup, cgroup));
        let owed = self.due.values().any(|like| is_within(&like.cgroup, cgroup));
        (inside.map(|each| each.candidate.id).collect(), owed)
    }

    /// Ends all that runs in this cgroup, and what its supervisor owes it.
    pub(super) fn empty_cgroup(&mut self, cgroup: &str, now: Moment) {
        for id in self.in_cgroup(cgroup).0 {
            self.die(id, now);
        }
        self.due.retain(|_, like| !is_within(&like.cgroup, cgroup));
    }

    /// Starts what supervisors owe up to `now`.
    pub(super) fn advance(&mut self, now: Moment) {
        while let Some(entry) = self.lingering.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((at, member), _) = entry.remove_entry();
            self.die(member, at);
        }
        while let Some(entry) = self.due.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let ((at, _), like) = entry.remove_entry();
            self.spawn(&like, at);
        }
    }

    pub(super) fn get(&self, id: ProcessId) -> Option<&Process> {
        self.by_pid.get(&id.pid).filter(|process| process.candidate.id == id)
    }

    pub(super) fn get_mut(&mut self, id: ProcessId) -> Option<&mut Process> {
        self.by_pid.get_mut(&id.pid).filter(|process| process.candidate.id == id)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Process> {
        self.by_pid.values()
    }

    pub(super) fn state(&self, id: ProcessId) -> ProcessState {
        match self.get(id) {
            None => ProcessState::Gone,
            Some(process) if process.stopped => ProcessState::Stopped,
            Some(_) => ProcessState::Running,
        }
    }

    /// signal(7): KILL and STOP spare nobody, CONT continues whatever else it does, a handled or
    /// ignored signal does not end the process, the rest of those that vervet sends do.
    pub(super) fn signal(&mut self, id: ProcessId, signal: Signal, now: Moment) -> Delivery {
        const STOP: i32 = 19;
        const CONT: i32 = 18;
        /// CHLD, URG, WINCH.
        const IGNORED: [i32; 3] = [17, 23, 28];

        let Some(process) = self.get_mut(id) else { return Delivery::Gone };
        let caught = signal != Signal::KILL && process.like.catches.contains(&signal);
        let ignored =
            process.like.ignores.contains(&signal) || IGNORED.contains(&signal.number()) || caught;
        let mut dies = false;
        match signal.number() {
            CONT => process.stopped = false,
            STOP => process.stopped = true,
            _ if signal == Signal::KILL => dies = true,
            _ if ignored => {}
            _ if signal.stops() => process.stopped = true,
            _ => dies = true,
        }
        self.sent.push(Sent { process: id, signal, at: now });
        if dies {
            self.die(id, now);
        }
        Delivery::Sent { caught }
    }

    pub(super) fn find(
        &mut self,
        selector: &ProcessSelector,
        groups: &[GroupPolicy],
        now: Moment,
    ) -> Result<Vec<Candidate>, HostError> {
        let mut selectors = vec![selector];
        while let Some(name) = selectors.last().and_then(|last| last.group.as_ref()) {
            let group = groups
                .iter()
                .find(|group| group.name == *name)
                .filter(|_| selectors.len() <= groups.len())
                .ok_or_else(|| HostError::NotFound(format!("no group is called {name}")))?;
            selectors.push(&group.members);
        }
        let mut found: Vec<Candidate> =
            self.by_pid.values().map(|each| each.candidate.clone()).collect();
        for selector in selectors {
            let uid = selector.user.as_deref().map(|user| self.uid(user)).transpose()?;
            let pid = selector.pidfile.as_deref().map(|file| self.pidfile(file)).transpose()?;
            let pattern = selector.cmdline.as_deref().map(|text| self.pattern(text)).transpose()?;
            let unit = selector.unit.as_deref().map(glob).transpose()?;
            found.retain(|candidate| {
                matches(selector, candidate, now, &self.by_pid)
                    && unit.as_ref().is_none_or(|glob| is_in(candidate, glob))
                    && uid.is_none_or(|uid| candidate.uid == uid)
                    && pid.is_none_or(|pid| candidate.id.pid == pid)
                    && pattern.as_ref().is_none_or(|pattern| pattern.is_match(&candidate.cmdline))
            });
        }
        found.sort_by_key(|candidate| (candidate.id.start, candidate.id.pid));
        let whole = selector.whole_group().and_then(|name| groups.iter().find(|g| g.name == *name));
        if let Some(group) = whole.filter(|group| group.counts_units()) {
            let instances = self.instances(group, now)?;
            found.retain(|one| instances.iter().any(|instance| instance.id == one.id));
        }
        Ok(found)
    }

    pub(super) fn instances(
        &mut self,
        group: &GroupPolicy,
        now: Moment,
    ) -> Result<Vec<Instance>, HostError> {
        let members = self.find(&group.members, &[], now)?;
        if group.counts_units() {
            return Ok(self.mains.sort_out(&in_units(&members), now));
        }
        Ok(members.into_iter().map(|member| Instance::of(member.id)).collect())
    }

    pub(super) fn uid(&self, user: &str) -> Result<u32, HostError> {
        user.parse()
            .ok()
            .or_else(|| self.users.get(user).copied())
            .ok_or_else(|| HostError::NotFound(format!("no user is called {user}")))
    }

    fn pidfile(&self, file: &str) -> Result<u32, HostError> {
        let found = self.pidfiles.get(file).copied();
        found.ok_or_else(|| HostError::NotFound(format!("{file} does not exist")))
    }

    /// Compiled once: a simulation asks for the same ones ten thousand times.
    fn pattern(&mut self, text: &str) -> Result<Regex, HostError> {
        if let Some(known) = self.patterns.get(text) {
            return Ok(known.clone());
        }
        let pattern = Regex::new(text).map_err(|error| HostError::NotFound(error.to_string()))?;
        self.patterns.insert(text.to_owned(), pattern.clone());
        Ok(pattern)
    }
}

/// The keys that need nothing looked up.
fn matches(
    selector: &ProcessSelector,
    candidate: &Candidate,
    now: Moment,
    by_pid: &BTreeMap<u32, Process>,
) -> bool {
    let age = |least: Duration| {
        by_pid.get(&candidate.id.pid).is_some_and(|process| now.since(process.born) >= least)
    };
    selector.name.as_ref().is_none_or(|name| candidate.name == *name)
        && selector.exe.as_ref().is_none_or(|exe| *exe == format!("/usr/bin/{}", candidate.name))
        && selector.listen.is_none_or(|port| candidate.listens.contains(&port))
        && selector.container.as_ref().is_none_or(|word| {
            let meant = Meant::look_up(std::path::Path::new("/nowhere"), word);
            candidate.container.as_ref().is_some_and(|container| meant.is(container))
        })
        && selector.cgroup.as_ref().is_none_or(|cgroup| is_within(&candidate.cgroup, cgroup))
        && selector.older_than.is_none_or(age)
}

/// A pattern over names of units.
pub(super) fn glob(pattern: &str) -> Result<Glob, HostError> {
    Glob::new(pattern)
        .map_err(|error| HostError::NotFound(format!("`{pattern}` cannot select units: {error}")))
}

/// Belongs to a unit that the pattern means.
pub(super) fn is_in(candidate: &Candidate, glob: &Glob) -> bool {
    candidate.unit.as_ref().is_some_and(|unit| glob.matches(unit))
}

/// In this cgroup or below it.
pub(super) fn is_within(path: &str, cgroup: &str) -> bool {
    let cgroup = cgroup.trim_end_matches('/');
    path.strip_prefix(cgroup).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Clock ticks since boot, 100 each second.
fn ticks(at: Moment) -> u64 {
    at.0 / 10_000_000
}
