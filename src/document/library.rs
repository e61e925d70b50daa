//! The experiments that a host serves by name: files in one directory and its subdirectories.
//!
//! A name comes from the network, so it is never more than a name: it cannot leave the directory,
//! neither by its text nor through a link, and what it names must be an ordinary file of bounded
//! size. Files are read anew each time; nothing is kept.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{Diagnostics, Format, LARGEST, experiment, reader::nearest, text_from_bytes};
use crate::experiment::Experiment;

/// Experiments that are listed; more are not looked at.
const MOST_ENTRIES: usize = 1000;

const ENDINGS: [(&str, Format); 2] = [(".toml", Format::Toml), (".json", Format::Json)];

/// A directory of experiments.
#[derive(Debug, Clone)]
pub struct Library {
    pub dir: PathBuf,
}

/// One experiment in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What [`Library::load`] takes: `kill-one`, `incidents/s3`.
    pub name: String,
    /// Empty when the file is not valid.
    pub title: String,
    /// Empty when the file is not valid.
    pub hypothesis: String,
    /// Why the file cannot be used.
    pub error: Option<String>,
}

/// Why there is no such experiment to be had. Texts fit after "failed to load the experiment: ".
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    #[error(
        "`{0}` is not the name of an experiment: letters, digits, `-`, `_` and `.`, with one `/` at most"
    )]
    Name(String),
    #[error("there is no experiment `{name}`{}", hint(near.as_deref()))]
    NotFound { name: String, near: Option<String> },
    #[error("`{0}` is there twice, as .toml and as .json")]
    Ambiguous(String),
    #[error("`{name}` cannot be read: {error}")]
    Unreadable { name: String, error: io::Error },
    #[error("`{name}` is not valid: {diagnostics}")]
    Invalid { name: String, diagnostics: Diagnostics },
}

fn hint(near: Option<&str>) -> String {
    near.map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default()
}

impl Library {
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Every experiment, the invalid ones with their error, by name. A missing directory is empty.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<Entry>> {
        Ok(self.names()?.into_iter().map(|name| self.entry(name)).collect())
    }

    /// An experiment and the text it was read from.
    ///
    /// # Errors
    /// When there is no such experiment, or it is not valid.
    pub fn load(&self, name: &str) -> Result<(Experiment, String), LibraryError> {
        if !is_name(name) {
            return Err(LibraryError::Name(crate::units::clip(name)));
        }
        let unreadable = |error| LibraryError::Unreadable { name: name.to_owned(), error };
        let mut found = Vec::new();
        for (ending, format) in ENDINGS {
            let file = format!("{name}{ending}");
            if let Some(bytes) = self.read(&file).map_err(unreadable)? {
                found.push((file, format, bytes));
            }
        }
        if found.len() > 1 {
            return Err(LibraryError::Ambiguous(name.to_owned()));
        }
        let Some((file, format, bytes)) = found.pop() else { return Err(self.not_found(name)) };
        let invalid = |diagnostics| LibraryError::Invalid { name: name.to_owned(), diagnostics };
        let file = self.dir.join(file).display().to_string();
        let text = text_from_bytes(&bytes, &file).map_err(invalid)?;
        let experiment = experiment(text, &file, format).map_err(invalid)?;
        Ok((experiment, text.to_owned()))
    }

    fn entry(&self, name: String) -> Entry {
        match self.load(&name) {
            Ok((Experiment { title, hypothesis, .. }, _)) => {
                Entry { name, title, hypothesis, error: None }
            }
            Err(error) => {
                let (title, hypothesis) = (String::new(), String::new());
                Entry { name, title, hypothesis, error: Some(error.to_string()) }
            }
        }
    }

    fn not_found(&self, name: &str) -> LibraryError {
        let names = self.names().unwrap_or_default();
        let near = nearest(name, names.iter().map(String::as_str)).map(str::to_owned);
        LibraryError::NotFound { name: name.to_owned(), near }
    }

    /// The names in the directory and one level below, in order.
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let top = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
            top => top?,
        };
        for entry in top.take(MOST_ENTRIES) {
            let entry = entry?;
            let Ok(file) = entry.file_name().into_string() else { continue };
            // Not through links: a directory elsewhere is not part of the library.
            if entry.file_type()?.is_dir() {
                names.extend(inside(&entry.path(), &file)?);
            } else {
                names.extend(stem(&file).map(str::to_owned));
            }
        }
        names.retain(|name| is_name(name));
        names.sort();
        names.dedup();
        names.truncate(MOST_ENTRIES);
        Ok(names)
    }

    /// The bytes of a file below the directory, one more than allowed at most; `None` without it.
    fn read(&self, file: &str) -> io::Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(&self.dir, flags | OFlags::DIRECTORY, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            dir => dir?,
        };
        // The kernel refuses whatever would lead out of the directory. NONBLOCK: a FIFO must not hang.
        let stay = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match rustix::fs::openat2(&dir, file, flags, Mode::empty(), stay) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
            Err(rustix::io::Errno::XDEV) => {
                return Err(io::Error::other("it is a link that leads out of the library"));
            }
            file => File::from(file?),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not an ordinary file"));
        }
        let mut bytes = Vec::new();
        let most = u64::try_from(LARGEST).unwrap_or(u64::MAX).saturating_add(1);
        file.take(most).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}

fn inside(dir: &Path, prefix: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)?.take(MOST_ENTRIES) {
        let file = entry?.file_name();
        names.extend(file.to_str().and_then(stem).map(|stem| format!("{prefix}/{stem}")));
    }
    Ok(names)
}

fn stem(file: &str) -> Option<&str> {
    ENDINGS.iter().find_map(|(ending, _)| file.strip_suffix(ending))
}

/// `kill-one` or `incidents/s3`; no part begins with a dot.
pub(super) fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let part = |part: &str| {
        (1..=100).contains(&part.len()) && !part.starts_with('.') && part.bytes().all(plain)
    };
    name.split('/').count() <= 2 && name.split('/').all(part)
}
