//! Stories on a host that is real: a booted Debian with systemd, cgroup v2 and netem, under qemu's
//! software emulation, driven from here.
//!
//! One file for each story or few. Each gets a machine of its own that was put to sleep once (with or
//! without the package) and wakes in two seconds, so all begin on the same host. Where this machine cannot
//! have one, a story says SKIPPED. Nothing here touches the machine that the tests run on: what a story
//! does, it does in its guest, which has no network to anywhere.
//!
//! To add a story: a file with a `#[test]` that calls [`story::story`] with its own name, a stage, and what
//! happens to the [`guest::Guest`]. `run`, `check`, `wait_for`, `write_file` and `vervet` act in it;
//! `workload` has a service, a policy and experiments; `measure` asks as a customer would; `snapshot` and
//! `must_be_as` hold it against what it was; `power_cut` is one. What a guest lacks goes into `image`.
//!
//! A guest's second is not ours: its clock counts what its processor did. Whatever is timed is timed in
//! the guest, and nothing is slow because this machine is.

mod agent;
mod guest;
mod machine;
mod measure;
mod prepared;
mod qmp;
mod state;
mod story;
mod workload;

mod connections;
mod game;
mod install;
mod kill;
mod latency;
mod matrix;
mod namespaces;
mod service;
mod trouble;
mod unit_groups;
mod units;
