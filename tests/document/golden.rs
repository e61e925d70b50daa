//! Wrong documents and exactly what is said about them.
//!
//! Run with `BLESS=1` to write the expected texts anew, then read the difference.

use std::{fmt::Write as _, fs, path::Path};

use vervet::document::{self, Format, Kind};

use crate::wrong_checks::{PROBES, SOURCES};

/// Name, kind, format, text.
type Case = (&'static str, Kind, Format, String);

/// An experiment with this step.
fn step(keys: &str) -> String {
    let head = "title = \"T\"\nhypothesis = \"H\"\ngroups = [\"checkout\"]\n";
    format!("{head}\n[[step]]\nname = \"S\"\n{keys}\n")
}

fn latency(keys: &str) -> String {
    step(&format!("fault = \"latency\"\nduration = \"60s\"\n{keys}"))
}

fn kill(keys: &str) -> String {
    step(&format!("fault = \"kill\"\n{keys}"))
}

/// Experiments with a probe.
fn probes() -> impl Iterator<Item = (&'static str, String)> {
    let head = "target = { name = \"w\" }\n[[probe]]\nname = \"P\"\n";
    PROBES.into_iter().map(move |(name, keys)| (name, kill(&format!("{head}{keys}"))))
}

/// Policies with a group that has this for `ready`.
fn sources() -> impl Iterator<Item = (&'static str, String)> {
    let head = "floor = 1\nmembers = { listen = 8080 }\nready = ";
    SOURCES.into_iter().map(move |(name, ready)| (name, group(&format!("{head}{ready}"))))
}

fn group(keys: &str) -> String {
    format!("[[group]]\nname = \"checkout\"\n{keys}\n")
}

const WORK: &str = "window = { days = \"Mon-Fri\", hours = \"09:00-15:00\", zone = \"UTC\" }";

fn schedule(keys: &str) -> String {
    format!("[[schedule]]\nexperiment = \"x\"\n{keys}\n")
}

fn experiments() -> Vec<(&'static str, String)> {
    let traffic = "traffic = { port = 5432 }\n";
    let cap = |keys: &str| step(&format!("fault = \"connections\"\nduration = \"60s\"\n{keys}"));
    let whole = |keys: &str| step(&format!("fault = \"unit\"\nduration = \"60s\"\n{keys}"));
    let victim = "target = { group = \"checkout\" }\n";
    let drain = "drain = { haproxy = \"/run/h.sock\", backend = \"web\",";
    vec![
        ("misspelt key", latency(&format!("{traffic}dealy = \"100ms\""))),
        ("another tool's word", kill("selector = { name = \"worker\" }")),
        ("key of another fault", kill("target = { name = \"worker\" }\ndelay = \"1s\"")),
        ("nothing near", latency(&format!("{traffic}delay = \"1s\"\nbogosity = 3"))),
        ("missing keys", "groups = []\n\n[[step]]\nfault = \"latency\"\n".to_owned()),
        ("number for a duration", latency(&format!("{traffic}delay = 250"))),
        ("duration without unit", latency(&format!("{traffic}delay = \"250\""))),
        ("unknown unit", latency(&format!("{traffic}delay = \"5 parsecs\""))),
        ("zero delay", latency(&format!("{traffic}delay = \"0ms\""))),
        ("negative delay", latency(&format!("{traffic}delay = \"-5ms\""))),
        ("jitter above delay", latency(&format!("{traffic}delay = \"5ms\"\njitter = \"6ms\""))),
        ("correlation alone", latency(&format!("{traffic}delay = \"5ms\"\ncorrelation = \"10%\""))),
        ("over a hundred", kill("target = { group = \"checkout\", pick = \"150%\" }")),
        ("empty selector", kill("target = { pick = 1 }")),
        ("age is no selector", kill("target = { older_than = \"1h\", pick = \"all\" }")),
        ("pattern for everything", kill("target = { cmdline = \".*\" }")),
        ("broken pattern", kill("target = { cmdline = \"worker(\" }")),
        ("long name", kill("target = { name = \"checkout-service-worker\" }")),
        ("picks nothing", kill("target = { group = \"checkout\", pick = 0 }")),
        ("undeclared group", kill("target = { group = \"chekout\" }")),
        ("signal zero", kill("target = { group = \"checkout\" }\nsignal = 0")),
        ("signal by number", kill("target = { group = \"checkout\" }\nsignal = 15")),
        ("misspelt signal", kill("target = { group = \"checkout\" }\nsignal = \"SIGTREM\"")),
        ("stopping signal", kill("target = { group = \"checkout\" }\nsignal = \"SIGSTOP\"")),
        ("useless escalation", kill("target = { group = \"checkout\" }\nthen = { after = \"5s\" }")),
        ("drain for no time", kill(&format!("{victim}{drain} within = \"5s\" }}"))),
        (
            "drain of what is none",
            kill(&format!(
                "{victim}duration = \"5s\"\ndrain = {{ haproxy = \"h.sock\", backend = \"a b\", lat = \"kill\" }}"
            )),
        ),
        (
            "late for nothing",
            kill(&format!("{victim}duration = \"5s\"\n{drain} within = \"5s\", late = \"spar\" }}")),
        ),
        ("pause without a target", step("fault = \"pause\"\nduration = \"10s\"")),
        ("pause for ever", step("fault = \"pause\"\ntarget = { group = \"checkout\" }")),
        ("unknown action", whole("target = { unit = \"a\" }\naction = \"reload\"")),
        ("a part of a unit", whole("target = { unit = \"a\", name = \"worker\" }\naction = \"stop\"")),
        ("unit without an action", whole("target = { group = \"checkout\" }")),
        ("action of another fault", kill("target = { group = \"checkout\" }\naction = \"stop\"")),
        ("host bits", latency("delay = \"1s\"\ntraffic = { to = [\"10.0.0.0/8\", \"10.1.2.3/8\"] }")),
        ("no traffic", latency("delay = \"1s\"\ntraffic = { netns = \"blue\" }")),
        ("both directions", latency("delay = \"1s\"\ntraffic = { listen = 80, to = \"10.0.0.0/8\" }")),
        ("cap without limit", cap("traffic = { listen = 8080 }\nexcess = \"reset\"")),
        ("unknown choice", cap("traffic = { listen = 8080 }\nmax = 4\nexcess = \"rst\"")),
        ("udp connections", cap("traffic = { listen = 53, protocol = \"udp\" }\nmax = 4")),
        ("later fault", step("fault = \"loss\"\npercent = \"1%\"\nduration = \"60s\"")),
        ("misspelt fault", step("fault = \"latensy\"\nduration = \"60s\"")),
        ("traffic of a container", latency("delay = \"1s\"\ntraffic = { container = \"web\" }")),
        ("no container's name", kill("target = { container = \"my web\" }")),
        (
            "schedule",
            format!("{}\n[[schedule]]\ncron = \"0 10 * * *\"\n", kill("target = { name = \"w\" }")),
        ),
        (
            "a group of all with another one",
            kill("target = { group = \"checkout\" }")
                .replace("[\"checkout\"]", "[\"@any\", \"checkout\"]"),
        ),
        ("a group of another kind", kill("target = { group = \"@all\" }")),
        ("policy key", format!("leashed = true\n{}", kill("target = { name = \"w\" }"))),
        ("first step with previous", kill("target = { name = \"w\" }\nstart = \"with previous\"")),
        (
            "two checks",
            format!(
                "{}[[probe]]\nname = \"P\"\nhttp = \"http://a.example/\"\ntcp = \"a.example:80\"\n",
                kill("target = { name = \"w\" }")
            ),
        ),
        (
            "shell string",
            format!(
                "{}[[probe]]\nname = \"P\"\ncommand = \"test -e /run/ok\"\n",
                kill("target = { name = \"w\" }")
            ),
        ),
        ("broken TOML", "title = \"T\nhypothesis = = 1\n[[step]\n".to_owned()),
        ("key given twice", "title = \"T\"\ntitle = \"U\"\n".to_owned()),
        (
            "many at once",
            latency("delay = 1\njitter = \"soon\"\ntrafic = { port = 1 }\nstart = \"now\"\ncharge = -1"),
        ),
    ]
}

fn policies() -> Vec<(&'static str, String)> {
    let members = "members = { listen = 8080 }\n";
    let token = |name: &str, sha: &str| {
        format!("[[api.token]]\nname = \"{name}\"\nrole = \"operator\"\nsha256 = \"{sha}\"\n")
    };
    let sha = "0123456789abcdef".repeat(4);
    let freeze = |from: &str, until: &str, zone: &str| {
        format!("[[freeze]]\nname = \"F\"\nfrom = \"{from}\"\nuntil = \"{until}\"\nzone = \"{zone}\"\n")
    };
    vec![
        ("misspelt section", "[limit]\nduration = \"5m\"\n".to_owned()),
        ("floor above expected", group(&format!("floor = 5\nexpected = 4\n{members}"))),
        ("percentage of nothing", group(&format!("floor = \"75%\"\n{members}"))),
        ("floor missing", group(members)),
        ("twice the same name", format!("{0}{0}", group(&format!("floor = 1\n{members}")))),
        ("systemd of processes", group(&format!("floor = 1\n{members}ready = \"systemd\""))),
        ("every unit", group("floor = 1\nmembers = { unit = \"*\" }")),
        ("slice members", group("floor = 1\nmembers = { unit = \"system-checkout.slice\" }")),
        ("no unit's name", group("floor = 1\nmembers = { unit = \"web/1\" }")),
        ("unknown source", group(&format!("floor = 1\n{members}ready = \"proces\""))),
        (
            "unknown placeholder",
            group(&format!("floor = 1\n{members}ready = {{ http = \"http://[::1]:{{prt}}/\" }}")),
        ),
        ("always stale", group(&format!("floor = 1\n{members}poll = \"5s\"\nstale_after = \"2s\""))),
        ("listen without token", "[api]\nlisten = \"127.0.0.1:7667\"\n".to_owned()),
        ("listen without TLS", format!("[api]\nlisten = \"0.0.0.0:7667\"\n{}", token("ci", &sha))),
        ("short digest", token("ci", "abc")),
        ("one secret, two names", format!("{}{}", token("a", &sha), token("b", &sha))),
        ("backward freeze", freeze("2027-01-05T00:00", "2026-11-20T00:00", "UTC")),
        ("time with offset", freeze("2026-11-20T00:00Z", "2027-01-05T00:00", "UTC")),
        ("not a date", freeze("2026-13-20T00:00", "2027-01-05T00:00", "UTC")),
        ("scattered mask", "[network]\nmark_mask = \"0xf0f00000\"\n".to_owned()),
        ("relative path", "state = \"vervet\"\n".to_owned()),
        ("schedule without a time", schedule("")),
        ("schedule with two times", schedule("cron = \"0 10 * * *\"\nmean_time_between = \"2d\"")),
        ("misspelt time", schedule("corn = \"0 10 * * *\"")),
        ("no pattern", schedule("cron = \"0 25 * * *\"\nzone = \"UTC\"")),
        ("pattern without a zone", schedule("cron = \"0 10 * * *\"")),
        ("two zones", schedule(&format!("cron = \"0 10 * * *\"\nzone = \"UTC\"\n{WORK}"))),
        ("never in its window", schedule(&format!("cron = \"0 3 * * *\"\n{WORK}"))),
        ("mean without a window", schedule("mean_time_between = \"2d\"")),
        ("more than once a day", schedule(&format!("mean_time_between = \"2h\"\n{WORK}"))),
        (
            "minimum above the mean",
            schedule(&format!("mean_time_between = \"2d\"\nmin_time_between = \"3d\"\n{WORK}")),
        ),
        (
            "minimum of hours",
            schedule(&format!("mean_time_between = \"2d\"\nmin_time_between = \"30h\"\n{WORK}")),
        ),
        (
            "not a day",
            schedule("mean_time_between = \"1d\"\nwindow = { days = \"Mo-Fri\", zone = \"UTC\" }"),
        ),
        (
            "not hours",
            schedule(
                "mean_time_between = \"1d\"\nwindow = { days = \"daily\", hours = \"9-15\", zone = \"UTC\" }",
            ),
        ),
        (
            "empty hours",
            schedule(
                "mean_time_between = \"1d\"\n\
                 window = { days = \"daily\", hours = \"09:00-09:00\", zone = \"UTC\" }",
            ),
        ),
        (
            "the same schedule twice",
            schedule("cron = \"0 10 * * *\"\nzone = \"UTC\"")
                + &schedule("cron = \"0 12 * * *\"\nzone = \"UTC\""),
        ),
        ("freeze of nothing", "[[freeze]]\nname = \"F\"\n".to_owned()),
        (
            "freeze of two kinds",
            "[[freeze]]\nname = \"F\"\ndays = \"Sat\"\ncalendar = \"/x.ics\"\nzone = \"UTC\"\n"
                .to_owned(),
        ),
        (
            "freeze with a key of another kind",
            "[[freeze]]\nname = \"F\"\ncalendar = \"/x.ics\"\nhours = \"09:00-10:00\"\nzone = \"UTC\"\n"
                .to_owned(),
        ),
        (
            "condition on a group",
            "[[freeze]]\nname = \"F\"\nunless = { group = \"checkout\" }\n".to_owned(),
        ),
        (
            "condition in a zone",
            "[[freeze]]\nname = \"F\"\nunless = { tcp = \"127.0.0.1:80\" }\nzone = \"UTC\"\n".to_owned(),
        ),
        ("step in policy", "leashed = \"no\"\n[[step]]\nname = \"S\"\n".to_owned()),
    ]
}

fn json() -> Vec<(&'static str, String)> {
    let document =
        |step: &str| format!("{{\"title\": \"T\", \"hypothesis\": \"H\", \"step\": [{step}]}}");
    vec![
        ("broken JSON", "{\"title\": \"T\",\n  \"step\": [}\n".to_owned()),
        ("JSON key given twice", "{\"title\": \"T\", \"title\": \"U\"}".to_owned()),
        ("JSON null", document("{\"name\": \"S\", \"fault\": \"kill\", \"target\": null}")),
        (
            "JSON wrong type",
            document(
                "{\"name\": \"S\", \"fault\": \"kill\", \"target\": {\"nam\": \"w\"}, \"duration\": 1.5}",
            ),
        ),
        ("JSON not a table", "[1, 2]".to_owned()),
    ]
}

#[test]
fn wrong_documents_are_told_exactly_what_is_wrong() {
    let experiments =
        experiments().into_iter().chain(probes()).map(|(n, t)| (n, Kind::Experiment, Format::Toml, t));
    let policies =
        policies().into_iter().chain(sources()).map(|(n, t)| (n, Kind::Policy, Format::Toml, t));
    let json = json().into_iter().map(|(n, t)| (n, Kind::Experiment, Format::Json, t));
    let cases: Vec<Case> = experiments.chain(policies).chain(json).collect();
    let mut shown = String::new();
    for (name, kind, format, text) in &cases {
        let result = match kind {
            Kind::Policy => document::policy(text, "vervet.toml").map(drop),
            Kind::Experiment => document::experiment(text, "test.toml", *format).map(drop),
        };
        let errors = result.expect_err(name);
        write!(shown, "## {name}\n\n{}\n\n", errors.render(text, false)).unwrap();
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/document/messages.md");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&file, &shown).unwrap();
    }
    let expected = fs::read_to_string(&file).unwrap();
    for (is, should) in shown.split("## ").zip(expected.split("## ")) {
        assert_eq!(is, should, "see {}", file.display());
    }
    assert_eq!(shown.len(), expected.len());
}
