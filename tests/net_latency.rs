//! Added delay on the real kernel, in private namespaces.

mod net_support;

use std::{net::UdpSocket, time::Duration};

use net_support::{
    LEASE, Ns, delay_of, install, listen, ms, pair, peer, ping, restore, spec, wait_until, word,
};
use vervet::{
    experiment::{DelayEngine, Distribution, Percent, Protocol, Traffic},
    host::{HostError, NetAction, linux::net::Net},
};

#[test]
fn a_port_is_slow_over_both_families_and_its_neighbour_is_not() {
    let Some(ns) = Ns::new("a_port_is_slow_over_both_families_and_its_neighbour_is_not") else { return };
    ns.echo(8080);
    ns.echo(8081);
    let net = Net::new();
    let before = ns.state();
    let plan = install(&net, &spec(&ns, "a1", listen(8080), delay_of(20)));
    for address in ["127.0.0.1", "[::1]"] {
        let slow = ms(ns.round_trip(&format!("{address}:8080")));
        let quick = ms(ns.round_trip(&format!("{address}:8081")));
        assert!((20.0..23.0).contains(&slow), "{address}: {slow} ms");
        assert!(quick < 2.0, "{address}: {quick} ms on the other port");
        net.renew(&[(&plan, LEASE)]).remove(0).expect("renew");
    }
    let counters = net.counters(&plan).expect("counters");
    assert!(counters.in_place && counters.affected >= 14, "{counters:?}");
    let mean = Duration::from_micros(counters.mean_delay_us.expect("a mean"));
    assert!((20.0..21.0).contains(&ms(mean)), "{mean:?}");
    restore(&net, &plan);
    assert!(ms(ns.round_trip("127.0.0.1:8080")) < 2.0);
    assert_eq!(before, ns.state());
}

#[test]
fn a_delay_device_says_nothing_of_its_own() {
    let Some((left, _right)) = pair("a_delay_device_says_nothing_of_its_own") else { return };
    let net = Net::new();
    let plan = install(&net, &spec(&left, "a3", listen(9), delay_of(1)));
    // As long as a new device's neighbour and router solicitations would take to come.
    std::thread::sleep(Duration::from_millis(1500));
    let counters = net.counters(&plan).expect("counters");
    assert!(counters.in_place && counters.affected == 0, "{counters:?}");
    restore(&net, &plan);
}

#[test]
fn what_is_installed_is_what_nft_and_tc_show() {
    let Some(ns) = Ns::new("what_is_installed_is_what_nft_and_tc_show") else { return };
    let net = Net::new();
    let plan = install(&net, &spec(&ns, "a2", listen(8080), delay_of(20)));
    let nft = ns.nft();
    for words in [
        "table inet vervet_a2",
        "comment \"vervet fault a2\"",
        "type filter hook output priority mangle + 10; policy accept;",
        "tcp sport 8080 goto body",
        "meta nfproto != @lease return",
        "oif @slowed counter name \"matched\" meta mark set meta mark & 0xff01ffff | 0x00010000",
        "elements = { \"lo\" }",
    ] {
        assert!(nft.contains(words), "{words} not in {nft}");
    }
    let filters: serde_json::Value =
        serde_json::from_str(&ns.exec("tc", &["-j", "filter", "show", "dev", "lo", "egress"]))
            .expect("json");
    let text = filters.to_string();
    assert!(text.contains("vva20") && text.contains("redirect"), "{text}");
    assert_eq!(filters[0]["pref"], 0x7601);
    // Planning again shows the same words.
    let again = net.plan(&spec(&ns, "ff", listen(8080), delay_of(20)), &[]).expect("plan");
    assert_eq!(plan.rules, again.rules);
    restore(&net, &plan);
}

#[test]
fn only_the_named_peers_are_slow() {
    let Some(ns) = Ns::new("only_the_named_peers_are_slow") else { return };
    ns.echo(8080);
    let net = Net::new();
    let to = |block| Traffic { to: vec![peer(block)], port: Some(8080), ..Traffic::default() };
    let both = Traffic { to: vec![peer("127.9.0.0/16"), peer("::1/128")], ..to("127.0.0.2/32") };
    let before = ns.state();
    for (id, traffic, slow, quick) in [
        ("b1", to("127.0.0.2/32"), vec!["127.0.0.2"], vec!["127.0.0.1", "127.0.0.3", "[::1]"]),
        ("b2", both, vec!["127.9.3.4", "[::1]"], vec!["127.0.0.2", "127.10.0.1"]),
        ("b3", to("0.0.0.0/0"), vec!["127.0.0.1"], vec!["[::1]"]),
        ("b4", to("::/0"), vec!["[::1]"], vec!["127.0.0.1"]),
    ] {
        let plan = install(&net, &spec(&ns, id, traffic, delay_of(10)));
        let took =
            |address: &&str| ((*address).to_owned(), ms(ns.round_trip(&format!("{address}:8080"))));
        let (slow, quick): (Vec<_>, Vec<_>) =
            (slow.iter().map(took).collect(), quick.iter().map(took).collect());
        assert!(slow.iter().all(|(_, time)| (10.0..13.0).contains(time)), "{id}: {slow:?}");
        assert!(quick.iter().all(|(_, time)| *time < 2.0), "{id}: {quick:?}");
        restore(&net, &plan);
    }
    assert_eq!(before, ns.state());
}

#[test]
fn a_real_link_is_slow_and_its_qdisc_stays() {
    let Some((left, right)) = pair("a_real_link_is_slow_and_its_qdisc_stays") else { return };
    right.echo(8080);
    let tbf = [
        "qdisc", "add", "dev", "veth0", "root", "tbf", "rate", "1gbit", "burst", "1mb", "latency",
        "50ms",
    ];
    left.exec("tc", &tbf);
    let before = left.state();
    let net = Net::new();
    let traffic = Traffic { port: Some(8080), ..Traffic::default() };
    let plan = install(&net, &spec(&left, "c1", traffic, delay_of(15)));
    assert_eq!(plan.devices, ["lo", "veth0"]);
    for address in ["10.99.0.2", "[fd99::2]"] {
        let slow = ms(left.round_trip(&format!("{address}:8080")));
        assert!((15.0..18.0).contains(&slow), "{address}: {slow} ms");
    }
    assert!(left.exec("tc", &["qdisc"]).contains("tbf"));
    restore(&net, &plan);
    let named = Traffic { interface: Some("veth0".to_owned()), ..Traffic::default() };
    let plan = install(&net, &spec(&left, "c2", named, delay_of(15)));
    assert_eq!(plan.devices, ["veth0"]);
    assert!(plan.everything);
    assert!(ms(left.round_trip("10.99.0.2:8080")) >= 15.0);
    restore(&net, &plan);
    assert_eq!(before, left.state());
}

#[test]
fn segments_of_64_kib_pass_whole_and_unharmed() {
    let Some((left, right)) = pair("segments_of_64_kib_pass_whole_and_unharmed") else { return };
    right.echo(8080);
    let net = Net::new();
    let traffic = Traffic { port: Some(8080), ..Traffic::default() };
    let plan = install(&net, &spec(&left, "d1", traffic, delay_of(5)));
    let mut stream = left.connect("10.99.0.2:8080").expect("connect");
    let data: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[at as usize % 3]).collect();
    let (mut writer, sent) = (stream.try_clone().expect("clone"), data.clone());
    let writing = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &sent));
    let mut back = vec![0; data.len()];
    std::io::Read::read_exact(&mut stream, &mut back).expect("read");
    writing.join().expect("join").expect("write");
    assert!(back == data);
    let affected = net.counters(&plan).expect("counters").affected;
    assert!(affected < 3_000_000 / 4_000, "{affected} frames: segments were cut up");
    restore(&net, &plan);
}

#[test]
fn jitter_spreads_around_the_delay() {
    let Some(ns) = Ns::new("jitter_spreads_around_the_delay") else { return };
    ns.echo(8080);
    let net = Net::new();
    let NetAction::Delay { seed, engine, .. } = delay_of(0) else { unreachable!() };
    let action = NetAction::Delay {
        delay: Duration::from_millis(10),
        jitter: Duration::from_millis(8),
        correlation: Percent::ZERO,
        distribution: Distribution::Uniform,
        seed,
        engine,
    };
    let plan = install(&net, &spec(&ns, "e1", listen(8080), action));
    let mut stream = ns.connect("127.0.0.1:8080").expect("connect");
    let times: Vec<f64> = (0..100).map(|_| ms(ping(&mut stream))).collect();
    let (low, high) = times.iter().fold((f64::MAX, f64::MIN), |(l, h), t| (l.min(*t), h.max(*t)));
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    assert!(low > 1.9 && low < 6.0 && high > 14.0 && (8.0..13.0).contains(&mean), "{low} {mean} {high}");
    restore(&net, &plan);
}

#[test]
fn datagrams_and_pings_are_slowed_by_protocol() {
    let Some(ns) = Ns::new("datagrams_and_pings_are_slowed_by_protocol") else { return };
    ns.udp_echo(5353);
    ns.echo(5353);
    let net = Net::new();
    let udp = Traffic { protocol: Some(Protocol::Udp), ..listen(5353) };
    let plan = install(&net, &spec(&ns, "f1", udp, delay_of(10)));
    let client = ns.run(|| UdpSocket::bind("127.0.0.1:0").expect("bind"));
    client.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
    let start = std::time::Instant::now();
    client.send_to(b"x", "127.0.0.1:5353").expect("send");
    client.recv(&mut [0; 8]).expect("answer");
    assert!((10.0..13.0).contains(&ms(start.elapsed())), "{:?}", start.elapsed());
    assert!(ms(ns.round_trip("127.0.0.1:5353")) < 2.0, "TCP is not UDP");
    restore(&net, &plan);
}

#[test]
fn the_way_out_stays_quick_when_everything_is_slow() {
    let Some(ns) = Ns::new("the_way_out_stays_quick_when_everything_is_slow") else { return };
    for port in [22, 7667, 8080] {
        ns.echo(port);
    }
    let net = Net::new();
    let all = Traffic { to: vec![peer("0.0.0.0/0"), peer("::/0")], ..Traffic::default() };
    let plan = install(&net, &spec(&ns, "g1", all, delay_of(20)));
    assert!(ms(ns.round_trip("127.0.0.1:8080")) >= 40.0, "both ways are slow");
    for port in [22, 7667] {
        assert!(ms(ns.round_trip(&format!("127.0.0.1:{port}"))) < 2.0, "port {port}");
        assert!(ms(ns.round_trip(&format!("[::1]:{port}"))) < 2.0, "port {port} over IPv6");
    }
    restore(&net, &plan);
    for port in [22, 7667] {
        let error = net.plan(&spec(&ns, "g2", listen(port), delay_of(20)), &[]).expect_err("exempt");
        assert!(matches!(&error, HostError::Unavailable(why) if why.contains("way out")), "{error}");
    }
}

#[test]
fn only_vervets_bits_of_a_mark_change() {
    let Some(ns) = Ns::new("only_vervets_bits_of_a_mark_change") else { return };
    ns.echo(8080);
    ns.exec(
        "nft",
        &[
            "table inet foreign { chain before { type filter hook output priority -200; meta mark set 0x12000034; }; \
             chain after { type filter hook output priority 100; tcp sport 8080 meta mark 0x12010034 counter; \
             tcp dport 8080 meta mark 0x12000034 counter; meta mark != { 0x12010034, 0x12000034 } counter drop; }; }",
        ],
    );
    let net = Net::new();
    let before = ns.exec("nft", &["-s", "-j", "list", "ruleset"]);
    let plan = install(&net, &spec(&ns, "h1", listen(8080), delay_of(10)));
    assert!(ms(ns.round_trip("127.0.0.1:8080")) >= 10.0);
    let rules = ns.exec("nft", &["list", "table", "inet", "foreign"]);
    let zero = rules.matches("packets 0").count();
    assert_eq!(zero, 1, "only the drop is idle: {rules}");
    restore(&net, &plan);
    assert_eq!(before, ns.exec("nft", &["-s", "-j", "list", "ruleset"]));
}

#[test]
fn only_the_users_traffic_is_slow() {
    let Some(ns) = Ns::new("only_the_users_traffic_is_slow") else { return };
    ns.echo(8080);
    let net = Net::new();
    for (user, slow) in [("root", true), ("0", true), ("54321", false)] {
        let traffic = Traffic { user: Some(user.to_owned()), ..listen(8080) };
        let plan = install(&net, &spec(&ns, "i1", traffic, delay_of(10)));
        assert_eq!(ms(ns.round_trip("127.0.0.1:8080")) >= 10.0, slow, "{user}");
        restore(&net, &plan);
    }
    let nobody = Traffic { user: Some("no-such-user".to_owned()), ..listen(8080) };
    let error = net.plan(&spec(&ns, "i2", nobody, delay_of(1)), &[]).expect_err("no such user");
    assert!(matches!(error, HostError::NotFound(_)), "{error}");
}

/// Started by the test below inside of a cgroup: an echo server.
#[test]
#[ignore = "a helper process of another test"]
fn serve_in_a_cgroup() {
    let Some(word) = word() else { return };
    let (namespace, cgroup) = word.split_once(' ').expect("two words");
    std::fs::write(format!("{cgroup}/cgroup.procs"), std::process::id().to_string()).expect("join");
    let ns = std::mem::ManuallyDrop::new(Ns { name: namespace.to_owned() });
    ns.echo(8080);
    // Ends with its standard input, that is with the test.
    let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
}

#[test]
fn only_the_cgroups_traffic_is_slow() {
    let test = "only_the_cgroups_traffic_is_slow";
    let Some(ns) = Ns::new(test) else { return };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let unified = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let Some(mount) = unified.and_then(|line| line.split(' ').nth(4)) else {
        eprintln!("SKIPPED: {test}: no cgroup2");
        return;
    };
    let parent = format!("{mount}/vvtest-{}", std::process::id());
    let inner = format!("{parent}/inner");
    if let Err(error) = std::fs::create_dir_all(&inner) {
        eprintln!("SKIPPED: {test}: {inner}: {error}");
        return;
    }
    let mut server = helper_with_stdin("serve_in_a_cgroup", &format!("{} {inner}", ns.name));
    ns.echo(8081);
    wait_until(Duration::from_secs(5), || ns.connect("127.0.0.1:8080").is_ok());
    let net = Net::new();
    let name = format!("vvtest-{}", std::process::id());
    let traffic = Traffic { cgroup: Some(format!("/{name}")), ..Traffic::default() };
    let plan = install(&net, &spec(&ns, "j1", traffic, delay_of(10)));
    let (slow, quick) = (ns.round_trip("127.0.0.1:8080"), ns.round_trip("127.0.0.1:8081"));
    restore(&net, &plan);
    server.kill().expect("end the server");
    server.wait().expect("reap the server");
    let removed = std::fs::remove_dir(&inner).and_then(|()| std::fs::remove_dir(&parent));
    removed.expect("remove the cgroups");
    assert!(ms(slow) >= 10.0 && ms(quick) < 2.0, "{slow:?} {quick:?}");
}

/// A slice of the test's own with units in it, at two depths.
struct Units {
    mount: String,
    slice: String,
}

impl Units {
    fn new(test: &str) -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let unified = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let Some(mount) = unified.and_then(|line| line.split(' ').nth(4)) else {
            eprintln!("SKIPPED: {test}: no cgroup2");
            return None;
        };
        let units =
            Self { mount: mount.to_owned(), slice: format!("vvtest-{}.slice", std::process::id()) };
        match std::fs::create_dir_all(units.path("")) {
            Ok(()) => Some(units),
            Err(error) => {
                eprintln!("SKIPPED: {test}: {}: {error}", units.path(""));
                None
            }
        }
    }

    fn path(&self, unit: &str) -> String {
        format!("{}/{}/{unit}", self.mount, self.slice)
    }

    /// Starts a unit: a cgroup, and an echo server in it.
    fn start(&self, ns: &Ns, unit: &str, port: u16) -> std::process::Child {
        std::fs::create_dir_all(self.path(unit)).expect("make the cgroup");
        let child =
            helper_with_stdin("serve_in_a_unit", &format!("{} {} {port}", ns.name, self.path(unit)));
        wait_until(Duration::from_secs(10), || ns.connect(&format!("127.0.0.1:{port}")).is_ok());
        child
    }

    fn stop(&self, unit: &str, child: &mut std::process::Child) {
        child.kill().expect("end the server");
        child.wait().expect("reap the server");
        wait_until(Duration::from_secs(5), || std::fs::remove_dir(self.path(unit)).is_ok());
    }
}

impl Drop for Units {
    fn drop(&mut self) {
        let dirs =
            |path: &str| std::fs::read_dir(path).into_iter().flatten().flatten().collect::<Vec<_>>();
        for entry in dirs(&self.path("")) {
            for inner in dirs(&entry.path().display().to_string()) {
                let _ = std::fs::remove_dir(inner.path());
            }
            let _ = std::fs::remove_dir(entry.path());
        }
        let _ = std::fs::remove_dir(self.path(""));
    }
}

#[test]
#[ignore = "a helper process of another test"]
fn serve_in_a_unit() {
    let Some(word) = word() else { return };
    let words: Vec<&str> = word.split(' ').collect();
    let [namespace, cgroup, port] = words[..] else { panic!("three words") };
    std::fs::write(format!("{cgroup}/cgroup.procs"), std::process::id().to_string()).expect("join");
    let ns = std::mem::ManuallyDrop::new(Ns { name: namespace.to_owned() });
    ns.echo(port.parse().expect("a port"));
    let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
}

#[test]
fn traffic_of_units_is_slow_at_every_depth_and_after_they_start_anew() {
    let test = "traffic_of_units_is_slow_at_every_depth_and_after_they_start_anew";
    let Some(ns) = Ns::new(test) else { return };
    let Some(units) = Units::new(test) else { return };
    let me = std::process::id();
    let (flat, deep) =
        (format!("vvshop-{me}@1.service"), format!("vvtest-deep.slice/vvshop-{me}@2.service"));
    let mut first = units.start(&ns, &flat, 8080);
    let mut second = units.start(&ns, &deep, 8081);
    let mut other = units.start(&ns, &format!("vvother-{me}.service"), 8082);
    let net = Net::new();
    let traffic = Traffic { unit: Some(format!("vvshop-{me}@*.service")), ..Traffic::default() };
    let before = ns.state();
    let plan = install(&net, &spec(&ns, "u1", traffic.clone(), delay_of(10)));
    assert!(plan.rules.iter().any(|rule| rule.contains(&deep)), "{:?}", plan.rules);
    let trip = |port: u16| ms(ns.round_trip(&format!("127.0.0.1:{port}")));
    let (one, two, three) = (trip(8080), trip(8081), trip(8082));
    // A unit that starts anew has another cgroup, which the next renewal adds.
    units.stop(&flat, &mut first);
    let mut first = units.start(&ns, &flat, 8080);
    let early = trip(8080);
    let renewed = net.renew(&[(&plan, Duration::from_secs(2))]);
    let (again, late) = (trip(8080), trip(8082));
    let planned_anew = net.plan(&spec(&ns, "u2", traffic, delay_of(10)), &[]).expect("planned");
    restore(&net, &plan);
    let after = ns.state();
    let nothing = Traffic { unit: Some("vvnothing@*.service".to_owned()), ..Traffic::default() };
    let nobody = net.plan(&spec(&ns, "u3", nothing, delay_of(10)), &[]);
    units.stop(&flat, &mut first);
    units.stop(&deep, &mut second);
    units.stop(&format!("vvother-{me}.service"), &mut other);
    assert!(one >= 10.0 && two >= 10.0 && three < 5.0, "{one} {two} {three}");
    assert_eq!(renewed, [Ok(())]);
    assert!(early < 5.0 && again >= 10.0 && late < 5.0, "{early} {again} {late}");
    // What was admitted is told the same: paths, not numbers.
    assert_eq!(planned_anew.rules, plan.rules);
    assert_eq!(before, after);
    assert!(matches!(nobody, Err(HostError::NotFound(_))), "{nobody:?}");
}

fn helper_with_stdin(test: &str, word: &str) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().expect("the test binary"))
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("VVTEST_WORD", word)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("run the test binary")
}

#[test]
fn an_engine_that_is_missing_says_what_to_do() {
    let Some(ns) = Ns::new("an_engine_that_is_missing_says_what_to_do") else { return };
    let net = Net::new();
    let before = ns.state();
    for ability in net.abilities() {
        eprintln!("{ability:?}");
        assert_eq!(ability.available, ability.reason.is_none());
    }
    let netem = net.abilities().into_iter().find(|ability| ability.variant.as_deref() == Some("netem"));
    let available = netem.expect("an ability").available;
    let NetAction::Delay { delay, jitter, correlation, distribution, seed, .. } = delay_of(5) else {
        unreachable!()
    };
    let engine = Some(DelayEngine::Netem);
    let action = NetAction::Delay { delay, jitter, correlation, distribution, seed, engine };
    match net.plan(&spec(&ns, "k1", listen(8080), action), &[]) {
        Ok(plan) => assert!(available && plan.engine == engine),
        Err(HostError::Unavailable(why)) => assert!(!available && why.contains("modprobe"), "{why}"),
        Err(error) => panic!("{error}"),
    }
    assert_eq!(before, ns.state());
    let missing = Traffic { netns: Some("vvtest-nowhere".to_owned()), ..listen(1) };
    let mut lost = spec(&ns, "k2", listen(1), delay_of(1));
    lost.traffic = missing;
    assert!(matches!(net.plan(&lost, &[]), Err(HostError::NotFound(_))));
}
