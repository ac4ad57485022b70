//! One byte stream with two carriers, TCP and a queue pair, as a value without I/O.
//!
//! A stream begins on TCP. When it has earned a queue pair both directions move to it at places that
//! the two ends agree on, and when the queue pair breaks, or is not wanted any more, both move back:
//! no byte is lost, doubled or reordered, and no byte of the protocol is ever seen by an application.
//! A stream can also live on a queue pair alone; then a break is its end. `docs/protocol.md` has the
//! protocol.
//!
//! The engine is told what happened ([`Engine::handle`]) and asked what to do
//! ([`Engine::poll_action`], [`Engine::tcp_in`], [`Engine::tcp_out`], [`Engine::next_message`],
//! [`Engine::next_read`], [`Engine::next_timeout`]). It opens nothing, reads no clock, and holds no
//! bytes but those of messages that the queue pair may still need. The way of a small message is
//! [`Engine::write`], [`Engine::message_sent`], [`Engine::source`] and [`Engine::data`]: comparisons
//! and counters.

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
