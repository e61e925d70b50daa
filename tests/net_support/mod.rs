//! Private network namespaces, servers and clients in them, and cross-checks with nft, tc and ip.
//!
//! Everything happens in namespaces named `vvtest-…` that a guard deletes; the machine's own network is
//! never touched. Needs root: a test that cannot have a namespace says SKIPPED on stderr.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use vervet::{
    experiment::{Distribution, Excess, Existing, Percent, Traffic},
    host::{FaultId, NetAction, NetPlan, NetSpec, linux::net::Net},
};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A namespace that ends with this value.
pub struct Ns {
    pub name: String,
}

impl Ns {
    /// A namespace with `lo` up; `None` and a word on stderr where that is not permitted.
    pub fn new(test: &str) -> Option<Self> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vvtest-{}-{number}", std::process::id());
        match Command::new("ip").args(["netns", "add", &name]).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                eprintln!("SKIPPED: {test}: ip netns add: {}", String::from_utf8_lossy(&output.stderr));
                return None;
            }
            Err(error) => {
                eprintln!("SKIPPED: {test}: ip: {error}");
                return None;
            }
        }
        let ns = Self { name };
        ns.ip(&["link", "set", "lo", "up"]);
        Some(ns)
    }

    /// Runs `work` on a thread inside of the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let file = File::open(format!("/run/netns/{}", self.name)).expect("the namespace");
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)
                    .expect("enter the namespace");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Output of a program run inside.
    pub fn exec(&self, program: &str, args: &[&str]) -> String {
        let mut all = vec!["netns", "exec", &self.name, program];
        all.extend(args);
        let output = Command::new("ip").args(&all).output().expect("run ip");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {args:?}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn ip(&self, args: &[&str]) -> String {
        self.exec("ip", args)
    }

    /// Everything that a fault may have changed, in words.
    pub fn state(&self) -> String {
        let tables = self.exec("nft", &["-j", "list", "ruleset"]);
        let qdiscs = self.exec("tc", &["-j", "qdisc"]);
        let links = self.ip(&["-j", "link"]);
        let mut out = format!("{tables}{qdiscs}{links}");
        let links: serde_json::Value = serde_json::from_str(&links).expect("json of ip");
        for link in links.as_array().expect("a list") {
            let name = link["ifname"].as_str().expect("a name");
            let has_clsact = qdiscs.contains("clsact") && qdiscs.contains(name);
            if has_clsact {
                out.push_str(&self.exec("tc", &["-j", "filter", "show", "dev", name, "egress"]));
                out.push_str(&self.exec("tc", &["-j", "filter", "show", "dev", name, "ingress"]));
            }
        }
        out.push_str(&self.sysctls());
        out
    }

    pub fn sysctls(&self) -> String {
        self.exec(
            "sh",
            &["-c", "grep -rs . /proc/sys/net/ipv4/conf/lo /proc/sys/net/ipv6/conf/lo; true"],
        )
    }

    pub fn nft(&self) -> String {
        self.exec("nft", &["list", "ruleset"])
    }

    /// A server that sends back what it gets, on every address of the namespace.
    pub fn echo(&self, port: u16) {
        let listener = self.run(|| TcpListener::bind(("::", port)).expect("bind"));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || echo(stream));
            }
        });
    }

    pub fn udp_echo(&self, port: u16) {
        let socket = self.run(|| UdpSocket::bind(("::", port)).expect("bind"));
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        });
    }

    pub fn connect(&self, address: &str) -> std::io::Result<TcpStream> {
        let address: SocketAddr = address.parse().expect("an address");
        let stream = self.run(|| TcpStream::connect_timeout(&address, Duration::from_millis(700)))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(stream)
    }

    /// A connection from a chosen local address.
    pub fn connect_from(&self, from: &str, to: &str) -> std::io::Result<TcpStream> {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
        let (from, to): (SocketAddr, SocketAddr) =
            (from.parse().expect("from"), to.parse().expect("to"));
        self.run(|| {
            let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let fd = socket(family, SocketType::STREAM, None)?;
            bind(&fd, &from)?;
            connect(&fd, &to)?;
            Ok(TcpStream::from(fd))
        })
    }

    /// Attempts one connection after the other; those that got in, and the errors of the others.
    pub fn attempt(&self, address: &str, count: usize) -> (Vec<TcpStream>, Vec<std::io::ErrorKind>) {
        let (mut open, mut errors) = (Vec::new(), Vec::new());
        for _ in 0..count {
            match self.connect(address) {
                Ok(stream) => open.push(stream),
                Err(error) => errors.push(error.kind()),
            }
        }
        (open, errors)
    }

    /// The median round trip of some on one connection.
    pub fn round_trip(&self, address: &str) -> Duration {
        let mut stream = self.connect(address).expect("connect");
        let mut times: Vec<Duration> = (0..7).map(|_| ping(&mut stream)).collect();
        times.sort_unstable();
        times[3]
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// One byte there and back.
pub fn ping(stream: &mut TcpStream) -> Duration {
    let start = Instant::now();
    stream.write_all(b"x").expect("write");
    let mut byte = [0];
    stream.read_exact(&mut byte).expect("read");
    start.elapsed()
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 4096];
    while let Ok(length) = stream.read(&mut buffer) {
        if length == 0 || stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

/// Two namespaces joined by a veth pair: 10.99.0.1/fd99::1 in the first, .2 in the second.
pub fn pair(test: &str) -> Option<(Ns, Ns)> {
    let (left, right) = (Ns::new(test)?, Ns::new(test)?);
    left.ip(&["link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", &right.name]);
    for (ns, number) in [(&left, 1), (&right, 2)] {
        ns.ip(&["addr", "add", &format!("10.99.0.{number}/24"), "dev", "veth0"]);
        ns.ip(&["addr", "add", &format!("fd99::{number}/64"), "dev", "veth0", "nodad"]);
        ns.ip(&["link", "set", "veth0", "up"]);
    }
    // A link is not at work the moment that it is up: a closed port answers when it is.
    for address in ["10.99.0.2:1", "[fd99::2]:1"] {
        wait_until(Duration::from_secs(5), || {
            let refused = std::io::ErrorKind::ConnectionRefused;
            left.connect(address).is_err_and(|error| error.kind() == refused)
        });
    }
    Some((left, right))
}

pub const LEASE: Duration = Duration::from_secs(2);

pub fn delay_of(ms: u64) -> NetAction {
    NetAction::Delay {
        delay: Duration::from_millis(ms),
        jitter: Duration::ZERO,
        correlation: Percent::ZERO,
        distribution: Distribution::Uniform,
        engine: None,
        seed: 1,
    }
}

pub fn cap_of(max: Option<u32>, excess: Excess) -> NetAction {
    NetAction::Cap { max, per_source: None, new_per_second: None, excess, existing: Existing::Keep }
}

pub fn spec(ns: &Ns, id: &str, traffic: Traffic, action: NetAction) -> NetSpec {
    NetSpec {
        fault: FaultId(id.to_owned()),
        traffic: Traffic { netns: Some(ns.name.clone()), ..traffic },
        action,
        mark_mask: 0x00ff_0000,
        exempt_ports: vec![7667],
        local: None,
    }
}

/// Plans and installs.
pub fn install(net: &Net, spec: &NetSpec) -> NetPlan {
    let plan = net.plan(spec, &[]).expect("plan");
    net.install(&plan, LEASE).expect("install");
    plan
}

/// Puts everything of a plan back.
pub fn restore(net: &Net, plan: &NetPlan) {
    for (result, item) in net.restore(&plan.restores).into_iter().zip(&plan.restores) {
        result.unwrap_or_else(|error| panic!("{item:?}: {error}"));
    }
}

/// Renews until dropped, as the agent would.
pub struct Renewing {
    stop: std::sync::mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

pub fn renewing(net: &std::sync::Arc<Net>, plan: &NetPlan) -> Renewing {
    let (stop, stopped) = std::sync::mpsc::channel();
    let (net, plan) = (net.clone(), plan.clone());
    let thread = std::thread::spawn(move || {
        while stopped.recv_timeout(Duration::from_millis(500)).is_err() {
            for result in net.renew(&[(&plan, LEASE)]) {
                result.expect("renew");
            }
        }
    });
    Renewing { stop, thread: Some(thread) }
}

impl Drop for Renewing {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn listen(port: u16) -> Traffic {
    Traffic { listen: Some(port), ..Traffic::default() }
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Waits until `done` holds, at most `within`; how long it took.
pub fn wait_until(within: Duration, mut done: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < within, "not within {within:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    start.elapsed()
}

pub fn peer(block: &str) -> vervet::experiment::Peer {
    let (address, prefix) = block.split_once('/').expect("a block");
    vervet::experiment::Peer::Block(vervet::experiment::Cidr {
        address: address.parse().expect("an address"),
        prefix: prefix.parse().expect("a prefix"),
    })
}

/// Runs one `#[ignore]`d test of this binary as a process of its own, with a word in its environment.
pub fn helper(test: &str, word: &str) -> std::process::Child {
    Command::new(std::env::current_exe().expect("the test binary"))
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("VVTEST_WORD", word)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("run the test binary")
}

/// The word that [`helper`] was given; `None` where the test was not started by it.
pub fn word() -> Option<String> {
    std::env::var("VVTEST_WORD").ok()
}
