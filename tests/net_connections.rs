//! Connection caps on the real kernel, in private namespaces.

mod net_support;

use std::{
    io::{ErrorKind, Read},
    time::{Duration, Instant},
};

use net_support::{LEASE, Ns, cap_of, install, listen, pair, peer, ping, restore, spec, wait_until};
use vervet::{
    experiment::{Excess, Existing, Traffic},
    host::{HostError, NetAction, linux::net::Net},
};

fn cap(
    max: Option<u32>,
    per_source: Option<u32>,
    new_per_second: Option<u32>,
    existing: Existing,
) -> NetAction {
    NetAction::Cap { max, per_source, new_per_second, excess: Excess::Reset, existing }
}

/// Each connection works.
fn speak(streams: &mut [std::net::TcpStream]) {
    for stream in streams {
        ping(stream);
    }
}

#[test]
fn exactly_so_many_connections_are_let_in() {
    let Some(ns) = Ns::new("exactly_so_many_connections_are_let_in") else { return };
    ns.echo(8080);
    ns.echo(8081);
    let net = Net::new();
    let before = ns.state();
    let plan = install(&net, &spec(&ns, "c1", listen(8080), cap_of(Some(5), Excess::Reset)));
    // IPv4 and IPv6 count together.
    let (mut open, errors) = ns.attempt("127.0.0.1:8080", 3);
    assert!(errors.is_empty());
    let (more, errors) = ns.attempt("[::1]:8080", 12);
    open.extend(more);
    assert_eq!((open.len(), errors.len()), (5, 10));
    assert!(errors.iter().all(|error| *error == ErrorKind::ConnectionRefused), "{errors:?}");
    speak(&mut open);
    assert!(ns.attempt("127.0.0.1:8081", 8).1.is_empty(), "another port has no cap");
    let counters = net.counters(&plan).expect("counters");
    assert!(counters.in_place);
    assert_eq!((counters.matched, counters.affected), (15, 10));
    // A place that becomes free is taken again.
    drop(open.pop());
    wait_until(Duration::from_secs(1), || {
        net.renew(&[(&plan, LEASE)]).remove(0).expect("renew");
        ns.connect("127.0.0.1:8080").map(|stream| open.push(stream)).is_ok()
    });
    assert_eq!(ns.attempt("127.0.0.1:8080", 5).1.len(), 5);
    restore(&net, &plan);
    ns.connect("127.0.0.1:8080").expect("no cap any more");
    speak(&mut open);
    assert_eq!(before, ns.state());
}

#[test]
fn a_crowd_at_once_does_not_pass_the_cap() {
    let Some((left, right)) = pair("a_crowd_at_once_does_not_pass_the_cap") else { return };
    right.echo(8080);
    let net = Net::new();
    let plan = install(&net, &spec(&right, "c2", listen(8080), cap_of(Some(7), Excess::Reset)));
    let crowd: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| left.attempt("10.99.0.2:8080", 25))).collect();
        threads.into_iter().map(|thread| thread.join().expect("join")).collect()
    });
    let open: usize = crowd.iter().map(|(open, _)| open.len()).sum();
    let refused: usize = crowd.iter().map(|(_, errors)| errors.len()).sum();
    assert!((5..=7).contains(&open) && open + refused == 100, "{open} open, {refused} refused");
    // Refused attempts fill places for an instant; then exactly seven are open.
    let (more, _) = left.attempt("10.99.0.2:8080", 20);
    assert_eq!(open + more.len(), 7);
    restore(&net, &plan);
}

#[test]
fn excess_may_meet_silence() {
    let Some(ns) = Ns::new("excess_may_meet_silence") else { return };
    ns.echo(8080);
    let net = Net::new();
    let plan = install(&net, &spec(&ns, "c3", listen(8080), cap_of(Some(1), Excess::Drop)));
    let (open, errors) = ns.attempt("127.0.0.1:8080", 2);
    assert_eq!((open.len(), errors), (1, vec![ErrorKind::TimedOut]));
    restore(&net, &plan);
}

#[test]
fn zero_means_none_at_all() {
    let Some(ns) = Ns::new("zero_means_none_at_all") else { return };
    ns.echo(8080);
    let net = Net::new();
    let mut old = ns.connect("127.0.0.1:8080").expect("connect");
    let plan = install(&net, &spec(&ns, "c4", listen(8080), cap_of(Some(0), Excess::Reset)));
    assert_eq!(ns.attempt("127.0.0.1:8080", 3).1.len(), 3);
    assert_eq!(ns.attempt("[::1]:8080", 3).1.len(), 3);
    ping(&mut old);
    restore(&net, &plan);
}

#[test]
fn each_source_has_its_own_count() {
    let Some(ns) = Ns::new("each_source_has_its_own_count") else { return };
    ns.echo(8080);
    let net = Net::new();
    let action = cap(None, Some(2), None, Existing::Keep);
    let plan = install(&net, &spec(&ns, "c5", listen(8080), action));
    for source in ["127.0.0.2:0", "127.0.0.3:0", "[::1]:0"] {
        let target = if source.starts_with('[') { "[::1]:8080" } else { "127.0.0.1:8080" };
        let open: Vec<_> = (0..5).map(|_| ns.connect_from(source, target)).collect();
        let passed = open.iter().filter(|result| result.is_ok()).count();
        assert_eq!(passed, 2, "{source}");
    }
    restore(&net, &plan);
}

#[test]
fn so_many_new_ones_each_second() {
    let Some(ns) = Ns::new("so_many_new_ones_each_second") else { return };
    ns.echo(8080);
    let net = Net::new();
    let action = cap(None, None, Some(10), Existing::Keep);
    let plan = install(&net, &spec(&ns, "c6", listen(8080), action));
    let (start, mut passed) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_millis(1500) {
        passed += usize::from(ns.connect("127.0.0.1:8080").is_ok());
    }
    // A second's worth at once, then ten each second.
    assert!((23..=26).contains(&passed), "{passed} in 1.5 s");
    restore(&net, &plan);
}

#[test]
fn open_connections_are_kept_and_counted_when_they_speak() {
    let Some((left, right)) = pair("open_connections_are_kept_and_counted_when_they_speak") else {
        return;
    };
    right.echo(8080);
    let mut old: Vec<_> = (0..3).map(|_| left.connect("10.99.0.2:8080").expect("connect")).collect();
    speak(&mut old);
    let net = Net::new();
    let plan = install(&net, &spec(&right, "c7", listen(8080), cap_of(Some(5), Excess::Reset)));
    for _ in 0..20 {
        speak(&mut old);
    }
    let (open, errors) = left.attempt("10.99.0.2:8080", 6);
    assert_eq!((open.len(), errors.len()), (2, 4));
    speak(&mut old);
    assert_eq!(net.counters(&plan).expect("counters").closed, 0);
    restore(&net, &plan);
}

#[test]
fn open_connections_are_closed_on_request_and_no_others() {
    let Some((left, right)) = pair("open_connections_are_closed_on_request_and_no_others") else {
        return;
    };
    for port in [8080, 8081, 7667] {
        right.echo(port);
    }
    let connect = |address: &str| left.connect(address).expect("connect");
    let mut doomed = [connect("10.99.0.2:8080"), connect("[fd99::2]:8080"), connect("10.99.0.2:8080")];
    let mut spared = [connect("10.99.0.2:8081"), connect("10.99.0.2:7667")];
    speak(&mut doomed);
    speak(&mut spared);
    let net = Net::new();
    let action = cap(Some(1), None, None, Existing::Close);
    let plan = install(&net, &spec(&right, "c8", listen(8080), action));
    for stream in &mut doomed {
        let result = stream.read(&mut [0]);
        assert!(result.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    }
    speak(&mut spared);
    assert_eq!(net.counters(&plan).expect("counters").closed, 3);
    assert_eq!(left.attempt("10.99.0.2:8080", 3).0.len(), 1);
    restore(&net, &plan);
    // By peer, not by port: the way in stays open.
    let from = Traffic { from: vec![peer("10.99.0.0/24")], ..Traffic::default() };
    let action = cap(Some(0), None, None, Existing::Close);
    let plan = install(&net, &spec(&right, "c9", from, action));
    assert!(spared[0].read(&mut [0]).is_err());
    ping(&mut spared[1]);
    assert!(left.connect("10.99.0.2:7667").is_ok() && left.connect("10.99.0.2:8081").is_err());
    restore(&net, &plan);
}

#[test]
fn calls_to_a_remote_port_are_capped_on_this_side() {
    let Some((left, right)) = pair("calls_to_a_remote_port_are_capped_on_this_side") else { return };
    right.echo(5432);
    let net = Net::new();
    let before = (left.state(), right.state());
    let traffic = Traffic { port: Some(5432), to: vec![peer("10.99.0.2/32")], ..Traffic::default() };
    let plan = install(&net, &spec(&left, "d1", traffic, cap_of(Some(2), Excess::Reset)));
    let (open, errors) = left.attempt("10.99.0.2:5432", 5);
    assert_eq!(open.len(), 2);
    assert!(errors.iter().all(|error| *error == ErrorKind::ConnectionRefused), "{errors:?}");
    assert!(left.attempt("[fd99::2]:5432", 4).1.is_empty(), "another peer has no cap");
    restore(&net, &plan);
    assert_eq!(before, (left.state(), right.state()));
}

#[test]
fn contradictions_are_refused_before_anything_is_touched() {
    let Some(ns) = Ns::new("contradictions_are_refused_before_anything_is_touched") else { return };
    let net = Net::new();
    let both = Traffic { port: Some(1), ..listen(2) };
    let user = Traffic { user: Some("root".to_owned()), ..listen(2) };
    let api = listen(7667);
    for traffic in [both, user, api] {
        let error = net.plan(&spec(&ns, "e1", traffic, cap_of(Some(1), Excess::Drop)), &[]);
        let error = error.expect_err("a contradiction");
        assert!(matches!(error, HostError::Unavailable(_) | HostError::NotFound(_)), "{error}");
    }
}
