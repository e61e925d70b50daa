//! Added delay on the real kernel, in private namespaces.

mod net_support;

use std::time::Duration;

use net_support::{LEASE, Ns, delay_of, install, listen, ms, restore, spec};
use vervet::host::linux::net::Net;

#[test]
fn a_port_is_slow_over_both_families_and_its_neighbour_is_not() {
    let Some(ns) = Ns::new("a_port_is_slow_over_both_families_and_its_neighbour_is_not") else { return };
    ns.echo(8080);
    ns.echo(8081);
    let net = Net::new();
    let before = ns.state();
    let plan = install(&net, &spec(&ns, "a1", listen(8080), delay_of(20)));
    eprintln!("{:#?}", plan.rules);
    eprintln!("{}", ns.nft());
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
