//! Process selectors made ready for matching, and the lazy reading that matching needs.
//!
//! Keys are asked cheapest first, and a file is read only when a key asks for it. This module
//! decides what matches; walking the table is `process`'s work.

use std::{
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    time::{Duration, SystemTime},
};

use regex::bytes::{Regex, RegexBuilder};
use rustix::io::Errno;

use super::{
    clock,
    procfs::{Place, ProcFs},
    sockets::{Listens, Namespaces},
    stat::{Stat, number, real_uid},
};
use crate::{
    config::GroupPolicy,
    experiment::ProcessSelector,
    host::{
        HostError,
        container::{self, Meant},
        unit::{Glob, of_cgroup},
    },
};

/// The longest `comm` that the kernel keeps: TASK_COMM_LEN less the end, linux/sched.h.
const NAME_MAX: usize = 15;

/// No more of a command line is matched.
const CMDLINE_MAX: usize = 4 << 20;

/// What follows the number of the unified hierarchy in /proc/PID/cgroup: no controllers.
const UNIFIED: &[u8] = b"::";

/// How much later than its pidfile a process may have been started, for clocks that are coarse.
const PIDFILE_SLACK: Duration = Duration::from_secs(2);

/// One selector, the members of the group that it names included.
#[derive(Debug)]
pub struct Query {
    /// All must match. Not empty.
    matchers: Vec<Matcher>,
    /// Matches are told with the ports that they listen on.
    pub listens: bool,
}

/// The keys of one selector, looked up and compiled.
#[derive(Debug, Default)]
struct Matcher {
    pidfile: Option<String>,
    /// What the pidfile said when it was last read.
    pid: Option<NamedPid>,
    name: Option<Vec<u8>>,
    older_than: Option<Duration>,
    /// Started at this tick or before: `older_than`, counted from when a walk begins.
    started_by: Option<u64>,
    cmdline: Option<Regex>,
    cgroup: Option<Vec<u8>>,
    unit: Option<Glob>,
    /// The word, and what it meant when it was last looked up.
    container: Option<(String, Meant)>,
    exe: Option<Vec<u8>>,
    uid: Option<u32>,
    listen: Option<u16>,
}

/// What a pidfile says.
#[derive(Debug, Clone, Copy)]
struct NamedPid {
    pid: u32,
    /// A process that began after this tick is another one: the pid was used again.
    started_by: u64,
}

/// What was read of the process that is being looked at. One for a whole walk.
#[derive(Debug, Default)]
pub struct Look {
    stat: Lazy,
    cmdline: Lazy,
    cgroup: Lazy,
    exe: Lazy,
    status: Lazy,
}

#[derive(Debug, Default)]
struct Lazy {
    content: Vec<u8>,
    read: Option<Result<(), Errno>>,
}

impl Query {
    /// Looks up what the selector names. `ticks` is the number of clock ticks in a second.
    ///
    /// # Errors
    /// When it is empty, or names a group, a user or a pidfile that is not there.
    pub fn new(
        selector: &ProcessSelector,
        groups: &[GroupPolicy],
        ticks: u64,
    ) -> Result<Self, HostError> {
        let mut matchers = Vec::new();
        if let Some(name) = &selector.group {
            let group = groups
                .iter()
                .find(|group| group.name == *name)
                .ok_or_else(|| HostError::NotFound(format!("no capacity group is called `{name}`")))?;
            if group.members.group.is_some() {
                let text = format!("the members of group `{name}` are chosen by another group");
                return Err(HostError::NotFound(text));
            }
            matchers.push(Matcher::new(&group.members, ticks)?);
        }
        let own = ProcessSelector { group: None, ..selector.clone() };
        if own != ProcessSelector::default() {
            matchers.push(Matcher::new(&own, ticks)?);
        }
        if matchers.is_empty() {
            return Err(HostError::NotFound("an empty selector matches nothing".to_owned()));
        }
        let listens =
            selector.group.is_some() || matchers.iter().any(|matcher| matcher.listen.is_some());
        Ok(Self { matchers, listens })
    }

    /// Brings what depends on the time of the walk up to date: ages and pidfiles.
    ///
    /// # Errors
    /// When a pidfile cannot be read.
    pub fn renew(&mut self, ticks: u64) -> Result<(), HostError> {
        self.matchers.iter_mut().try_for_each(|matcher| matcher.renew(ticks))
    }

    /// The only pid that can match, if that is known: nothing else needs to be looked at.
    pub fn pid(&self) -> Option<u32> {
        self.matchers.iter().find_map(|matcher| matcher.pid).map(|named| named.pid)
    }

    /// Whether the process can match, by its cheapest key alone.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn glance(&self, place: Place<'_>, look: &mut Look) -> Result<bool, Errno> {
        for matcher in &self.matchers {
            if !matcher.glance(place, look)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the process matches every key but `listen`.
    ///
    /// # Errors
    /// When a key cannot be read.
    pub fn matches(&self, place: Place<'_>, look: &mut Look) -> Result<bool, Errno> {
        for matcher in &self.matchers {
            if !matcher.matches(place, look)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where the process listens, if the selector asks; `None` when it does not listen where it should.
    ///
    /// # Errors
    /// When its sockets cannot be read.
    pub fn listening(
        &self,
        proc: &ProcFs,
        place: Place<'_>,
        namespaces: &mut Namespaces,
    ) -> Result<Option<Listens>, Errno> {
        let mut ports = self.matchers.iter().filter_map(|matcher| matcher.listen);
        let first = ports.next();
        let listens = namespaces.listens(proc, place, first)?;
        let on = |port: u16| listens.addresses.iter().any(|address| address.port() == port);
        Ok((first.is_none_or(on) && ports.all(on)).then_some(listens))
    }

    /// Matching depends on the ports, rather than only telling them.
    pub fn needs_port(&self) -> bool {
        self.matchers.iter().any(|matcher| matcher.listen.is_some())
    }
}

impl Matcher {
    fn new(selector: &ProcessSelector, ticks: u64) -> Result<Self, HostError> {
        if let Some(name) = selector.name.as_ref().filter(|name| name.len() > NAME_MAX) {
            return Err(HostError::NotFound(format!(
                "no process can be named `{name}`: the kernel keeps {NAME_MAX} bytes of a name; use \
                 `{}`, `exe` or `cmdline`",
                name.get(..NAME_MAX).unwrap_or("")
            )));
        }
        let mut matcher = Self {
            pidfile: selector.pidfile.clone(),
            pid: None,
            name: selector.name.as_ref().map(|name| name.clone().into_bytes()),
            older_than: selector.older_than,
            started_by: None,
            cmdline: selector.cmdline.as_deref().map(expression).transpose()?,
            cgroup: selector.cgroup.as_deref().map(cgroup_path),
            unit: selector.unit.as_deref().map(glob).transpose()?,
            container: selector.container.clone().map(|word| {
                let meant = Meant::look_up(Path::new("/"), &word);
                (word, meant)
            }),
            exe: selector.exe.as_ref().map(|path| path.clone().into_bytes()),
            uid: selector.user.as_deref().map(uid_of).transpose()?,
            listen: selector.listen,
        };
        matcher.renew(ticks)?;
        Ok(matcher)
    }

    fn renew(&mut self, ticks: u64) -> Result<(), HostError> {
        self.pid = self.pidfile.as_deref().map(|path| read_pidfile(path, ticks)).transpose()?;
        if let Some((word, meant)) = &mut self.container {
            *meant = Meant::look_up(Path::new("/"), word);
        }
        let then = |age| clock::boottime().minus(age).0 / (1_000_000_000 / ticks);
        self.started_by = self.older_than.map(then);
        Ok(())
    }

    fn glance(&self, place: Place<'_>, look: &mut Look) -> Result<bool, Errno> {
        if self.pid.is_some() || self.name.is_some() || self.started_by.is_some() {
            Ok(self.stat_matches(&look.stat(place)?))
        } else if self.cmdline.is_some() {
            self.cmdline_matches(place, look)
        } else if self.cgroup.is_some() {
            self.cgroup_matches(place, look)
        } else if self.unit.is_some() {
            self.unit_matches(place, look)
        } else if self.container.is_some() {
            self.container_matches(place, look)
        } else if self.exe.is_some() {
            self.exe_matches(place, look)
        } else {
            self.uid_matches(place, look)
        }
    }

    fn matches(&self, place: Place<'_>, look: &mut Look) -> Result<bool, Errno> {
        Ok(self.stat_matches(&look.stat(place)?)
            && self.cmdline_matches(place, look)?
            && self.cgroup_matches(place, look)?
            && self.unit_matches(place, look)?
            && self.container_matches(place, look)?
            && self.exe_matches(place, look)?
            && self.uid_matches(place, look)?)
    }

    fn stat_matches(&self, stat: &Stat<'_>) -> bool {
        self.pid.is_none_or(|named| stat.pid == named.pid && stat.start <= named.started_by)
            && self.name.as_ref().is_none_or(|name| stat.comm == name)
            && self.started_by.is_none_or(|latest| stat.start <= latest)
    }

    fn cmdline_matches(&self, place: Place<'_>, look: &mut Look) -> Result<bool, Errno> {
        match &self.cmdline {
            None => Ok(true),
            Some(expression) => Ok(expression.is_match(look.cmdline(place)?)),
        }
    }

    fn cgroup_matches(&self, place: Place<'_>, look: &mut Look) -> Result<bool, Errno> {
        let Some(wanted) = &self.cgroup else { return Ok(true) };
        let rest = look.cgroup(place)?.strip_prefix(wanted.as_slice());
        // `/a` holds `/a/b` but not `/ab`; the root holds everything.
        Ok(rest.is_some_and(|rest| rest.is_empty() || wanted == b"/" || rest[0] == b'/'))
    }

    fn unit_matches(&self, place: Place<'_>, look: &mut Look) -> Result<bool, Errno> {
        let Some(wanted) = &self.unit else { return Ok(true) };
        Ok(look.unit(place)?.is_some_and(|unit| wanted.matches(unit)))
    }

    fn container_matches(&self, place: Place<'_>, look: &mut Look) -> Result<bool, Errno> {
        let Some((_, wanted)) = &self.container else { return Ok(true) };
        Ok(look.container(place)?.is_some_and(|container| wanted.is(container)))
    }

    fn exe_matches(&self, place: Place<'_>, look: &mut Look) -> Result<bool, Errno> {
        let Some(wanted) = &self.exe else { return Ok(true) };
        let exe = look.exe(place)?;
        // What was upgraded under a running process is still what it runs.
        Ok(exe == wanted || exe.strip_suffix(b" (deleted)").is_some_and(|old| old == wanted))
    }

    fn uid_matches(&self, place: Place<'_>, look: &mut Look) -> Result<bool, Errno> {
        match self.uid {
            None => Ok(true),
            Some(uid) => Ok(look.uid(place)? == uid),
        }
    }
}

impl Look {
    /// Forgets the process; keeps the buffers.
    pub fn next(&mut self) {
        for lazy in
            [&mut self.stat, &mut self.cmdline, &mut self.cgroup, &mut self.exe, &mut self.status]
        {
            lazy.read = None;
        }
    }

    /// Forgets what is read to tell one process from its successor.
    pub fn forget_stat(&mut self) {
        self.stat.read = None;
    }

    /// # Errors
    /// What reading gave; `BADMSG` for a file that is not a stat file.
    pub fn stat(&mut self, place: Place<'_>) -> Result<Stat<'_>, Errno> {
        let content = self.stat.get(|content| place.read("stat", content, 4096))?;
        Stat::parse(content).ok_or(Errno::BADMSG)
    }

    /// The arguments joined by one space; empty for zombies and kernel threads.
    ///
    /// # Errors
    /// What reading gave.
    pub fn cmdline(&mut self, place: Place<'_>) -> Result<&[u8], Errno> {
        self.cmdline.get(|content| {
            place.read("cmdline", content, CMDLINE_MAX)?;
            while content.last() == Some(&0) {
                content.pop();
            }
            content.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
            Ok(())
        })
    }

    /// The path below the cgroup2 mount, on the hybrid hierarchy as on the unified one: what
    /// follows `0::` (cgroups(7)). `/` where there is none.
    ///
    /// # Errors
    /// What reading gave.
    pub fn cgroup(&mut self, place: Place<'_>) -> Result<&[u8], Errno> {
        Ok(path_in(self.cgroups(place)?, UNIFIED).unwrap_or(b"/"))
    }

    /// The unit of the system's manager that the process belongs to.
    ///
    /// # Errors
    /// What reading gave.
    pub fn unit(&mut self, place: Place<'_>) -> Result<Option<&str>, Errno> {
        let content = self.cgroups(place)?;
        let unit = |hierarchy| of_cgroup(path_in(content, hierarchy)?);
        // On the legacy hierarchy, and where a process left the unified one, systemd's own has it.
        Ok(unit(UNIFIED).or_else(|| unit(b":name=systemd:")))
    }

    /// The container that the process is in, whichever hierarchy tells.
    ///
    /// # Errors
    /// What reading gave.
    pub fn container(&mut self, place: Place<'_>) -> Result<Option<&str>, Errno> {
        let content = self.cgroups(place)?;
        let own = path_in(content, UNIFIED).and_then(container::of_cgroup);
        let path = |line| <[u8]>::splitn(line, 3, |byte| *byte == b':').nth(2);
        let mut others = content.split(|byte| *byte == b'\n').filter_map(path);
        Ok(own.or_else(|| others.find_map(container::of_cgroup)))
    }

    /// The cgroup of each hierarchy, a line each; empty on a kernel without cgroups.
    fn cgroups(&mut self, place: Place<'_>) -> Result<&[u8], Errno> {
        match self.cgroup.get(|content| place.read("cgroup", content, 64 << 10)) {
            Err(Errno::NOENT) => Ok(b""),
            content => content,
        }
    }

    /// The real uid.
    ///
    /// # Errors
    /// What reading gave.
    pub fn uid(&mut self, place: Place<'_>) -> Result<u32, Errno> {
        real_uid(self.status(place)?).ok_or(Errno::BADMSG)
    }

    /// # Errors
    /// What reading gave.
    pub fn status(&mut self, place: Place<'_>) -> Result<&[u8], Errno> {
        self.status.get(|content| place.read("status", content, 64 << 10))
    }

    /// # Errors
    /// What reading gave: `ACCESS` for another user's process.
    pub fn exe(&mut self, place: Place<'_>) -> Result<&[u8], Errno> {
        self.exe.get(|target| place.read_link("exe", target))
    }
}

impl Lazy {
    fn get(&mut self, read: impl FnOnce(&mut Vec<u8>) -> Result<(), Errno>) -> Result<&[u8], Errno> {
        let outcome = *self.read.get_or_insert_with(|| read(&mut self.content));
        outcome.map(|()| self.content.as_slice())
    }
}

fn expression(pattern: &str) -> Result<Regex, HostError> {
    RegexBuilder::new(pattern).build().map_err(|error| {
        HostError::NotFound(format!("`{pattern}` is not a regular expression: {error}"))
    })
}

fn glob(pattern: &str) -> Result<Glob, HostError> {
    Glob::new(pattern)
        .map_err(|error| HostError::NotFound(format!("`{pattern}` cannot select units: {error}")))
}

/// The path in the line of one hierarchy, cgroups(7): `ID:CONTROLLERS:PATH`.
fn path_in<'a>(content: &'a [u8], hierarchy: &[u8]) -> Option<&'a [u8]> {
    let after_id = |line: &'a [u8]| {
        let id = line.iter().take_while(|byte| byte.is_ascii_digit()).count();
        line[id..].strip_prefix(hierarchy)
    };
    let path = content.split(|byte| *byte == b'\n').find_map(after_id)?;
    Some(path.strip_suffix(b" (deleted)").unwrap_or(path))
}

fn cgroup_path(path: &str) -> Vec<u8> {
    format!("/{}", path.trim_matches('/')).into_bytes()
}

fn uid_of(user: &str) -> Result<u32, HostError> {
    if let Some(uid) = number(user.as_bytes()) {
        return Ok(uid);
    }
    match nix::unistd::User::from_name(user) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(HostError::NotFound(format!("no user is called `{user}`"))),
        Err(error) => Err(HostError::Kernel {
            doing: format!("look up the user `{user}`"),
            error: error.to_string(),
        }),
    }
}

/// The pid in the file, and the tick at which the file was last written: the process that wrote it,
/// or for which it was written, had begun by then.
fn read_pidfile(path: &str, ticks: u64) -> Result<NamedPid, HostError> {
    let broken = |why: &str| HostError::NotFound(format!("the pidfile {path} {why}"));
    // A pipe in its place must not hold anybody up.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| broken(&format!("cannot be opened: {error}")))?;
    let data = file.metadata().map_err(|error| broken(&format!("cannot be read: {error}")))?;
    if !data.is_file() {
        return Err(broken("is not a regular file"));
    }
    let mut content = [0; 64];
    let count = rustix::io::read(&file, &mut content)
        .map_err(|error| broken(&format!("cannot be read: {error}")))?;
    let pid = content[..count].trim_ascii().split(u8::is_ascii_whitespace).next().and_then(number);
    let pid = pid.filter(|pid| *pid > 0).ok_or_else(|| broken("does not begin with a pid"))?;
    let written = SystemTime::UNIX_EPOCH
        + Duration::new(data.mtime().unsigned_abs(), u32::try_from(data.mtime_nsec()).unwrap_or(0));
    // The age of the file, taken from the boot clock: start times count on that.
    let age = SystemTime::now().duration_since(written).unwrap_or_default();
    let latest = clock::boottime().minus(age).plus(PIDFILE_SLACK);
    Ok(NamedPid { pid, started_by: latest.0 / (1_000_000_000 / ticks) })
}
