//! A client on `rdma-sys` alone against our provider: what it sends and gets is built and read by hand,
//! from the text of `docs/protocol.md`. Needs RDMA devices: run with `ci/rxe`.

use std::time::{Duration, Instant};

use san_provider::{Decision, Message, Notification, ProviderConfig, Rejection, Socket, WsaCode};
use san_tests::census::{self, Census};
use san_tests::san::{self, Listener, San};
use san_tests::time::{STEP, bounded, within};
use san_witnesses::flood::Flood;
use san_witnesses::raw::{Client, ConnectEnd, RECEIVES, SLOT};
use san_witnesses::wire::{self, Refusal};

/// One receive is kept for a message that only gives credits.
const CREDITS: u16 = RECEIVES as u16 - 1;

#[test]
fn wsd_080_refused_past_the_backlog_with_the_bytes_of_the_protocol() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let first = ask(&listener);
        listener.wait_event();
        let data = rejected(&ask(&listener));
        let expected = [
            b"SAND".as_slice(),
            &[1, 3],               // version, kind
            &24_u16.to_be_bytes(), // length
            &1_u16.to_be_bytes(),  // reason: backlog full
            &[1, 1],               // versions spoken
            &1_u32.to_be_bytes(),  // the backlog
            &[0; 8],
        ];
        assert_eq!(data[..24], expected.concat());
        assert!(data[24..].iter().all(|&byte| byte == 0), "padding");
        let _accepted = listener.accept();
        assert!(
            matches!(outcome(&first), ConnectEnd::Established(_)),
            "the first has its place"
        );
    });
}

#[test]
fn wsd_086_rejected_by_the_condition_function() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let cases = [
            (
                Rejection::Unwanted,
                Refusal {
                    reason: 2,
                    lowest: 1,
                    highest: 1,
                    backlog: 0,
                },
            ),
            (
                Rejection::BacklogFull { backlog: 77 },
                Refusal {
                    reason: 7,
                    lowest: 1,
                    highest: 1,
                    backlog: 77,
                },
            ),
        ];
        for (rejection, expected) in cases {
            let client = ask(&listener);
            assert!(listener.answer(Decision::Reject(rejection)).is_err());
            assert_eq!(wire::refusal(&rejected(&client)), Ok(expected));
        }
    });
}

#[test]
fn refused_as_no_peer_or_of_another_version() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let mut version_9 = wire::request(CREDITS, SLOT as u32);
        version_9[4] = 9;
        for (data, reason) in [(&b"GET / HTTP/1.1"[..], 3), (&[], 3), (&version_9, 4)] {
            let client = Client::prepare(listener.addr, soon()).expect("a client");
            client.request(data).expect("the request");
            let expected = Refusal {
                reason,
                lowest: 1,
                highest: 1,
                backlog: 0,
            };
            assert_eq!(wire::refusal(&rejected(&client)), Ok(expected), "{data:?}");
        }
        assert_eq!(san.counters().queued, 0);
    });
}

#[test]
fn refused_when_the_listener_closes() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let client = ask(&listener);
        listener.wait_event();
        listener.socket.close().expect("close");
        let expected = Refusal {
            reason: 5,
            lowest: 1,
            highest: 1,
            backlog: 0,
        };
        assert_eq!(wire::refusal(&rejected(&client)), Ok(expected));
        let late = rejected_with(&ask(&listener));
        assert_eq!(late.0, 8, "nobody listens");
        assert!(wire::refusal(&late.1).is_err(), "the kernel's own words");
    });
}

#[test]
fn wsd_029_talks_with_the_provider_under_credits() {
    bounded(|| {
        let san = San::start();
        let (mut client, server, reply) = connected(&san);
        assert!(reply.credits >= 1);
        assert_eq!(reply.max_message as usize, SLOT);
        let mut credits = u32::from(reply.credits);
        let mut owed = 0;
        for round in 0..200_u32 {
            // The message goes with all credits that are owed.
            assert!(credits > 0, "round {round}: the provider owes a credit");
            let text = format!("message {round}").into_bytes();
            client
                .send(&text, wire::immediate(1, owed, round & 0xff), soon())
                .expect("send");
            (credits, owed) = (credits - 1, 0);
            let message = receive_message(&server);
            assert_eq!(
                (&message[..], u32::from(message.kind())),
                (&text[..], round & 0xff)
            );
            drop(message);

            san::send(&server, &text);
            while owed == 0 {
                let back = client.receive(soon()).expect("an answer");
                let immediate = back.immediate.expect("every message has immediate data");
                let (kind_of_packet, given, kind, reserved) = wire::take_apart(immediate);
                assert_eq!(reserved, 0);
                credits += given;
                match kind_of_packet {
                    1 => {
                        assert_eq!((back.data.as_slice(), kind), (text.as_slice(), 0));
                        owed += 1;
                    }
                    2 => assert!(back.data.is_empty() && kind == 0 && given > 0),
                    other => panic!("type {other}"),
                }
            }
        }
        assert_eq!(san.counters().protocol_violations, 0);
        client.disconnect().expect("disconnect");
        let pending = server.receive(Notification::Poll);
        match pending.map(|operation| san::wait(&server, operation).outcome) {
            Err(error) | Ok(Err(error)) => assert_eq!(error.code(), WsaCode::ConnReset),
            Ok(Ok(transferred)) => panic!("{transferred:?} after the end"),
        }
    });
}

#[test]
fn wsd_092_a_used_window_is_given_back_by_credit_messages() {
    bounded(|| {
        let san = San::start();
        let (mut client, server, reply) = connected(&san);
        let mut credits = u32::from(reply.credits);
        let mut sent = 0_u8;
        while sent < 100 {
            let burst = credits.min(u32::from(100 - sent));
            for n in 0..burst {
                client
                    .send(&[sent + n as u8], wire::immediate(1, 0, 0), soon())
                    .expect("send");
            }
            for n in 0..burst {
                assert_eq!(receive_message(&server)[..], [sent + n as u8]);
            }
            sent += burst as u8;
            credits -= burst;
            // The provider sends nothing of its own, so what it gives comes in messages for that.
            while credits == 0 && sent < 100 {
                let message = client.receive(soon()).expect("credits");
                let (kind_of_packet, given, kind, reserved) =
                    wire::take_apart(message.immediate.expect("immediate data"));
                assert_eq!((kind_of_packet, kind, reserved), (2, 0, 0));
                assert!(message.data.is_empty() && given > 0);
                credits += given;
            }
        }
        assert_eq!(san.counters().protocol_violations, 0);
    });
}

#[test]
fn a_peer_that_breaks_the_protocol_loses_its_connection_and_nothing_else() {
    bounded(|| {
        let san = San::start();
        let (honest, honest_peer) = san.pair();
        let (mut other, other_server, _) = connected(&san);
        let violations: [(&str, u32, &[u8]); 6] = [
            ("a reserved bit", wire::immediate(1, 0, 0) | 1, b"x"),
            ("an unknown type", wire::immediate(4, 0, 0), b"x"),
            ("type 0", wire::immediate(0, 0, 0), b""),
            ("a credit message with data", wire::immediate(2, 1, 0), b"x"),
            (
                "a credit message without credits",
                wire::immediate(2, 0, 0),
                b"",
            ),
            (
                "a credit message with a kind",
                wire::immediate(2, 1, 9),
                b"",
            ),
        ];
        for (count, (what, immediate, data)) in (1..).zip(violations) {
            let (mut client, server, _) = connected(&san);
            let pending = server.receive(Notification::Poll).expect("started");
            client
                .send(data, immediate, soon())
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            let error = san::wait(&server, pending).outcome.expect_err(what);
            assert_eq!(error.code(), WsaCode::ConnReset, "{what}");
            client
                .wait_disconnected(soon())
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(san.counters().protocol_violations, count, "{what}");
        }
        san::send(&honest, b"still here");
        assert_eq!(san::receive(&honest_peer), b"still here");
        other
            .send(b"me too", wire::immediate(1, 0, 0), soon())
            .expect("send");
        assert_eq!(receive_message(&other_server)[..], b"me too"[..]);
    });
}

#[test]
fn a_peer_that_sends_without_credit_loses_its_connection() {
    bounded(|| {
        // A window that does not grow: else a credit could be on its way to a peer that has none.
        let config = ProviderConfig::default();
        let san = San::start_with(ProviderConfig {
            max_window: config.initial_window,
            ..config
        });
        let (mut client, server, reply) = connected(&san);
        // One receive more is there, for a credit message; a data message in it is the violation.
        for n in 0..=reply.credits {
            client
                .send(&[n as u8], wire::immediate(1, 0, 0), soon())
                .expect("there is a receive for it");
        }
        for n in 0..reply.credits {
            assert_eq!(receive_message(&server)[..], [n as u8]);
        }
        let ended = server
            .receive(Notification::Poll)
            .map(|operation| san::wait(&server, operation).outcome);
        match ended {
            Err(error) | Ok(Err(error)) => assert_eq!(error.code(), WsaCode::ConnReset),
            Ok(Ok(transferred)) => panic!("{transferred:?} had no credit"),
        }
        client.wait_disconnected(soon()).expect("its end");
        assert_eq!(san.counters().protocol_violations, 1);
    });
}

#[test]
fn wsd_080_a_flood_from_rdma_sys_leaves_nothing_behind() {
    within(Duration::from_secs(200), || {
        const REQUESTS: usize = 2000;
        let san = San::start();
        let listener = san.listen_a(16);
        // A lane without connections goes after a while, which the flood may take. One connection keeps it.
        let kept = ask(&listener);
        let _kept = (listener.accept(), outcome(&kept), kept);
        let flood = |count: usize| {
            let refused_before = san.counters().refused_backlog;
            let request = wire::request(CREDITS, SLOT as u32);
            let deadline = Instant::now() + Duration::from_secs(150);
            let flood = Flood::send(listener.addr, count, &request, count - 16, deadline)
                .expect("the flood");
            assert_eq!(flood.len(), count);
            assert_eq!(flood.ended.len(), count - 16, "every one got its answer");
            for (outcome, _) in &flood.ended {
                let ConnectEnd::Rejected(28, data) = outcome else {
                    panic!("{outcome:?}")
                };
                let expected = Refusal {
                    reason: 1,
                    lowest: 1,
                    highest: 1,
                    backlog: 16,
                };
                assert_eq!(wire::refusal(data), Ok(expected));
            }
            san.wait_refused(refused_before + count as u64 - 16);
            assert_eq!(
                san.counters().refused_backlog - refused_before,
                count as u64 - 16
            );
            drop(flood);
            // Those that had a place have given up.
            for _ in 0..16 {
                assert!(listener.socket.accept(|_| Decision::Accept).is_err());
            }
        };
        flood(100);
        let before = Census::take();
        let memory = census::resident_bytes();
        flood(REQUESTS);
        before.assert_back();
        let grown = census::resident_bytes().saturating_sub(memory);
        assert!(grown < 4 << 20, "{grown} bytes more than before");
        let client = ask(&listener);
        let _accepted = listener.accept();
        assert!(
            matches!(outcome(&client), ConnectEnd::Established(_)),
            "it serves as before"
        );
    });
}

/// A client that has sent a good request.
fn ask(listener: &Listener) -> Client {
    let client = Client::prepare(listener.addr, soon()).expect("a client");
    client
        .request(&wire::request(CREDITS, SLOT as u32))
        .expect("the request");
    client
}

/// A connection: the client, the provider's socket, and what the provider said.
fn connected(san: &San) -> (Client, Socket, wire::Reply) {
    let listener = san.listen_a(1);
    let client = ask(&listener);
    let accepted = listener.accept();
    match outcome(&client) {
        ConnectEnd::Established(data) => (
            client,
            accepted.socket,
            wire::reply(&data).expect("a reply of ours"),
        ),
        other => panic!("{other:?}"),
    }
}

fn outcome(client: &Client) -> ConnectEnd {
    client.outcome(soon()).expect("the end of the connect")
}

fn rejected(client: &Client) -> Vec<u8> {
    let (reason, data) = rejected_with(client);
    assert_eq!(reason, 28, "consumer defined");
    data
}

fn rejected_with(client: &Client) -> (i32, Vec<u8>) {
    match outcome(client) {
        ConnectEnd::Rejected(reason, data) => (reason, data),
        other => panic!("{other:?}"),
    }
}

fn receive_message(socket: &Socket) -> Message {
    let operation = socket.receive(Notification::Poll).expect("started");
    san::wait(socket, operation)
        .outcome
        .expect("received")
        .message
        .expect("a message")
}

fn soon() -> Instant {
    Instant::now() + STEP
}
