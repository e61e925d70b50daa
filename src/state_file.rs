//! Small files below the state directory that must survive a crash whole: read with a bound, replaced
//! at once or not at all. What is in them, and what their loss means, is their owners' business.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// The bytes of a file, at most `most` of them.
///
/// # Errors
/// When it cannot be read. A missing one is `NotFound`.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // Not blocking: a named pipe in its place must not stop the start.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes the file `name` of the directory. Returns when it is on the disk.
///
/// # Errors
/// When it could not be written; what was there before still is.
pub fn replace(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let fresh = directory.join(format!("{name}.new"));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, directory.join(name))?;
    sync(directory)
}

/// Makes what was renamed or removed in a directory durable.
///
/// # Errors
/// When the disk says so.
pub fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
