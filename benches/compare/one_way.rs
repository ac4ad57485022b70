//! Writes of 1 KiB and 64 KiB through the switch, half a round trip: beside perftest's messages of that size,
//! rsockets and kernel TCP.

use san_benches::Result;
use san_benches::record::{Goal, Record};

use crate::{Site, messages, tools};

/// What is written by one call, and read until all of it is there.
const WRITES: [usize; 2] = [1024, 1 << 16];

/// Measures them.
pub(crate) fn all(site: &Site, record: &mut Record) -> Result<()> {
    for size in WRITES {
        tools::send_latency_of(site, record, size)?;
        tools::rstream_of(site, record, size)?;
        messages::switch_of(site, record, size)?;
    }
    Ok(())
}

/// Their ratios to perftest.
pub(crate) fn ratios(record: &mut Record) {
    for (size, most) in WRITES.into_iter().zip([1.04, 1.08]) {
        for (who, goal) in [
            ("switch", Some(Goal::AtMost(most))),
            ("rsockets", None),
            ("tcp", None),
        ] {
            let what = format!("{size} B, one way: {who} / ib_send_lat -e");
            let key = |who: &str| format!("message.{size}.{who}");
            record.ratio(&what, &key(who), &key("perftest"), goal);
        }
    }
}
