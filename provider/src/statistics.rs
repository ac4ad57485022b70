//! Statistics of one socket: what it is now, and what it has counted since it was made.
//!
//! Only the numbers are here; `socket/stats.rs` reads them. A socket's data path counts under the lock
//! it holds anyway, a listener in numbers of its own; reading takes each lock for a moment. The provider's totals are in `counters.rs`. Nothing here
//! is formatted or sent anywhere: a switch does that.

use std::net::SocketAddr;

use crate::counters::Counter;
use crate::wire::RefusalReason;

/// One socket's statistics.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketStats {
    /// The socket's number, which no other has or had.
    pub number: u64,
    /// Its state, as the log names it.
    pub state: String,
    /// Its local address, once there is one.
    pub local: Option<SocketAddr>,
    /// The peer's address, once there is one.
    pub peer: Option<SocketAddr>,
    /// The device that carries it, once it has a data path.
    pub device: Option<String>,
    /// What it counted as a listener, if it is one.
    pub listen: Option<ListenStats>,
    /// What its data path counted, if it has one.
    pub connection: Option<ConnectionStats>,
}

/// A data path's statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// Data messages sent.
    pub messages_sent: u64,
    /// Data messages received.
    pub messages_received: u64,
    /// Bytes of data messages sent.
    pub bytes_sent: u64,
    /// Bytes of data messages received.
    pub bytes_received: u64,
    /// Credit messages sent.
    pub credit_messages_sent: u64,
    /// Credit messages received.
    pub credit_messages_received: u64,
    /// RDMA READs started here.
    pub rdma_reads: u64,
    /// RDMA WRITEs started here.
    pub rdma_writes: u64,
    /// Bytes of those READs.
    pub rdma_bytes_read: u64,
    /// Bytes of those WRITEs.
    pub rdma_bytes_written: u64,
    /// Messages that had to wait for a credit or for a place on the send queue.
    pub sends_delayed: u64,
    /// Messages that were given out as copies, because as many as half of the window were held.
    pub messages_copied: u64,
    /// Registrations of memory that were kept from an earlier use.
    pub cache_hits: u64,
    /// Registrations of memory that had to be made.
    pub registrations: u64,
    /// Messages that wait for a credit or for a place on the send queue now.
    pub sends_waiting: usize,
    /// Messages that arrived and that nobody has asked for yet.
    pub messages_waiting: usize,
    /// Receives set aside for the connection.
    pub window: u32,
}

san_base::counters! {
    /// A listener's statistics.
    #[non_exhaustive]
    pub struct ListenStats {
        /// How many requests it holds.
        backlog: usize,
        /// Requests that it holds now, queued or being decided about.
        held: usize,
    };

    /// What a listener counts.
    pub(crate) struct ListenCounters {
        /// Requests that arrived.
        requests,
        /// Requests accepted.
        accepted,
        /// Requests refused because the backlog was full (reason 1).
        refused_backlog,
        /// Requests refused by the condition function (reason 2).
        refused_condition,
        /// Requests refused because their private data is not of this protocol (reason 3).
        refused_foreign,
        /// Requests refused because their version is not spoken (reason 4).
        refused_version,
        /// Requests refused because the listener was closing (reason 5).
        refused_closing,
        /// Requests refused for want of resources (reason 6).
        refused_resources,
        /// Requests refused because the switch's ready queue was full (reason 7).
        refused_ready_queue,
        /// Requests refused by the condition function for now (reason 8).
        refused_not_now,
        /// Requests about a connection that the condition function does not know (reason 9).
        refused_no_connection,
    /// Requests whose path has larger packets than the port can take (reason 10).
    refused_path_mtu,
        /// Requests that their peer withdrew before they were answered.
        withdrawn,
    }
}

impl ListenCounters {
    /// The counter for a refusal.
    pub(crate) fn refused(&self, reason: RefusalReason) -> &Counter {
        match reason {
            RefusalReason::BacklogFull => &self.refused_backlog,
            RefusalReason::Condition => &self.refused_condition,
            RefusalReason::ReadyQueueFull => &self.refused_ready_queue,
            RefusalReason::NotOurProtocol => &self.refused_foreign,
            RefusalReason::Version => &self.refused_version,
            RefusalReason::Closing => &self.refused_closing,
            RefusalReason::NotNow => &self.refused_not_now,
            RefusalReason::NoSuchConnection => &self.refused_no_connection,
            RefusalReason::PathMtu => &self.refused_path_mtu,
            RefusalReason::NoResources | RefusalReason::Unknown(_) => &self.refused_resources,
        }
    }
}

impl ConnectionStats {
    /// Names and values, in the order of the fields.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let Self {
            messages_sent,
            messages_received,
            bytes_sent,
            bytes_received,
            credit_messages_sent,
            credit_messages_received,
            rdma_reads,
            rdma_writes,
            rdma_bytes_read,
            rdma_bytes_written,
            sends_delayed,
            messages_copied,
            cache_hits,
            registrations,
            sends_waiting,
            messages_waiting,
            window,
        } = *self;
        [
            ("messages_sent", messages_sent),
            ("messages_received", messages_received),
            ("bytes_sent", bytes_sent),
            ("bytes_received", bytes_received),
            ("credit_messages_sent", credit_messages_sent),
            ("credit_messages_received", credit_messages_received),
            ("rdma_reads", rdma_reads),
            ("rdma_writes", rdma_writes),
            ("rdma_bytes_read", rdma_bytes_read),
            ("rdma_bytes_written", rdma_bytes_written),
            ("sends_delayed", sends_delayed),
            ("messages_copied", messages_copied),
            ("cache_hits", cache_hits),
            ("registrations", registrations),
            ("sends_waiting", sends_waiting as u64),
            ("messages_waiting", messages_waiting as u64),
            ("window", u64::from(window)),
        ]
        .into_iter()
    }
}
