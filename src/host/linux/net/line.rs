//! The delay line of the `tap` engine: frames in from a TAP device, out of the slowed device later.
//!
//! One thread for each slowed device. Frames keep their virtio header, so that 64 KiB of TCP stay one
//! frame; they leave through a packet socket that meets neither qdisc nor classifier again. The
//! thread sleeps when nothing waits. What it may hold is bounded; what does not fit is dropped and
//! counted, never delayed further. When it is stopped it sends what it holds at once, in order.

use std::{
    collections::BinaryHeap,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
    net::{SendFlags, send, sockopt},
};

use super::shape::{Delays, Shape};
use crate::host::linux::sys;

/// Bytes of frames that may wait.
const CAPACITY: usize = 64 << 20;
/// The largest segment, its headers and a margin.
const FRAME: usize = 65_536 + 512;
/// From this size on a frame keeps the buffer that it was read into.
const KEEP: usize = FRAME / 2;
/// Spare large buffers.
const SPARES: usize = 256;
/// Frames read between two looks at what is due.
const BURST: usize = 32;
/// Sleeps end this much early; the rest is waited for awake, because waking up takes time.
const SPIN: Duration = Duration::from_micros(40);
/// Room in the socket for frames that the device has not sent yet.
const SEND_BUFFER: usize = 16 << 20;

/// The two ends of a line, opened in the network namespace that they belong to.
#[derive(Debug)]
pub struct Ends {
    tap: File,
    out: OwnedFd,
}

impl Ends {
    /// Makes the TAP device `name` and a way out through the device `index`, in the namespace of the
    /// calling thread. The device goes with its descriptor.
    ///
    /// # Errors
    /// When /dev/net/tun cannot be opened or the kernel refuses one of the two.
    pub fn open(name: &str, index: u32) -> io::Result<Self> {
        let tap = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        sys::tap_create(tap.as_fd(), name)?;
        let basic = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        // Whole UDP segments too, where the kernel can (6.2).
        if sys::tap_offload(tap.as_fd(), basic | libc::TUN_F_USO4 | libc::TUN_F_USO6).is_err() {
            sys::tap_offload(tap.as_fd(), basic)?;
        }
        let out = sys::packet_sender(index)?;
        if sockopt::set_socket_send_buffer_size_force(&out, SEND_BUFFER).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(&out, SEND_BUFFER);
        }
        Ok(Self { tap, out })
    }
}

/// What a line did so far.
#[derive(Debug, Default)]
pub struct Totals {
    delayed: AtomicU64,
    dropped: AtomicU64,
    waited_ns: AtomicU64,
}

impl Totals {
    /// Frames that left, and the sum of the time they waited.
    #[must_use]
    pub fn delayed(&self) -> (u64, Duration) {
        let waited = Duration::from_nanos(self.waited_ns.load(Ordering::Relaxed));
        (self.delayed.load(Ordering::Relaxed), waited)
    }
}

/// A running line.
#[derive(Debug)]
pub struct Line {
    totals: Arc<Totals>,
    stop: Arc<(OwnedFd, AtomicBool)>,
    thread: JoinHandle<Ends>,
}

impl Line {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread or descriptor left.
    pub fn start(ends: Ends, shape: Shape, seed: u64) -> io::Result<Self> {
        let totals = Arc::new(Totals::default());
        let stop = Arc::new((eventfd(0, EventfdFlags::CLOEXEC)?, AtomicBool::new(false)));
        let worker = Worker {
            ends,
            delays: Delays::new(shape, seed),
            waiting: BinaryHeap::new(),
            held: 0,
            sequence: 0,
            spares: Vec::new(),
            totals: totals.clone(),
        };
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("vervet-delay".to_owned())
            .spawn(move || worker.run(&stopped))?;
        Ok(Self { totals, stop, thread })
    }

    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The thread is at work: the device has not been taken away.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Lets everything that waits go at once, and ends the thread. The device lives as long as what
    /// this returns.
    pub fn stop(self) -> Option<Ends> {
        self.stop.1.store(true, Ordering::Release);
        // The counter cannot overflow by one write; and a thread that is gone needs no waking.
        let _ = rustix::io::write(&self.stop.0, &1_u64.to_ne_bytes());
        let ends = self.thread.join().ok();
        let dropped = self.totals.dropped.load(Ordering::Relaxed);
        if dropped > 0 {
            tracing::warn!(dropped, "a delay line was full, or its device did not take all frames");
        }
        ends
    }
}

/// A frame behind its virtio header, waiting.
struct Frame {
    due: Instant,
    sequence: u64,
    came: Instant,
    buffer: Vec<u8>,
    length: usize,
}

/// The heap gives its greatest first: the one that is due first, and came first among equals.
impl Ord for Frame {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.sequence).cmp(&(self.due, self.sequence))
    }
}

impl PartialOrd for Frame {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Frame {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Frame {}

struct Worker {
    ends: Ends,
    delays: Delays,
    waiting: BinaryHeap<Frame>,
    held: usize,
    sequence: u64,
    spares: Vec<Vec<u8>>,
    totals: Arc<Totals>,
}

impl Worker {
    fn run(mut self, stop: &(OwnedFd, AtomicBool)) -> Ends {
        // Sleeps end when they are asked to, not 50 µs later (prctl(2), PR_SET_TIMERSLACK).
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        while !stop.1.load(Ordering::Acquire) {
            self.send_due(Instant::now());
            match self.read_burst() {
                Ok(true) => {}
                Ok(false) => self.wait(&stop.0),
                // The device was deleted.
                Err(_) => break,
            }
        }
        while matches!(self.read_burst(), Ok(true)) {}
        while let Some(frame) = self.waiting.pop() {
            self.send(frame);
        }
        self.ends
    }

    /// Reads some frames; whether there may be more at once.
    fn read_burst(&mut self) -> Result<bool, Errno> {
        for _ in 0..BURST {
            let mut buffer = self.spares.pop().unwrap_or_else(|| vec![0; FRAME]);
            match rustix::io::read(&self.ends.tap, &mut buffer[..]) {
                Ok(length) => self.take(buffer, length),
                Err(errno) => {
                    self.spares.push(buffer);
                    return match errno {
                        Errno::AGAIN => Ok(false),
                        Errno::INTR => Ok(true),
                        errno => Err(errno),
                    };
                }
            }
        }
        Ok(true)
    }

    fn take(&mut self, buffer: Vec<u8>, length: usize) {
        let came = Instant::now();
        if self.held + length > CAPACITY {
            self.totals.dropped.fetch_add(1, Ordering::Relaxed);
            self.keep(buffer);
            return;
        }
        let buffer = if length < KEEP {
            let copy = buffer[..length].to_vec();
            self.keep(buffer);
            copy
        } else {
            buffer
        };
        self.held += length;
        self.sequence += 1;
        let due = came + self.delays.draw();
        self.waiting.push(Frame { due, sequence: self.sequence, came, buffer, length });
    }

    fn send_due(&mut self, now: Instant) {
        while self.waiting.peek().is_some_and(|frame| frame.due <= now) {
            let Some(frame) = self.waiting.pop() else { break };
            self.send(frame);
        }
    }

    fn send(&mut self, frame: Frame) {
        self.held -= frame.length;
        let sent = loop {
            match send(&self.ends.out, &frame.buffer[..frame.length], SendFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        if sent.is_ok() {
            let waited = u64::try_from(frame.came.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.totals.waited_ns.fetch_add(waited, Ordering::Relaxed);
            self.totals.delayed.fetch_add(1, Ordering::Relaxed);
        } else {
            self.totals.dropped.fetch_add(1, Ordering::Relaxed);
        }
        if frame.buffer.len() == FRAME {
            self.keep(frame.buffer);
        }
    }

    fn keep(&mut self, buffer: Vec<u8>) {
        if self.spares.len() < SPARES {
            self.spares.push(buffer);
        }
    }

    /// Until a frame comes, the line is stopped, or the first frame is almost due.
    fn wait(&self, stop: &OwnedFd) {
        let left = self.waiting.peek().map(|frame| frame.due.saturating_duration_since(Instant::now()));
        let timeout = match left {
            None => None,
            Some(left) if left <= SPIN => return,
            Some(left) => Timespec::try_from(left.saturating_sub(SPIN)).ok(),
        };
        let mut fds = [PollFd::new(&self.ends.tap, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        // An interrupted or failed wait is a short one: the loop looks again.
        let _ = poll(&mut fds, timeout.as_ref());
    }
}
