//! Engines led into each state, for tests of single events.

mod ends;
mod hostile;
mod machine;
mod rest;
mod writes;

use std::time::Instant;

use super::{Engine, Payloads};
use crate::frame::tests::Weak;
use crate::frame::{FRAME, FrameKind, Role, Slot};
use crate::{Config, Event, Message, Ring, Route, Thresholds, What};

#[derive(Debug)]
struct Plain;

impl Payloads for Plain {
    type Piece = Vec<u8>;
    type Key = Weak;
}

const KEY: Weak = Weak(1);

/// One end, and the time.
struct Bench {
    engine: Engine<Plain>,
    role: Role,
    now: Instant,
}

/// A ring of this length.
fn ring(length: u64) -> Ring {
    let mut bytes = [0; crate::DESCRIPTOR];
    bytes[24..32].copy_from_slice(&length.to_be_bytes());
    Ring(bytes)
}

impl Bench {
    fn with(role: Role, route: Route, bytes: u64) -> Self {
        let mut config = Config::new(role, route);
        config.thresholds = Thresholds {
            bytes,
            ..Thresholds::default()
        };
        let now = Instant::now();
        Self {
            engine: Engine::new(config, now),
            role,
            now,
        }
    }

    fn direct() -> Self {
        Self::with(Role::Acceptor, Route::Direct, 0)
    }

    /// It has asked to move.
    fn asking() -> Self {
        let mut bench = Self::direct();
        assert!(bench.engine.suspend(bench.now));
        bench.flush();
        bench
    }

    fn tell(&mut self, event: Event<'_, Weak>) {
        self.engine.handle(event, self.now);
    }

    /// A message of the peer.
    fn hear(&mut self, message: Message<'_>) {
        let mut bytes = message.head().to_vec();
        if let Message::Data(more) | Message::Offer { first: more, .. } = message {
            bytes.extend(more);
        }
        self.tell(Event::QpMessage {
            kind: message.kind().number(),
            bytes: &bytes,
        });
    }

    /// Posts everything, and forgets the actions.
    fn flush(&mut self) {
        while self.engine.next_message().is_some() {}
        while self.engine.poll_action().is_some() {}
    }

    fn slot(&self, kind: FrameKind, place: u64) -> Slot {
        Slot {
            kind,
            writer: self.role.peer(),
            generation: 1,
            place,
        }
    }

    fn proof(&self, place: u64) -> [u8; FRAME] {
        self.slot(FrameKind::Proof, place).emit(&KEY, place)
    }

    fn resume(&self, position: u64) -> [u8; FRAME] {
        self.slot(FrameKind::Resume, 0).emit(&KEY, position)
    }

    fn peek(&mut self, bytes: &[u8]) {
        self.tell(Event::TcpPeeked {
            bytes,
            is_end: false,
        });
    }

    /// Connecting: inviting or dialling.
    fn connecting(role: Role) -> Self {
        let mut bench = Self::with(role, Route::Upgrade, 0);
        bench.tell(Event::Timer);
        bench.flush();
        bench
    }

    fn proving(role: Role) -> Self {
        let mut bench = Self::connecting(role);
        bench.tell(Event::QpUp {
            key: KEY,
            generation: 1,
            counts: None,
        });
        bench.flush();
        bench
    }

    /// Both proofs were written, and the peer's was read.
    fn proved(role: Role) -> Self {
        let mut bench = Self::proving(role);
        let (prepare, ready) = Self::round(What::Proof);
        for message in if role == Role::Acceptor {
            [ready, prepare]
        } else {
            [prepare, ready]
        } {
            bench.hear(message);
        }
        bench.tell(Event::TcpWritten(FRAME));
        let proof = bench.proof(0);
        bench.peek(&proof);
        bench.flush();
        bench
    }

    fn round(what: What) -> (Message<'static>, Message<'static>) {
        (
            Message::Prepare { what, place: 0 },
            Message::Ready { what, read: 0 },
        )
    }

    /// The own cut was asked for.
    fn cutting(role: Role) -> Self {
        let mut bench = Self::proved(role);
        match role {
            Role::Acceptor => bench.hear(Message::Verified),
            Role::Connector => {
                bench.hear(Message::Prepare {
                    what: What::Cut,
                    place: 0,
                });
            }
        }
        bench.flush();
        bench
    }

    /// The accepting end, which waits for GO.
    fn waiting_for_go() -> Self {
        let mut bench = Self::cutting(Role::Acceptor);
        let (prepare, ready) = Self::round(What::Cut);
        bench.hear(ready);
        bench.hear(prepare);
        bench.flush();
        bench
    }

    fn san(role: Role) -> Self {
        let mut bench = match role {
            Role::Acceptor => Self::waiting_for_go(),
            Role::Connector => Self::cutting(role),
        };
        bench.hear(match role {
            Role::Acceptor => Message::Go,
            Role::Connector => Message::Ready {
                what: What::Cut,
                read: 0,
            },
        });
        bench.flush();
        bench
    }

    /// On the queue pair, with so many bytes sent that nobody acknowledged.
    fn sent(bytes: usize) -> Self {
        let mut bench = Self::san(Role::Acceptor);
        bench.engine.message_sent(bytes, vec![7; bytes]);
        bench
    }

    fn draining() -> Self {
        let mut bench = Self::sent(10);
        bench.tell(Event::WantDown { for_good: false });
        bench.flush();
        bench
    }

    fn waiting_for_resume() -> Self {
        let mut bench = Self::draining();
        bench.tell(Event::QpDrained);
        bench.tell(Event::TcpWritten(FRAME));
        bench.flush();
        bench
    }

    /// Back on TCP, at a place where a RESUME may stand or not.
    fn in_doubt() -> Self {
        let mut bench = Self::waiting_for_go();
        bench.tell(Event::QpBroken);
        bench.tell(Event::QpDrained);
        bench.tell(Event::TcpWritten(FRAME));
        bench.flush();
        bench
    }
}
