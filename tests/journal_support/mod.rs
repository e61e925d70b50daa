//! What the journal's tests share: runs, intents and faults to write down.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;
use vervet::{
    experiment::{
        Connections, Distribution, Excess, Existing, FaultKind, FaultSpec, GroupName, Latency, Percent,
        Traffic,
    },
    fault::{self, Context, Target},
    host::{FaultId, Host, HostError},
    journal::Intent,
    view::{Cleanup, EventView, RunState, RunView, StepState, StepView},
};

/// A time with all its digits, so that none is lost on the way to the disk and back.
pub fn at(second: i64) -> Timestamp {
    Timestamp::new(1_790_000_000 + second, 123_456_789).expect("a time in range")
}

/// The n-th run: ids sort by `n`, as those of UUIDv7 do by time.
pub fn run_id(n: u64) -> Uuid {
    let random = [
        7,
        7,
        7,
        n.to_be_bytes()[3],
        n.to_be_bytes()[4],
        n.to_be_bytes()[5],
        n.to_be_bytes()[6],
        n.to_be_bytes()[7],
        1,
        2,
    ];
    uuid::Builder::from_unix_timestamp_millis(1_790_000_000_000 + n, &random).into_uuid()
}

pub fn run(n: u64, steps: usize) -> RunView {
    let step = |at: usize| StepView {
        name: format!("step {at}"),
        fault: FaultKind::Latency,
        state: StepState::Pending,
        waiting_until: None,
        targets: vec![],
        injected_at: None,
        deadline: None,
        undone_at: None,
        effect: None,
        errors: vec![],
    };
    RunView {
        id: run_id(n),
        title: format!("run {n}"),
        hypothesis: "nothing happens".to_owned(),
        state: RunState::Running,
        verdict: None,
        cleanup: Cleanup::Clean,
        aborted_by: None,
        why: None,
        seed: u64::MAX - n,
        leashed: false,
        caller: "socket:root".to_owned(),
        created_at: at(i64::try_from(n).expect("small")),
        finished_at: None,
        steps: (0..steps).map(step).collect(),
        probes: vec![],
    }
}

pub fn event(run: &RunView, seq: u64) -> EventView {
    EventView {
        seq,
        at: at(0),
        run: run.id,
        step: None,
        kind: "created".to_owned(),
        message: format!("event {seq}"),
        data: serde_json::json!({ "n": seq }),
    }
}

/// A delay on everything that leaves by any device.
pub fn delay(listen: u16) -> FaultSpec {
    FaultSpec::Latency(Latency {
        traffic: Traffic { listen: Some(listen), ..Traffic::default() },
        delay: Duration::from_millis(100),
        jitter: Duration::ZERO,
        correlation: Percent::ZERO,
        distribution: Distribution::Uniform,
        engine: None,
    })
}

pub fn cap(listen: u16) -> FaultSpec {
    FaultSpec::Connections(Connections {
        traffic: Traffic { listen: Some(listen), ..Traffic::default() },
        max: Some(4),
        per_source: None,
        new_per_second: None,
        excess: Excess::Reset,
        existing: Existing::Close,
    })
}

/// Prepares a fault of a run as the loop would, beside the intents that are open.
pub fn intent(
    host: &dyn Host,
    run: Uuid,
    step: u32,
    spec: &FaultSpec,
    open: &[&Intent],
) -> Result<Intent, HostError> {
    let open: Vec<_> = open.iter().map(|intent| intent.undo().clone()).collect();
    let context = Context {
        fault: FaultId::new(run, step as usize),
        seed: 1,
        mark_mask: 0xff00_0000,
        exempt_ports: &[22],
        open: &open,
        others: &[],
    };
    // A network target is planned anew by `prepare`, whatever is given here.
    let nothing = Target::Processes { processes: vec![] };
    let prepared = fault::prepare(host, spec, &nothing, &context)?;
    Ok(Intent {
        run,
        step,
        prepared,
        charges: vec![(GroupName::from("checkout"), step + 1)],
        opened_at: at(i64::from(step)),
        deadline: Some(at(60)),
    })
}
