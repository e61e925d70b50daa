//! Valid documents: what they become.

use std::{fs, net::IpAddr, time::Duration};

use vervet::{
    config::{ReadySource, Role, When},
    document::{self, Format, Kind, TEMPLATE_POLICY},
    experiment::{
        Check, Cidr, DelayEngine, Distribution, Excess, Existing, FaultSpec, Peer, Pick, Signal, Start,
    },
};

pub fn library() -> Vec<(String, String)> {
    let library = document::Library::new(concat!(env!("CARGO_MANIFEST_DIR"), "/experiments"));
    let path = |name: &str| library.dir.join(format!("{name}.toml")).display().to_string();
    let names = library.list().unwrap().into_iter().map(|entry| entry.name);
    names.map(|name| (path(&name), fs::read_to_string(path(&name)).unwrap())).collect()
}

/// The policy of a host with a little of everything.
pub const POLICY: &str = r#"
leashed = false
state = "/var/lib/vervet"
experiments = "/etc/vervet/experiments"

[api]
socket = "/run/vervet/vervet.sock"
listen = "0.0.0.0:7667"
tls = { cert = "/etc/vervet/crt", key = "/etc/vervet/key", client_ca = "/etc/vervet/ca" }
hosts = ["chaos.example.net"]

[[api.token]]
name = "ci"
role = "operator"
sha256 = "00000000000000000000000000000000000000000000000000000000000000FF"

[limits]
duration = "15m"
wait = "1m"
concurrent_runs = 2
targets_per_step = 4
headroom = { memory = "7.5%", pids = "0%" }

[network]
mark_mask = "0x00030000"

[[group]]
name = "checkout"
floor = "75%"
expected = 5
members = { cgroup = "system.slice/checkout.slice/", user = 33 }
ready = { http = "http://127.0.0.1:{port}/healthz", status = [200, 204], within = "400ms" }
poll = "250ms"
stale_after = "2s"
settle = "5s"
removal = { at_once = 2, every = "30s" }

[[group]]
name = "counted"
floor = 1
expected = 4
members = { name = "counted" }
stale_after = "9s"

[group.ready]
http = "http://127.0.0.1:9000/status"
headers = { Host = "shop.test" }
count = "/replicas/ready"
total = "/replicas/total"
within = "1s"

[group.ready.expect]
status = 200
headers = { Cache-Control = "no-store" }
json = { "/mode" = "live", "/age" = { at_most = 3 } }

[[group]]
name = "named"
floor = 1
expected = 4
members = { name = "named" }
ready = { dns = "checkout.service.consul", server = "127.0.0.1:8600", type = "SRV", within = "1s" }

[[group]]
name = "scraped"
floor = 1
expected = 4
members = { name = "scraped" }
settle = "30s"

[group.ready]
prometheus = "http://127.0.0.1:9090"
query = "sum(up{job='checkout'})"
fresh = "up{job='checkout'}"
max_age = "30s"
within = "1s"

[[group]]
name = "idle"
floor = 0
members = { name = "idle" }
ready = "tcp"

[[freeze]]
name = "the hour that comes twice"
from = "2026-11-01T01:30"
until = 2026-11-01T01:30:01
zone = "America/New_York"
"#;

#[test]
fn every_experiment_of_the_library_is_valid() {
    let files = library();
    assert!(files.len() >= 6, "{files:?}");
    for (file, text) in files {
        assert_eq!(document::kind_of(&text), Kind::Experiment, "{file}");
        if let Err(errors) = document::experiment(&text, &file, Format::Toml) {
            panic!("{}", errors.render(&text, false));
        }
    }
}

#[test]
fn the_template_is_a_valid_policy_that_is_leashed() {
    let mut policy = document::policy(TEMPLATE_POLICY, "vervet.toml").unwrap();
    assert!(policy.schedules.iter().all(|schedule| schedule.leashed), "{:?}", policy.schedules);
    policy.schedules.clear();
    let empty = document::policy("", "vervet.toml").unwrap();
    assert!(policy.leashed);
    assert_eq!(policy, empty, "what the template does not comment out are the defaults");
    assert_eq!(document::kind_of(TEMPLATE_POLICY), Kind::Policy);
}

/// Whoever takes the comments off must not meet an error.
#[test]
fn the_examples_in_the_template_are_valid() {
    let keys = |line: &str| line.contains(" = ") || line.starts_with("[[");
    let text: String = TEMPLATE_POLICY
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|line| keys(line)).unwrap_or(line).to_owned() + "\n")
        .collect();
    let policy = match document::policy(&text, "vervet.toml") {
        Ok(policy) => policy,
        Err(errors) => panic!("{}", errors.render(&text, false)),
    };
    assert_eq!((policy.groups.len(), policy.freezes.len(), policy.schedules.len()), (1, 4, 2));
    let defaults = document::policy("", "vervet.toml").unwrap();
    assert_eq!(policy.limits, defaults.limits, "commented defaults are the defaults");
    assert_eq!(policy.network, defaults.network);
    assert_eq!(policy.state, defaults.state);
    assert_eq!(policy.experiments, defaults.experiments);
    assert_eq!(policy.api.socket, defaults.api.socket);
}

/// What the manual shows is to be copied.
#[test]
fn the_examples_of_probes_in_the_manual_are_valid() {
    let manual = include_str!("../../docs/probes.md");
    let blocks = manual.split("```toml\n").skip(1).filter_map(|rest| rest.split_once("```"));
    let (mut probes, mut sources) = (0, 0);
    for (block, _) in blocks {
        let text = if block.starts_with("ready") {
            sources += 1;
            let group = "[[group]]\nname = \"g\"\nfloor = 1\nmembers = { name = \"g\" }\n";
            document::policy(&format!("{group}{block}"), "x").map(drop)
        } else {
            probes += 1;
            let step = "[[step]]\nname = \"s\"\nfault = \"kill\"\ntarget = { name = \"g\" }\n";
            let head = "title = \"t\"\nhypothesis = \"h\"\ngroups = [\"checkout\"]\n";
            document::experiment(&format!("{head}{block}{step}"), "x", Format::Toml).map(drop)
        };
        assert!(text.is_ok(), "{block}\n{}", text.unwrap_err());
    }
    assert_eq!((probes, sources), (5, 4));
}

#[test]
fn a_policy_is_read_whole() {
    let policy = document::policy(POLICY, "vervet.toml")
        .unwrap_or_else(|e| panic!("{}", e.render(POLICY, false)));
    assert!(!policy.leashed);
    assert_eq!(policy.api.tokens[0].role, Role::Operator);
    assert_eq!(policy.api.tokens[0].sha256[31], 0xff);
    assert_eq!(policy.limits.duration, Duration::from_mins(15));
    assert!((policy.limits.headroom.memory.get() - 7.5).abs() < f64::EPSILON);
    assert!((policy.limits.headroom.conntrack.get() - 10.0).abs() < f64::EPSILON, "the default");
    assert_eq!(policy.network.mark_mask, 0x0003_0000);
    let group = &policy.groups[0];
    assert_eq!((group.floor, group.expected), (4, Some(5)), "75% of 5, rounded up");
    assert_eq!(group.members.cgroup.as_deref(), Some("/system.slice/checkout.slice"));
    assert_eq!(group.members.user.as_deref(), Some("33"));
    assert!(matches!(&group.ready, ReadySource::Http(ask) if ask.status == [200, 204]));
    assert_eq!(group.removal.at_once, 2);
    let [counted, named, scraped] = [1, 2, 3].map(|at| &policy.groups[at].ready);
    let ReadySource::HttpCount { ask, count, total } = counted else { panic!("{counted:?}") };
    assert_eq!((count.as_str(), total.as_deref()), ("/replicas/ready", Some("/replicas/total")));
    assert_eq!(
        (ask.headers["Host"].as_str(), ask.answer["Cache-Control"].as_str()),
        ("shop.test", "no-store")
    );
    assert_eq!(ask.json.len(), 2);
    let ReadySource::Dns(question) = named else { panic!("{named:?}") };
    assert_eq!(question.server, Some("127.0.0.1:8600".parse().unwrap()));
    let ReadySource::Prometheus { server, query } = scraped else { panic!("{scraped:?}") };
    assert_eq!((server.max_age, query.as_str()), (Duration::from_secs(30), "sum(up{job='checkout'})"));
    let idle = &policy.groups[4];
    assert_eq!((idle.floor, idle.poll), (0, Duration::from_millis(250)));
    assert!(matches!(idle.ready, ReadySource::Tcp { port: None, .. }));
}

#[test]
fn an_ambiguous_hour_makes_a_freeze_longer() {
    let policy = document::policy(POLICY, "vervet.toml").unwrap();
    let When::Dates { from, until, .. } = &policy.freezes[0].when else { panic!("{policy:?}") };
    assert_eq!(from.to_string(), "2026-11-01T05:30:00Z", "01:30 in summer time");
    assert_eq!(until.to_string(), "2026-11-01T06:30:01Z", "01:30:01 in winter time");
}

#[test]
fn an_experiment_is_read_whole() {
    let text = r#"
title = "T"
hypothesis = """
Two
lines"""
groups = ["checkout"]

[[probe]]
name = "P"
group = "checkout"
expect = { ready = 3 }
every = "1m 30s"

[[step]]
name = "A"
fault = "kill"
target = { group = "checkout", pick = "50%", cmdline = "worker --id=[0-9]+" }
signal = "term"
then = { after = "1.5s" }

[[step]]
name = "B"
fault = "latency"
traffic = { to = ["10.0.0.0/8", "2001:db8::7", "db.example.net"], port = 5432 }
delay = "100ms"
jitter = "20ms"
distribution = "pareto"
engine = "tap"
duration = "60s"
start = "with previous"

[[step]]
name = "C"
fault = "connections"
traffic = { from = "::/0", listen = 8080 }
new_per_second = 0
duration = "60s"
charge = 1
"#;
    let experiment = document::experiment(text, "x.toml", Format::Toml)
        .unwrap_or_else(|errors| panic!("{}", errors.render(text, false)));
    assert_eq!(experiment.recovery, Duration::from_secs(30), "the default");
    assert_eq!(experiment.probes[0].every, Duration::from_secs(90));
    assert!(matches!(experiment.probes[0].check, Check::Group { ready: 3, .. }));
    let FaultSpec::Kill(kill) = &experiment.steps[0].fault else { panic!("not a kill") };
    assert_eq!(kill.signal, Signal::TERM);
    assert_eq!(kill.then.map(|then| (then.signal, then.after.as_millis())), Some((Signal::KILL, 1500)));
    assert!(matches!(kill.target.pick, Pick::Percent(half) if (half.get() - 50.0).abs() < 1e-9));
    let FaultSpec::Latency(latency) = &experiment.steps[1].fault else { panic!("not a latency") };
    let block = |address: &str, prefix| {
        Peer::Block(Cidr { address: address.parse::<IpAddr>().unwrap(), prefix })
    };
    let peers =
        [block("10.0.0.0", 8), block("2001:db8::7", 128), Peer::Name("db.example.net".to_owned())];
    assert_eq!(latency.traffic.to, peers);
    assert_eq!(latency.engine, Some(DelayEngine::Tap));
    assert_eq!(latency.distribution, Distribution::Pareto);
    assert_eq!(experiment.steps[1].start, Start::WithPrevious);
    let FaultSpec::Connections(cap) = &experiment.steps[2].fault else { panic!("not a cap") };
    assert_eq!((cap.max, cap.new_per_second), (None, Some(0)));
    assert_eq!((cap.excess, cap.existing), (Excess::Reset, Existing::Keep), "the defaults");
    assert_eq!(experiment.steps[2].charge, 1);
}

#[test]
fn what_a_policy_would_refuse_is_shown_at_its_place() {
    let policy = document::policy(
        "[limits]\nduration = \"1m\"\ntargets_per_step = 2\n[[group]]\nname = \"checkout\"\nfloor = 1\n\
         expected = 2\nmembers = { listen = 8080 }\n",
        "vervet.toml",
    )
    .unwrap();
    let text = "title = \"T\"\nhypothesis = \"H\"\ngroups = [\"checkout\", \"chekout\"]\n\
        [[probe]]\nname = \"P\"\ngroup = \"checkout\"\nexpect = { ready = 3 }\n\
        [[step]]\nname = \"S\"\nfault = \"kill\"\ntarget = { group = \"checkout\", pick = 3 }\nduration = \"2m\"\n";
    let experiment = document::experiment(text, "x.toml", Format::Toml).unwrap();
    let errors =
        document::check_against(&policy, &experiment, text, "x.toml", Format::Toml).unwrap_err();
    let shown: Vec<String> = errors.to_string().lines().map(str::to_owned).collect();
    assert_eq!(
        shown,
        [
            "x.toml:3:23: groups[1]: this host's policy declares no group `chekout` (did you mean \"checkout\"?)",
            "x.toml:7:20: probe[0].expect.ready: group `checkout` is expected to have 2 instances, never 3",
            "x.toml:11:39: step[0].target.pick: this host's policy allows 2 targets in a step, not 3 (the limit is `limits.targets_per_step`)",
            "x.toml:12:12: step[0].duration: 2m is longer than this host's policy allows a step: 1m (the limit is `limits.duration`)",
        ]
    );
}

#[test]
fn bytes_that_are_no_text_are_named_by_offset_and_line() {
    let error = document::text_from_bytes(b"title = \"T\"\n\xc3\xa9 = \xff\n", "x.toml").unwrap_err();
    assert_eq!(
        error.to_string(),
        "x.toml:2:5: byte 17 (line 2, 0xff) is not valid UTF-8 (documents are UTF-8 text)"
    );
    let large = vec![b' '; document::LARGEST + 1];
    let error = document::text_from_bytes(&large, "x.toml").unwrap_err();
    assert!(error.to_string().contains("1048577 bytes are too many"), "{error}");
    let text = String::from_utf8(large).unwrap();
    assert!(document::policy(&text, "x.toml").is_err());
}

#[test]
fn documents_made_to_exhaust_are_refused_quickly() {
    let key = "k".repeat(300_000);
    let hostile = [
        format!("{key} = [{}]", "1,".repeat(200_000)),
        format!("a = {}1{}", "[".repeat(5_000), "]".repeat(5_000)),
        (0..60_000).fold(String::new(), |text, n| text + &format!("unknown{n} = 1\n")),
        (0..15_000).fold(String::new(), |text, n| text + &format!("unknown{n} = 1\n")),
        format!("step = [{}]", "{},".repeat(15_000)),
        format!("step = [{}]\nx = \"{}\"", "{},".repeat(60), "x".repeat(500_000)),
        format!("probe = [{}\"{}\"]", "{},".repeat(60), "x".repeat(900_000)),
        format!("title = \"{}\"\n", "x".repeat(900_000)),
    ];
    for text in hostile {
        let began = std::time::Instant::now();
        let errors = document::experiment(&text, "x.toml", Format::Toml).unwrap_err();
        assert!((1..=101).contains(&errors.items.len()), "{}", errors.items.len());
        let shown = errors.render(&text, false);
        assert!(shown.len() < 200_000, "{} bytes of messages", shown.len());
        assert!(began.elapsed().as_secs() < 5, "{} bytes took {:?}", text.len(), began.elapsed());
    }
    for text in ["[".repeat(100_000), format!("[{}1]", "1,".repeat(200_000))] {
        document::experiment(&text, "x.json", Format::Json).unwrap_err();
    }
}
