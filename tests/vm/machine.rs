//! One emulated machine: the qemu process, its disk, its sockets, its console.
//!
//! INVARIANT: no qemu outlives its story. It is killed when the [`Machine`] is dropped, and by the kernel
//! when the thread that started it ends. Its disk, sockets and console lose their names as soon as they
//! are open, so there is nothing to clean up even after a SIGKILL.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::qmp::Qmp;

/// Processor model: what vervet's and Debian's builds ask for, and little that must be tested at boot.
const PROCESSOR: &str = "Nehalem,-vmx";
const MEMORY_MIB: &str = "1024";
const KERNEL_LINE: &str =
    "root=/dev/vda rw console=ttyS0 mitigations=off random.trust_cpu=on net.ifnames=0 panic=-1";
/// What of the console is shown when a story fails.
const CONSOLE_END: u64 = 6_000;
const START: Duration = Duration::from_mins(1);

/// What a machine is started from.
#[derive(Debug, Clone)]
pub struct Source {
    /// Kernel and initrd.
    pub base: PathBuf,
    /// The disk below the one that is written.
    pub disk: PathBuf,
    /// Memory and devices to wake up with; else it boots.
    pub memory: Option<PathBuf>,
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    console: File,
    pub qmp: Qmp,
    /// The guest agent's end of its port, and the port that files are sent through; taken once.
    pub agent: Option<UnixStream>,
    pub files: Option<UnixStream>,
}

impl Machine {
    /// Starts a machine that writes to an overlay which nobody else sees.
    ///
    /// # Errors
    /// Why qemu did not start.
    pub fn start(source: &Source) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| format!("a directory: {error}"))?;
        let overlay = tempfile::Builder::new()
            .prefix("overlay-")
            .tempfile_in(source.base.parent().unwrap_or(&source.base))
            .map_err(|error| format!("an overlay: {error}"))?;
        Self::start_on(source, overlay.path(), dir.path())
    }

    /// Starts a machine that writes to a disk at this path, with its sockets in `dir`.
    ///
    /// # Errors
    /// Why qemu did not start.
    pub fn start_on(source: &Source, overlay: &Path, dir: &Path) -> Result<Self, String> {
        make_overlay(&source.disk, overlay)?;
        let log = dir.join("console");
        File::create(&log).map_err(|error| format!("console: {error}"))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args(["-machine", "q35,accel=tcg", "-cpu", PROCESSOR, "-smp", "1", "-m", MEMORY_MIB]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-nic", "none"]);
        // The guest's clock counts what its processor did (two nanoseconds for each instruction) and
        // follows ours only while it is idle: however busy this machine is, the guest sees no stall.
        command.args(["-icount", "shift=1,sleep=on", "-rtc", "base=utc,clock=vm"]);
        command.arg("-kernel").arg(source.base.join("vmlinuz"));
        command.arg("-initrd").arg(source.base.join("initrd"));
        command.args(["-append", KERNEL_LINE]);
        command.arg("-serial").arg(format!("file:{}", log.display()));
        command.arg("-drive").arg(format!(
            "file={},format=qcow2,if=virtio,cache=unsafe,discard=unmap",
            overlay.display()
        ));
        command.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
        for (id, port) in [("agent", "org.qemu.guest_agent.0"), ("files", "vervet.files")] {
            let socket = dir.join(id);
            command
                .arg("-chardev")
                .arg(format!("socket,id={id},path={},server=on,wait=off", socket.display()));
            command.arg("-device").arg(format!("virtserialport,chardev={id},name={port}"));
        }
        let qmp = dir.join("qmp");
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
        if let Some(memory) = &source.memory {
            command.arg("-S").arg("-incoming").arg(format!("exec:exec cat '{}'", memory.display()));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| format!("start qemu: {error}"))?;
        Self::greet(child, dir, source.memory.is_some())
    }

    /// Connects to everything that qemu offers.
    fn greet(mut child: Child, dir: &Path, asleep: bool) -> Result<Self, String> {
        let connected = connect(&mut child, &dir.join("qmp")).and_then(|qmp| {
            let agent = connect(&mut child, &dir.join("agent"))?;
            let files = connect(&mut child, &dir.join("files"))?;
            let console =
                File::open(dir.join("console")).map_err(|error| format!("console: {error}"))?;
            Ok((Qmp::new(qmp)?, agent, files, console))
        });
        let (qmp, agent, files, console) = match connected {
            Ok(parts) => parts,
            Err(why) => {
                drop(child.kill());
                let mut said = String::new();
                if let Some(mut stderr) = child.stderr.take() {
                    drop(stderr.read_to_string(&mut said));
                }
                drop(child.wait());
                return Err(format!("{why}; qemu said: {said}"));
            }
        };
        let mut machine = Self { child, console, qmp, agent: Some(agent), files: Some(files) };
        if asleep {
            machine.qmp.wake()?;
        }
        Ok(machine)
    }

    /// Cuts the power and switches it on again: what the guest had not written to its disk is lost.
    ///
    /// # Errors
    /// What qemu said.
    pub fn reset(&mut self) -> Result<(), String> {
        self.qmp.command("system_reset", &json!({})).map(drop)
    }

    /// Puts the machine to sleep in a file, and ends it.
    ///
    /// # Errors
    /// What qemu said.
    pub fn sleep(mut self, file: &Path) -> Result<(), String> {
        self.qmp.sleep(&file.display().to_string())?;
        self.qmp.command("quit", &json!({}))?;
        self.child.wait().map_err(|error| format!("wait for qemu: {error}"))?;
        Ok(())
    }

    /// The last of what the guest wrote on its console.
    pub fn console(&mut self) -> String {
        let mut bytes = Vec::new();
        let length = self.console.seek(SeekFrom::End(0)).unwrap_or_default();
        drop(self.console.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_END))));
        drop(self.console.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).replace(['\r', '\u{1b}'], "")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn connect(child: &mut Child, path: &Path) -> Result<UnixStream, String> {
    let begun = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if begun.elapsed() > START => return Err(format!("{}: {error}", path.display())),
            Err(_) if !matches!(child.try_wait(), Ok(None)) => return Err("qemu ended".to_owned()),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn make_overlay(below: &Path, overlay: &Path) -> Result<(), String> {
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(below)
        .arg(overlay)
        .output()
        .map_err(|error| format!("qemu-img: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("qemu-img: {said}")) }
}
