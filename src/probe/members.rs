//! Finding the members of all groups: one walk through the process table for all of them, and not
//! more of its time than a tenth.
//!
//! On a host with ten thousand processes a new member may so be found a little later than a poll.
//! The end of a known one is never late: that comes by pidfd, and each look asks the known ones
//! whether they live.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::deaths::Deaths;
use crate::{
    config::GroupPolicy,
    host::linux::{
        clock,
        process::{Found, Processes},
        selector::Query,
    },
    policy::time::Moment,
};

/// After a walk, the table is left alone for this many times as long as the walk took.
const REST: u32 = 9;

/// Members as one walk found them, or why there is no telling.
pub type Members = Result<Arc<Vec<Found>>, String>;

/// Finds the members of all groups.
#[derive(Debug)]
pub struct Discovery {
    work: Arc<Work>,
    /// The shortest poll of all groups.
    poll: Duration,
    last: tokio::sync::Mutex<Option<Walk>>,
}

#[derive(Debug)]
struct Work {
    processes: Arc<Processes>,
    groups: Vec<GroupPolicy>,
    deaths: Arc<Deaths>,
    /// Compiled once; `None` until that succeeds.
    queries: Mutex<Vec<Option<Query>>>,
}

#[derive(Debug)]
struct Walk {
    began: Moment,
    /// The next one may begin then.
    next: Moment,
    members: Vec<Members>,
}

impl Discovery {
    #[must_use]
    pub fn new(processes: Arc<Processes>, groups: Vec<GroupPolicy>, deaths: Arc<Deaths>) -> Self {
        let poll = groups.iter().map(|group| group.poll).min().unwrap_or(Duration::MAX);
        let queries = Mutex::new(groups.iter().map(|_| None).collect());
        let work = Arc::new(Work { processes, groups, deaths, queries });
        Self { work, poll, last: tokio::sync::Mutex::new(None) }
    }

    /// The members of a group (by its index), out of a walk that is recent enough, or a new one.
    /// `force`: out of a walk that began at `wanted` or later, however long the last one took.
    ///
    /// # Errors
    /// Why there is no telling, in words for people.
    pub async fn members(&self, group: usize, wanted: Moment, force: bool) -> Members {
        // Walks queue here, so that one serves all who waited for it.
        let mut last = self.last.lock().await;
        let due = match &*last {
            None => true,
            Some(walk) if force => walk.began < wanted,
            Some(walk) => wanted >= walk.next,
        };
        if due {
            let work = Arc::clone(&self.work);
            let began = clock::boottime();
            let walked = tokio::task::spawn_blocking(move || work.walk()).await;
            let ended = clock::boottime();
            let next = began.plus(self.poll / 2).max(ended.plus(ended.since(began) * REST));
            let members = walked.map_err(|error| format!("looking for members failed: {error}"))?;
            *last = Some(Walk { began, next, members });
        }
        let members = last.as_ref().and_then(|walk| walk.members.get(group)).cloned();
        members.unwrap_or_else(|| Err("the group is not known to its monitor".to_owned()))
    }
}

impl Work {
    fn walk(&self) -> Vec<Members> {
        let mut queries = self.queries.lock().unwrap_or_else(PoisonError::into_inner);
        let ready: Vec<Result<(), String>> = queries
            .iter_mut()
            .zip(&self.groups)
            .map(|(query, group)| self.prepare(query, group).map_err(|error| error.to_string()))
            .collect();
        let asked: Vec<&Query> = queries
            .iter()
            .zip(&ready)
            .filter_map(|(query, ready)| query.as_ref().filter(|_| ready.is_ok()))
            .collect();
        let mut found = match self.processes.find_all(&asked) {
            Ok(found) => found.into_iter(),
            Err(error) => return ready.iter().map(|_| Err(error.to_string())).collect(),
        };
        ready
            .into_iter()
            .zip(&self.groups)
            .map(|(ready, group)| {
                ready?;
                let found = found.next().unwrap_or_else(|| Ok(Vec::new()));
                let mut found = found.map_err(|error| error.to_string())?;
                if group.counts_units() {
                    found = self.processes.main_processes(found);
                }
                let ids: HashSet<_> = found.iter().map(|found| found.candidate.id).collect();
                self.deaths.set_members(&group.name, &ids).map_err(|error| error.to_string())?;
                Ok(Arc::new(found))
            })
            .collect()
    }

    fn prepare(
        &self,
        query: &mut Option<Query>,
        group: &GroupPolicy,
    ) -> Result<(), crate::host::HostError> {
        if let Some(query) = query {
            return self.processes.renew(query);
        }
        *query = Some(self.processes.members_query(group)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{ReadySource, Removal},
        experiment::ProcessSelector,
    };

    fn group(name: &str) -> GroupPolicy {
        let long = Duration::from_hours(1);
        GroupPolicy {
            name: name.into(),
            floor: 1,
            expected: None,
            members: ProcessSelector { user: Some("0".to_owned()), ..ProcessSelector::default() },
            ready: ReadySource::Process,
            poll: long,
            stale_after: long,
            settle: long,
            removal: Removal { at_once: 1, every: long },
            monkey: false,
            spare: Vec::new(),
        }
    }

    async fn members(discovery: &Discovery, group: usize, force: bool) -> Arc<Vec<Found>> {
        discovery.members(group, clock::boottime(), force).await.expect("members")
    }

    #[tokio::test]
    async fn one_walk_serves_all_groups_until_the_next_is_due_or_forced() {
        let processes = Arc::new(Processes::new(std::path::Path::new("/proc")).expect("/proc"));
        let (sender, _seen) = tokio::sync::mpsc::unbounded_channel();
        let deaths = Arc::new(Deaths::start(Arc::clone(&processes), sender).expect("started"));
        let groups = vec![group("one"), group("two")];
        let discovery = Discovery::new(processes, groups, deaths);
        let walks = async |force| {
            let (one, two) = (members(&discovery, 0, force).await, members(&discovery, 1, force).await);
            (one, two, discovery.last.lock().await.as_ref().map(|walk| walk.began))
        };
        let (one, two, first) = walks(false).await;
        let (one_again, two_again, same) = walks(false).await;
        assert!(Arc::ptr_eq(&one, &one_again) && Arc::ptr_eq(&two, &two_again) && first == same);
        // Rested: what a tenth of the time allows.
        if let Some(walk) = discovery.last.lock().await.as_mut() {
            assert!(walk.next >= walk.began.plus(discovery.poll / 2));
            walk.next = walk.began;
        }
        let (_, _, second) = walks(false).await;
        assert!(second > first);
        let (_, _, third) = walks(true).await;
        assert!(third > second);
    }
}
