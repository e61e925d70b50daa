//! A host for the warden's tests: restores files and stopped processes.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vervet::{
    config::GroupPolicy,
    experiment::{self, ProcessSelector},
    fault::undo::{Restore, Undo},
    host::{
        Ability, Candidate, Delivery, FaultId, Freezer, Headroom, Host, HostError, NetCounters, NetPlan,
        NetSpec, ProcessId, ProcessState, Unit, UnitDetail, UnitVerb,
    },
};

/// Restores files and stopped processes; can do nothing else.
pub struct FileHost;

impl FileHost {
    fn no<T>() -> Result<T, HostError> {
        Err(HostError::Unavailable("not in this test".to_owned()))
    }

    fn put_back(item: &Restore) -> std::io::Result<()> {
        match item {
            Restore::Sysctl { path, old, new, .. } => {
                if Path::new(path).with_extension("busy").exists() {
                    return Err(std::io::Error::other("busy"));
                }
                if fs::read_to_string(path)? == *new { fs::write(path, old) } else { Ok(()) }
            }
            Restore::Continue { process } => match kill(pid(process.pid), Signal::SIGCONT) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
                Err(error) => Err(error.into()),
            },
            _ => Err(std::io::Error::other("not in this test")),
        }
    }
}

impl Host for FileHost {
    fn find(&self, _: &ProcessSelector, _: &[GroupPolicy]) -> Result<Vec<Candidate>, HostError> {
        Self::no()
    }
    fn state(&self, _: ProcessId) -> Result<ProcessState, HostError> {
        Self::no()
    }
    fn signal(&self, _: ProcessId, _: experiment::Signal) -> Result<Delivery, HostError> {
        Self::no()
    }
    fn plan_net(&self, _: &NetSpec, _: &[Undo]) -> Result<NetPlan, HostError> {
        Self::no()
    }
    fn install(&self, _: &NetPlan, _: Duration) -> Result<(), HostError> {
        Self::no()
    }
    fn renew(&self, leases: &[(&NetPlan, Duration)]) -> Vec<Result<(), HostError>> {
        leases.iter().map(|_| Self::no()).collect()
    }
    fn counters(&self, _: &NetPlan) -> Result<NetCounters, HostError> {
        Self::no()
    }
    fn units(&self, _: &[&str]) -> Result<Vec<Unit>, HostError> {
        Self::no()
    }
    fn unit(&self, _: &str) -> Result<Option<UnitDetail>, HostError> {
        Self::no()
    }
    fn unit_job(&self, _: &str, _: UnitVerb) -> Result<(), HostError> {
        Self::no()
    }
    fn freezer(&self, _: &str) -> Result<Option<Freezer>, HostError> {
        Self::no()
    }
    fn freeze(&self, _: &str, _: u64) -> Result<(), HostError> {
        Self::no()
    }
    fn boot(&self) -> Result<String, HostError> {
        Self::no()
    }
    fn restore(&self, items: &[Restore]) -> Vec<Result<(), HostError>> {
        let failed = |error: std::io::Error| HostError::Kernel {
            doing: "put it back".to_owned(),
            error: error.to_string(),
        };
        items.iter().map(|item| Self::put_back(item).map_err(failed)).collect()
    }
    fn headroom(&self) -> Result<Headroom, HostError> {
        Self::no()
    }
    fn abilities(&self) -> Vec<Ability> {
        vec![]
    }
    fn protected(&self) -> Result<BTreeMap<ProcessId, String>, HostError> {
        Self::no()
    }
}

pub fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).expect("a pid"))
}

pub fn fault(n: u32) -> FaultId {
    FaultId(format!("{n:011x}"))
}

/// Puts "old" back where "new" is.
pub fn file_undo(path: &Path) -> Undo {
    let (old, new) = ("old".to_owned(), "new".to_owned());
    let path = path.to_str().unwrap().to_owned();
    Undo { restores: vec![Restore::Sysctl { netns: None, path, old, new }] }
}

pub fn changed_file() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("value");
    fs::write(&path, "new").unwrap();
    (dir, path)
}
