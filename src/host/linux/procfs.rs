//! Reading /proc cheaply: relative to an open directory, into buffers that are used again.
//!
//! The root is a parameter, so that tests can fake one. Nothing here knows what the files mean.

use std::{
    ffi::CStr,
    fmt::Write as _,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    buffer::spare_capacity,
    fs::{CWD, Mode, OFlags, RawDir, openat, readlinkat_raw},
    io::Errno,
};

/// Bytes asked for in the first read of a file: enough for all but long command lines.
const FIRST_READ: usize = 4096;

/// A mounted procfs, or a tree that looks like one.
#[derive(Debug)]
pub struct ProcFs {
    path: PathBuf,
    dir: OwnedFd,
}

/// A process's directory, by its name below the root or by a descriptor of its own.
///
/// By name it is whichever process has the pid at each call. By descriptor it stays one process:
/// reads fail once that is gone, even if its pid is used again.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    dir: BorrowedFd<'a>,
    pid: Option<u32>,
}

impl ProcFs {
    /// # Errors
    /// When the directory cannot be opened.
    pub fn open(path: &Path) -> Result<Self, Errno> {
        let dir = openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { path: path.to_owned(), dir })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls `visit` with each pid of the table.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn for_each_pid(&self, mut visit: impl FnMut(u32)) -> Result<(), Errno> {
        for_each_entry(self.dir.as_fd(), c".", |name| {
            if let Some(pid) = super::stat::number(name) {
                visit(pid);
            }
        })
    }

    /// The process that has this pid at the time of each call.
    #[must_use]
    pub fn by_pid(&self, pid: u32) -> Place<'_> {
        Place { dir: self.dir.as_fd(), pid: Some(pid) }
    }

    /// The root itself, for files that belong to no process.
    #[must_use]
    pub fn root(&self) -> Place<'_> {
        Place { dir: self.dir.as_fd(), pid: None }
    }

    /// A descriptor of the directory of the process that has this pid now; [`Place::of`] reads there.
    ///
    /// # Errors
    /// `NOENT` when there is none.
    pub fn pin(&self, pid: u32) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(&self.dir, pid.to_string(), flags, Mode::empty())
    }
}

impl<'a> Place<'a> {
    /// The process whose directory this is, and no other.
    #[must_use]
    pub fn of(dir: &'a OwnedFd) -> Self {
        Self { dir: dir.as_fd(), pid: None }
    }

    /// Reads a file that the kernel writes in one piece, at most `limit` bytes of it, into `content`
    /// (cleared before).
    ///
    /// # Errors
    /// What opening or reading gave: `NOENT` and `SRCH` when the process is gone.
    pub fn read(&self, file: &str, content: &mut Vec<u8>, limit: usize) -> Result<(), Errno> {
        content.clear();
        let file = self.open(file)?;
        loop {
            content.reserve(if content.is_empty() { FIRST_READ } else { content.len() });
            let room = content.capacity() - content.len();
            let count = rustix::io::read(&file, spare_capacity(content))?;
            if count < room || content.len() >= limit {
                content.truncate(limit);
                return Ok(());
            }
        }
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// What opening gave.
    pub fn open(&self, file: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
        self.at(file, |path| openat(self.dir, path, flags, Mode::empty()))
    }

    /// The target of a symbolic link, into `target` (cleared before); cut at 4096 bytes.
    ///
    /// # Errors
    /// What reading gave: `ACCESS` when the process is another user's.
    pub fn read_link(&self, file: &str, target: &mut Vec<u8>) -> Result<(), Errno> {
        target.clear();
        target.reserve(4096);
        self.at(file, |path| readlinkat_raw(self.dir, path, spare_capacity(target)))?;
        Ok(())
    }

    /// Calls `visit` with the target of each symbolic link in a directory.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn for_each_link(&self, directory: &str, mut visit: impl FnMut(&[u8])) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = self.at(directory, |path| openat(self.dir, path, flags, Mode::empty()))?;
        let mut target = Vec::with_capacity(64);
        for_each_entry(directory.as_fd(), c".", |name| {
            target.clear();
            // Closed between listing and reading: no longer there.
            if readlinkat_raw(&directory, name, spare_capacity(&mut target)).is_ok() {
                visit(&target);
            }
        })
    }

    fn at<T>(&self, file: &str, act: impl FnOnce(&str) -> Result<T, Errno>) -> Result<T, Errno> {
        match self.pid {
            None => act(file),
            Some(pid) => {
                let mut path = ShortPath::default();
                write!(path, "{pid}/{file}").map_err(|_| Errno::NAMETOOLONG)?;
                act(path.as_str())
            }
        }
    }
}

/// A path such as `4194304/cmdline` without an allocation.
#[derive(Default)]
struct ShortPath {
    bytes: [u8; 32],
    len: usize,
}

impl ShortPath {
    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or("")
    }
}

impl std::fmt::Write for ShortPath {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

fn for_each_entry(dir: BorrowedFd<'_>, path: &CStr, mut visit: impl FnMut(&[u8])) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listing = openat(dir, path, flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 16 * 1024];
    let mut entries = RawDir::new(&listing, &mut buffer);
    while let Some(entry) = entries.next() {
        visit(entry?.file_name().to_bytes());
    }
    Ok(())
}
