//! A monkey at four nginx behind an HAProxy: kill after kill under load, each replaced by a
//! supervisor, and the floor holds as the load balancer itself sees it.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    balanced::{Balanced, fetch, missing, up},
    harness::{Stage, experiment, story},
};

/// How long the monkey plays with drains, and without.
const DRAINED: Duration = Duration::from_secs(50);
const BLUNT: Duration = Duration::from_secs(15);
/// Customers that ask at the same time.
const CUSTOMERS: usize = 6;
/// How often somebody outside looks at HAProxy.
const GLANCE: Duration = Duration::from_millis(25);

/// What customers and onlookers saw.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    served: AtomicUsize,
    failed: AtomicUsize,
    looks: AtomicUsize,
    fewest: AtomicUsize,
}

fn watch(dir: PathBuf, seen: &Arc<Seen>) -> Vec<JoinHandle<()>> {
    seen.fewest.store(usize::MAX, Relaxed);
    let customer = |at: usize| {
        let seen = Arc::clone(seen);
        std::thread::spawn(move || {
            while !seen.stop.load(Relaxed) {
                // Some take long, so that a kill finds them in the middle of it.
                match fetch(if at % 3 == 0 { "/" } else { "/slow" }) {
                    Ok(_) => seen.served.fetch_add(1, Relaxed),
                    Err(error) => {
                        eprintln!("a request failed: {error}");
                        seen.failed.fetch_add(1, Relaxed)
                    }
                };
                std::thread::sleep(Duration::from_millis(20));
            }
        })
    };
    let onlooker = {
        let seen = Arc::clone(seen);
        std::thread::spawn(move || {
            while !seen.stop.load(Relaxed) {
                seen.fewest.fetch_min(up(&dir), Relaxed);
                seen.looks.fetch_add(1, Relaxed);
                std::thread::sleep(GLANCE);
            }
        })
    };
    (0..CUSTOMERS).map(customer).chain([onlooker]).collect()
}

/// Kill after kill for so long; what was seen, and how many there were.
fn play(stage: &mut Stage, balanced: &Balanced, step: &str, span: Duration) -> (Arc<Seen>, usize) {
    let seen = Arc::new(Seen::default());
    let threads = watch(balanced.dir.clone(), &seen);
    let (begun, mut kills) = (Instant::now(), 0);
    let document = experiment("\"shop\"", step);
    while begun.elapsed() < span {
        stage.calm("shop", 4);
        let before = balanced.masters();
        let run = stage.play(&document);
        assert_eq!(run["verdict"], "passed", "{run:#}\n{}", stage.log());
        assert_eq!(run["cleanup"], "clean", "{run:#}");
        stage.until("somebody took its place", |_| (balanced.masters() != before).then_some(()));
        kills += 1;
    }
    stage.calm("shop", 4);
    seen.stop.store(true, Relaxed);
    for thread in threads {
        thread.join().expect("an onlooker lives");
    }
    (seen, kills)
}

#[test]
fn four_nginx_keep_their_floor_through_a_monkey() {
    let name = "four_nginx_keep_their_floor_through_a_monkey";
    if let Some(why) = missing() {
        return eprintln!("SKIPPED: {name}: {why}");
    }
    story(name, |stage| {
        let balanced = Balanced::start(stage, "");
        stage.policy("leashed = false", "wait = \"20s\"", &balanced.group("1s"));
        stage.start();
        stage.calm("shop", 4);
        let before = balanced.settings();
        let pool = balanced.pool();
        let probe = format!(
            "[[probe]]\nname = \"three are up\"\nhaproxy = \"{}\"\nbackend = \"{}\"\n\
             expect = {{ up = 3 }}\nevery = \"100ms\"\n",
            pool.haproxy, pool.backend
        );

        let step = format!("{probe}{}", balanced.drained_kill("5s", "1200ms", "spare"));
        let (seen, kills) = play(stage, &balanced, &step, DRAINED);
        let (served, failed) = (seen.served.load(Relaxed), seen.failed.load(Relaxed));
        let (looks, fewest) = (seen.looks.load(Relaxed), seen.fewest.load(Relaxed));
        eprintln!(
            "drained: {kills} kills in {DRAINED:?}, {served} requests served, {failed} failed; {looks} \
             looks at HAProxy, never fewer than {fewest} up"
        );
        assert!(kills >= 5, "{kills} kills");
        assert!(served > 500, "{served} requests");
        assert_eq!(failed, 0, "no request fails");
        assert!(fewest >= 3, "{fewest} up");
        assert_eq!(balanced.settings(), before, "as it was");

        let blunt = "[[step]]\nname = \"lose one\"\nfault = \"kill\"\nsignal = \"SIGTERM\"\n\
                     target = { group = \"shop\", pick = 1 }\n";
        let (seen, kills) = play(stage, &balanced, &format!("{probe}{blunt}"), BLUNT);
        let (served, failed) = (seen.served.load(Relaxed), seen.failed.load(Relaxed));
        let fewest = seen.fewest.load(Relaxed);
        eprintln!(
            "not drained: {kills} kills in {BLUNT:?}, {served} requests served, {failed} failed; never \
             fewer than {fewest} up"
        );
        assert!(failed > 0, "without a drain the load does notice, or this test proves nothing");
        assert!(fewest >= 3, "{fewest} up");
    });
}
