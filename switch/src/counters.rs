//! Counters that are always on and readable without stopping anything.
//!
//! One relaxed addition each; nobody orders memory by them.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn up(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($(#[$doc:meta])* $public:ident of $inner:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $public {
            $($(#[$field_doc])* pub $field: u64,)*
        }

        impl $public {
            /// Names and values, in the order of the fields.
            pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($field), self.$field),)*].into_iter()
            }
        }

        #[derive(Debug, Default)]
        pub(crate) struct $inner {
            $(pub(crate) $field: Counter,)*
        }

        impl $inner {
            pub(crate) fn snapshot(&self) -> $public {
                $public { $($field: self.$field.count(),)* }
            }
        }
    };
}

counters! {
    /// What a listener has seen so far.
    ListenerStats of ListenerCounters {
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
    SwitchStats of SwitchCounters {
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
    }
}

/// What one connection over TCP counts.
#[derive(Debug, Default)]
pub(crate) struct TcpCounters {
    pub(crate) messages_sent: Counter,
    pub(crate) messages_received: Counter,
    pub(crate) bytes_sent: Counter,
    pub(crate) bytes_received: Counter,
}

impl TcpCounters {
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        [
            ("messages_sent", self.messages_sent.count()),
            ("messages_received", self.messages_received.count()),
            ("bytes_sent", self.bytes_sent.count()),
            ("bytes_received", self.bytes_received.count()),
        ]
        .into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_shows_what_was_counted() {
        let counters = ListenerCounters::default();
        counters.san_accepted.up();
        counters.san_accepted.up();
        counters.refused_backlog.up();
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
