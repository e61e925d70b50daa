//! Two network namespaces with a cable between: a delay and a cap in the one, seen from the other.

use crate::{
    guest::Guest,
    prepared::Stage,
    story::story,
    workload::{experiment, web_group},
};

/// A shop that serves on two ports, and a street that it is seen from.
const SETUP: &str = "set -e
ip netns add shop; ip netns add street
ip link add shop0 netns shop type veth peer name street0 netns street
ip -n shop address add 10.77.0.1/24 dev shop0; ip -n shop address add fd77::1/64 dev shop0 nodad
ip -n street address add 10.77.0.2/24 dev street0; ip -n street address add fd77::2/64 dev street0 nodad
for each in shop street; do ip -n $each link set lo up; ip -n $each link set ${each}0 up; done
# A qdisc of the owner's: it must stay as it is.
tc -n shop qdisc add dev shop0 root tbf rate 1gbit burst 1mb latency 50ms
systemd-run --unit=shop -p NetworkNamespacePath=/run/netns/shop \
    /opt/test/net.py serve 0.0.0.0 8001 :: 8001 0.0.0.0 8002 :: 8002";

fn set_up(guest: &mut Guest) {
    guest.check(SETUP);
    guest.wait_for(
        "the shop is open",
        60,
        "[ $(ip netns exec shop ss -Hltn | grep -c ':800[12] ') = 4 ]",
    );
    guest.unleash(&web_group(1, 1, "1h"));
    guest.wait_ready("web", 1);
}

#[test]
fn a_delay_is_seen_from_the_other_side() {
    story("a_delay_is_seen_from_the_other_side", Stage::Installed, |guest| {
        set_up(guest);
        let before = guest.snapshot();
        let step = "fault = \"latency\"\nengine = \"netem\"\ntraffic = { netns = \"shop\", listen = 8001 }\n\
                    delay = \"100ms\"\nduration = \"5m\"";
        let run = guest.in_force(&experiment(&["web"], &[step]));
        for address in ["10.77.0.1", "fd77::1"] {
            let slow = guest.round_trips("street", address, 8001, 15);
            let quick = guest.round_trips("street", address, 8002, 15);
            assert!(slow.least() >= 100.0 && slow.median() < 160.0, "{address}: {slow:?}");
            assert!(quick.median() < 25.0, "{address}: {quick:?}");
        }
        let during = guest.snapshot();
        let tbf = |line: &&&str| line.contains("qdisc shop ") && line.contains("tbf");
        assert_eq!(during.of("qdisc").iter().filter(tbf).count(), 1, "{during:?}");
        assert_eq!(before.of("nft").len(), 0);
        assert!(during.of("nft").iter().all(|line| line.starts_with("nft shop ")), "{during:?}");
        guest.abort(&run);
        guest.must_be_as(&before);
    });
}

#[test]
fn a_cap_is_seen_from_the_other_side() {
    story("a_cap_is_seen_from_the_other_side", Stage::Installed, |guest| {
        set_up(guest);
        let before = guest.snapshot();
        let step = "fault = \"connections\"\ntraffic = { netns = \"shop\", listen = 8001 }\nmax = 3\n\
                    duration = \"5m\"";
        let places = "10.77.0.1 8001 2 fd77::1 8001 4";
        assert_eq!(guest.visits("street", places).open, 6);
        let run = guest.in_force(&experiment(&["web"], &[step]));
        let capped = guest.visits("street", places);
        assert_eq!(capped.open, 3, "{capped:?}");
        assert!(capped.turned_away.iter().all(|why| why == "ConnectionRefusedError"), "{capped:?}");
        assert_eq!(guest.visits("street", &places.replace("8001", "8002")).open, 6);
        guest.abort(&run);
        assert_eq!(guest.visits("street", places).open, 6);
        guest.must_be_as(&before);
    });
}
