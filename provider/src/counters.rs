//! Counters: always on, read without stopping anything.
//!
//! Each is a number that only grows since startup. They say how often something happened, not what
//! is there now. Those that move with every message lie in the lanes (`transfer/lane/`), so that
//! connections of different lanes share no cache line; the snapshot adds them up.

pub(crate) use san_base::Counter;

san_base::counters! {
    /// The provider's counters, all at one time.
    #[non_exhaustive]
    pub struct Counters;

    /// What the control path counts.
    pub(crate) struct ControlCounters {
        /// Sockets made, those for accepted connections among them.
        sockets_opened,
        /// Sockets closed.
        sockets_closed,
        /// Requests that arrived at a listener.
        requests,
        /// Requests that got a place in a backlog.
        queued,
        /// Requests refused because the backlog was full (reason 1).
        refused_backlog,
        /// Requests refused by the condition function (reason 2).
        refused_condition,
        /// Requests refused because the switch's ready queue was full (reason 7).
        refused_ready_queue,
        /// Requests refused because their private data is not of this protocol (reason 3).
        refused_foreign,
        /// Requests refused because their version is not spoken (reason 4).
        refused_version,
        /// Requests refused because the listener was closing (reason 5).
        refused_closing,
        /// Requests refused for want of resources (reason 6).
        refused_resources,
        /// Requests refused by the condition function for now (reason 8).
        refused_not_now,
        /// Requests about a connection that the condition function does not know (reason 9).
        refused_no_connection,
        /// Requests whose path has larger packets than the port can take (reason 10).
        refused_path_mtu,
        /// Requests that their peer withdrew before they were answered.
        withdrawn,
        /// Requests that a condition function put off.
        deferred,
        /// Connections accepted.
        accepted,
        /// Times that an event object was set for a network event.
        events_signalled,
        /// Connects begun.
        connects,
        /// Connects that succeeded.
        connects_succeeded,
        /// Connects refused by a peer of this protocol.
        connects_refused,
        /// Connects that failed otherwise.
        connects_failed,
        /// Connections that ended by the peer, or broke.
        connections_ended,
        /// Connections handed to another process by `duplicate`.
        sockets_duplicated,
        /// Connections taken up from another process by `socket_from`.
        sockets_taken_up,
        /// Connections whose peer moved to another process and took them up from there.
        resumes_accepted,
        /// Requests to take a moving connection up that were refused: another session, a wrong
        /// secret, or one that could not be served.
        resumes_refused,
        /// Connections that ended because a peer that was moving did not come back in time.
        resumes_timed_out,
        /// Connections broken because the peer did not keep to the protocol.
        protocol_violations,
        /// Times a waiting thread went to sleep.
        sleeps,
        /// Completion upcalls made.
        upcalls,
        /// Times the address list changed.
        address_list_changes,
        /// Registrations of memory that were kept from an earlier use.
        cache_hits,
        /// Registrations that were made, to be kept.
        cache_misses,
        /// Registrations that made room for others, or went with the last connection.
        cache_evictions,
        /// Registrations that ended because their memory changed.
        cache_invalidations,
        /// Registrations that were made and not kept: their memory cannot be watched, or there was
        /// no room.
        cache_bypasses,
    }

    /// What the data path of one lane counts.
    pub(crate) struct DataCounters {
        /// Data messages sent.
        messages_sent,
        /// Data messages received.
        messages_received,
        /// Bytes of data messages sent.
        bytes_sent,
        /// Bytes of data messages received.
        bytes_received,
        /// Credit messages sent.
        credit_messages_sent,
        /// Credit messages received.
        credit_messages_received,
        /// RDMA READs begun.
        rdma_reads,
        /// RDMA WRITEs begun.
        rdma_writes,
        /// Bytes of RDMA READs begun.
        rdma_bytes_read,
        /// Bytes of RDMA WRITEs begun.
        rdma_bytes_written,
        /// Messages that had to wait for a credit or for a place on the send queue.
        sends_delayed,
        /// Messages that were given out as copies, because as many as half of the window were held.
        messages_copied,
        /// Windows enlarged because the peer had used them up.
        windows_grown,
        /// Completions that belonged to no known connection.
        stray_completions,
    }
}

impl Counters {
    pub(crate) fn add_data(&mut self, data: &DataCounters) {
        data.add_to(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_adds_up() {
        let control = ControlCounters::default();
        control.requests.raise();
        control.requests.raise();
        let data = [DataCounters::default(), DataCounters::default()];
        data[0].bytes_sent.add(10);
        data[1].bytes_sent.add(5);
        let mut all = control.snapshot();
        for lane in &data {
            all.add_data(lane);
        }
        assert_eq!((all.requests, all.bytes_sent, all.queued), (2, 15, 0));
        assert!(all.rows().any(|row| row == ("bytes_sent", 15)));
    }
}
