//! Readings of capacity groups.

use crate::{host::Member, policy::time::Moment};

/// How much of a group is there, as its readiness source said at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    pub ready: u32,
    pub total: u32,
    /// When the look began: what happened later may be missing in it.
    pub taken_at: Moment,
    /// The instances one by one, where the source can tell them apart.
    pub members: Option<Vec<Member>>,
}
