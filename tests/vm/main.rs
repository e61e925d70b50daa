//! Stories on a host that is real: a booted Debian with systemd, cgroup v2 and netem, under qemu's
//! software emulation, driven from here.
//!
//! One file for each story or few. Each gets a machine of its own that was put to sleep once (with or
//! without the package) and wakes in two seconds, so all begin on the same host. Where this machine cannot
//! have one, a story says SKIPPED. Nothing here touches the machine that the tests run on: what a story
//! does, it does in its guest, which has no network to anywhere.

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
mod install;
mod kill;
mod latency;
mod matrix;
mod namespaces;
mod trouble;
mod unit_groups;
mod units;
