//! Pid 1 of the sandbox: mounts what must be private, sets the loopback up, and lets the acts play.
//!
//! Everything it makes lies on a tmpfs or in the kernel's namespaces and is gone when it ends. Only
//! the reports and the log are written outside, to the directory that the user was told.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
    },
};
use std::os::fd::AsRawFd as _;

use crate::{
    cli::{Failure, Outcome, exit::Exit, ui::Ui},
    demo::{acts, reaper::Reaper, sandbox::how_to_allow},
};

/// The loopback device's index in a new network namespace.
const LOOPBACK: i32 = 1;

/// Prepares the sandbox and plays.
///
/// # Errors
/// When the sandbox cannot be prepared.
pub fn play(out: &Path, fast: bool, ui: &Ui) -> Outcome {
    if std::process::id() != 1 {
        return Err(Failure::usage(
            "this is a part of `vervet demo`, and only runs inside of it".to_owned(),
        ));
    }
    end_with_the_outer_process();
    let program = std::env::current_exe()
        .map_err(|error| Failure::failed(format!("failed to find this program: {error}")))?;
    mount_private("/proc", "proc", None)?;
    let base = base_for(out, &program)?;
    mount_private(&base, "tmpfs", Some("size=64m,mode=0755"))?;
    set_loopback_up()?;
    let base = PathBuf::from(base).join("vervet");
    let made =
        fs::create_dir_all(base.join("experiments")).and_then(|()| std::env::set_current_dir(&base));
    made.map_err(|error| Failure::failed(format!("failed to prepare the sandbox: {error}")))?;
    let reaper = Reaper::start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("failed to start: {error}")))?;
    let all_kept =
        runtime.block_on(acts::play(acts::Set { out, base: &base, program, reaper, fast, ui: *ui }))?;
    Ok(if all_kept { Exit::Passed } else { Exit::Failed })
}

/// The outer process holds the other end of standard input and never writes.
fn end_with_the_outer_process() {
    std::thread::spawn(|| {
        let mut byte = [0];
        while std::io::stdin().read(&mut byte).is_ok_and(|read| read > 0) {}
        std::process::exit(130);
    });
}

fn mount_private(target: &str, kind: &str, data: Option<&str>) -> Result<(), Failure> {
    let none: Option<&str> = None;
    // What is mounted in here must not propagate to the host.
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let made = mount(none, "/", none, flags, none).and_then(|()| {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some(kind), target, Some(kind), flags, data)
    });
    made.map_err(|error| {
        let why = error.desc();
        Failure::failed(format!(
            "no private {kind} on {target} in the sandbox: {why}\n{}",
            how_to_allow()
        ))
    })
}

/// A directory to mount on that hides neither the reports nor this program.
fn base_for(out: &Path, program: &Path) -> Result<String, Failure> {
    let free =
        |base: &&str| Path::new(base).is_dir() && !out.starts_with(base) && !program.starts_with(base);
    let base = ["/run", "/mnt", "/media", "/srv", "/opt"].into_iter().find(free);
    base.map(str::to_owned)
        .ok_or_else(|| Failure::failed("no directory to mount the sandbox's files on".to_owned()))
}

/// RTM_NEWLINK with IFF_UP for the loopback device, rtnetlink(7).
fn set_loopback_up() -> Result<(), Failure> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const IFF_UP: u32 = 1;
    let mut message = Vec::with_capacity(32);
    message.extend(32_u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend([0; 8]); // sequence number, port
    message.extend([0; 4]); // family, padding, device type
    message.extend(LOOPBACK.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes()); // flags
    message.extend(IFF_UP.to_ne_bytes()); // which of them to change
    let failed =
        |error: String| Failure::failed(format!("failed to set the loopback device up: {error}"));
    let flags = SockFlag::SOCK_CLOEXEC;
    let kind = SockType::Raw;
    let netlink = socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkRoute)
        .map_err(|error| failed(error.to_string()))?;
    let mut answer = [0; 256];
    let got = sendto(netlink.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())
        .and_then(|_| recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()))
        .map_err(|error| failed(error.to_string()))?;
    // NLMSG_ERROR: the header of 16 bytes, then zero or a negated errno.
    match answer.get(16..20).filter(|_| got >= 20).and_then(|bytes| bytes.try_into().ok()) {
        Some(code) if i32::from_ne_bytes(code) == 0 => Ok(()),
        Some(code) => {
            Err(failed(std::io::Error::from_raw_os_error(-i32::from_ne_bytes(code)).to_string()))
        }
        None => Err(failed("the kernel's answer makes no sense".to_owned())),
    }
}
