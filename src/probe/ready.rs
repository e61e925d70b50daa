//! One look at a group: its members, each asked whether it is ready.
//!
//! A member that does not answer in time is not ready. A look that cannot be had whole is an error:
//! it never falls back on an older one.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, task::JoinSet};

use super::{
    answer,
    command::{self, Count},
    dns, haproxy, http,
    members::Discovery,
    process, prometheus, systemd, tcp,
};
use crate::{
    config::{GroupPolicy, ReadySource},
    experiment::HttpCheck,
    host::{
        Member,
        linux::{
            clock,
            process::{Found, Processes},
            systemd::Systemd,
        },
    },
    policy::{capacity::Reading, time::Moment},
};

/// Members that are asked at the same time.
const AT_ONCE: usize = 32;

/// So many states are read without handing the work to another thread.
const FEW: usize = 32;

/// Everything that a look at one group needs.
#[derive(Debug, Clone)]
pub struct Source {
    pub processes: Arc<Processes>,
    pub discovery: Arc<Discovery>,
    pub group: Arc<GroupPolicy>,
    /// Its place among the groups of the discovery.
    pub index: usize,
    pub systemd: Arc<Systemd>,
    /// Wakes whoever asks systemd for the main processes of units.
    pub doubt: Arc<Notify>,
    /// What a count is held against where nothing is `expected`.
    pub found: Arc<Lately>,
}

impl Source {
    /// Looks. `force`: at the process table too, however recently that was done.
    ///
    /// # Errors
    /// Why there is no reading, in words for people.
    pub async fn look(&self, force: bool) -> Result<Reading, String> {
        let taken_at = clock::boottime();
        // A counting program's members are found as well: their deaths are to be noticed.
        let found = self.discovery.members(self.index, taken_at, force).await?;
        self.found.note(taken_at, count(found.len()), self.group.settle);
        if let Some(counted) = self.count().await? {
            return self.counted(counted, taken_at);
        }
        if let ReadySource::Haproxy { pool, within } = &self.group.ready {
            let servers = haproxy::servers(pool, *within).await?;
            let members = haproxy::judge(pool, &servers, self.living(found).await?)?;
            let ready = count(members.iter().filter(|member| member.ready).count());
            return Ok(Reading { ready, total: count(members.len()), taken_at, members: Some(members) });
        }
        let mut members = self.ask_all(self.living(found).await?).await?;
        if self.group.counts_units() && !self.processes.doubtful_units().is_empty() {
            self.doubt.notify_one();
        }
        if self.group.ready == ReadySource::Systemd {
            self.ask_systemd(&mut members).await?;
        }
        let ready = count(members.iter().filter(|member| member.ready).count());
        Ok(Reading { ready, total: count(members.len()), taken_at, members: Some(members) })
    }

    /// Of those that live, who is ready as systemd has it.
    async fn ask_systemd(&self, members: &mut [Member]) -> Result<(), String> {
        let patterns = self.group.members.unit.iter().cloned().collect();
        let units = systemd::units(&self.systemd, patterns).await?;
        let stands_for_unit = self.group.counts_units();
        for member in members {
            let ready = systemd::is_ready(&units, &member.process, stands_for_unit);
            let unit = member.process.unit.as_ref().and_then(|name| units.get(name));
            if let (true, Some(unit)) = (stands_for_unit && !ready, unit) {
                // If it is another one's unit by now, the next look finds that one.
                systemd::adopt(&self.processes, unit);
            }
            member.ready &= ready;
        }
        Ok(())
    }

    /// What a source says that counts for the whole group; `None` for one that asks each member.
    async fn count(&self) -> Result<Option<Count>, String> {
        let counted = match &self.group.ready {
            ReadySource::Command { argv, within } => command::run(argv, *within).await?.count()?,
            ReadySource::HttpCount { ask, count, total } => {
                answer::count(ask, count, total.as_deref()).await?
            }
            ReadySource::Dns(question) => {
                let ready = count(dns::resolve(question).await?.len());
                Count { ready, total: None }
            }
            ReadySource::Prometheus { server, query } => {
                Count { ready: prometheus::count(server, query).await?, total: None }
            }
            ReadySource::Process
            | ReadySource::Systemd
            | ReadySource::Tcp { .. }
            | ReadySource::Haproxy { .. }
            | ReadySource::Http(_) => return Ok(None),
        };
        Ok(Some(counted))
    }

    /// Who only says how many are ready is taken to speak of all that are expected, or else of the
    /// members that were found. More than that cannot be: such a source is not believed at all.
    fn counted(&self, counted: Count, taken_at: Moment) -> Result<Reading, String> {
        let Count { ready, total } = counted;
        let (name, found) = (&self.group.name, self.found.most());
        match self.group.expected {
            Some(expected) if ready > expected => Err(format!(
                "the source counts {ready} ready in {name}, and {expected} are expected at most"
            )),
            // It may still count those that were there a little while ago.
            None if ready > found => Err(format!(
                "the source counts {ready} ready in {name}, and {found} are found on this host; if it \
                 may know of more, say how many are `expected`"
            )),
            expected => {
                let total = total.unwrap_or_else(|| expected.unwrap_or(found).max(ready));
                Ok(Reading { ready, total, taken_at, members: None })
            }
        }
    }

    /// Those that still live, and whether each runs.
    async fn living(&self, found: Arc<Vec<Found>>) -> Result<Vec<(Found, bool)>, String> {
        let processes = Arc::clone(&self.processes);
        let few = found.len() <= FEW;
        let judge = move || {
            let ids: Vec<_> = found.iter().map(|found| found.candidate.id).collect();
            let states = process::ready(&processes, &ids).map_err(|error| error.to_string())?;
            let living = found.iter().zip(states);
            Ok(living.filter_map(|(found, ready)| Some((found.clone(), ready?))).collect())
        };
        if few {
            return judge();
        }
        let judged = tokio::task::spawn_blocking(judge).await;
        judged.map_err(|error| format!("asking the members failed: {error}"))?
    }

    async fn ask_all(&self, living: Vec<(Found, bool)>) -> Result<Vec<Member>, String> {
        let mut members = Vec::with_capacity(living.len());
        let mut asked = JoinSet::new();
        for (found, runs) in living {
            let question = Question::new(&self.group.ready, &found)?;
            members.push(Member { process: found.candidate, ready: runs });
            // A stopped member answers nobody: that is known without asking.
            if let (Some(question), true) = (question, runs) {
                if asked.len() >= AT_ONCE {
                    note(&mut members, asked.join_next().await)?;
                }
                let at = members.len() - 1;
                asked.spawn(async move { (at, question.ask().await) });
            }
        }
        while let Some(answer) = asked.join_next().await {
            note(&mut members, Some(answer))?;
        }
        Ok(members)
    }
}

/// The most members that were found lately: a source that counts may take `settle` to notice that one
/// is gone.
#[derive(Debug, Default)]
pub struct Lately(Mutex<VecDeque<(Moment, u32)>>);

impl Lately {
    fn note(&self, at: Moment, found: u32, settle: Duration) {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while looks.front().is_some_and(|(then, _)| then.plus(settle) < at) {
            looks.pop_front();
        }
        // What was less than now, and is older, will never be the most again.
        while looks.back().is_some_and(|(_, less)| *less <= found) {
            looks.pop_back();
        }
        looks.push_back((at, found));
    }

    fn most(&self) -> u32 {
        let looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        looks.front().map_or(0, |(_, found)| *found)
    }
}

/// What is asked of one member over the network.
enum Question {
    /// Each must accept.
    Tcp { addresses: Vec<SocketAddr>, within: Duration },
    /// One must answer.
    Http { urls: Vec<String>, check: HttpCheck },
}

impl Question {
    /// `None` where being alive is all that is asked.
    fn new(source: &ReadySource, found: &Found) -> Result<Option<Self>, String> {
        match source {
            ReadySource::Process
            | ReadySource::Systemd
            | ReadySource::Haproxy { .. }
            | ReadySource::Command { .. }
            | ReadySource::HttpCount { .. }
            | ReadySource::Dns(_)
            | ReadySource::Prometheus { .. } => Ok(None),
            ReadySource::Tcp { port, within } => {
                let mut addresses = reachable(found)?;
                addresses.retain(|address| port.is_none_or(|port| address.port() == port));
                Ok(Some(Self::Tcp { addresses, within: *within }))
            }
            ReadySource::Http(check) => {
                let url = &check.url;
                let pid = found.candidate.id.pid;
                let urls = if url.contains("{port}") {
                    reachable(found)?;
                    let ports = &found.candidate.listens;
                    ports.iter().map(|port| http::fill(url, Some(*port), pid)).collect()
                } else {
                    vec![http::fill(url, None, pid)]
                };
                Ok(Some(Self::Http { urls, check: check.clone() }))
            }
        }
    }

    /// Several ports: a service that is to be reached by `tcp` must accept on each of them. A URL
    /// names one endpoint, which one of them serves (the others are for metrics, debugging or
    /// peers): the first that answers as it should is enough. They are asked at the same time.
    async fn ask(self) -> bool {
        match self {
            Self::Tcp { addresses, within } => {
                let mut asked = JoinSet::new();
                let any = !addresses.is_empty();
                for address in addresses {
                    asked.spawn(async move { tcp::connect_listener(address, within).await.is_ok() });
                }
                while let Some(answer) = asked.join_next().await {
                    if !answer.unwrap_or(false) {
                        return false;
                    }
                }
                any
            }
            Self::Http { urls, check } => {
                let mut asked = JoinSet::new();
                for url in urls {
                    let check = HttpCheck { url, ..check.clone() };
                    asked.spawn(async move { answer::ask(&check).await.is_ok() });
                }
                while let Some(answer) = asked.join_next().await {
                    if answer.unwrap_or(false) {
                        return true;
                    }
                }
                false
            }
        }
    }
}

/// Where a member listens, if the agent can go there.
pub(super) fn reachable(found: &Found) -> Result<Vec<SocketAddr>, String> {
    let pid = found.candidate.id.pid;
    match &found.listens {
        Ok(listens) if listens.elsewhere => {
            Err(format!("member {pid} is in another network namespace, where its ports cannot be asked"))
        }
        Ok(listens) => Ok(listens.addresses.clone()),
        Err(error) => Err(format!("the ports of member {pid} are not known: {error}")),
    }
}

type Answer = Result<(usize, bool), tokio::task::JoinError>;

fn note(members: &mut [Member], answer: Option<Answer>) -> Result<(), String> {
    if let Some(answer) = answer {
        let (at, ready) = answer.map_err(|error| format!("asking a member failed: {error}"))?;
        members[at].ready = ready;
    }
    Ok(())
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
