//! Times as C has them.

use std::time::Duration;

use libc::timespec;

/// What is too long for it is the longest it can say.
pub(crate) fn to_timespec(timeout: Duration) -> timespec {
    timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    }
}
