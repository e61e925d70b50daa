//! What holds for every document: nothing panics, nothing is lost, nothing misspelt passes.

use std::time::Duration;

use proptest::{collection::vec, option, prelude::*, sample::select};
use vervet::{
    document::{self, Format},
    experiment::{
        Alertmanager, Bounds, Check, Cidr, Connections, DelayEngine, Distribution, DnsCheck,
        DnsQuestion, DnsRecord, Drain, Escalation, Excess, Existing, Experiment, FaultSpec, GroupName,
        Headers, HttpCheck, JsonExpect, Kill, Labels, Late, Latency, Order, Pause, Peer, Percent,
        Percentiles, Pick, Probe, ProcessSelector, ProcessTarget, Prometheus, Protocol, Quantile,
        Signal, Start, Step, Traffic, UnitAction, UnitFault,
    },
    host::haproxy::Pool,
};

use crate::valid::{POLICY, library};

fn line() -> impl Strategy<Value = String> {
    "[A-Za-z0-9äß\"'\\\\ #=]{0,20}[a-z]"
}

fn span(most_ms: u64) -> impl Strategy<Value = Duration> {
    (10_000_000..=most_ms * 1_000_000).prop_map(Duration::from_nanos)
}

fn percent() -> impl Strategy<Value = Percent> {
    (1_u32..=1000).prop_map(|tenths| Percent::new(f64::from(tenths) / 10.0).unwrap())
}

fn headers() -> impl Strategy<Value = Headers> {
    let name = select(vec!["Host", "x-a", "Authorization", "Cache-Control"]).prop_map(str::to_owned);
    proptest::collection::btree_map(name, "[!-~]([ -~]{0,20}[!-~])?", 0..3)
}

fn bounds() -> impl Strategy<Value = Bounds> {
    (0..3, -1000_i32..1000, 0_u32..1000).prop_map(|(given, least, more)| Bounds {
        at_least: (given != 1).then_some(f64::from(least) / 4.0),
        at_most: (given != 2).then_some(f64::from(least) / 4.0 + f64::from(more)),
    })
}

fn json() -> impl Strategy<Value = std::collections::BTreeMap<String, JsonExpect>> {
    let expect = prop_oneof![
        any::<i64>().prop_map(|number| JsonExpect::Is(number.into())),
        any::<bool>().prop_map(|flag| JsonExpect::Is(flag.into())),
        line().prop_map(|text| JsonExpect::Is(text.into())),
        bounds().prop_map(JsonExpect::Within),
    ];
    proptest::collection::btree_map("|(/([a-z]|~0|~1|[0-9]){0,4}){1,3}", expect, 0..3)
}

/// Percentiles over a window at this pace.
fn percentiles(every: Duration) -> impl Strategy<Value = Option<Percentiles>> {
    let limits = proptest::collection::btree_map(
        select(vec!["p50", "p90", "p99", "p99.9", "p12.34"])
            .prop_map(|name| Quantile::from_name(name).unwrap()),
        span(60_000),
        1..3,
    );
    option::of((limits, 1000_u32..2000)).prop_map(move |found| {
        let (limits, answers) = found?;
        let window = every * answers;
        let fits = (Duration::from_millis(100)..=Duration::from_hours(1)).contains(&window);
        fits.then_some(Percentiles { limits, window, answers })
    })
}

fn http(every: Duration) -> impl Strategy<Value = Check> {
    let parts = (vec(200_u16..600, 1..4), option::of(line()), span(60_000), headers(), headers());
    (parts, json(), percentiles(every)).prop_map(|(parts, json, percentiles)| {
        let (status, body, within, headers, answer) = parts;
        let url = "http://[::1]:80/a?b=c".to_owned();
        Check::Http(HttpCheck { url, headers, status, body, answer, json, within, percentiles })
    })
}

fn dns() -> impl Strategy<Value = Check> {
    let server = select(vec![None, Some("[::1]:53"), Some("127.0.0.1:8600")]);
    let record = select(vec![
        (DnsRecord::A, "10.0.0.7"),
        (DnsRecord::Aaaa, "fd00::7"),
        (DnsRecord::Srv, "0 1 80 a.test"),
        (DnsRecord::Txt, "words"),
    ]);
    (server, record, any::<bool>(), 1_u32..9, span(60_000)).prop_map(
        |(server, (record, text), given, at_least, within)| {
            let server = server.map(|text| text.parse().unwrap());
            let question = DnsQuestion { name: "db.internal".to_owned(), server, record, within };
            let answer = given.then(|| text.to_owned()).into_iter().collect();
            Check::Dns(DnsCheck { question, answer, at_least })
        },
    )
}

fn alerts() -> impl Strategy<Value = Vec<Labels>> {
    let alert = (line(), option::of(line())).prop_map(|(name, job)| {
        let job = job.map(|job| ("job".to_owned(), job));
        std::iter::once(("alertname".to_owned(), name)).chain(job).collect()
    });
    vec(alert, 1..3)
}

/// What Prometheus tells an age of.
fn series() -> impl Strategy<Value = String> {
    "[a-z_:]{1,9} ?(\\{( ?[a-z_]{1,5} ?(=|!=|=~|!~) ?\"[^\"\\\\\\p{Cc}]{0,9}\",?)?\\})?"
}

fn metrics() -> impl Strategy<Value = Check> {
    let server = (headers(), series(), span(60_000), span(60_000)).prop_map(
        |(headers, fresh, max_age, within)| {
            let max_age = max_age + Duration::from_millis(100);
            Prometheus { url: "http://127.0.0.1:9090/x".to_owned(), headers, fresh, max_age, within }
        },
    );
    (server, line(), bounds(), alerts(), 0..3, any::<bool>()).prop_map(
        |(server, query, bounds, quiet, which, watched)| match which {
            0 => Check::Prometheus { server, query, bounds },
            1 => Check::PrometheusQuiet { server, quiet },
            _ => {
                let watchdog = watched.then(|| quiet[0].clone());
                let Prometheus { url, headers, max_age, within, .. } = server;
                let server = Alertmanager { url, headers, watchdog, max_age, within };
                Check::AlertmanagerQuiet { server, quiet }
            }
        },
    )
}

fn probe(at: usize) -> impl Strategy<Value = Probe> {
    let within = || span(60_000);
    let check = move |every| {
        prop_oneof![
            http(every),
            dns(),
            metrics(),
            within().prop_map(|within| Check::Tcp { address: "db.example:5432".to_owned(), within }),
            (vec(line(), 0..3), within()).prop_map(|(rest, within)| {
                let argv = std::iter::once("/bin/true".to_owned()).chain(rest).collect();
                Check::Command { argv, within }
            }),
            (1_u32..100, within()).prop_map(|(up, within)| {
                let pool = Pool { haproxy: "/run/h.sock".to_owned(), backend: "web".to_owned() };
                Check::Haproxy { pool, up, within }
            }),
            (1_u32..100).prop_map(|ready| Check::Group { group: "checkout".into(), ready }),
        ]
    };
    let paced = span(60_000).prop_flat_map(move |every| (check(every), Just(every)));
    (paced, 0_u32..9).prop_map(move |((check, every), tolerate)| Probe {
        name: format!("probe {at}"),
        check,
        every,
        tolerate,
    })
}

fn selector() -> impl Strategy<Value = ProcessSelector> {
    let texts = || option::of(select(vec!["/usr/bin/worker", "/a b/c"]).prop_map(str::to_owned));
    let names = (
        option::of(Just(GroupName::from("checkout"))),
        texts(),
        option::of(Just("^worker --id=\\d+".to_owned())),
        option::of(select(vec!["www-data", "33"]).prop_map(str::to_owned)),
        texts(),
        texts(),
        (1_u16.., option::of(span(1_000_000))),
    );
    names.prop_map(|(group, exe, cmdline, user, cgroup, pidfile, (port, older_than))| ProcessSelector {
        name: cmdline.is_some().then(|| "worker".to_owned()),
        unit: exe.is_some().then(|| "checkout@[1-4].service".to_owned()),
        container: user.is_some().then(|| "web-1".to_owned()),
        listen: (port % 2 == 0 || group.is_none()).then_some(port),
        group,
        exe,
        cmdline,
        user,
        cgroup,
        pidfile,
        older_than,
    })
}

fn target(select: impl Strategy<Value = ProcessSelector>) -> impl Strategy<Value = ProcessTarget> {
    let pick = prop_oneof![
        (1_u32..1000).prop_map(Pick::Count),
        percent().prop_map(Pick::Percent),
        Just(Pick::All)
    ];
    let order = proptest::sample::select(vec![Order::Random, Order::Oldest, Order::Newest]);
    (select, pick, order).prop_map(|(select, pick, order)| ProcessTarget { select, pick, order })
}

fn pause() -> impl Strategy<Value = FaultSpec> {
    target(selector()).prop_map(|target| FaultSpec::Pause(Pause { target }))
}

fn unit() -> impl Strategy<Value = FaultSpec> {
    let named = select(vec![Some("checkout@*.service".to_owned()), None]).prop_map(|unit| {
        let group = unit.is_none().then(|| "checkout".into());
        ProcessSelector { group, unit, ..ProcessSelector::default() }
    });
    let action = select(vec![UnitAction::Stop, UnitAction::Restart]);
    (target(named), action).prop_map(|(target, action)| FaultSpec::Unit(UnitFault { target, action }))
}

fn kill() -> impl Strategy<Value = FaultSpec> {
    let signals = || {
        let names: Vec<_> =
            Signal::names().filter_map(Signal::from_name).filter(|s| !s.stops()).collect();
        select(names)
    };
    let then = option::of((signals(), span(5_000)));
    let late = select(vec![Late::Spare, Late::Kill]);
    let pool = ("/[a-z/]{1,20}", "[a-zA-Z0-9_.:-]{1,20}")
        .prop_map(|(haproxy, backend)| Pool { haproxy, backend });
    let drain = (pool, span(5_000), late).prop_map(|(pool, within, late)| Drain {
        pool,
        within: within.max(Duration::from_millis(10)),
        late,
    });
    (target(selector()), signals(), then, option::of(drain)).prop_map(|(target, signal, then, drain)| {
        let then = then.filter(|_| signal != Signal::KILL);
        let then = then.map(|(signal, after)| Escalation { signal, after });
        FaultSpec::Kill(Kill { target, signal, then, drain })
    })
}

fn peers() -> impl Strategy<Value = Vec<Peer>> {
    let four = (any::<u32>(), 0_u8..=32).prop_map(|(bits, prefix)| {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Peer::Block(Cidr { address: std::net::Ipv4Addr::from_bits(bits & mask).into(), prefix })
    });
    let six = (any::<u128>(), 0_u8..=128).prop_map(|(bits, prefix)| {
        let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        Peer::Block(Cidr { address: std::net::Ipv6Addr::from_bits(bits & mask).into(), prefix })
    });
    let name = "[a-z][a-z0-9-]{0,8}(\\.[a-z]{2,5})?".prop_map(Peer::Name);
    vec(prop_oneof![four, six, name], 0..4)
}

fn traffic() -> impl Strategy<Value = Traffic> {
    let owner = || option::of(select(vec!["/system.slice/a.service"]).prop_map(str::to_owned));
    (any::<bool>(), peers(), 1_u16.., any::<bool>(), owner(), any::<bool>()).prop_map(
        |(calls, peers, port, tcp, cgroup, there)| Traffic {
            to: if calls { peers.clone() } else { Vec::new() },
            from: if calls { Vec::new() } else { peers },
            port: calls.then_some(port),
            listen: (!calls).then_some(port),
            protocol: tcp.then_some(Protocol::Tcp),
            unit: cgroup.is_none().then(|| "checkout@*.service".to_owned()),
            user: cgroup.is_some().then(|| "33".to_owned()),
            cgroup,
            interface: there.then(|| "eth0".to_owned()),
            netns: (!there).then(|| "/proc/7/ns/net".to_owned()),
        },
    )
}

fn latency() -> impl Strategy<Value = FaultSpec> {
    use Distribution::{Normal, Pareto, ParetoNormal, Uniform};
    let shapes = select(vec![Uniform, Normal, Pareto, ParetoNormal]);
    let engine = select(vec![None, Some(DelayEngine::Netem), Some(DelayEngine::Tap)]);
    (traffic(), span(60_000), 0_u32..=4, percent(), shapes, engine).prop_map(
        |(traffic, delay, quarters, correlation, shape, engine)| {
            let jittered = quarters > 0;
            FaultSpec::Latency(Latency {
                traffic,
                delay,
                jitter: delay / 4 * quarters,
                correlation: if jittered { correlation } else { Percent::ZERO },
                distribution: if jittered { shape } else { Uniform },
                engine,
            })
        },
    )
}

fn connections() -> impl Strategy<Value = FaultSpec> {
    let excess = select(vec![Excess::Reset, Excess::Drop]);
    let existing = select(vec![Existing::Keep, Existing::Close]);
    (traffic(), 0_u32..100, 0_u32..100, option::of(0_u32..100), 0..3, excess, existing).prop_map(
        |(traffic, a, b, new_per_second, given, excess, existing)| {
            FaultSpec::Connections(Connections {
                traffic,
                max: (given != 1).then_some(a.max(b)),
                per_source: (given != 2).then_some(a.min(b)),
                new_per_second,
                excess,
                existing,
            })
        },
    )
}

fn step(at: usize) -> impl Strategy<Value = Step> {
    let fault = prop_oneof![
        kill().boxed(),
        pause().boxed(),
        unit().boxed(),
        latency().boxed(),
        connections().boxed()
    ];
    (fault, span(1_000_000), any::<bool>(), any::<bool>(), 0_u32..5).prop_map(
        move |(fault, duration, long, with, charge)| {
            let endless = matches!(fault, FaultSpec::Kill(Kill { drain: None, .. })) && !long;
            Step {
                name: format!("step {at}"),
                fault,
                duration: (!endless).then_some(duration + Duration::from_secs(5)),
                start: if with && at > 0 { Start::WithPrevious } else { Start::AfterPrevious },
                charge,
            }
        },
    )
}

fn experiments() -> impl Strategy<Value = Experiment> {
    (
        line(),
        line(),
        (probe(0), probe(1)),
        0..3_usize,
        (step(0), step(1), step(2)),
        1..4_usize,
        span(100_000),
    )
        .prop_map(|(title, hypothesis, (p, q), probes, (a, b, c), steps, recovery)| Experiment {
            title,
            hypothesis,
            groups: vec!["checkout".into(), "other".into()],
            probes: [p, q].into_iter().take(probes).collect(),
            steps: [a, b, c].into_iter().take(steps).collect(),
            recovery,
        })
}

/// Any value that TOML can say.
fn anything() -> impl Strategy<Value = toml::Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(toml::Value::from),
        any::<i64>().prop_map(toml::Value::from),
        any::<f64>().prop_map(toml::Value::from),
        words().prop_map(toml::Value::from),
        Just(toml::Value::Datetime("1979-05-27T07:32:00Z".parse().unwrap())),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(toml::Value::Array),
            vec((words(), inner), 0..6)
                .prop_map(|entries| toml::Value::Table(entries.into_iter().collect())),
        ]
    })
}

/// Mostly the words of documents, so that the readers get deep.
fn words() -> impl Strategy<Value = String> {
    const WORDS: &str = "title hypothesis groups recovery probe step name fault kill latency connections \
        target traffic group pick order signal then after delay jitter correlation max to from port listen \
        http tcp command dns prometheus alertmanager server query quiet fresh watchdog alertname headers json \
        type answer at_least at_most max_age p99 p99.9 window count total /a/b sum(up) http://127.0.0.1:90 \
        expect status within every tolerate api token tls limits headroom floor expected \
        members ready freeze zone until 50% 1s 0s -1s all SIGTERM SIGSTOP 10.0.0.0/8 10.0.0.1/8 with:previous";
    let known: Vec<String> = WORDS.split_whitespace().map(|word| word.replace(':', " ")).collect();
    prop_oneof![8 => select(known), 1 => any::<String>()]
}

fn check_errors(text: &str, errors: &document::Diagnostics) {
    assert!(!errors.items.is_empty(), "refused without a reason:\n{text}");
    for item in &errors.items {
        assert!(!item.message.is_empty() && item.span.is_some() == item.line.is_some());
    }
    let _ = (errors.render(text, false), errors.render(text, true), errors.to_string());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn an_experiment_survives_its_own_document(experiment in experiments()) {
        let json = document::to_json(&experiment);
        let text = serde_json::to_string_pretty(&json).unwrap();
        let again = document::experiment(&text, "x.json", Format::Json);
        prop_assert_eq!(again.as_ref(), Ok(&experiment), "{}", text);
        let text = toml::to_string(&json).unwrap();
        let again = document::experiment(&text, "x.toml", Format::Toml);
        prop_assert_eq!(again.as_ref(), Ok(&experiment), "{}", text);
    }

    #[test]
    fn no_tree_panics(tree in vec((words(), anything()), 0..8)) {
        let table: toml::Table = tree.into_iter().collect();
        let text = toml::to_string(&table).unwrap();
        let _ = document::kind_of(&text);
        if let Err(errors) = document::policy(&text, "x") {
            check_errors(&text, &errors);
        }
        if let Err(errors) = document::experiment(&text, "x", Format::Toml) {
            check_errors(&text, &errors);
        }
        if let Ok(text) = serde_json::to_string(&table) && let Err(errors) = document::experiment(&text, "x", Format::Json) {
            check_errors(&text, &errors);
        }
    }

    #[test]
    fn no_text_panics(text in any::<String>(), cut in 0..2000_usize) {
        let mut damaged = POLICY.to_owned();
        damaged.insert_str(damaged.floor_char_boundary(cut), &text);
        for text in [&text, &damaged] {
            for format in [Format::Toml, Format::Json] {
                if let Err(errors) = document::experiment(text, "x", format) {
                    check_errors(text, &errors);
                }
            }
            if let Err(errors) = document::policy(text, "x") {
                check_errors(text, &errors);
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = document::text_from_bytes(&bytes, "x");
    }
}

/// Keys that a document may do without, alone.
const OPTIONAL: [&str; 49] = [
    "protocol",
    "headers",
    "server",
    "type",
    "fresh",
    "max_age",
    "json",
    "count",
    "total",
    "groups",
    "recovery",
    "probe",
    "status",
    "body",
    "within",
    "every",
    "tolerate",
    "pick",
    "order",
    "signal",
    "then",
    "jitter",
    "distribution",
    "correlation",
    "max",
    "per_source",
    "excess",
    "existing",
    "start",
    "leashed",
    "state",
    "experiments",
    "api",
    "limits",
    "network",
    "group",
    "freeze",
    "socket",
    "client_ca",
    "hosts",
    "ready",
    "poll",
    "stale_after",
    "settle",
    "removal",
    "expect",
    "port",
    "to",
    "headroom",
];

type Reader = fn(&str) -> Result<(), document::Diagnostics>;

fn documents() -> Vec<(toml::Table, Reader)> {
    let experiment: Reader = |text| document::experiment(text, "x", Format::Toml).map(drop);
    let policy: Reader = |text| document::policy(text, "x").map(drop);
    let mut all: Vec<(toml::Table, Reader)> =
        library().iter().map(|(_, text)| (text.parse().unwrap(), experiment)).collect();
    all.push((POLICY.parse().unwrap(), policy));
    all
}

/// Calls `visit` with every table below, by path.
fn tables(path: &[String], value: &toml::Value, visit: &mut impl FnMut(&[String], &toml::Table)) {
    let below = |step: &str| path.iter().cloned().chain([step.to_owned()]).collect::<Vec<_>>();
    match value {
        toml::Value::Table(table) => {
            visit(path, table);
            for (key, value) in table {
                tables(&below(key), value, visit);
            }
        }
        toml::Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                tables(&below(&at.to_string()), item, visit);
            }
        }
        _ => {}
    }
}

/// Every (document, reader, changed key), with `change` applied to one key of one table at a time.
fn each_key(change: impl Fn(&mut toml::Table, &str), mut check: impl FnMut(&str, &str, Reader)) {
    let mut seen = 0;
    for (table, reader) in documents() {
        let root = toml::Value::Table(table);
        let mut places = Vec::new();
        tables(&[], &root, &mut |path, table| {
            places.extend(table.keys().map(|key| (path.to_vec(), key.clone())));
        });
        // Headers, JSON pointers and percentiles are the writer's own words.
        let free = |path: &[String]| path.last().is_some_and(|key| key == "headers" || key == "json");
        let percentile = |key: &str| Quantile::from_name(key).is_some();
        for (path, key) in places.into_iter().filter(|(path, key)| !free(path) && !percentile(key)) {
            let mut changed = root.clone();
            let place = path.iter().fold(&mut changed, |value, step| match value {
                toml::Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
                value => value.get_mut(step).unwrap(),
            });
            change(place.as_table_mut().unwrap(), &key);
            check(&toml::to_string(&changed).unwrap(), &key, reader);
            seen += 1;
        }
    }
    assert!(seen > 150, "{seen} keys are too few");
}

#[test]
fn every_misspelt_key_is_named() {
    let misspell = |key: &str| format!("{}x{}", &key[..1], &key[1..]);
    let change = |table: &mut toml::Table, key: &str| {
        let value = table.remove(key).unwrap();
        table.insert(misspell(key), value);
    };
    each_key(change, |text, key, read| {
        let errors = read(text).expect_err(key);
        let wrong = format!("unknown key `{}`", misspell(key));
        let named = errors.items.iter().any(|item| item.message.contains(&wrong));
        assert!(named, "`{key}` misspelt:\n{errors}");
        // Short words have no nearest one.
        let near = errors
            .items
            .iter()
            .any(|item| item.help.as_ref().is_some_and(|help| help.contains(&format!("`{key}`"))));
        assert!(near, "`{key}` misspelt:\n{errors}");
        assert_eq!(errors.items.len(), 1, "`{key}` misspelt gives one error:\n{errors}");
    });
}

#[test]
fn every_missing_key_is_named() {
    let change = |table: &mut toml::Table, key: &str| {
        table.remove(key);
    };
    each_key(change, |text, key, read| match read(text) {
        Ok(()) => assert!(OPTIONAL.contains(&key) || in_selector(key), "nobody misses `{key}`:\n{text}"),
        Err(errors) => {
            let named = errors.items.iter().any(|item| item.to_string().contains(key));
            assert!(named, "`{key}` missing:\n{errors}");
        }
    });
}

/// Keys that others may stand in for.
fn in_selector(key: &str) -> bool {
    ["duration", "wait", "concurrent_runs", "targets_per_step", "memory", "pids", "user", "cgroup"]
        .contains(&key)
        || ["at_once", "tls", "mark_mask", "expected", "token", "listen", "name", "protocol"]
            .contains(&key)
}
