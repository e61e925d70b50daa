//! `prometheus` and `alertmanager` against the real ones.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use vervet::{
    config::ReadySource,
    experiment::{Alertmanager, Bounds, Check, Labels, Prometheus},
};

use crate::{
    harness::story,
    server::{Server, Watch, ask, good, group, miss, missing, play},
    web::{nginx, serve},
};

pub const PROMETHEUS: u16 = 9090;
const ALERTMANAGER: u16 = 9093;
const WITHIN: Duration = Duration::from_secs(2);

/// Scrapes what nginx serves as `metrics`, and evaluates its rules, four times a second.
pub fn prometheus(dir: &Path) -> Server {
    let text = format!(
        "global: {{ scrape_interval: 250ms, scrape_timeout: 200ms, evaluation_interval: 250ms }}\n\
         rule_files: [ \"{}/rules.yml\" ]\nscrape_configs:\n- job_name: shop\n\
         \x20 static_configs: [ {{ targets: [ '127.0.0.1:{}' ] }} ]\n",
        dir.display(),
        crate::web::PORT
    );
    fs::write(dir.join("prometheus.yml"), text).expect("written");
    let rules = "groups:\n- name: shop\n  rules:\n\
                 \x20 - { alert: HighErrors, expr: shop_errors > 5, labels: { severity: page } }\n\
                 \x20 - { alert: Slow, expr: shop_errors > 1, for: 1h }\n\
                 \x20 - { alert: Broken, expr: shop_ready * on() shop_ready }\n";
    fs::write(dir.join("rules.yml"), rules).expect("written");
    let config = format!("--config.file={}", dir.join("prometheus.yml").display());
    let storage = format!("--storage.tsdb.path={}", dir.join("tsdb").display());
    let listen = format!("--web.listen-address=127.0.0.1:{PROMETHEUS}");
    let command = ["prometheus", &config, &storage, &listen, "--log.level=warn"];
    let mut server = Server::start(dir, &command);
    server.listening(PROMETHEUS);
    server
}

/// Four instances, of which so many are ready, and so many errors.
pub fn tell(dir: &Path, ready: &[&str], errors: u32) {
    let each = ready.iter().enumerate();
    let lines: String =
        each.map(|(at, ready)| format!("shop_ready{{worker=\"{at}\"}} {ready}\n")).collect();
    // A sample that says itself to be of a minute ago.
    let then = jiff::Timestamp::now().as_millisecond() - 60_000;
    serve(dir, "metrics", &format!("{lines}shop_errors {errors}\nshop_late 1 {then}\n"));
}

fn server() -> Prometheus {
    Prometheus {
        url: format!("http://127.0.0.1:{PROMETHEUS}/"),
        headers: std::collections::BTreeMap::new(),
        fresh: "up".to_owned(),
        max_age: Duration::from_secs(10),
        within: WITHIN,
    }
}

fn query(query: &str, at_least: f64) -> Check {
    let bounds = Bounds { at_least: Some(at_least), at_most: Some(4.0) };
    Check::Prometheus { server: server(), query: query.to_owned(), bounds }
}

fn alert(name: &str) -> Labels {
    [("alertname".to_owned(), name.to_owned())].into()
}

fn with_prometheus(name: &str, scene: impl FnOnce(&Path, Server, Server) + Send) {
    story(name, |stage| match missing(&["prometheus", "nginx", "setpriv"]) {
        Some(why) => eprintln!("SKIPPED: {name}: {why}"),
        None => {
            let dir = stage.dir.path();
            let nginx = nginx(dir);
            tell(dir, &["1"; 4], 0);
            scene(dir, nginx, prometheus(dir));
        }
    });
}

#[test]
fn a_query_is_judged_by_every_value_whatever_becomes_of_the_server() {
    with_prometheus("a_query_is_judged_by_every_value", |dir, mut nginx, mut prometheus| {
        play(async {
            let sum = query("sum(shop_ready)", 3.0);
            good(&sum).await;
            good(&query("shop_ready", 1.0)).await;
            good(&query("scalar(sum(shop_ready))", 4.0)).await;
            for (text, said) in [
                (
                    "shop_ready - 1",
                    "{instance=\"127.0.0.1:8080\", job=\"shop\", worker=\"0\"} is 0, and at least 1",
                ),
                ("sum(shop_ready) * 2", "is 8, and at most 4 is expected"),
                ("shop_gone", "shop_gone has no value at all"),
                ("sum(shop_ready) / 0 * 0", "NaN, which is no number to judge by"),
                ("sum(shop_ready) / 0", "inf, which is no number to judge by"),
                ("shop_ready[1m]", "gives neither a vector nor a scalar"),
                ("sum(shop_ready", "answered with an error: bad_data"),
            ] {
                miss(&query(text, 1.0), said).await;
            }
            let with = |fresh: &str| Check::Prometheus {
                server: Prometheus { fresh: fresh.to_owned(), ..server() },
                query: "sum(shop_ready)".to_owned(),
                bounds: Bounds { at_least: Some(1.0), at_most: None },
            };
            miss(&with("shop_late"), "s old, and 10s is the most").await;
            miss(&with("shop_gone"), "no sample of shop_gone").await;

            tell(dir, &["1", "1", "0", "0"], 0);
            miss(&sum, "sum(shop_ready) is 2, and at least 3 is expected").await;
            tell(dir, &["1"; 4], 0);
            good(&sum).await;
            // What it scrapes is gone: the value goes, too.
            nginx.stop();
            miss(&sum, "has no value at all").await;
            nginx.start_again();
            good(&sum).await;
            prometheus.hang();
            miss(&sum, "did not answer within 2s").await;
            prometheus.go_on();
            good(&sum).await;
            prometheus.stop();
            miss(&sum, "does not take a connection").await;
            prometheus.start_again();
            good(&sum).await;
        });
    });
}

#[test]
fn a_query_counts_and_is_believed_only_what_can_be() {
    with_prometheus(
        "a_query_counts_and_is_believed_only_what_can_be",
        |dir, mut nginx, mut prometheus| {
            play(async {
                let source = |query: &str| {
                    let server = Prometheus { within: Duration::from_secs(1), ..server() };
                    group(ReadySource::Prometheus { server, query: query.to_owned() })
                };
                let mut watch = Watch::start(&source("sum(shop_ready)"));
                watch.ready(4, 4).await;
                tell(dir, &["1", "1", "1", "0"], 0);
                watch.ready(3, 4).await;
                tell(dir, &["1", "1", "1", "2"], 0);
                watch.fails("counts 5 ready in g, and 4 are expected at most").await;
                tell(dir, &["0"; 4], 0);
                watch.ready(0, 4).await;
                tell(dir, &["1", "1", "0.5", "0"], 0);
                watch.fails("is 2.5, not a number of instances").await;
                tell(dir, &["0", "0", "-1", "0"], 0);
                watch.fails("is -1, not a number of instances").await;
                tell(dir, &["1", "NaN"], 0);
                watch.fails("is NaN, not a number of instances").await;
                tell(dir, &["1"; 4], 0);
                watch.ready(4, 4).await;
                Watch::start(&source("shop_ready")).fails("has 4 values, and a count is one").await;
                nginx.stop();
                watch.fails("has no value at all").await;
                nginx.start_again();
                watch.ready(4, 4).await;
                prometheus.hang();
                watch.fails("did not answer within 1s").await;
                prometheus.go_on();
                watch.ready(4, 4).await;
                prometheus.stop();
                watch.fails("does not take a connection").await;
                prometheus.start_again();
                watch.ready(4, 4).await;
            });
        },
    );
}

#[test]
fn an_alert_is_quiet_only_if_its_rule_is_there_and_works() {
    with_prometheus("an_alert_is_quiet_only_if_its_rule_is_there", |dir, _nginx, mut prometheus| {
        play(async {
            let quiet = |quiet: Labels| Check::PrometheusQuiet {
                server: server(),
                quiet: vec![alert("Slow"), quiet],
            };
            let errors = quiet(alert("HighErrors"));
            good(&errors).await;
            miss(&quiet(alert("HihgErrors")), "no alerting rule HihgErrors").await;
            miss(&quiet(alert("Broken")), "the rule of the alert Broken is err: ").await;
            tell(dir, &["1"; 4], 6);
            miss(&errors, "the alert HighErrors{instance=\"127.0.0.1:8080\", job=\"shop\"").await;
            let others = |label: &str| {
                let mut labels = alert("HighErrors");
                labels.insert("severity".to_owned(), label.to_owned());
                quiet(labels)
            };
            miss(&others("page"), "is firing").await;
            assert_eq!(ask(&others("ticket")).await, Ok(()), "one with other labels");
            tell(dir, &["1"; 4], 0);
            good(&errors).await;
            prometheus.hang();
            miss(&errors, "did not answer within 2s").await;
            prometheus.go_on();
            good(&errors).await;
            prometheus.stop();
            miss(&errors, "does not take a connection").await;
            prometheus.start_again();
            good(&errors).await;
        });
    });
}

fn alertmanager(dir: &Path) -> Server {
    fs::write(
        dir.join("alertmanager.yml"),
        "route: { receiver: none }\nreceivers: [ { name: none } ]\n",
    )
    .expect("written");
    let config = format!("--config.file={}", dir.join("alertmanager.yml").display());
    let storage = format!("--storage.path={}", dir.join("alerts").display());
    let listen = format!("--web.listen-address=127.0.0.1:{ALERTMANAGER}");
    let command = [
        "prometheus-alertmanager",
        &config,
        &storage,
        &listen,
        "--cluster.listen-address=",
        "--log.level=warn",
    ];
    let mut server = Server::start(dir, &command);
    server.listening(ALERTMANAGER);
    server
}

/// Tells the Alertmanager something; what it answers.
fn post(path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", ALERTMANAGER)).expect("connected");
    let length = body.len();
    write!(
        stream,
        "POST /api/v2/{path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

fn raise(name: &str) {
    post("alerts", &format!("[{{ \"labels\": {{ \"alertname\": \"{name}\", \"job\": \"shop\" }} }}]"));
}

#[test]
fn an_alertmanager_is_quiet_only_while_its_watchdog_is_there() {
    let name = "an_alertmanager_is_quiet_only_while_its_watchdog_is_there";
    story(name, |stage| {
        if let Some(why) = missing(&["prometheus-alertmanager", "setpriv"]) {
            return eprintln!("SKIPPED: {name}: {why}");
        }
        let mut server = alertmanager(stage.dir.path());
        play(async {
            let check = |watchdog: Option<&str>, max_age| Check::AlertmanagerQuiet {
                server: Alertmanager {
                    url: format!("http://127.0.0.1:{ALERTMANAGER}"),
                    headers: std::collections::BTreeMap::new(),
                    watchdog: watchdog.map(alert),
                    max_age,
                    within: WITHIN,
                },
                quiet: vec![alert("High (Errors)"), alert("Down")],
            };
            let minute = Duration::from_mins(1);
            let watched = check(Some("Watchdog"), minute);
            good(&check(None, minute)).await;
            miss(&watched, "the watchdog Watchdog is not there").await;
            raise("Watchdog");
            raise("Harmless");
            good(&watched).await;
            miss(&check(Some("Watchdog"), Duration::from_secs(1)), "was last renewed").await;
            raise("High (Errors)");
            miss(&watched, "the alert High (Errors){job=\"shop\"} is active").await;
            let now = jiff::Timestamp::now();
            let until = now + Duration::from_mins(5);
            post(
                "silences",
                &format!(
                    "{{ \"matchers\": [{{ \"name\": \"job\", \"value\": \"shop\", \"isRegex\": false }}], \
                     \"startsAt\": \"{now}\", \"endsAt\": \"{until}\", \"createdBy\": \"test\", \"comment\": \"-\" }}"
                ),
            );
            // The watchdog is silenced by it as well, and is there all the same.
            good(&watched).await;
            server.hang();
            miss(&watched, "did not answer within 2s").await;
            server.go_on();
            good(&watched).await;
            server.stop();
            miss(&watched, "does not take a connection").await;
            // It comes back without any alert: nobody has told it of one yet.
            server.start_again();
            miss(&watched, "is not there: alerts may not reach it").await;
            raise("Watchdog");
            good(&watched).await;
        });
    });
}
