//! The provider's configuration: a plain struct, checked once.
//!
//! It reads no file and no environment; that is done at the edge.

use std::time::Duration;

use crate::memory::cache::CacheLimits;

/// What can be set. The defaults suit a process with anything from one to some thousand
/// connections.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    /// Sockets at a time (duty 68).
    pub max_sockets: u32,
    /// Startups without a cleanup at a time (duty 64).
    pub max_startups: u32,
    /// How long a connect may take, if the call does not say.
    pub connect_deadline: Duration,
    /// How long a close may go on refusing the requests of a backlog; nothing else in it waits.
    pub close_deadline: Duration,
    /// How long a connection waits for its peer that moves to another process (duty 121).
    pub move_deadline: Duration,
    /// Bytes of the largest message that is received; a receive buffer has this size.
    pub max_message_size: u32,
    /// Bytes of the largest RDMA transfer (`SO_MAX_RDMA_SIZE`).
    pub max_rdma_size: u32,
    /// From how many bytes on RDMA is thought better than messages
    /// (`SO_RDMA_THRESHOLD_SIZE`). The default is measured: with registrations that are kept, RDMA
    /// READ of so much is the cheaper way.
    pub rdma_threshold: u32,
    /// Receives set aside for a new connection.
    pub initial_window: u16,
    /// Receives set aside for a busy connection, at most.
    pub max_window: u16,
    /// Sends of one connection that the device holds at a time.
    pub send_depth: u16,
    /// Bytes of a message that travel inside the work request, if the device can.
    pub inline_size: u32,
    /// Registrations of memory of one connection at a time.
    pub max_registrations: u32,
    /// Overlapped operations of one connection at a time, for each direction.
    pub max_operations: u16,
    /// Registrations of the application's memory that are kept beyond their use, at most; those
    /// in use count too. 0 keeps none.
    pub memory_cache_entries: u32,
    /// Bytes of memory that the registrations that are kept pin, at most. 0 keeps none.
    pub memory_cache_bytes: u64,
    /// Connections that share completion queues and receives (a lane).
    pub lane_connections: u32,
    /// Receives of one lane, at most. Drivers make room for one more and round up to a power of two,
    /// so one less than such a power wastes nothing.
    pub lane_receives: u32,
    /// Registered send buffers of one lane, at most.
    pub lane_send_buffers: u32,
    /// Lanes among which the first connections of a device are spread.
    pub spread: u32,
    /// How long a waiting thread polls before it sleeps, at most. It polls less, or not at all, where
    /// the last waits show that it does not pay.
    pub spin: Duration,
    /// Within what time a peer is missed that has vanished while nothing is sent to it. Zero: never.
    pub keepalive: Duration,
    /// The ACK timeout code of a connection: 4.096 us * 2^n until the transport repeats.
    pub ack_timeout: u8,
    /// How often the transport repeats, at most 6.
    pub retry_count: u8,
    /// What the layer above says of itself in the negotiation: eight bits whose meaning is its own.
    pub layer_features: u8,
    /// All hosts of this network speak RDMA: where no RDMA service listens, TCP would find
    /// nobody either, so such a connect ends with `WSAECONNRESET`.
    pub strict: bool,
}

impl Default for ProviderConfig {
    fn default() -> Self {
        Self {
            max_sockets: 65_536,
            max_startups: 65_536,
            connect_deadline: Duration::from_secs(5),
            close_deadline: Duration::from_secs(2),
            move_deadline: Duration::from_secs(30),
            max_message_size: 4096,
            max_rdma_size: 1 << 30,
            rdma_threshold: 32_768,
            initial_window: 2,
            max_window: 64,
            send_depth: 15,
            inline_size: 64,
            max_registrations: 1024,
            max_operations: 64,
            memory_cache_entries: 1024,
            memory_cache_bytes: 256 << 20,
            lane_connections: 256,
            lane_receives: 4095,
            lane_send_buffers: 2048,
            spread: 1,
            spin: Duration::from_micros(20),
            keepalive: Duration::from_secs(20),
            ack_timeout: 14,
            retry_count: 6,
            layer_features: 0,
            strict: false,
        }
    }
}

/// A value of the configuration that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {value}, but has to be {range}")]
pub struct ConfigError {
    /// The field.
    pub name: &'static str,
    /// What it was set to.
    pub value: u64,
    /// What it may be.
    pub range: &'static str,
}

impl ProviderConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// Names the first value that cannot be.
    pub fn check(&self) -> Result<(), ConfigError> {
        let checks = [
            (
                "max_sockets",
                u64::from(self.max_sockets),
                1,
                1 << 24,
                "1 to 16777216",
            ),
            (
                "max_startups",
                u64::from(self.max_startups),
                1,
                u64::from(u32::MAX),
                "at least 1",
            ),
            (
                "connect_deadline (ms)",
                millis(self.connect_deadline),
                1,
                3_600_000,
                "1 ms to 1 h",
            ),
            (
                "close_deadline (ms)",
                millis(self.close_deadline),
                1,
                3_600_000,
                "1 ms to 1 h",
            ),
            (
                "move_deadline (ms)",
                millis(self.move_deadline),
                1,
                3_600_000,
                "1 ms to 1 h",
            ),
            (
                "max_message_size",
                u64::from(self.max_message_size),
                64,
                1 << 20,
                "64 to 1048576",
            ),
            (
                "max_rdma_size",
                u64::from(self.max_rdma_size),
                0,
                1 << 30,
                "0 to 1073741824",
            ),
            (
                "initial_window",
                u64::from(self.initial_window),
                1,
                4095,
                "1 to 4095",
            ),
            (
                "max_window",
                u64::from(self.max_window),
                u64::from(self.initial_window),
                4095,
                "initial_window to 4095",
            ),
            (
                "send_depth",
                u64::from(self.send_depth),
                2,
                8192,
                "2 to 8192",
            ),
            (
                "inline_size",
                u64::from(self.inline_size),
                0,
                4096,
                "0 to 4096",
            ),
            (
                "max_registrations",
                u64::from(self.max_registrations),
                1,
                1 << 20,
                "1 to 1048576",
            ),
            (
                "max_operations",
                u64::from(self.max_operations),
                1,
                4096,
                "1 to 4096",
            ),
            // Each may split a mapping in three, and the kernel allows 65,530 by default.
            (
                "memory_cache_entries",
                u64::from(self.memory_cache_entries),
                0,
                16_384,
                "0 to 16384",
            ),
            (
                "memory_cache_bytes",
                self.memory_cache_bytes,
                0,
                1 << 40,
                "0 to 1099511627776",
            ),
            (
                "lane_connections",
                u64::from(self.lane_connections),
                1,
                8192,
                "1 to 8192",
            ),
            (
                "lane_receives",
                u64::from(self.lane_receives),
                16,
                65_536,
                "16 to 65536",
            ),
            (
                "lane_send_buffers",
                u64::from(self.lane_send_buffers),
                16,
                65_536,
                "16 to 65536",
            ),
            ("spread", u64::from(self.spread), 1, 64, "1 to 64"),
            ("spin (ms)", millis(self.spin), 0, 1000, "at most 1 s"),
            (
                "keepalive (ms)",
                millis(self.keepalive),
                0,
                86_400_000,
                "at most 24 h",
            ),
            ("ack_timeout", u64::from(self.ack_timeout), 1, 31, "1 to 31"),
            ("retry_count", u64::from(self.retry_count), 0, 6, "0 to 6"),
        ];
        for (name, value, least, most, range) in checks {
            if value < least || value > most {
                return Err(ConfigError { name, value, range });
            }
        }
        Ok(())
    }

    pub(crate) fn cache_limits(&self) -> CacheLimits {
        CacheLimits {
            entries: self.memory_cache_entries as usize,
            bytes: usize::try_from(self.memory_cache_bytes).unwrap_or(usize::MAX),
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_fine() {
        assert_eq!(ProviderConfig::default().check(), Ok(()));
    }

    #[test]
    fn a_bad_value_is_named() {
        let config = ProviderConfig {
            retry_count: 7,
            ..ProviderConfig::default()
        };
        let error = config.check().unwrap_err();
        assert_eq!(error.to_string(), "retry_count is 7, but has to be 0 to 6");
        let config = ProviderConfig {
            max_window: 1,
            ..ProviderConfig::default()
        };
        assert_eq!(config.check().unwrap_err().name, "max_window");
    }
}
