//! One byte stream with two carriers, TCP and a queue pair, as a value without I/O.
//!
//! A stream begins on TCP. When it has earned a queue pair, both directions move to the queue pair, at
//! places that the two ends agree on. When the queue pair breaks, or is not wanted any more, both move
//! back. No byte is lost, doubled or reordered, and an application never sees a byte of the protocol.
//! A stream can also live on a queue pair alone; then a break of the queue pair ends it.
//! `docs/protocol.md` has the protocol.
//!
//! The engine is told what happened ([`Engine::handle`]) and asked what to do
//! ([`Engine::poll_action`], [`Engine::tcp_in`], [`Engine::tcp_out`], [`Engine::next_message`],
//! [`Engine::next_read`], [`Engine::next_timeout`]). It opens nothing and reads no clock. It holds the
//! bytes of messages that the queue pair may still need, and no others. A small message takes
//! [`Engine::write`], [`Engine::message_sent`], [`Engine::source`] and [`Engine::data`], which are
//! comparisons and counters.
//!
//! # Quick start
//!
//! A connecting end writes over TCP until it has earned a queue pair. The code around an engine is its *shell*. A
//! real shell has a socket where this one counts:
//!
//! ```
//! use san_stream::{Action, Config, Engine, Event, Mac, Payloads, Role, Route, State, TAG, Write};
//! use std::time::Instant;
//!
//! struct Pieces;
//! struct Key;
//! impl Payloads for Pieces {
//!     type Piece = Vec<u8>;
//!     type Key = Key;
//! }
//! impl Mac for Key {
//!     // A real one is a code with a key that both ends agreed on (HMAC).
//!     fn mac(&self, bytes: &[u8]) -> [u8; TAG] {
//!         std::array::from_fn(|at| bytes.get(at).copied().unwrap_or(0))
//!     }
//! }
//!
//! let config = Config::new(Role::Connector, Route::Upgrade);
//! let enough = config.thresholds.bytes;
//! let mut engine = Engine::<Pieces>::new(config, Instant::now());
//! let mut written = 0;
//! while engine.state() == State::Tcp {
//!     assert!(matches!(engine.write(1024, true), Write::Tcp));
//!     written += 1024;
//!     engine.handle(Event::TcpWritten(1024), Instant::now());
//! }
//! assert!(written >= enough);
//! // It has earned a queue pair: the shell is to listen for the peer's dial.
//! assert_eq!(engine.state(), State::Inviting);
//! assert!(std::iter::from_fn(|| engine.poll_action()).any(|action| matches!(action, Action::Listen)));
//! ```
//!
//! # Threads
//!
//! The crate starts no thread and takes no lock. An [`Engine`] belongs to one caller at a time. Callers that share
//! one hold a lock around it.
//!
//! # Clean-up
//!
//! [`Event::Close`] ends our direction in order, and [`Event::Abort`] gives the stream up. The shell goes on to carry
//! out actions until [`State::Ended`] or [`State::Broken`]. Dropping an engine tells the peer nothing.
//!
//! # Errors
//!
//! No call fails. A carrier that breaks, and a peer that breaks the protocol, are events that change the state:
//! [`Engine::failure`] says why a stream broke, as a [`Failure`]. Messages and frames that cannot be parsed are a
//! [`MessageError`] or a [`FrameError`].

#![forbid(unsafe_code)]

mod boundary;
mod engine;
mod event;
mod frame;
mod half;
mod message;
mod pull;
mod retained;
#[cfg(test)]
mod sim;
mod timers;

pub use self::engine::{
    BadRested, Engine, Keep, Payloads, Post, Rested, Source, StagedBytes, TcpIn, TcpOut, Write,
};
pub use self::event::{
    Action, Config, Counts, Event, Failure, LEAST_BUFFER, Refusal, Route, State, Violation,
};
pub use self::frame::{FRAME, FrameError, FrameKind, Mac, Role, Slot, TAG};
pub use self::message::{
    DESCRIPTOR, Decline, FIRST_CONTROL, Head, Kind, Message, MessageError, OFFER_HEAD, Ring, What,
};
pub use self::pull::{OFFER_FROM, PIECE, PullError, RING, Read};
pub use self::timers::{Passed, Thresholds};
