//! A cap on nginx, as its visitors see it.

use crate::{guest::Guest, measure::Visits, prepared::Stage, story::story, workload::experiment};

const SITES: &str = "\
server { listen 8080; listen [::]:8080; keepalive_timeout 300; location / { return 200 hello; } }
server { listen 8081; listen [::]:8081; keepalive_timeout 300; location / { return 200 hello; } }
";
const GROUP: &str = "\
[[group]]
name = \"nginx\"
floor = 1
members = { name = \"nginx\" }
poll = \"500ms\"
stale_after = \"10s\"
";

fn cap(more: &str) -> String {
    let step = format!(
        "fault = \"connections\"\ntraffic = {{ listen = 8080 }}\nmax = 5\n{more}\nduration = \"5m\""
    );
    experiment(&["nginx"], &[&step])
}

fn open_nginx(guest: &mut Guest) {
    guest.write_file("/etc/nginx/conf.d/test.conf", SITES);
    guest.check("systemctl start nginx");
    guest.unleash(GROUP);
    guest.wait_ready("nginx", 2);
}

fn visits(guest: &mut Guest, port: u16) -> Visits {
    guest.visits("", &format!("127.0.0.1 {port} 4 ::1 {port} 4"))
}

#[test]
fn nginx_serves_five_visitors_and_no_more() {
    story("nginx_serves_five_visitors_and_no_more", Stage::Installed, |guest| {
        open_nginx(guest);
        assert_eq!(visits(guest, 8080).open, 8);
        let before = guest.snapshot();
        for (excess, told) in [("reset", "ConnectionRefusedError"), ("drop", "TimeoutError")] {
            // Three are there already, and stay: they count once they carry data.
            let run = guest.in_force(&cap(&format!("excess = \"{excess}\"")));
            let capped = visits(guest, 8080);
            assert_eq!(capped, Visits { open: 5, turned_away: vec![told.to_owned(); 3] }, "{excess}");
            assert_eq!(visits(guest, 8081).open, 8, "another port of the same server");
            // An abort does not wait for a measurement.
            let measured = format!("vervet show {run} --json | grep '\"proven\": true'");
            guest.wait_for("the effect is measured", 60, &measured);
            guest.abort(&run);
            let view = guest.run_view(&run);
            assert_eq!(view["steps"][0]["effect"]["proven"], true, "{view:#}");
            assert_eq!(visits(guest, 8080).open, 8, "{excess}: the cap is gone");
            guest.must_be_as(&before);
        }
    });
}

#[test]
fn who_is_there_stays_or_is_shown_out_as_asked() {
    story("who_is_there_stays_or_is_shown_out_as_asked", Stage::Installed, |guest| {
        open_nginx(guest);
        let before = guest.snapshot();
        for (existing, left) in [("keep", 3), ("close", 0)] {
            let guests = guest.begin("exec /opt/test/net.py hold 600 127.0.0.1 8080 2 ::1 8080 1");
            let there = "ss -Htn state established '( sport = :8080 )' | wc -l";
            guest.wait_for("three guests", 60, &format!("[ $({there}) = 3 ]"));
            let run = guest.in_force(&cap(&format!("existing = \"{existing}\"")));
            assert_eq!(guest.check(there), left.to_string(), "existing = {existing}");
            guest.abort(&run);
            guest.end(guests);
            guest.must_be_as(&before);
        }
    });
}
