//! `http` against nginx: heads, bodies, counts and percentiles of a server that answers, lies, dawdles,
//! hangs, is stopped and comes back.

use std::{fs, path::Path, time::Duration};

use vervet::{
    config::ReadySource,
    experiment::{Bounds, Check, HttpCheck, JsonExpect, Percentiles, Quantile},
    probe::Asker,
};

use crate::{
    harness::{Stage, story},
    server::{Server, Watch, ask, good, group, miss, missing, play},
};

pub const PORT: u16 = 8080;
const WITHIN: Duration = Duration::from_millis(300);

/// nginx in one process, serving the files below `www`; those below `slow` byte by byte.
pub fn nginx(dir: &Path) -> Server {
    let www = dir.join("www");
    fs::create_dir_all(www.join("slow")).expect("made");
    let config = format!(
        "daemon off; master_process off; pid {0}/nginx.pid; error_log stderr;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; root {0}/www; default_type text/plain;\n\
         client_body_temp_path {0}/a; proxy_temp_path {0}/b; fastcgi_temp_path {0}/c;\n\
         uwsgi_temp_path {0}/d; scgi_temp_path {0}/e;\n\
         server {{ listen 127.0.0.1:{PORT} default_server; add_header Cache-Control no-store always;\n\
         location / {{ }} location /slow/ {{ limit_rate 64; }} }}\n\
         server {{ listen 127.0.0.1:{PORT}; server_name shop.test; return 204; }} }}\n",
        dir.display()
    );
    fs::write(dir.join("nginx.conf"), config).expect("written");
    let config = dir.join("nginx.conf");
    let mut server = Server::start(dir, &["nginx", "-c", config.to_str().expect("UTF-8")]);
    server.listening(PORT);
    server
}

/// Changes a file as a whole: nobody sees half of it.
pub fn serve(dir: &Path, name: &str, text: &str) {
    let (new, file) = (dir.join("new"), dir.join("www").join(name));
    fs::write(&new, text).expect("written");
    fs::rename(new, file).expect("moved");
}

fn check(path: &str) -> HttpCheck {
    HttpCheck::new(format!("http://127.0.0.1:{PORT}{path}"), WITHIN)
}

fn with_nginx(name: &str, scene: impl FnOnce(&mut Stage, Server) + Send) {
    story(name, |stage| match missing(&["nginx", "setpriv"]) {
        Some(why) => eprintln!("SKIPPED: {name}: {why}"),
        None => {
            let nginx = nginx(stage.dir.path());
            scene(stage, nginx);
        }
    });
}

#[test]
fn an_answer_is_judged_by_head_and_body_whatever_becomes_of_the_server() {
    with_nginx("an_answer_is_judged_by_head_and_body", |stage, mut nginx| {
        let dir = stage.dir.path();
        serve(dir, "status", "{\"status\": \"ok\", \"replicas\": {\"ready\": 4}}");
        serve(dir, "slow/status", &" ".repeat(4000));
        play(async {
            let least = JsonExpect::Within(Bounds { at_least: Some(3.0), at_most: None });
            let whole = Check::Http(HttpCheck {
                answer: [("cache-control".to_owned(), "no-store".to_owned())].into(),
                json: [
                    ("/status".to_owned(), JsonExpect::Is("ok".into())),
                    ("/replicas/ready".to_owned(), least.clone()),
                ]
                .into(),
                ..check("/status")
            });
            assert_eq!(ask(&whole).await, Ok(()));
            let other = Check::Http(HttpCheck {
                headers: [("Host".to_owned(), "shop.test".to_owned())].into(),
                status: vec![204],
                ..check("/status")
            });
            assert_eq!(ask(&other).await, Ok(()), "another server, by its name");

            // It lies, and then says nothing of it at all.
            serve(dir, "status", "{\"status\": \"ok\", \"replicas\": {\"ready\": 2}}");
            miss(&whole, "says at `/replicas/ready` 2, and at least 3 is expected").await;
            serve(dir, "status", "{\"status\": \"ok\"}");
            miss(&whole, "without anything at `/replicas/ready`").await;
            serve(dir, "status", "<html>ok</html>");
            miss(&whole, "no JSON document").await;
            fs::remove_file(dir.join("www/status")).expect("removed");
            miss(&whole, "answered 404, not 200").await;
            serve(dir, "status", "{\"status\": \"ok\", \"replicas\": {\"ready\": 4}}");
            good(&whole).await;

            let slow = HttpCheck { json: [("/a".to_owned(), least)].into(), ..check("/slow/status") };
            miss(&Check::Http(slow), "did not answer within 300ms").await;
            nginx.hang();
            miss(&whole, "did not answer within 300ms").await;
            nginx.go_on();
            good(&whole).await;
            nginx.stop();
            miss(&whole, "does not take a connection").await;
            nginx.start_again();
            good(&whole).await;
        });
    });
}

#[test]
fn one_url_counts_for_a_group_and_is_believed_only_what_can_be() {
    with_nginx("one_url_counts_for_a_group", |stage, mut nginx| {
        let dir = stage.dir.path();
        let say = |ready: &str, total: u32| {
            serve(dir, "status", &format!("{{\"ready\": {ready}, \"total\": {total}}}"));
        };
        say("4", 4);
        play(async {
            let source = ReadySource::HttpCount {
                ask: check("/status"),
                count: "/ready".to_owned(),
                total: Some("/total".to_owned()),
            };
            let mut watch = Watch::start(&group(source));
            watch.ready(4, 4).await;
            say("3", 4);
            watch.ready(3, 4).await;
            say("0", 4);
            watch.ready(0, 4).await;
            say("5", 5);
            watch.fails("counts 5 ready in g, and 4 are expected at most").await;
            say("5", 4);
            watch.fails("counts 5 ready of 4").await;
            say("-1", 4);
            watch.fails("-1, not a number of instances").await;
            say("2.5", 4);
            watch.fails("2.5, not a number of instances").await;
            say("4", 4);
            watch.ready(4, 4).await;
            nginx.hang();
            watch.fails("did not answer within 300ms").await;
            nginx.go_on();
            watch.ready(4, 4).await;
            nginx.stop();
            watch.fails("does not take a connection").await;
            say("3", 4);
            nginx.start_again();
            watch.ready(3, 4).await;
        });
    });
}

#[test]
fn a_percentile_is_missed_while_the_server_stands_still_and_for_a_window_after() {
    with_nginx("a_percentile_is_missed_while_the_server_stands_still", |stage, nginx| {
        serve(stage.dir.path(), "status", "ok");
        let (window, every) = (Duration::from_secs(2), Duration::from_millis(50));
        let percentiles = Percentiles {
            limits: [(Quantile::from_name("p90").expect("one"), Duration::from_millis(200))].into(),
            window,
            answers: 40,
        };
        let check = HttpCheck { percentiles: Some(percentiles), ..check("/status") };
        play(async {
            let mut asker = Asker::new(&Check::Http(check));
            let mut ticks = tokio::time::interval(every);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            let begun = tokio::time::Instant::now();
            // The first word comes when the window has been seen whole, and is a good one.
            let first = loop {
                ticks.tick().await;
                if let Some(said) = asker.ask().await {
                    break said;
                }
            };
            assert!(begun.elapsed() >= window - every * 2, "{:?}", begun.elapsed());
            assert_eq!(first, Ok(()));
            nginx.hang();
            let miss = loop {
                ticks.tick().await;
                if let Err(miss) = asker.ask().await.expect("a whole window") {
                    break miss;
                }
            };
            assert!(
                miss.contains("p90 is a failure, not 200ms") && miss.contains("answers in 2s"),
                "{miss}"
            );
            nginx.go_on();
            let back = tokio::time::Instant::now();
            loop {
                ticks.tick().await;
                if asker.ask().await.expect("a whole window").is_ok() {
                    break;
                }
                assert!(back.elapsed() < window * 3, "it does not come back");
            }
            assert!(back.elapsed() > window / 2, "the bad answers count until they leave the window");
        });
    });
}
