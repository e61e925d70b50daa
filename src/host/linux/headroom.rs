//! What is left of the host's stocks: memory, process ids, file handles, conntrack entries.
//!
//! A figure that this host does not have is `None`; one that it has but that cannot be read is an
//! error, never a guess: the limiter must not take the one for the other.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    process::Processes,
    stat::{number, status_field},
};
use crate::host::{Headroom, HostError, Stock};

impl Processes {
    /// What is left now.
    ///
    /// # Errors
    /// When a figure that exists cannot be read.
    pub fn headroom(&self) -> Result<Headroom, HostError> {
        let proc = self.proc().path();
        Ok(Headroom {
            memory: Some(memory(proc)?),
            pids: Some(pids(proc)?),
            file_handles: Some(file_handles(proc)?),
            conntrack: conntrack(proc)?,
        })
    }
}

/// MemAvailable and MemTotal of /proc/meminfo, proc_meminfo(5), in bytes.
fn memory(proc: &Path) -> Result<Stock, HostError> {
    let path = proc.join("meminfo");
    let content = read(&path)?;
    let bytes = |key| {
        let words = status_field(&content, key)?.split(u8::is_ascii_whitespace).next()?;
        number::<u64>(words)?.checked_mul(1024)
    };
    let free = bytes("MemAvailable").ok_or_else(|| malformed(&path))?;
    let total = bytes("MemTotal").ok_or_else(|| malformed(&path))?;
    Ok(Stock { free, total })
}

/// Tasks against the lowest of pid_max, threads-max and the limits of the agent's own cgroups:
/// whichever leaves the fewest.
fn pids(proc: &Path) -> Result<Stock, HostError> {
    let loadavg = proc.join("loadavg");
    let content = read(&loadavg)?;
    // The fourth word: runnable/existing scheduling entities, proc_loadavg(5).
    let word = content.split(u8::is_ascii_whitespace).nth(3);
    let tasks = word.and_then(|word| word.split(|byte| *byte == b'/').nth(1)).and_then(number::<u64>);
    let tasks = tasks.ok_or_else(|| malformed(&loadavg))?;
    let limit = one_number(&proc.join("sys/kernel/pid_max"))?
        .min(one_number(&proc.join("sys/kernel/threads-max"))?);
    let host = Stock { free: limit.saturating_sub(tasks), total: limit };
    let cgroups = cgroup_pids(proc)?;
    Ok(cgroups
        .into_iter()
        .fold(host, |least, stock| if stock.free < least.free { stock } else { least }))
}

/// `allocated unused maximum`, sysctl/fs.rst in the kernel's documentation.
fn file_handles(proc: &Path) -> Result<Stock, HostError> {
    let path = proc.join("sys/fs/file-nr");
    let content = read(&path)?;
    let mut words = content.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let mut next = || words.next().and_then(number::<u64>).ok_or_else(|| malformed(&path));
    let (allocated, unused, total) = (next()?, next()?, next()?);
    Ok(Stock { free: total.saturating_sub(allocated.saturating_sub(unused)), total })
}

fn conntrack(proc: &Path) -> Result<Option<Stock>, HostError> {
    let directory = proc.join("sys/net/netfilter");
    let (count, max) = (directory.join("nf_conntrack_count"), directory.join("nf_conntrack_max"));
    let (Some(count), Some(total)) = (optional(&count)?, optional(&max)?) else { return Ok(None) };
    Ok(Some(Stock { free: total.saturating_sub(count), total }))
}

/// The limits of each cgroup around the agent, from its own up to the mount.
fn cgroup_pids(proc: &Path) -> Result<Vec<Stock>, HostError> {
    let own = match read_if_there(&proc.join("self/cgroup"))? {
        Some(content) => String::from_utf8_lossy(&content).into_owned(),
        None => return Ok(Vec::new()),
    };
    let mounts = String::from_utf8_lossy(&read(&proc.join("self/mountinfo"))?).into_owned();
    let mut stocks = Vec::new();
    for line in own.lines() {
        // hierarchy:controllers:path, cgroups(7); no controllers is the unified hierarchy.
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        if !controllers.is_empty() && !controllers.split(',').any(|name| name == "pids") {
            continue;
        }
        let Some(mount) = mount_of(&mounts, controllers.is_empty()) else { continue };
        for part in Path::new(path.trim_start_matches('/')).ancestors() {
            let directory = mount.join(part);
            let max = match read_if_there(&directory.join("pids.max"))? {
                Some(max) if max.trim_ascii() != b"max" => max,
                _ => continue,
            };
            let max =
                number::<u64>(max.trim_ascii()).ok_or_else(|| malformed(&directory.join("pids.max")))?;
            let current = one_number(&directory.join("pids.current"))?;
            stocks.push(Stock { free: max.saturating_sub(current), total: max });
        }
    }
    Ok(stocks)
}

/// Where a hierarchy is mounted: proc_pid_mountinfo(5), optional fields up to ` - `, then type,
/// source, options.
fn mount_of(mounts: &str, unified: bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        let mut tail = tail.split(' ');
        let (kind, options) = (tail.next()?, tail.nth(1)?);
        let found = if unified {
            kind == "cgroup2"
        } else {
            kind == "cgroup" && options.split(',').any(|option| option == "pids")
        };
        found.then(|| head.split(' ').nth(4).map(PathBuf::from))?
    })
}

fn one_number(path: &Path) -> Result<u64, HostError> {
    number(read(path)?.trim_ascii()).ok_or_else(|| malformed(path))
}

fn optional(path: &Path) -> Result<Option<u64>, HostError> {
    let content = read_if_there(path)?;
    content.map(|text| number(text.trim_ascii()).ok_or_else(|| malformed(path))).transpose()
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, HostError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, HostError> {
    fs::read(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> HostError {
    HostError::Kernel { doing: format!("read {}", path.display()), error: error.to_string() }
}

fn malformed(path: &Path) -> HostError {
    HostError::Kernel {
        doing: format!("read {}", path.display()),
        error: "its content is not what the kernel documents".to_owned(),
    }
}
