//! Peers that are connected and do not keep to the protocol (duty 92 and `docs/protocol.md`, Violations): each
//! loses its connection, its user is told, and nobody else has any harm.

use std::thread;
use std::time::{Duration, Instant};

use san_provider::wire::{Features, Hello, HelloKind, Immediate, MessageType, Session};
use san_provider::{Notification, Socket, WsaCode};
use san_tests::net;
use san_tests::san::{self, Listener, San};
use san_tests::stranger::next_event;
use san_tests::time::{STEP, bounded, eventually};
use verbs_shim::{
    Access, BufferPool, CmId, CompletionBatch, CompletionQueue, ConnParams, Event, EventChannel,
    QpCaps, QueuePair, RemoteMemory, SendRequest, Verb, WcStatus,
};

const LENGTH: u32 = 8192;
const QUEUE: u32 = 128;

/// Memory that nobody has opened.
const NOWHERE: RemoteMemory = RemoteMemory {
    addr: 0x1000,
    rkey: 0x1234_5678,
};

/// A peer of another make: it negotiates as it should, and then does as it likes.
struct Peer {
    qp: QueuePair,
    cq: CompletionQueue,
    pool: BufferPool,
    id: CmId,
    channel: EventChannel,
}

impl Peer {
    /// Connects, and says that it can take in `credits` messages; the accepted end besides.
    fn connect(listener: &Listener, credits: u16) -> (Self, Socket) {
        let channel = net::fabric().event_channel().expect("an event channel");
        let id = CmId::new(&channel).expect("a CM id");
        id.resolve_addr(None, listener.addr, STEP)
            .expect("an address");
        let event = next_event(&channel, STEP);
        assert!(matches!(event, Event::AddrResolved { .. }), "{event:?}");
        id.resolve_route(STEP).expect("a route");
        let event = next_event(&channel, STEP);
        assert!(matches!(event, Event::RouteResolved { .. }), "{event:?}");
        let device = id.device().expect("a device");
        let pd = device.alloc_pd().expect("a protection domain");
        let cq = device
            .create_cq(2 * QUEUE, None)
            .expect("a completion queue");
        let pool = BufferPool::new(&pd, LENGTH, 2 * QUEUE, Access::LOCAL_WRITE).expect("buffers");
        let caps = QpCaps {
            send_wr: QUEUE,
            recv_wr: 32,
            sge: 1,
            inline: 0,
        };
        let qp = id
            .create_qp(&pd, caps, &cq, &cq, None)
            .expect("a queue pair");
        for _ in 0..32 {
            let buffer = pool.take().expect("a buffer");
            qp.post_recv(0, buffer).expect("a receive");
        }
        let request = Hello {
            features: Features::default(),
            credits,
            max_message_size: 4096,
            max_rdma_size: 0,
            session: Session::NONE,
        };
        let params = ConnParams {
            private_data: &request.emit(HelloKind::Request),
            ..ConnParams::default()
        };
        id.connect(&params).expect("a request");
        let accepted = listener.accept().socket;
        let event = next_event(&channel, STEP);
        assert!(matches!(event, Event::Established { .. }), "{event:?}");
        let peer = Self {
            qp: qp.established(),
            cq,
            pool,
            id,
            channel,
        };
        (peer, accepted)
    }

    fn post(&self, operation: Verb, length: usize) {
        let mut buffer = self.pool.take().expect("a buffer");
        buffer.fill(&vec![7; length]);
        let request = SendRequest::piece(0, operation, buffer);
        self.qp.post(request).map_err(|e| e.error).expect("room");
    }

    fn say(&self, immediate: u32, length: usize) {
        self.post(Verb::SendWithImm(immediate), length);
    }

    /// Reaches for memory. The transport refuses that, and its queue pair is of no use any more.
    fn is_refused(&self, operation: Verb) {
        self.post(operation, 64);
        let mut batch = CompletionBatch::new();
        let end = Instant::now() + STEP;
        while self.cq.poll(&mut batch).expect("the queue") == 0 {
            assert!(Instant::now() < end, "no completion");
            thread::sleep(Duration::from_millis(1));
        }
        let status = batch.iter().next().expect("one").status();
        assert_eq!(status, WcStatus::RemoteAccess);
        self.id.disconnect().expect("a connection");
    }

    /// Waits until the connection is over for it, too.
    fn sees_the_end(&self, what: &str) {
        let mut batch = CompletionBatch::new();
        let end = Instant::now() + STEP;
        loop {
            // What was sent and received is of no interest, but has to be taken.
            let _ = self.cq.poll(&mut batch).expect("the queue");
            for completion in &batch {
                drop(self.qp.claim(completion));
            }
            if let Some(event) = self.channel.next().expect("the channel") {
                assert!(
                    matches!(event, Event::Disconnected { .. }),
                    "{what}: {event:?}"
                );
                let _ = self.id.disconnect();
                return;
            }
            assert!(Instant::now() < end, "{what}: the connection goes on");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

const fn data(credits: u16) -> u32 {
    immediate(MessageType::Data, credits)
}

const fn credit(credits: u16) -> u32 {
    immediate(MessageType::Credit, credits)
}

const fn about_moving(kind: u8) -> u32 {
    Immediate::about_moving(kind).emit()
}

const fn immediate(message: MessageType, credits: u16) -> u32 {
    Immediate {
        message,
        credits,
        kind: 0,
    }
    .emit()
}

/// Receives what there is until the end, and gives that.
fn end_of(socket: &Socket, what: &str) -> WsaCode {
    let end = Instant::now() + STEP;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match socket.receive_within(left) {
            Ok(_) => {}
            Err(error) => {
                assert!(Instant::now() < end, "{what}: {error} after {STEP:?}");
                return error.code();
            }
        }
    }
}

/// One way to break the rules: what it is called, the credits it begins with, and what it does then.
type Breach = (&'static str, u16, fn(&Peer));

fn each_loses_its_connection(breaches: &[Breach], violations: u64) {
    let san = San::start();
    let listener = san.listen_a(4);
    let (good, good_peer) = san.pair();
    for (what, credits, act) in breaches {
        let before = san.counters().protocol_violations;
        let (peer, victim) = Peer::connect(&listener, *credits);
        act(&peer);
        assert_eq!(end_of(&victim, what), WsaCode::ConnReset, "{what}");
        peer.sees_the_end(what);
        assert_eq!(
            san.counters().protocol_violations - before,
            violations,
            "{what}"
        );
        // A send is told the same, and the others go on.
        assert!(
            victim.send(b"more", 0, Notification::Poll).is_err(),
            "{what}"
        );
        san::send(&good, what.as_bytes());
        assert_eq!(san::receive(&good_peer), what.as_bytes());
    }
}

#[test]
fn messages_that_break_the_rules_end_their_connection() {
    bounded(|| {
        each_loses_its_connection(
            &[
                ("no immediate data", 2, |p| p.post(Verb::Send, 10)),
                ("type 0", 2, |p| p.say(0, 10)),
                ("type 15", 2, |p| p.say(0xf000_0000, 10)),
                ("reserved bits", 2, |p| p.say(data(0) | 1, 10)),
                ("a credit message with data", 2, |p| p.say(credit(1), 10)),
                ("a credit message with a kind", 2, |p| {
                    p.say(credit(1) | 0x100, 0);
                }),
                ("a credit message without a credit", 2, |p| {
                    p.say(credit(0), 0);
                }),
                ("credit messages one after the other", 2, |p| {
                    p.say(credit(1), 0);
                    p.say(credit(1), 0);
                }),
                ("more credits than there can be", u16::MAX, |p| {
                    p.say(data(1), 10);
                }),
                ("a credit message past all bounds", u16::MAX, |p| {
                    p.say(credit(Immediate::MAX_CREDITS), 0);
                }),
                ("a question about moving with data", 2, |p| {
                    p.say(about_moving(Immediate::ASK), 10);
                }),
                ("the same question twice", 2, |p| {
                    p.say(about_moving(Immediate::ASK), 0);
                    p.say(about_moving(Immediate::ASK), 0);
                }),
                ("a yes that nobody has asked for", 2, |p| {
                    p.say(about_moving(Immediate::YES), 40);
                }),
                ("a no that nobody has asked for", 2, |p| {
                    p.say(about_moving(Immediate::NO), 0);
                }),
                ("a bad message behind good ones", 2, |p| {
                    p.say(data(0), 10);
                    p.say(data(0) | 0xff, 10);
                }),
            ],
            1,
        );
    });
}

#[test]
fn messages_without_a_credit_end_their_connection() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(4);
        let (good, good_peer) = san.pair();
        let (peer, victim) = Peer::connect(&listener, 2);
        // The victim's user asks for nothing, so it cannot owe as many as these. Whoever polls finds it out.
        let mut left = 80;
        eventually("they are found out", STEP, || {
            if left > 0 {
                peer.say(data(0), 10);
                left -= 1;
            }
            san::send(&good, b"goes on");
            assert_eq!(san::receive(&good_peer), b"goes on");
            san.counters().protocol_violations > 0
        });
        peer.sees_the_end("messages without a credit");
        assert_eq!(end_of(&victim, "it"), WsaCode::ConnReset);
        assert_eq!(san.counters().protocol_violations, 1);
        san::send(&good, b"still does");
        assert_eq!(san::receive(&good_peer), b"still does");
    });
}

#[test]
fn receives_that_were_taken_without_credits_come_back_to_the_others() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(4);
        let (good, good_peer) = san.pair();
        let (peer, _victim) = Peer::connect(&listener, 2);
        // More than there are receives, for all three ends together, and nobody polls meanwhile.
        for _ in 0..20 {
            peer.say(data(0), 10);
        }
        thread::sleep(Duration::from_millis(300));
        // The kernel's soft-RoCE gives up meanwhile, whatever the timers (docs/architecture.md, 7).
        let (good, good_peer) = match net::is_soft() {
            true => (good, good_peer),
            false => san.pair(),
        };
        for _ in 0..20 {
            san::send(&good, b"goes on");
            assert_eq!(san::receive(&good_peer), b"goes on");
        }
    });
}

#[test]
fn what_the_transport_refuses_ends_its_connection_only() {
    bounded(|| {
        each_loses_its_connection(
            &[
                ("a write to memory that is not open", 2, |p| {
                    p.is_refused(Verb::Write(NOWHERE));
                }),
                ("a read of memory that is not open", 2, |p| {
                    p.is_refused(Verb::Read(NOWHERE));
                }),
            ],
            0,
        );
    });
}

#[test]
fn a_message_longer_than_agreed_ends_its_connection() {
    bounded(|| {
        let too_long: Breach = ("5,000 bytes", 2, |p| p.say(data(0), 5000));
        // The kernel's soft-RoCE says 'invalid request' to both ends, and not what was wrong with it.
        each_loses_its_connection(&[too_long], u64::from(net::is_soft()));
    });
}
