//! What a connection is ready for, and who hears of it: what an event loop is built on.
//!
//! The loop itself is not here. Over the SAN no descriptor tells what a connection is ready for. Its
//! lane has descriptors, which it shares with other connections: who sleeps does so on those, and a
//! [`Watcher`] hears which connections something came for.

/// What holds of a connection: a set, as the `events` of poll(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Events(u8);

bitflags::bitflags! {
    impl Events: u8 {
        /// A receive would not wait: bytes are here, or the end, or an error (POLLIN).
        const READABLE = 1;
        /// A send would not wait: there is room, or an error (POLLOUT).
        const WRITABLE = 1 << 1;
        /// The peer has ended its stream, or our reading half is shut; bytes may still be here
        /// (POLLRDHUP).
        const READ_CLOSED = 1 << 2;
        /// Both streams are ended, or the connection is over (POLLHUP).
        const HANG_UP = 1 << 3;
        /// The connection broke, and no call has said so yet (POLLERR).
        const ERROR = 1 << 4;
        /// Urgent data is here (POLLPRI).
        const PRIORITY = 1 << 5;
    }
}

/// Hears when a connection over the SAN becomes ready for something.
pub trait Watcher: Send + Sync {
    /// The connection of this token has become ready: bytes came, though others may wait already; room
    /// came, after a send that found none; an end came. `events` is what holds now.
    ///
    /// It is called without a lock held, from whichever thread polls the lane: the one that sleeps on the
    /// lane's descriptors, one that waits in a call of another connection, or one in a call of this
    /// connection. It must not wait.
    fn changed(&self, token: u64, events: Events);
}
