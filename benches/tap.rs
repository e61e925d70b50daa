//! How true the `tap` engine is, how much it carries, and what an installed fault costs others.
//!
//! `cargo bench --bench tap`, as root: everything happens in a private network namespace. Bounded: some
//! hundred round trips per delay and some seconds of one stream.

use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use vervet::{
    experiment::{DelayEngine, Distribution, Percent, Traffic},
    host::{FaultId, NetAction, NetPlan, NetSpec, linux::net::Net},
};

const LEASE: Duration = Duration::from_secs(2);
const SERVICE: u16 = 8080;
const SINK: u16 = 8081;
const OTHER: u16 = 8082;

/// Errors of TCP proxies as measured on a machine like this one, p50 in ms, and their share of the
/// throughput of a direct connection; toxiproxy 2.12, noxious 1.0.4.
const PEERS: [(&str, [f64; 3], f64); 2] =
    [("toxiproxy 2.12", [0.3, 0.6, 0.8], 0.32), ("noxious 1.0.4", [1.3, 1.4, 1.8], 0.56)];

fn main() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.within(|| {
        echo(SERVICE);
        sink(SINK);
        echo(OTHER);
    });
    precision(&namespace);
    throughput(&namespace);
    bystanders(&namespace);
}

struct Namespace(String);

impl Namespace {
    fn new() -> Option<Self> {
        let name = format!("vvtest-bench-{}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).status();
        if !made.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: tap: no network namespace can be made here");
            return None;
        }
        let up = ["netns", "exec", &name, "ip", "link", "set", "lo", "up"];
        let up = Command::new("ip").args(up).status().expect("run ip");
        assert!(up.success());
        Some(Self(name))
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = || {
                let file = File::open(format!("/run/netns/{}", self.0)).expect("the namespace");
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter it");
                work()
            };
            scope.spawn(inside).join().expect("join")
        })
    }

    fn connect(&self, port: u16) -> TcpStream {
        let stream = self.within(|| TcpStream::connect(("127.0.0.1", port)).expect("connect"));
        stream.set_nodelay(true).expect("no delay");
        stream
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// A fault in force, renewed until it is dropped.
struct Fault<'a> {
    net: Arc<Net>,
    plan: NetPlan,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    _namespace: &'a Namespace,
}

impl<'a> Fault<'a> {
    fn new(namespace: &'a Namespace, traffic: Traffic, delay: Duration) -> Self {
        let net = Arc::new(Net::new());
        let action = NetAction::Delay {
            delay,
            jitter: Duration::ZERO,
            correlation: Percent::ZERO,
            distribution: Distribution::Uniform,
            engine: Some(DelayEngine::Tap),
            seed: 1,
        };
        let spec = NetSpec {
            fault: FaultId("be0".to_owned()),
            traffic: Traffic { netns: Some(namespace.0.clone()), ..traffic },
            action,
            mark_mask: 0x00ff_0000,
            exempt_ports: Vec::new(),
            local: None,
        };
        let plan = net.plan(&spec, &[]).expect("plan");
        net.install(&plan, LEASE).expect("install");
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, renewed, leased) = (stop.clone(), net.clone(), plan.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(500));
                for result in renewed.renew(&[(&leased, LEASE)]) {
                    result.expect("renew");
                }
            }
        });
        Self { net, plan, stop, thread: Some(thread), _namespace: namespace }
    }
}

impl Drop for Fault<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        for result in self.net.restore(&self.plan.restores) {
            result.expect("restore");
        }
    }
}

fn echo(port: u16) {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("bind");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            stream.set_nodelay(true).expect("no delay");
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length) = stream.read(&mut buffer) {
                    if length == 0 || stream.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

fn sink(port: u16) {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("bind");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = vec![0; 1 << 20];
                while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
            });
        }
    });
}

fn ping(stream: &mut TcpStream) -> Duration {
    let start = Instant::now();
    stream.write_all(b"x").expect("write");
    stream.read_exact(&mut [0]).expect("read");
    start.elapsed()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn round_trips(stream: &mut TcpStream, count: usize) -> Vec<f64> {
    let mut times: Vec<f64> = (0..count).map(|_| ms(ping(stream))).collect();
    times.sort_by(f64::total_cmp);
    times
}

/// The error of a delay: the round trip less the delay, and less what a round trip takes without.
fn precision(namespace: &Namespace) {
    let bare = round_trips(&mut namespace.connect(SERVICE), 2000)[1000];
    println!("round trip without a fault: p50 {bare:.3} ms");
    for (at, delay) in [1_u16, 10, 50].into_iter().enumerate() {
        let traffic = Traffic { listen: Some(SERVICE), ..Traffic::default() };
        let fault = Fault::new(namespace, traffic, Duration::from_millis(delay.into()));
        let mut stream = namespace.connect(SERVICE);
        let count = if delay < 20 { 400 } else { 100 };
        let times = round_trips(&mut stream, count);
        let error = |time: f64| time - f64::from(delay) - bare;
        let (p50, p99) = (error(times[count / 2]), error(times[count * 99 / 100]));
        let peers = PEERS.map(|(name, errors, _)| format!("{name} +{} ms", errors[at])).join(", ");
        println!(
            "delay {delay:2} ms: error p50 {p50:+.3} ms, p99 {p99:+.3} ms   (p50 of {peers}; aim 0.1 ms)"
        );
        drop(fault);
    }
}

/// Bytes per second that one stream carries in the steady state.
fn stream(namespace: &Namespace, time: Duration) -> f64 {
    let mut stream = namespace.connect(SINK);
    let block = vec![0; 1 << 18];
    let warm = Instant::now();
    while warm.elapsed() < Duration::from_millis(700) {
        stream.write_all(&block).expect("write");
    }
    let (start, mut bytes) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        stream.write_all(&block).expect("write");
        bytes += block.len() as u64;
    }
    bytes as f64 / start.elapsed().as_secs_f64()
}

fn throughput(namespace: &Namespace) {
    let gbit = |bytes: f64| bytes * 8.0 / 1e9;
    let direct = gbit(stream(namespace, Duration::from_secs(2)));
    for delay in [1_u64, 10] {
        let traffic = Traffic { port: Some(SINK), ..Traffic::default() };
        let fault = Fault::new(namespace, traffic, Duration::from_millis(delay));
        let slow = gbit(stream(namespace, Duration::from_secs(3)));
        drop(fault);
        let peers = PEERS.map(|(name, _, share)| format!("{name} {share} without a delay")).join(", ");
        let share = slow / direct;
        println!(
            "one stream at {delay} ms: {slow:.2} Gbit/s of {direct:.2} direct, {share:.2}   ({peers}; aim 2 Gbit/s)"
        );
    }
}

/// Round trips of traffic that an installed fault does not match, with and without it in turn.
fn bystanders(namespace: &Namespace) {
    let mut stream = namespace.connect(OTHER);
    round_trips(&mut stream, 5000);
    let (mut with, mut without, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..24 {
        let mean = |stream: &mut TcpStream| {
            let times = round_trips(stream, 5000);
            // The slowest tenth is the scheduler's.
            times[..4500].iter().sum::<f64>() / 4500.0
        };
        let install = || {
            let traffic = Traffic { listen: Some(SERVICE), ..Traffic::default() };
            Fault::new(namespace, traffic, Duration::from_millis(10))
        };
        // Whoever goes first changes, so that a drift of the machine hits both.
        let (on, off) = if turn % 2 == 0 {
            let fault = install();
            let on = mean(&mut stream);
            drop(fault);
            (on, mean(&mut stream))
        } else {
            let off = mean(&mut stream);
            let fault = install();
            let on = mean(&mut stream);
            drop(fault);
            (on, off)
        };
        with.push(on);
        without.push(off);
        ratios.push(on / off);
    }
    ratios.sort_by(f64::total_cmp);
    let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64 * 1e3;
    let median = f64::midpoint(ratios[11], ratios[12]);
    println!(
        "traffic that does not match: {:.3} µs a round trip with a fault, {:.3} µs without; median of 24 ratios \
         {:+.2} %   (aim under 2 %)",
        mean(&with),
        mean(&without),
        (median - 1.0) * 100.0
    );
}
