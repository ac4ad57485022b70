//! What the switch, a listener and a connection over TCP count.
//!
//! Always on, and read without stopping anything. What the SAN carries is counted by its provider.

use san_base::counters;
use san_stream::Violation;

counters! {
    /// What a listener has seen so far.
    #[non_exhaustive]
    pub struct ListenerStats;

    /// What a listener counts.
    pub(crate) struct ListenerCounters {
        /// FD_ACCEPT signals of its companions that the accept thread read.
        accept_signals,
        /// SAN connections that the accept thread took into the ready queue.
        san_queued,
        /// SAN connections that the application took.
        san_accepted,
        /// TCP connections that the application took.
        tcp_accepted,
        /// SAN requests refused because the ready queue was full.
        refused_backlog,
        /// Requests, of either side, that the condition function refused.
        refused_condition,
        /// Times a SAN request was put off because no descriptor was left.
        put_off,
        /// SAN requests that came to nothing: the peer gave up, or the provider had no resources.
        accept_failures,
    }
}

counters! {
    /// What a switch has done so far.
    #[non_exhaustive]
    pub struct SwitchStats;

    /// What a switch counts.
    pub(crate) struct SwitchCounters {
        /// Connects that ended on the SAN.
        connected_san,
        /// Connects that ended on TCP, since the SAN has no way there.
        connected_tcp,
        /// Connects that ended on TCP after the SAN failed, or was not tried again so soon.
        fallbacks,
        /// Connects that the SAN answered for good: refused, reset, unreachable.
        refused,
        /// Connects that the memory of failures spared the SAN's deadline.
        remembered,
        /// Address lists read, all providers together.
        table_rebuilds,
        /// Companions made for listeners.
        companions_made,
        /// Companions that could not be made.
        companions_failed,
        /// Closes that went on in the background, since the peer had not taken everything in.
        closes_continued,
        /// Closes after which bytes were lost: the peer was gone, or took nothing in for too long.
        closes_lost,
        /// Bytes of bulk that peers say to have read by RDMA.
        bulk_sent,
        /// Streams that moved from TCP to the SAN.
        streams_up,
        /// Streams that went back to TCP.
        streams_down,
        /// Second carriers that were connected for a stream, in use in the end or not.
        moves_begun,
        /// Tries to make a second carrier that came to nothing.
        moves_failed,
        /// Second carriers turned down since the peer's proof was wrong.
        moves_unproven,
        /// Connections that were ended since the peer sent what is no message, or not a message now.
        violations_message,
        /// The same, since it sent data or another end after the end of its stream.
        violations_after_end,
        /// The same, since it offered bytes that cannot be, or said that bytes are read which were not
        /// offered.
        violations_bulk,
    }
}

impl SwitchCounters {
    pub(crate) fn count_violation(&self, violation: Violation) {
        match violation {
            Violation::AfterEnd => &self.violations_after_end,
            Violation::Pull(_) | Violation::DoneForNothing => &self.violations_bulk,
            _ => &self.violations_message,
        }
        .raise();
    }
}

counters! {
    /// What one connection over TCP has moved so far.
    pub struct TcpStats;

    /// What one connection over TCP counts.
    pub(crate) struct TcpCounters {
        /// Times that bytes were sent.
        messages_sent,
        /// Times that bytes were received, or the end.
        messages_received,
        /// Bytes sent.
        bytes_sent,
        /// Bytes received.
        bytes_received,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_shows_what_was_counted() {
        let counters = ListenerCounters::default();
        counters.san_accepted.raise();
        counters.san_accepted.raise();
        counters.refused_backlog.raise();
        let stats = counters.snapshot();
        assert_eq!(
            (
                stats.san_accepted,
                stats.refused_backlog,
                stats.tcp_accepted
            ),
            (2, 1, 0)
        );
    }
}
