//! A monkey at four nginx behind an HAProxy: kill after kill under load, by a schedule and by hand,
//! each replaced by a supervisor, and the floor holds as the load balancer itself sees it.

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
                match fetch(if at.is_multiple_of(3) { "/" } else { "/slow" }) {
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

/// A schedule left to itself for so long; what was seen, and how many kills there were. Where the group
/// is not whole again in time, the limiter waits or refuses: both are right.
fn leave_alone(stage: &mut Stage, balanced: &Balanced, span: Duration) -> (Arc<Seen>, usize) {
    let seen = Arc::new(Seen::default());
    let threads = watch(balanced.dir.clone(), &seen);
    stage.call("DELETE", "/v1/schedules/monkey/pause", "").expect(200);
    std::thread::sleep(span);
    stage.call("PUT", "/v1/schedules/monkey/pause", "").expect(200);
    let runs = stage.until("its last run is over", |stage| {
        let runs = stage.get("/v1/runs?limit=200")["runs"].as_array().expect("runs").clone();
        runs.iter().all(|run| run["state"] == "finished").then_some(runs)
    });
    stage.calm("shop", 4);
    seen.stop.store(true, Relaxed);
    for thread in threads {
        thread.join().expect("an onlooker lives");
    }
    for run in &runs {
        assert_eq!(run["caller"], "schedule:monkey", "{run:#}");
        assert!(["passed", "refused"].contains(&run["verdict"].as_str().unwrap_or_default()), "{run:#}");
        assert_eq!(run["cleanup"], "clean", "{run:#}");
    }
    (seen, runs.iter().filter(|run| run["verdict"] == "passed").count())
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
        let group = balanced.group("1s") + "monkey = true\n";
        let schedule = "[[schedule]]\nname = \"monkey\"\nexperiment = \"monkey\"\n\
                        cron = \"*/3 * * * * *\"\nzone = \"UTC\"\n";
        stage.policy("leashed = false", "wait = \"20s\"", &format!("{group}{schedule}"));
        let drained = balanced.drained_kill("5s", "1200ms", "spare");
        let before = balanced.settings();
        let pool = balanced.pool();
        let probe = format!(
            "[[probe]]\nname = \"three are up\"\nhaproxy = \"{}\"\nbackend = \"{}\"\n\
             expect = {{ up = 3 }}\nevery = \"100ms\"\n",
            pool.haproxy, pool.backend
        );

        let monkey =
            experiment("\"shop\"", &format!("{probe}{drained}")).replace("\"shop\"", "\"@any\"");
        std::fs::create_dir_all(stage.path("experiments")).expect("a directory");
        stage.write("experiments/monkey.toml", &monkey);
        stage.start();
        stage.call("PUT", "/v1/schedules/monkey/pause", "").expect(200);
        stage.calm("shop", 4);
        let (seen, kills) = leave_alone(stage, &balanced, DRAINED);
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
