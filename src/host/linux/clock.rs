//! The clocks of this host.

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

use crate::policy::time::{Moment, Now};

/// Both clocks, now. The only place where the product asks for the boot clock.
#[must_use]
pub fn now() -> Now {
    Now { mono: boottime(), wall: Timestamp::now() }
}

/// CLOCK_BOOTTIME, clock_gettime(2).
#[must_use]
pub fn boottime() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    Moment(seconds * 1_000_000_000 + nanos)
}
