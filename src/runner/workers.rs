//! The threads that do the work, so that the loop never waits.
//!
//! `hands` mutates the host: injections, renewals, and reverts ahead of everything else that is
//! queued. `eyes` only looks. Neither can be cancelled in the middle of anything.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

/// Work for a thread; runs to its end.
pub type Task = Box<dyn FnOnce() + Send>;

/// A thread with a queue that has a fast lane.
#[derive(Debug)]
pub struct Worker {
    queue: Arc<Queue>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    lanes: Mutex<Lanes>,
    filled: Condvar,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Queue")
    }
}

#[derive(Default)]
struct Lanes {
    urgent: VecDeque<Task>,
    ordinary: VecDeque<Task>,
    closed: bool,
}

impl Worker {
    /// Starts a thread of this name.
    ///
    /// # Errors
    /// When the host has no room for a thread.
    pub fn start(name: &str) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let worker = queue.clone();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .stack_size(512 << 10)
            .spawn(move || worker.work())?;
        Ok(Self { queue, thread: Some(thread) })
    }

    /// Runs after everything that was queued before it.
    pub fn run(&self, task: impl FnOnce() + Send + 'static) {
        self.queue.push(Box::new(task), false);
    }

    /// Runs before everything that is queued and not urgent.
    pub fn run_first(&self, task: impl FnOnce() + Send + 'static) {
        self.queue.push(Box::new(task), true);
    }
}

impl Drop for Worker {
    /// Finishes what is queued.
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.filled.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Queue {
    fn push(&self, task: Task, urgent: bool) {
        let mut lanes = self.lock();
        if urgent {
            lanes.urgent.push_back(task);
        } else {
            lanes.ordinary.push_back(task);
        }
        drop(lanes);
        self.filled.notify_one();
    }

    fn work(&self) {
        loop {
            let mut lanes = self.lock();
            let task = loop {
                if let Some(task) = lanes.urgent.pop_front() {
                    break Some(task);
                }
                if let Some(task) = lanes.ordinary.pop_front() {
                    break Some(task);
                }
                if lanes.closed {
                    break None;
                }
                lanes = self.filled.wait(lanes).unwrap_or_else(PoisonError::into_inner);
            };
            drop(lanes);
            match task {
                // Work that ends in a panic leaves nobody to undo: the end of the agent is the safe
                // answer, because the warden then does, and the next start says what it found.
                Some(task) => {
                    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(task)).is_err() {
                        std::process::abort();
                    }
                }
                None => return,
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn urgent_work_overtakes_and_everything_is_finished() {
        let (order, done) = mpsc::channel();
        let (open, gate) = mpsc::channel::<()>();
        let worker = Worker::start("test").unwrap();
        worker.run(move || gate.recv().unwrap());
        for (name, urgent) in [("first", false), ("second", false), ("abort", true)] {
            let order = order.clone();
            let task = move || order.send(name).unwrap();
            if urgent { worker.run_first(task) } else { worker.run(task) }
        }
        open.send(()).unwrap();
        drop(worker);
        drop(order);
        assert_eq!(done.iter().collect::<Vec<_>>(), ["abort", "first", "second"]);
    }
}
