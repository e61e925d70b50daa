//! Connection caps on the real kernel, in private namespaces.

mod net_support;

use net_support::{Ns, cap_of, install, listen, ping, restore, spec};
use vervet::{experiment::Excess, host::linux::net::Net};

#[test]
fn exactly_so_many_connections_are_let_in() {
    let Some(ns) = Ns::new("exactly_so_many_connections_are_let_in") else { return };
    ns.echo(8080);
    let net = Net::new();
    let before = ns.state();
    let plan = install(&net, &spec(&ns, "c1", listen(8080), cap_of(Some(5), Excess::Reset)));
    eprintln!("{:#?}", plan.rules);
    eprintln!("{}", ns.nft());
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..20 {
        match ns.connect("127.0.0.1:8080") {
            Ok(mut stream) => {
                ping(&mut stream);
                open.push(stream);
            }
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
                refused += 1;
            }
        }
    }
    assert_eq!((open.len(), refused), (5, 15));
    let counters = net.counters(&plan).expect("counters");
    assert!(counters.in_place);
    assert_eq!((counters.matched, counters.affected), (20, 15));
    restore(&net, &plan);
    ns.connect("127.0.0.1:8080").expect("no cap any more");
    assert_eq!(before, ns.state());
}
