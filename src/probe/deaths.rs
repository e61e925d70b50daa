//! Who is watched for its end and for whom: members of groups, and targets of kills.
//!
//! Ends come from the kernel as they happen; this adds what the dead meant, and tells each death
//! once.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc::UnboundedSender;

use super::monitor::Observation;
use crate::{
    experiment::GroupName,
    host::{
        HostError, ProcessId, ProcessState,
        linux::{exits::Exits, process::Processes},
    },
};

/// The watch over processes.
#[derive(Debug)]
pub struct Deaths {
    processes: Arc<Processes>,
    exits: Exits,
    book: Arc<Mutex<Book>>,
}

#[derive(Debug, Default)]
struct Book {
    watched: HashMap<ProcessId, Watched>,
    /// The members of each group when it was last looked at, those that have died since included:
    /// a death that has been told must not be told again out of an old look.
    members: HashMap<GroupName, HashSet<ProcessId>>,
}

#[derive(Debug, Default)]
struct Watched {
    groups: BTreeSet<GroupName>,
    /// How often it was asked for by [`Deaths::watch`].
    asked: u32,
}

impl Deaths {
    /// # Errors
    /// When the kernel gives no thread or no descriptors.
    pub fn start(
        processes: Arc<Processes>,
        sender: UnboundedSender<Observation>,
    ) -> Result<Self, HostError> {
        let book = Arc::new(Mutex::new(Book::default()));
        let entries = Arc::clone(&book);
        let exits = Exits::start(Arc::clone(&processes), move |process, at| {
            let Some(watched) = lock(&entries).watched.remove(&process) else { return };
            let groups = watched.groups.into_iter().collect();
            // Nobody receives any more while the agent stops.
            let _ = sender.send(Observation::Lost { groups, process, at });
        })?;
        Ok(Self { processes, exits, book })
    }

    /// Watches a process for its own sake, beside any group. Each call wants its own [`Deaths::unwatch`].
    ///
    /// # Errors
    /// When the kernel gives no descriptor.
    pub fn watch(&self, id: ProcessId) -> Result<(), HostError> {
        lock(&self.book).watched.entry(id).or_default().asked += 1;
        self.exits.watch(id).inspect_err(|_| self.unwatch(id))
    }

    /// No longer watches it for its own sake.
    pub fn unwatch(&self, id: ProcessId) {
        let mut book = lock(&self.book);
        if let Some(watched) = book.watched.get_mut(&id) {
            watched.asked = watched.asked.saturating_sub(1);
            self.forget_unwanted(&mut book, &[id]);
        }
    }

    /// Takes note of the members of a group as a look found them; new ones are watched from now
    /// on, those that are alive but no longer members are not.
    ///
    /// # Errors
    /// When one of them cannot be watched: the group is then not under watch.
    pub fn set_members(&self, group: &GroupName, found: &HashSet<ProcessId>) -> Result<(), HostError> {
        let mut book = lock(&self.book);
        let before = book.members.insert(group.clone(), found.clone()).unwrap_or_default();
        let new: Vec<_> = found.difference(&before).copied().collect();
        for id in &new {
            book.watched.entry(*id).or_default().groups.insert(group.clone());
        }
        drop(book);
        for (at, id) in new.iter().enumerate() {
            if let Err(error) = self.exits.watch(*id) {
                let mut book = lock(&self.book);
                // The next look takes them for new again.
                for id in &new[at..] {
                    book.members.entry(group.clone()).or_default().remove(id);
                    if let Some(watched) = book.watched.get_mut(id) {
                        watched.groups.remove(group);
                    }
                }
                self.forget_unwanted(&mut book, &new[at..]);
                return Err(error);
            }
        }
        // The dead among those that left are told by their descriptors, which wait in line.
        let left: Vec<_> = before
            .difference(found)
            .copied()
            .filter(|id| matches!(self.processes.state(*id), Ok(state) if state != ProcessState::Gone))
            .collect();
        let mut book = lock(&self.book);
        for id in &left {
            if let Some(watched) = book.watched.get_mut(id) {
                watched.groups.remove(group);
            }
        }
        self.forget_unwanted(&mut book, &left);
        Ok(())
    }

    /// Watches nothing any more.
    pub fn clear(&self) {
        let mut book = lock(&self.book);
        book.members.clear();
        for (id, _) in book.watched.drain() {
            self.exits.unwatch(id);
        }
    }

    fn forget_unwanted(&self, book: &mut Book, ids: &[ProcessId]) {
        for id in ids {
            let unwanted = |watched: &Watched| watched.groups.is_empty() && watched.asked == 0;
            if book.watched.get(id).is_some_and(unwanted) {
                book.watched.remove(id);
                self.exits.unwatch(*id);
            }
        }
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}
