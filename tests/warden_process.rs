//! The warden as a process: what it is called, and what does not end it.
//!
//! Without the usual harness, because the warden must be the main thread of its process: this binary
//! plays the warden when its first argument says so, and answers what test runners ask.

mod warden_support;

use std::{env, fs};

use nix::sys::signal::{Signal, kill};
use vervet::warden::{self, Launch, Warden};
use warden_support::{FileHost, changed_file, fault, file_undo, pid};

const NAME: &str = "signals_that_end_others_do_not_end_it";

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let is = |word: &str| args.iter().any(|arg| arg == word);
    if args.first().is_some_and(|first| first == "warden") {
        warden::main(&FileHost).expect("everything was undone");
    } else if is("--list") {
        if !is("--ignored") {
            println!("{NAME}: test");
        }
    } else {
        signals_that_end_others_do_not_end_it(Launch {
            exe: env::current_exe().expect("this binary"),
            args: vec!["warden".into()],
        });
        println!("{NAME}: ok");
    }
}

fn signals_that_end_others_do_not_end_it(launch: Launch) {
    let (_dir, path) = changed_file();
    let mut warden = Warden::spawn(launch).unwrap();
    warden.hold(&fault(1), &file_undo(&path), None).unwrap();
    let before = warden.pid().unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTSTP] {
        kill(pid(before), signal).unwrap();
    }
    assert!(warden.check().unwrap().is_empty());
    assert_eq!(warden.pid(), Some(before));
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    let status = fs::read_to_string(format!("/proc/{before}/status")).unwrap();
    assert!(status.contains("Name:\tvervet-warden"), "{status}");
    let stat = fs::read_to_string(format!("/proc/{before}/stat")).unwrap();
    let session = stat.split(' ').nth(5).unwrap();
    assert_eq!(session, before.to_string(), "a session of its own");
    warden.finish().unwrap();
}
