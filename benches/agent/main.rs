//! The promises of speed and thrift, through the real agent on its socket.
//!
//! `cargo bench --bench agent [-- SECTION…]`, as root: everything happens in a private network namespace,
//! to processes of the bench's own. Sections: `start`, `api`, `inject`, `death`, `halt`, `idle`.

use std::{
    io::Read as _,
    net::TcpListener,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

mod client;
mod eye;
mod rig;

use eye::{Eye, Seen};
use rig::{Agent, Namespace, Services, Workers, load};

/// Active faults when the lever is pulled, and journal entries that a start finds open.
const MANY: u16 = 1000;
/// The argument that makes this program the services.
const SERVE: &str = "serve";
const SERVED: u16 = 8080;
/// Steps of one experiment, at most.
const STEPS: u16 = 64;

type Section = fn(&Namespace);

const SECTIONS: [(&str, Section); 6] = [
    ("start", start),
    ("api", api),
    ("inject", inject),
    ("death", death),
    ("halt", halt),
    ("idle", idle),
];

fn main() {
    if std::env::args().nth(1).as_deref() == Some(SERVE) {
        return serve();
    }
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let Some(namespace) = Namespace::new() else { return };
    let _services = Services::new(&namespace);
    for (name, section) in SECTIONS {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            println!("{name} (load {})", load());
            section(&namespace);
        }
    }
}

/// Listens for what faults are for, until the bench is gone. Nobody needs to call it.
fn serve() {
    let _listening =
        [SERVED, SERVED + 1].map(|port| TcpListener::bind(("127.0.0.1", port)).expect("a port"));
    println!("listening");
    let _ = std::io::stdin().read(&mut [0]);
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Times in order, in milliseconds.
struct Times(Vec<f64>);

impl Times {
    fn new(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut times: Vec<f64> = times.into_iter().map(ms).collect();
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    fn at(&self, percent: usize) -> f64 {
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }

    fn line(&self) -> String {
        format!(
            "p50 {:8.3}  p90 {:8.3}  p99 {:8.3}  max {:8.3} ms  (n = {})",
            self.at(50),
            self.at(90),
            self.at(99),
            self.at(100),
            self.0.len()
        )
    }
}

fn experiment(groups: &[&str], steps: &[Value]) -> Value {
    json!({ "title": "bench", "hypothesis": "It is fast", "groups": groups, "step": steps })
}

fn cap(at: u16, port: u16) -> Value {
    // Half of them on each side: a hook has room for 1,024 chains.
    let side = if at.is_multiple_of(2) { "listen" } else { "port" };
    let mut step = json!({
        "name": format!("cap {at}"), "fault": "connections", "traffic": { side: port }, "max": 1, "duration": "10m",
    });
    if at > 0 {
        step["start"] = json!("with previous");
    }
    step
}

fn latency() -> Value {
    json!({
        "name": "slow", "fault": "latency", "traffic": { "listen": SERVED }, "delay": "20ms", "duration": "1m",
        "engine": "tap",
    })
}

/// A group that comes back from an abort as soon as it may.
const BRISK: &str = "poll = \"50ms\"\nsettle = \"20ms\"\nremoval = { at_once = 4, every = \"10ms\" }";

fn start(namespace: &Namespace) {
    let workers = Workers::new(1);
    let mut agent = Agent::new(namespace, &workers.group("workers", ""));
    let times = Times::new((0..15).map(|_| {
        agent.stop();
        agent.start()
    }));
    println!("  start to ready                     {}   aim 50 ms", times.line());
}

fn api(namespace: &Namespace) {
    let workers = Workers::new(1);
    let agent = Agent::new(namespace, &workers.group("workers", ""));
    agent.until_sound();
    for path in ["/healthz", "/v1/host", "/v1/groups"] {
        let mut client = agent.client();
        let times = Times::new((0..2000).map(|_| {
            let began = Instant::now();
            client.get(path).expect("an answer");
            began.elapsed()
        }));
        println!("  GET {path:<30} {}   aim p50 1 ms", times.line());
    }
}

/// What a shell runs for the fault of [`latency`]: without its delay line, which no tool has.
const SHELL_LATENCY: &str = r#"
sysctl -qw net.ipv4.conf.lo.route_localnet=1 net.ipv4.conf.lo.accept_local=1
ip tuntap add dev bench0 mode tap vnet_hdr
ip link set bench0 up
tc qdisc add dev lo clsact
tc filter add dev lo egress protocol all prio 49000 bpf bytecode \
  '5,32 0 0 4294963220,84 0 0 4278190080,21 0 1 16777216,6 0 0 4294967295,6 0 0 0' \
  action mirred egress redirect dev bench0
nft -f - <<'END'
table inet bench {
  counter matched { }
  counter affected { }
  set lease { type nf_proto; flags timeout; elements = { ipv4 timeout 2s, ipv6 timeout 2s } }
  set slowed { type iface_index; flags constant; elements = { "lo" } }
  chain body {
    meta nfproto != @lease return
    meta oif @slowed counter name matched meta mark set mark & 0x00ffffff | 0x01000000
  }
  chain output { type filter hook output priority -140; tcp sport 8080 goto body; }
}
END
"#;

const SHELL_CAP: &str = r"
nft -f - <<'END'
table inet bench {
  counter matched { }
  counter affected { }
  set lease { type nf_proto; flags timeout; elements = { ipv4 timeout 2s, ipv6 timeout 2s } }
  set known4 { type ipv4_addr . inet_service; size 65536; flags dynamic,timeout; }
  set known6 { type ipv6_addr . inet_service; size 65536; flags dynamic,timeout; }
  chain judge { tcp flags & (syn|ack) == syn ct count over 1 counter name affected reject with tcp reset; }
  chain body {
    meta nfproto != @lease return
    tcp flags & (syn|ack) == syn counter name matched
    tcp flags & (syn|ack) == syn add @known4 { ip saddr . tcp sport timeout 1h }
    tcp flags & (syn|ack) == syn add @known6 { ip6 saddr . tcp sport timeout 1h }
    tcp flags & (syn|ack) == syn goto judge
    ip saddr . tcp sport != @known4 add @known4 { ip saddr . tcp sport timeout 1h } goto judge
    ip6 saddr . tcp sport != @known6 add @known6 { ip6 saddr . tcp sport timeout 1h } goto judge
  }
  chain input { type filter hook input priority 0; tcp dport 8080 goto body; }
}
END
";

const SHELL_CLEAN: &str = "nft delete table inet bench; tc qdisc del dev lo clsact 2>/dev/null || true; \
    ip link del bench0 2>/dev/null || true; \
    sysctl -qw net.ipv4.conf.lo.route_localnet=0 net.ipv4.conf.lo.accept_local=0";

/// From the call to the kernel's word that the table is in force; a journal commit is in it, for the shell not.
fn inject(namespace: &Namespace) {
    let workers = Workers::new(1);
    let agent = Agent::new(namespace, &workers.group("workers", BRISK));
    agent.until_sound();
    let eye = Eye::open(namespace);
    for (name, step, script) in
        [("latency (tap)", latency(), SHELL_LATENCY), ("connections", cap(0, SERVED), SHELL_CAP)]
    {
        let experiment = experiment(&["workers"], &[step]);
        let (mut ours, mut told, mut shell) = (Vec::new(), Vec::new(), Vec::new());
        for turn in 0..21 {
            let mut client = agent.client();
            eye.clear();
            let began = Instant::now();
            let run = client.run(&experiment);
            let mut events = agent.client().events(&run);
            let injected = events.until("injected", 1);
            let made = eye.until(Seen::Made, 1);
            client.call("DELETE", &format!("/v1/runs/{run}"), None).expect("an answer");
            eye.until(Seen::Gone, 1);
            let called = Instant::now();
            assert!(namespace.script(script), "the script");
            let scripted = eye.until(Seen::Made, 1) - called;
            assert!(namespace.script(SHELL_CLEAN), "its end");
            eye.until(Seen::Gone, 1);
            // The first of each warms caches.
            if turn > 0 {
                ours.push(made - began);
                told.push(injected - began);
                shell.push(scripted);
            }
        }
        let (ours, told, shell) = (Times::new(ours), Times::new(told), Times::new(shell));
        println!("  {name:<14} call to in force      {}", ours.line());
        println!("  {name:<14} call to event         {}", told.line());
        println!("  {name:<14} shell to in force     {}", shell.line());
        println!("  {name:<14} {:.1} times as fast at p50   aim 10", shell.at(50) / ours.at(50));
    }
}

/// From the SIGKILL that takes a group below its floor to the end of the last fault.
fn death(namespace: &Namespace) {
    let mut workers = Workers::new(1);
    let agent = Agent::new(namespace, &workers.group("workers", BRISK));
    let eye = Eye::open(namespace);
    let experiment = experiment(&["workers"], &[latency(), cap(1, SERVED + 1)]);
    let (mut ended, mut told) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        workers.fill();
        agent.until_sound();
        eye.clear();
        let run = agent.client().run(&experiment);
        let mut events = agent.client().events(&run);
        events.until("injected", 2);
        eye.until(Seen::Made, 2);
        let [first, second, ..] = &mut workers.children[..] else { unreachable!("four workers") };
        first.kill().expect("killed");
        let killed = Instant::now();
        second.kill().expect("killed");
        ended.push(eye.until(Seen::Gone, 2) - killed);
        told.push(events.until("undone", 2) - killed);
        events.until("finished", 1);
    }
    println!("  death to the last effect ended     {}   aim p99 10 ms", Times::new(ended).line());
    println!("  death to the last event `undone`   {}", Times::new(told).line());
    println!("  (load at the end {})", load());
}

/// [`MANY`] caps in force.
fn crowd(agent: &Agent<'_>) -> Duration {
    let began = Instant::now();
    let mut client = agent.client();
    for first in (0..MANY).step_by(STEPS.into()) {
        let steps: Vec<Value> = (0..STEPS.min(MANY - first)).map(|at| cap(at, SERVED)).collect();
        client.run(&experiment(&[], &steps));
    }
    agent.until("/v1/faults", |faults| {
        let in_force = |fault: &&Value| fault["state"] == "in_force";
        faults["faults"]
            .as_array()
            .is_some_and(|all| all.iter().filter(in_force).count() == usize::from(MANY))
    });
    began.elapsed()
}

fn halt(namespace: &Namespace) {
    let workers = Workers::new(1);
    let mut agent = Agent::new(namespace, &workers.group("workers", ""));
    agent.until_sound();
    let eye = Eye::open(namespace);
    let took = crowd(&agent);
    println!("  {MANY} faults in force after        {:8.1} ms (load {})", ms(took), load());
    let mut client = agent.client();
    eye.clear();
    let began = Instant::now();
    let (status, answer) =
        client.call("PUT", "/v1/halt", Some(&json!({ "reason": "bench" }))).expect("an answer");
    let answered = began.elapsed();
    assert_eq!(status, 200, "{answer:#}");
    let gone = eye.until(Seen::Gone, MANY.into()) - began;
    println!("  halt of {MANY}: effects ended        {:8.1} ms   aim 50 ms", ms(gone));
    println!("  halt of {MANY}: answered             {:8.1} ms   aim 50 ms", ms(answered));
    let (status, answer) = agent.client().call("DELETE", "/v1/halt", None).expect("an answer");
    assert_eq!(status, 200, "{answer:#}");
    agent.until("/v1/faults", |faults| faults["faults"].as_array().is_some_and(Vec::is_empty));
    crowd(&agent);
    agent.slay();
    eye.clear();
    let took = agent.start();
    println!("  start to ready, {MANY} to revert    {:8.1} ms   aim 1000 ms", ms(took));
    let tables = namespace.script("test -z \"$(nft list tables)\"");
    assert!(tables, "nothing is left");
}

fn idle(namespace: &Namespace) {
    let (one, two) = (Workers::new(1), Workers::new(2));
    let groups = one.group("one", "") + &two.group("two", "");
    let agent = Agent::new(namespace, &groups);
    agent.until_sound();
    std::thread::sleep(Duration::from_secs(2));
    let time = Duration::from_secs(10);
    let all = [("agent", agent.pid())]
        .into_iter()
        .chain(agent.wardens().into_iter().map(|pid| ("warden", pid)));
    let before: Vec<_> = all.map(|(name, pid)| (name, pid, eye::effort(pid))).collect();
    std::thread::sleep(time);
    for (name, pid, (switches, nanos, _)) in before {
        let (later, used, threads) = eye::effort(pid);
        let (pss, anonymous) = eye::memory(pid);
        println!(
            "  {name:<8} PSS {:.2} MiB ({:.2} anonymous), {threads} threads, {:.1} wake-ups/s, {:.0} ms of CPU a minute   aim 8 MiB",
            pss as f64 / 1024.0,
            anonymous as f64 / 1024.0,
            (later - switches) as f64 / time.as_secs_f64(),
            (used - nanos) as f64 / 1e6 / time.as_secs_f64() * 60.0,
        );
    }
}
