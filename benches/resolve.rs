//! Resolving a selector among thousands of processes, against `pgrep -f` in the same run.
//!
//! The processes are the bench's own: they wait on a pipe that it holds, so that they end with it
//! however it ends; at the end they are killed by pid. `VVBENCH_PROCESSES` asks for another number
//! than 10,000; no more are started than a quarter of the free memory and pids allows.

use std::{
    io::pipe,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use vervet::{experiment::ProcessSelector, host::linux::process::Processes};

/// What one waiting `cat` may cost, page tables and kernel stack included.
const BYTES_EACH: u64 = 400 << 10;

const ROUNDS: usize = 15;

struct Crowd(Vec<Child>);

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

fn main() {
    let processes = Processes::new(Path::new("/proc")).expect("/proc");
    let asked = std::env::var("VVBENCH_PROCESSES").ok().and_then(|number| number.parse().ok());
    let number = room(&processes).min(asked.unwrap_or(10_000));
    let (read, write) = pipe().expect("a pipe");
    let mut crowd = Crowd(Vec::new());
    for index in 0..number {
        let child = Command::new("/usr/bin/cat")
            .arg0(format!("vvbench-worker-{index:05}"))
            .arg("-")
            .stdin(Stdio::from(read.try_clone().expect("a descriptor")))
            .stdout(Stdio::null())
            .spawn();
        match child {
            Ok(child) => crowd.0.push(child),
            Err(error) => {
                eprintln!("stopped at {index} processes: {error}");
                break;
            }
        }
    }
    println!("{} processes, medians of {ROUNDS} rounds, taken in turns", crowd.0.len());
    let one = format!("^vvbench-worker-{:05} -$", crowd.0.len() / 2);
    compare(&processes, "command line, one match", &one);
    compare(&processes, "command line, all match", "^vvbench-worker-[0-9]+ -$");
    let by_name = |name: &str| ProcessSelector { name: Some(name.into()), ..Default::default() };
    let name = median((0..ROUNDS).map(|_| ours(&processes, &by_name("nobody-has-this")).0));
    println!("name, no match                 vervet {:>8.2} ms", ms(name));
    drop(crowd);
    drop(write);
}

/// So many processes that three quarters of what is free stays free.
fn room(processes: &Processes) -> usize {
    let headroom = processes.headroom().expect("headroom");
    let memory = headroom.memory.map_or(0, |stock| stock.free / 4 / BYTES_EACH);
    let pids = headroom.pids.map_or(0, |stock| stock.free / 2);
    usize::try_from(memory.min(pids)).unwrap_or(0)
}

fn compare(processes: &Processes, what: &str, pattern: &str) {
    let selector = ProcessSelector { cmdline: Some(pattern.into()), ..Default::default() };
    let (mut own, mut pgrep) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (took, found) = ours(processes, &selector);
        own.push(took);
        let (took, pgrepped) = theirs(pattern);
        pgrep.push(took);
        assert_eq!(found, pgrepped, "both find the same");
    }
    let (own, pgrep) = (median(own), median(pgrep));
    println!(
        "{what:<30} vervet {:>8.2} ms   pgrep -f {:>8.2} ms   {:.1} times as fast",
        ms(own),
        ms(pgrep),
        pgrep.as_secs_f64() / own.as_secs_f64()
    );
}

fn ours(processes: &Processes, selector: &ProcessSelector) -> (Duration, Vec<u32>) {
    let began = Instant::now();
    let found = processes.find(selector, &[]).expect("found");
    let took = began.elapsed();
    let mut pids: Vec<u32> = found.iter().map(|candidate| candidate.id.pid).collect();
    pids.sort_unstable();
    (took, pids)
}

fn theirs(pattern: &str) -> (Duration, Vec<u32>) {
    let began = Instant::now();
    let output = Command::new("pgrep").args(["-f", pattern]).output().expect("pgrep is installed");
    let took = began.elapsed();
    let mut pids: Vec<u32> =
        String::from_utf8_lossy(&output.stdout).lines().filter_map(|pid| pid.parse().ok()).collect();
    pids.sort_unstable();
    (took, pids)
}

fn median(times: impl IntoIterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.into_iter().collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
