//! What ends and undoes a network fault: leases, restores, and their neighbours left alone.

mod net_support;

use std::{
    io::{BufRead, BufReader},
    sync::Arc,
    time::{Duration, Instant},
};

use net_support::{
    LEASE, Ns, cap_of, delay_of, helper, install, listen, ms, renewing, restore, spec, wait_until, word,
};
use vervet::{
    experiment::{Excess, Traffic},
    fault::undo::{Restore, Undo},
    host::{HostError, NetPlan, linux::net::Net},
};

#[test]
fn without_renewal_the_kernel_ends_it_and_it_is_not_armed_again() {
    let Some(ns) = Ns::new("without_renewal_the_kernel_ends_it_and_it_is_not_armed_again") else {
        return;
    };
    ns.echo(8080);
    let net = Net::new();
    let start = Instant::now();
    let plan = install(&net, &spec(&ns, "a1", listen(8080), cap_of(Some(0), Excess::Reset)));
    assert!(ns.connect("127.0.0.1:8080").is_err());
    wait_until(Duration::from_secs(4), || ns.connect("127.0.0.1:8080").is_ok());
    let lasted = start.elapsed();
    assert!((Duration::from_millis(1900)..Duration::from_millis(2200)).contains(&lasted), "{lasted:?}");
    assert!(!net.counters(&plan).expect("counters").in_place);
    let error = net.renew(&[(&plan, LEASE)]).remove(0).expect_err("it has lapsed");
    assert!(matches!(&error, HostError::NotFound(why) if why.contains("lapsed")), "{error}");
    ns.connect("127.0.0.1:8080").expect("not armed again");
    restore(&net, &plan);
}

#[test]
fn renewal_leaves_no_gap() {
    let Some(ns) = Ns::new("renewal_leaves_no_gap") else { return };
    ns.echo(8080);
    let net = Net::new();
    let plan = install(&net, &spec(&ns, "a2", listen(8080), cap_of(Some(0), Excess::Reset)));
    let done = std::sync::atomic::AtomicBool::new(false);
    let (tried, passed) = std::thread::scope(|scope| {
        let trying = scope.spawn(|| {
            ns.run(|| {
                let (mut tried, mut passed) = (0, 0);
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    tried += 1;
                    passed += u32::from(std::net::TcpStream::connect("127.0.0.1:8080").is_ok());
                }
                (tried, passed)
            })
        });
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(2500) {
            net.renew(&[(&plan, Duration::from_millis(300))]).remove(0).expect("renew");
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        trying.join().expect("join")
    });
    assert!(tried > 1000 && passed == 0, "{passed} of {tried} got through");
    restore(&net, &plan);
}

#[test]
fn one_lapsed_lease_does_not_keep_others_from_renewal() {
    let Some(ns) = Ns::new("one_lapsed_lease_does_not_keep_others_from_renewal") else { return };
    let net = Net::new();
    let plan = |id, port| net.plan(&spec(&ns, id, listen(port), cap_of(Some(1), Excess::Reset)), &[]);
    let plans: Vec<NetPlan> =
        [("b1", 1), ("b2", 2), ("b3", 3)].map(|(id, port)| plan(id, port).expect("plan")).to_vec();
    for (plan, lease) in plans.iter().zip([2000, 50, 2000]) {
        net.install(plan, Duration::from_millis(lease)).expect("install");
    }
    wait_until(Duration::from_secs(1), || !net.counters(&plans[1]).expect("counters").in_place);
    let leases: Vec<_> = plans.iter().map(|plan| (plan, LEASE)).collect();
    let outcomes: Vec<bool> = net.renew(&leases).iter().map(Result::is_ok).collect();
    assert_eq!(outcomes, [true, false, true]);
    plans.iter().for_each(|plan| restore(&net, plan));
}

#[test]
fn restoring_one_fault_leaves_its_neighbour_as_it_was() {
    let Some(ns) = Ns::new("restoring_one_fault_leaves_its_neighbour_as_it_was") else { return };
    ns.echo(8080);
    ns.echo(8081);
    let before = ns.state();
    let net = Arc::new(Net::new());
    let first = install(&net, &spec(&ns, "c1", listen(8080), delay_of(10)));
    let undo = Undo { restores: first.restores.clone() };
    let second = net
        .plan(&spec(&ns, "c2", listen(8081), delay_of(20)), std::slice::from_ref(&undo))
        .expect("plan");
    net.install(&second, LEASE).expect("install");
    let renewed = renewing(&net, &second);
    let shared = |plan: &NetPlan| -> Vec<Restore> {
        plan.restores.iter().filter(|item| item.is_shared()).cloned().collect()
    };
    assert_eq!(shared(&first), shared(&second), "both name the same clsact and sysctls");
    assert_eq!(shared(&first).len(), 3);
    assert!((10.0..13.0).contains(&ms(ns.round_trip("127.0.0.1:8080"))));
    assert!((20.0..23.0).contains(&ms(ns.round_trip("127.0.0.1:8081"))));
    // What `revert` would do: shared items stay with the last that names them.
    let own: Vec<Restore> = first.restores.iter().filter(|item| !item.is_shared()).cloned().collect();
    assert!(net.restore(&own).iter().all(Result::is_ok));
    assert!(ms(ns.round_trip("127.0.0.1:8080")) < 2.0);
    assert!((20.0..23.0).contains(&ms(ns.round_trip("127.0.0.1:8081"))));
    assert!(net.counters(&second).expect("counters").in_place);
    drop(renewed);
    restore(&net, &second);
    assert_eq!(before, ns.state());
}

#[test]
fn a_foreign_clsact_with_its_filter_is_shared_and_stays() {
    let Some(ns) = Ns::new("a_foreign_clsact_with_its_filter_is_shared_and_stays") else { return };
    ns.echo(8080);
    ns.exec("tc", &["qdisc", "add", "dev", "lo", "clsact"]);
    let foreign = "filter add dev lo egress protocol all prio 7 u32 match u8 0 0 action mirred egress mirror dev lo";
    // A filter that never matches: nothing of the trial is disturbed.
    let never = foreign
        .replace("match u8 0 0", "match ip dst 192.0.2.1/32")
        .replace("protocol all", "protocol ip");
    ns.exec("tc", &never.split(' ').collect::<Vec<_>>());
    let before = ns.state();
    let net = Net::new();
    let plan = install(&net, &spec(&ns, "d1", listen(8080), delay_of(10)));
    assert!(!plan.restores.iter().any(|item| matches!(item, Restore::Clsact { .. })));
    assert!(ms(ns.round_trip("127.0.0.1:8080")) >= 10.0);
    restore(&net, &plan);
    assert_eq!(before, ns.state());
}

#[test]
fn a_clsact_that_others_came_to_use_stays() {
    let Some(ns) = Ns::new("a_clsact_that_others_came_to_use_stays") else { return };
    let net = Net::new();
    let plan = install(&net, &spec(&ns, "d2", listen(8080), delay_of(10)));
    assert!(plan.restores.iter().any(|item| matches!(item, Restore::Clsact { .. })));
    let filter = "filter add dev lo ingress protocol ip prio 7 u32 match ip dst 192.0.2.1/32 action mirred egress \
                  mirror dev lo";
    ns.exec("tc", &filter.split_whitespace().collect::<Vec<_>>());
    restore(&net, &plan);
    assert!(ns.exec("tc", &["qdisc"]).contains("clsact"));
    assert!(ns.exec("tc", &["filter", "show", "dev", "lo", "ingress"]).contains("c0000201"));
    assert!(!ns.exec("tc", &["filter", "show", "dev", "lo", "egress"]).contains("vvd20"));
}

#[test]
fn restoring_is_harmless_when_nothing_is_there() {
    let Some(ns) = Ns::new("restoring_is_harmless_when_nothing_is_there") else { return };
    let net = Net::new();
    let before = ns.state();
    let plan = net.plan(&spec(&ns, "e1", listen(8080), delay_of(10)), &[]).expect("plan");
    assert_eq!(before, ns.state(), "planning touches nothing");
    restore(&net, &plan);
    assert_eq!(before, ns.state());
    net.install(&plan, LEASE).expect("install");
    restore(&net, &plan);
    restore(&net, &plan);
    assert_eq!(before, ns.state());
    let name = ns.name.clone();
    net.install(&plan, LEASE).expect("install");
    drop(ns);
    restore(&net, &plan);
    assert!(!std::path::Path::new("/run/netns").join(name).exists());
    assert!(!net.counters(&plan).expect("counters").in_place);
}

#[test]
fn a_sysctl_that_others_changed_meanwhile_is_left() {
    let Some(ns) = Ns::new("a_sysctl_that_others_changed_meanwhile_is_left") else { return };
    let net = Net::new();
    let plan = install(&net, &spec(&ns, "e2", listen(8080), delay_of(10)));
    let path = "/proc/sys/net/ipv4/conf/lo/route_localnet";
    let write = |value: &str| ns.run(|| std::fs::write(path, value).expect("write"));
    let read = || ns.run(|| std::fs::read_to_string(path).expect("read"));
    assert_eq!(read(), "1\n");
    write("2");
    restore(&net, &plan);
    assert_eq!(read(), "2\n");
}

/// Started by the test below: installs a delay, says so, and waits for its death.
#[test]
#[ignore = "a helper process of another test"]
fn install_and_wait() {
    let Some(name) = word() else { return };
    let ns = std::mem::ManuallyDrop::new(Ns { name });
    let net = Net::new();
    let plan = install(&net, &spec(&ns, "f1", listen(8080), delay_of(20)));
    println!("\nplan {}", serde_json::to_string(&plan).expect("json"));
    loop {
        std::thread::park();
    }
}

#[test]
fn after_a_sigkill_the_lease_ends_it_and_another_process_cleans_up() {
    let test = "after_a_sigkill_the_lease_ends_it_and_another_process_cleans_up";
    let Some(ns) = Ns::new(test) else { return };
    ns.echo(8080);
    ns.echo(8081);
    let before = ns.state();
    let mut child = helper("install_and_wait", &ns.name);
    let output = BufReader::new(child.stdout.take().expect("its output"));
    let line = output.lines().map_while(Result::ok).find(|line| line.starts_with("plan "));
    let plan: NetPlan =
        serde_json::from_str(line.expect("a plan").trim_start_matches("plan ")).expect("json");
    assert!(ms(ns.round_trip("127.0.0.1:8080")) >= 20.0);
    child.kill().expect("kill");
    child.wait().expect("reap");
    let killed = Instant::now();
    assert!(ms(ns.round_trip("127.0.0.1:8081")) < 2.0, "the other port never noticed");
    wait_until(Duration::from_secs(4), || ns.connect("127.0.0.1:8080").is_ok());
    assert!(killed.elapsed() < Duration::from_millis(3300), "{:?}", killed.elapsed());
    assert_ne!(before, ns.state());
    restore(&Net::new(), &plan);
    assert_eq!(before, ns.state());
    assert!(ms(ns.round_trip("127.0.0.1:8080")) < 2.0);
}

#[test]
fn marks_run_out_with_a_word_and_come_back() {
    let Some(ns) = Ns::new("marks_run_out_with_a_word_and_come_back") else { return };
    let net = Net::new();
    let mut open = Vec::new();
    let specify = |id: &str| {
        let mut spec = spec(&ns, id, listen(8080), delay_of(10));
        spec.mark_mask = 0x30;
        spec
    };
    for id in ["11", "12", "13"] {
        let plan = net.plan(&specify(id), &open).expect("plan");
        open.push(Undo { restores: plan.restores });
    }
    let error = net.plan(&specify("14"), &open).expect_err("no mark left");
    assert!(matches!(&error, HostError::Unavailable(why) if why.contains("mask")), "{error}");
    open.remove(1);
    net.plan(&specify("14"), &open).expect("the second mark is free again");
}

/// Started by the test below in a user namespace and a network namespace of its own: there, faults of
/// the agent's own namespace work.
#[test]
#[ignore = "a helper process of another test"]
fn faults_of_the_own_namespace() {
    if word().is_none() {
        return;
    }
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.expect("run ip").success());
    let listener = std::net::TcpListener::bind("127.0.0.1:8080").expect("bind");
    let net = Net::new();
    let own = |id: &str, action| vervet::host::NetSpec {
        fault: vervet::host::FaultId(id.to_owned()),
        traffic: listen(8080),
        action,
        mark_mask: 0xff,
        exempt_ports: Vec::new(),
        local: None,
    };
    let connect = || {
        let start = Instant::now();
        std::net::TcpStream::connect("127.0.0.1:8080").map(|stream| (stream, start.elapsed()))
    };
    let plan = install(&net, &own("aa1", cap_of(Some(1), Excess::Reset)));
    assert_eq!(plan.netns, None);
    let _first = connect().expect("the first");
    assert!(connect().is_err());
    restore(&net, &plan);
    let plan = install(&net, &own("aa2", delay_of(10)));
    let (_second, took) = connect().expect("slow, but there");
    assert!(ms(took) >= 10.0, "{took:?}");
    restore(&net, &plan);
    assert!(ms(connect().expect("quick again").1) < 5.0);
    drop(listener);
    println!("\nplayed");
}

#[test]
fn a_user_namespace_is_privilege_enough() {
    let test = "a_user_namespace_is_privilege_enough";
    let binary = std::env::current_exe().expect("the test binary");
    let output = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--net"])
        .arg(binary)
        .args(["--exact", "faults_of_the_own_namespace", "--ignored", "--nocapture"])
        .env("VVTEST_WORD", "own")
        .output()
        .expect("run unshare");
    let (out, error) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if error.contains("unshare failed") || error.contains("/dev/net/tun") {
        eprintln!("SKIPPED: {test}: {error}");
        return;
    }
    assert!(output.status.success() && out.contains("played"), "{out}{error}");
}

#[test]
fn a_thousand_tables_go_at_once() {
    let Some(ns) = Ns::new("a_thousand_tables_go_at_once") else { return };
    ns.echo(8080);
    let net = Net::new();
    let before = ns.state();
    let mut items = Vec::new();
    let mut slowest = Duration::ZERO;
    for number in 0..1000_u16 {
        let traffic = Traffic { listen: Some(10_000 + number), ..Traffic::default() };
        let id = format!("{number:010x}0");
        let plan =
            net.plan(&spec(&ns, &id, traffic, cap_of(Some(1), Excess::Reset)), &[]).expect("plan");
        let start = Instant::now();
        net.install(&plan, Duration::from_mins(1)).expect("install");
        slowest = slowest.max(start.elapsed());
        items.extend(plan.restores);
    }
    let start = Instant::now();
    assert!(net.restore(&items).iter().all(Result::is_ok));
    let took = start.elapsed();
    eprintln!("1000 tables deleted in {took:?}; the slowest of 1000 installs took {slowest:?}");
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert_eq!(before, ns.state());
}
