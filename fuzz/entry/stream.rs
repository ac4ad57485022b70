//! A stream's messages and frames, and an engine with a peer that does whatever it likes.
//!
//! Run by the targets `stream_wire` and `stream_events`, and by `stream/tests/fuzz.rs`.

#[path = "input.rs"]
mod input;

use std::time::{Duration, Instant};

use input::Input;
use san_stream::{
    Action, Config, Counts, DESCRIPTOR, Engine, Event, FRAME, FrameKind, Keep, Mac, Message,
    Payloads, RING, Refusal, Ring, Role, Route, Slot, Source, State, TAG, TcpIn, TcpOut,
    Thresholds, What, Write,
};

/// A key of tests: different for different bytes, and no more.
#[derive(Clone, Copy)]
struct Weak(u8);

impl Mac for Weak {
    fn mac(&self, bytes: &[u8]) -> [u8; TAG] {
        let mut code = [self.0; TAG];
        for (i, byte) in bytes.iter().enumerate() {
            let at = i % TAG;
            code[at] = code[at].rotate_left(3) ^ byte.wrapping_mul(31).wrapping_add(i as u8);
        }
        code
    }
}

struct Plain;

impl Payloads for Plain {
    type Piece = Vec<u8>;
    type Key = Weak;
}

/// Any message and any frame: what is read is written back as it was.
pub fn wire(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else {
        return;
    };
    if let Ok(message) = Message::parse(*kind, bytes) {
        assert_eq!(message.kind().number(), *kind);
        let mut again = message.head().to_vec();
        if let Message::Data(more) | Message::Offer { first: more, .. } = message {
            again.extend(more);
        }
        assert_eq!(again, bytes);
    }
    let mut input = Input::new(data);
    let kind = input.pick(&[FrameKind::Proof, FrameKind::Resume]);
    let writer = input.pick(&[Role::Connector, Role::Acceptor]);
    let generation = input.u32() as u16;
    let place = if kind == FrameKind::Proof {
        input.u64()
    } else {
        0
    };
    let slot = Slot {
        kind,
        writer,
        generation,
        place,
    };
    let key = Weak(input.u8());
    let _ = slot.parse(&key, input.bytes(FRAME));
    let position = if kind == FrameKind::Proof {
        place
    } else {
        input.u64()
    };
    let frame = slot.emit(&key, position);
    assert_eq!(slot.parse(&key, &frame), Ok(position));
}

/// An engine, a shell that keeps the engine's rules, and a peer that keeps none.
pub fn events(data: &[u8]) {
    let mut input = Input::new(data);
    let role = input.pick(&[Role::Connector, Role::Acceptor]);
    let route = input.pick(&[Route::Upgrade, Route::Upgrade, Route::Direct]);
    let mut config = Config::new(role, route);
    config.is_keyed = input.flag();
    config.thresholds = Thresholds {
        bytes: 0,
        ..Thresholds::default()
    };
    let now = Instant::now();
    let mut shell = Shell::new(config, now);
    shell.tell(Event::Timer);
    if config.is_keyed && route == Route::Upgrade && input.flag() {
        shell.go_up();
    }
    let mut left = 2000;
    while !input.is_empty() && left > 0 {
        left -= 1;
        shell.step(&mut input);
        shell.check();
    }
}

struct Shell {
    engine: Engine<Plain>,
    role: Role,
    now: Instant,
    has_qp: bool,
    is_draining: bool,
    reads: Vec<(u64, u32)>,
    /// The engine was over, and in which state.
    over: Option<State>,
    received: u64,
    accepted: u64,
}

impl Shell {
    fn new(config: Config, now: Instant) -> Self {
        Self {
            engine: Engine::new(config, now),
            role: config.role,
            now,
            has_qp: config.route == Route::Direct,
            is_draining: false,
            reads: Vec::new(),
            over: None,
            received: 0,
            accepted: 0,
        }
    }

    fn tell(&mut self, event: Event<'_, Weak>) {
        self.engine.handle(event, self.now);
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::QpDisconnect => self.is_draining = true,
                Action::QpClose | Action::Reset => {
                    self.has_qp = false;
                    self.is_draining = false;
                }
                Action::OpenRing => {
                    let mut ring = [0; DESCRIPTOR];
                    ring[24..32].copy_from_slice(&RING.to_be_bytes());
                    self.engine.handle(Event::RingOpened(Ring(ring)), self.now);
                }
                _ => {}
            }
        }
    }

    /// Onto the queue pair, as it should be.
    fn go_up(&mut self) {
        self.tell(Event::QpUp {
            key: Weak(1),
            generation: 1,
            counts: None,
        });
        self.has_qp = true;
        let what = What::Cut;
        let (prepare, ready) = (
            Message::Prepare { what, place: 0 },
            Message::Ready { what, read: 0 },
        );
        let messages = match self.role {
            Role::Connector => [prepare, ready, Message::Verified],
            Role::Acceptor => [ready, prepare, Message::Go],
        };
        for message in &messages[..if self.role == Role::Connector { 2 } else { 3 }] {
            self.tell(Event::QpMessage {
                kind: message.kind().number(),
                bytes: &message.head(),
            });
            self.post();
            self.post();
        }
        assert_eq!(self.engine.state(), State::San);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 20 {
            0 => self.message(input),
            1 => self.well_formed(input),
            2 => self.tcp_in(input),
            3 => self.tcp_out(input),
            4 => self.write(input),
            5 => self.post(),
            6 => self.read(input),
            7 => {
                let counts = input.flag().then_some(Counts {
                    written: 0,
                    read: 0,
                });
                self.tell(Event::QpUp {
                    key: Weak(1),
                    generation: 1,
                    counts,
                });
                self.has_qp = matches!(self.engine.state(), State::Proving | State::Cutting);
            }
            8 => match input.flag() {
                true => self.tell(Event::Dialled),
                false => self.tell(Event::Refused(
                    input.pick(&[Refusal::NotNow, Refusal::Never]),
                )),
            },
            9 => self.tell(Event::QpBroken),
            10 => {
                if self.is_draining {
                    self.is_draining = false;
                    self.has_qp = false;
                    self.reads.clear();
                    self.tell(Event::QpDrained);
                }
            }
            11 => self.tell(Event::QpUnacknowledged(input.below(20))),
            12 => {
                if !self.reads.is_empty() {
                    let (position, length) = self.reads.remove(0);
                    self.tell(Event::ReadDone { position, length });
                }
            }
            13 => self.tell(Event::WantDown {
                for_good: input.flag(),
            }),
            14 => {
                self.now += Duration::from_millis(u64::from(input.below(8000)));
                self.tell(Event::Timer);
            }
            15 => match input.u8() {
                0 => self.tell(Event::Close),
                1 => self.tell(Event::Abort),
                2 => self.tell(Event::TcpFin),
                3 => self.tell(Event::TcpReset),
                4 => self.tell(Event::Urgent(7)),
                _ => {}
            },
            _ => self.well_formed(input),
        }
    }

    /// Any bytes of any kind.
    fn message(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        let n = input.below(50) as usize;
        let bytes = input.bytes(n);
        if self.has_qp {
            self.tell(Event::QpMessage { kind, bytes });
        }
    }

    /// A message as it should be, at a time when it should not.
    fn well_formed(&mut self, input: &mut Input<'_>) {
        let number = if input.flag() {
            u64::from(input.below(100))
        } else {
            input.u64()
        };
        let near = self.received.wrapping_add(u64::from(input.below(9)));
        let mut bytes = vec![input.u8() % 4];
        bytes.extend(number.to_be_bytes());
        let kind = input.pick(&[
            0, 1, 2, 3, 16, 17, 18, 19, 20, 32, 33, 34, 16, 17, 18, 19, 33,
        ]);
        match kind {
            0 => bytes.truncate(1 + input.below(8) as usize),
            1 | 3 | 18 | 19 => bytes.clear(),
            2 | 20 => bytes.truncate(1),
            32 => {
                bytes = vec![0; DESCRIPTOR];
                bytes[24..32].copy_from_slice(&number.to_be_bytes());
            }
            33 => {
                bytes = near.to_be_bytes().to_vec();
                bytes.extend(input.below(65_536).to_be_bytes());
                bytes.push(1);
            }
            34 => bytes = (number as u32).to_be_bytes().to_vec(),
            _ => {}
        }
        if self.has_qp {
            self.tell(Event::QpMessage {
                kind,
                bytes: &bytes,
            });
        }
    }

    fn tcp_in(&mut self, input: &mut Input<'_>) {
        match self.engine.tcp_in() {
            TcpIn::Nothing | TcpIn::Discard => {}
            TcpIn::Raw { limit } => {
                let n = u64::from(input.below(300)).min(limit);
                self.tell(Event::TcpBytes(n as usize));
            }
            TcpIn::Peek => {
                let kind = input.pick(&[FrameKind::Proof, FrameKind::Resume]);
                let place = if kind == FrameKind::Proof {
                    self.received
                } else {
                    0
                };
                let slot = Slot {
                    kind,
                    writer: self.role.peer(),
                    generation: 1,
                    place,
                };
                let position = if input.flag() {
                    place
                } else {
                    u64::from(input.below(100))
                };
                let mut bytes = slot.emit(&Weak(1), position).to_vec();
                if input.flag() {
                    let at = input.below(FRAME as u32) as usize;
                    bytes[at] ^= input.u8();
                }
                bytes.truncate(input.below(2 * FRAME as u32) as usize);
                self.tell(Event::TcpPeeked {
                    bytes: &bytes,
                    is_end: input.u8() == 0,
                });
            }
        }
    }

    fn tcp_out(&mut self, input: &mut Input<'_>) {
        let n = match self.engine.tcp_out() {
            TcpOut::Nothing => return,
            TcpOut::Frame(bytes) | TcpOut::Again(bytes) => bytes.len(),
            TcpOut::Staged { position, length } => {
                assert!(position % RING + length <= RING);
                length as usize
            }
            TcpOut::Application => 100,
            TcpOut::Fin => return self.tell(Event::TcpShutDown),
        };
        assert!(n > 0, "something to write");
        let n = 1 + input.below(n.min(65_536) as u32) as usize;
        self.tell(Event::TcpWritten(n));
    }

    fn write(&mut self, input: &mut Input<'_>) {
        let length = input.pick(&[1, 100, 4096, 70_000]);
        match self.engine.write(length, input.flag()) {
            Write::Tcp => {
                assert_eq!(self.engine.tcp_out(), TcpOut::Application);
                self.tell(Event::TcpWritten(length));
            }
            Write::Message(n) => self.engine.message_sent(n, vec![0; n]),
            Write::Stage { position, length } => {
                assert_eq!(position, self.engine.accepted());
                self.engine.staged(length);
            }
            Write::Full | Write::Closed => {}
        }
    }

    fn post(&mut self) {
        if let Some(post) = self.engine.next_message() {
            assert!(
                !self.is_draining,
                "nothing is posted on a queue pair that ends"
            );
            if let Some(staged) = post.staged {
                assert!(staged.position % RING + staged.length as u64 <= RING);
                assert!(post.head.len() + staged.length <= 4096);
            }
        }
        if let Some(read) = self.engine.next_read() {
            self.reads.push((read.position, read.length));
        }
        self.tell(Event::QpUnacknowledged(u32::MAX));
    }

    fn read(&mut self, input: &mut Input<'_>) {
        match self.engine.source() {
            Source::Message => {
                let before = self.engine.received();
                let n = 1 + input.below(100) as usize;
                if self.has_qp && self.engine.data(n) == Keep::Deliver {
                    assert_eq!(self.engine.received().0, before.0 + n as u64);
                    assert!(!before.1, "no byte comes after the end");
                }
                self.tell(Event::QpUnacknowledged(u32::MAX));
            }
            Source::Landed { length, .. } => {
                self.engine.landed_taken(1 + u64::from(input.u8()) % length);
            }
            Source::Tcp | Source::Nothing => {}
        }
    }

    /// What always holds.
    fn check(&mut self) {
        let state = self.engine.state();
        if let Some(over) = self.over {
            assert_eq!(state, over, "what is over stays so");
        }
        if matches!(state, State::Ended | State::Broken(_)) {
            self.over = Some(state);
        }
        let (received, _) = self.engine.received();
        assert!(received >= self.received, "what was received stays so");
        assert!(
            self.engine.accepted() >= self.accepted,
            "what was accepted stays so"
        );
        self.received = received;
        self.accepted = self.engine.accepted();
    }
}
