//! The session layer between two switches: the kinds of message that one SAN connection carries.
//!
//! The provider moves messages and carries one opaque byte with each, the kind. What the byte
//! means is written here and nowhere else. So far there are bytes and their end; the protocol
//! that brings urgent data, RDMA transfers and hand-over to another process adds its kinds to
//! this file. This module does no I/O.

use std::fmt;

/// What a message between two switches is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MessageKind {
    /// Bytes of the stream, in order.
    Data,
    /// The sender's stream ends here: it sends no data after this (TCP's FIN).
    EndOfStream,
    /// A kind of a later version. A peer that negotiated this version must not send it.
    Unknown(u8),
}

impl MessageKind {
    /// The kind's number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            MessageKind::Data => 0,
            MessageKind::EndOfStream => 1,
            MessageKind::Unknown(number) => number,
        }
    }
}

impl From<u8> for MessageKind {
    fn from(number: u8) -> Self {
        match number {
            0 => MessageKind::Data,
            1 => MessageKind::EndOfStream,
            number => MessageKind::Unknown(number),
        }
    }
}

impl fmt::Display for MessageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MessageKind::Data => f.write_str("data"),
            MessageKind::EndOfStream => f.write_str("end of stream"),
            MessageKind::Unknown(number) => write!(f, "unknown kind {number}"),
        }
    }
}

/// How the receiving half of a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveState {
    /// Bytes may come.
    Open,
    /// The peer ended its stream in order.
    Ended,
    /// The connection is gone without an end of stream, or the peer broke the protocol.
    Broken,
}

impl ReceiveState {
    /// The state after a message, and whether its bytes belong to the stream.
    pub fn on_message(self, kind: MessageKind, len: usize) -> (Self, bool) {
        match (self, kind) {
            (ReceiveState::Open, MessageKind::Data) => (ReceiveState::Open, true),
            (ReceiveState::Open, MessageKind::EndOfStream) if len == 0 => {
                (ReceiveState::Ended, false)
            }
            // Data after the end, an end with bytes, an unknown kind: the peer breaks the rules.
            _ => (ReceiveState::Broken, false),
        }
    }

    /// The state after the connection went away.
    pub fn on_disconnect(self) -> Self {
        match self {
            ReceiveState::Open | ReceiveState::Broken => ReceiveState::Broken,
            ReceiveState::Ended => ReceiveState::Ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_survives_the_way_there_and_back() {
        for number in 0..=u8::MAX {
            assert_eq!(MessageKind::from(number).number(), number);
        }
    }

    /// The whole machine, so that a change of behaviour is seen.
    #[test]
    fn every_state_meets_every_event() {
        use MessageKind::{Data, EndOfStream, Unknown};
        use ReceiveState::{Broken, Ended, Open};
        let table = [
            (Open, Data, 5, (Open, true)),
            (Open, Data, 0, (Open, true)),
            (Open, EndOfStream, 0, (Ended, false)),
            (Open, EndOfStream, 1, (Broken, false)),
            (Open, Unknown(9), 0, (Broken, false)),
            (Ended, Data, 5, (Broken, false)),
            (Ended, EndOfStream, 0, (Broken, false)),
            (Ended, Unknown(9), 0, (Broken, false)),
            (Broken, Data, 5, (Broken, false)),
            (Broken, EndOfStream, 0, (Broken, false)),
            (Broken, Unknown(9), 0, (Broken, false)),
        ];
        for (state, kind, len, wanted) in table {
            assert_eq!(
                state.on_message(kind, len),
                wanted,
                "{state:?} {kind} {len}"
            );
        }
        assert_eq!(Open.on_disconnect(), Broken);
        assert_eq!(Ended.on_disconnect(), Ended);
        assert_eq!(Broken.on_disconnect(), Broken);
    }
}
