//! Messages over an accepted connection (duties 91 to 97).

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use san_provider::EventObject;
use san_provider::{
    Notification, Operation, OptionError, ProviderConfig, Readiness, ResultError, Socket,
    SocketOption, TransferError, WsaCode,
};
use san_tests::san::{self, San, Upcall};
use san_tests::time::{STEP, bounded, eventually};

#[test]
fn wsd_091_messages_before_the_first_receive_are_kept_one_by_one() {
    bounded(|| {
        let san = San::start();
        let (connected, accepted) = san.pair();
        let first = [1_u8; 256];
        let sends = [&first[..], b"second", b""].map(|bytes| {
            connected
                .send(bytes, 0, Notification::Poll)
                .expect("started")
        });
        // Nothing was posted by the accepted end's user so far.
        thread::sleep(Duration::from_millis(200));
        assert_eq!(san::receive(&accepted), first);
        assert_eq!(san::receive(&accepted), b"second");
        assert_eq!(san::receive(&accepted), b"");
        for operation in sends {
            san::wait(&connected, operation).outcome.expect("sent");
        }
    });
}

#[test]
fn wsd_092_a_sender_without_receives_only_waits() {
    bounded(|| {
        const MESSAGES: u32 = 300;
        let san = San::start_with(ProviderConfig {
            max_operations: 400,
            ..ProviderConfig::default()
        });
        let (connected, accepted) = san.pair();
        let sends: Vec<Operation> = (0..MESSAGES)
            .map(|n| {
                connected
                    .send(&n.to_be_bytes(), 0, Notification::Poll)
                    .expect("room for it")
            })
            .collect();
        // Far more than the receives set aside for a connection: the rest is held back. The first receive has been used
        // when its message has come; nobody takes it, so no more is given.
        eventually("the first has arrived", STEP, || {
            let stats = accepted.stats().expect("open").connection;
            stats.is_some_and(|stats| stats.messages_received > 0)
        });
        let last = connected.get_overlapped_result(*sends.last().expect("some"), None);
        assert!(matches!(last, Err(ResultError::Incomplete)), "{last:?}");
        assert!(san.counters().sends_delayed > 0);
        for n in 0..MESSAGES {
            assert_eq!(san::receive(&accepted), n.to_be_bytes());
        }
        for operation in sends {
            san::wait(&connected, operation).outcome.expect("sent");
        }
        san::send(&accepted, b"and back");
        assert_eq!(san::receive(&connected), b"and back");
    });
}

#[test]
fn wsd_093_transfers_start_and_return() {
    bounded(|| {
        let san = San::start();
        let (connected, accepted) = san.pair();
        let start = Instant::now();
        let receive = accepted.receive(Notification::Poll).expect("started");
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
        let result = accepted.get_overlapped_result(receive, None);
        assert!(matches!(result, Err(ResultError::Incomplete)), "{result:?}");
        let send = connected
            .send(b"now", 0, Notification::Poll)
            .expect("started");
        assert_eq!(san::wait(&connected, send).outcome.expect("sent").bytes, 3);
        let received = san::wait(&accepted, receive);
        assert_eq!(received.operation, receive);
        assert_eq!(
            &**received
                .outcome
                .expect("received")
                .message
                .as_ref()
                .expect("a message"),
            b"now"
        );
    });
}

#[test]
fn wsd_095_polled_requests_are_never_notified_others_always() {
    bounded(|| {
        let san = San::start();
        let (connected, accepted) = san.pair();
        let handles = [
            connected.handle().expect("one"),
            accepted.handle().expect("one"),
        ];
        let completed = |which: usize| {
            let about = san.upcalls.about(handles[which]).into_iter();
            about
                .filter(|upcall| matches!(upcall, Upcall::Completed { .. }))
                .collect::<Vec<_>>()
        };
        for round in 0..5_u8 {
            san::send(&connected, &[round]);
            assert_eq!(san::receive(&accepted), [round]);
        }
        assert_eq!((completed(0), completed(1)), (vec![], vec![]), "polled");

        let receive = accepted.receive(Notification::Upcall).expect("started");
        let send = connected
            .send(b"by upcall", 0, Notification::Upcall)
            .expect("started");
        eventually("both ends are told", STEP, || {
            completed(0).len() == 1 && completed(1).len() == 1
        });
        let expect = |upcalls: Vec<Upcall>, expected: (_, Option<&[u8]>)| match &upcalls[..] {
            [
                Upcall::Completed {
                    operation,
                    outcome,
                    message,
                    ..
                },
            ] => {
                assert_eq!((*operation, message.as_deref()), expected);
                assert_eq!(*outcome, Ok(9));
            }
            other => panic!("{other:?}"),
        };
        expect(completed(0), (send, None));
        expect(completed(1), (receive, Some(b"by upcall")));
        let asked = accepted.get_overlapped_result(receive, None);
        assert!(
            matches!(asked, Err(ResultError::UnknownOperation)),
            "told once: {asked:?}"
        );
    });
}

#[test]
fn wsd_095_upcalls_come_without_anybody_waiting() {
    bounded(|| {
        let san = San::start();
        let (connected, accepted) = san.pair();
        let handle = accepted.handle().expect("one");
        let receives: Vec<_> = (0..20)
            .map(|_| accepted.receive(Notification::Upcall).expect("started"))
            .collect();
        for n in 0..20_u8 {
            connected
                .send(&[n], 0, Notification::Upcall)
                .expect("started");
        }
        let told = || {
            let about = san.upcalls.about(handle).into_iter();
            about
                .filter_map(|upcall| match upcall {
                    Upcall::Completed {
                        operation, message, ..
                    } => Some((operation, message)),
                    _ => None,
                })
                .collect::<Vec<_>>()
        };
        eventually("every receive is told of", STEP, || told().len() == 20);
        let expected: Vec<_> = receives
            .into_iter()
            .zip(0..20)
            .map(|(op, n)| (op, Some(vec![n])))
            .collect();
        assert_eq!(told(), expected, "in order");
    });
}

#[test]
fn wsd_096_the_result_waits_when_asked_to() {
    bounded(|| {
        let san = San::start();
        let (connected, accepted) = san.pair();
        let receive = accepted.receive(Notification::Poll).expect("started");
        let start = Instant::now();
        let early = accepted.get_overlapped_result(receive, Some(Duration::from_millis(400)));
        assert_eq!(
            early.expect_err("nothing was sent").code(),
            WsaCode::IoIncomplete
        );
        assert!(start.elapsed() >= Duration::from_millis(400));
        let sender = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            san::send(&connected, b"late");
            connected
        });
        let received = accepted
            .get_overlapped_result(receive, Some(STEP))
            .expect("it came meanwhile");
        assert_eq!(received.outcome.expect("received").bytes, 4);
        let _connected = sender.join().expect("the sender");
        let again = accepted.get_overlapped_result(receive, None);
        assert_eq!(again.expect_err("given once").code(), WsaCode::Invalid);
    });
}

#[test]
fn wsd_096_operations_are_bounded() {
    bounded(|| {
        let san = San::start_with(ProviderConfig {
            max_operations: 8,
            ..ProviderConfig::default()
        });
        let (connected, accepted) = san.pair();
        let receives: Vec<_> = (0..8)
            .map(|_| accepted.receive(Notification::Poll).expect("room"))
            .collect();
        let one_more = accepted.receive(Notification::Poll).expect_err("no room");
        assert_eq!(one_more.code(), WsaCode::WouldBlock);
        san::send(&connected, b"one");
        san::wait(&accepted, receives[0]).outcome.expect("received");
        accepted.receive(Notification::Poll).expect("room again");
    });
}

#[test]
fn wsd_097_the_sizes_answer() {
    bounded(|| {
        let small = ProviderConfig {
            max_message_size: 1024,
            ..ProviderConfig::default()
        };
        let (server, client) = (San::start_with(small), San::start());
        let listener = server.listen_a(1);
        let connector = client.connect(listener.addr);
        let option = |option| connector.socket.option(option).expect("open");
        assert_eq!(
            option(SocketOption::MaxMessageSize),
            4096,
            "its own, before it is connected"
        );
        let accepted = listener.accept();
        connector.result().expect("accepted");
        assert_eq!(
            option(SocketOption::MaxMessageSize),
            1024,
            "what the peer takes"
        );
        assert_eq!(
            accepted
                .socket
                .option(SocketOption::MaxMessageSize)
                .expect("open"),
            1024,
            "its own send buffers"
        );
        let most = option(SocketOption::MaxRdmaSize);
        assert!(
            (1 << 20..=client.provider.config().max_rdma_size).contains(&most),
            "{most}: what both sides and the device allow"
        );
        assert_eq!(
            option(SocketOption::RdmaThresholdSize),
            client.provider.config().rdma_threshold
        );

        let too_long = connector
            .socket
            .send(&[0; 1025], 0, Notification::Poll)
            .expect_err("too long");
        assert!(
            matches!(
                too_long,
                TransferError::MessageTooLong {
                    length: 1025,
                    limit: 1024
                }
            ),
            "{too_long:?}"
        );
        assert_eq!(too_long.code(), WsaCode::MessageSize);
        san::send(&connector.socket, &[7; 1024]);
        assert_eq!(san::receive(&accepted.socket), [7; 1024]);
        san::send(&accepted.socket, &[8; 1024]);
        assert_eq!(san::receive(&connector.socket), [8; 1024]);
    });
}

#[test]
fn wsd_097_what_can_be_set_and_what_not() {
    bounded(|| {
        let san = San::start();
        let socket = san.socket(san_tests::net::addr_a());
        for fixed in [
            SocketOption::MaxMessageSize,
            SocketOption::MaxRdmaSize,
            SocketOption::Backlog,
        ] {
            let error = socket.set_option(fixed, 1).expect_err("fixed");
            assert!(matches!(error, OptionError::ReadOnly), "{fixed:?}");
            assert_eq!(error.code(), WsaCode::NoProtoOption);
        }
        socket
            .set_option(SocketOption::RdmaThresholdSize, 20_000)
            .expect("a hint");
        assert_eq!(
            socket
                .option(SocketOption::RdmaThresholdSize)
                .expect("open"),
            20_000
        );
        let error = socket
            .set_option(SocketOption::RdmaThresholdSize, u32::MAX)
            .expect_err("out of range");
        assert_eq!(error.code(), WsaCode::Invalid);
        let error = socket
            .set_option(SocketOption::ReuseAddr, 2)
            .expect_err("neither on nor off");
        assert_eq!(error.code(), WsaCode::Invalid);
        socket.bind(san_tests::net::at_a()).expect("bind");
        let error = socket
            .set_option(SocketOption::ReuseAddr, 1)
            .expect_err("too late");
        assert_eq!(error.code(), WsaCode::Invalid);
    });
}

#[test]
fn messages_arrive_whole_and_in_order_both_ways_at_once() {
    bounded(|| {
        const MESSAGES: u32 = 400;
        let san = San::start();
        let (connected, accepted) = san.pair();
        // Not closed before everything is counted.
        let _open = (connected.clone(), accepted.clone());
        let ends = [
            (connected.clone(), accepted.clone(), 1),
            (accepted, connected, 2),
        ];
        let senders = ends.map(|(from, to, seed)| {
            let receiver = thread::spawn(move || {
                for n in 0..MESSAGES {
                    assert_eq!(
                        san::receive(&to),
                        pattern(seed, n),
                        "message {n} of sender {seed}"
                    );
                }
            });
            let sender = thread::spawn(move || {
                for n in 0..MESSAGES {
                    san::send(&from, &pattern(seed, n));
                }
            });
            [sender, receiver]
        });
        for thread in senders.into_iter().flatten() {
            thread.join().expect("every message as it was sent");
        }
        let counters = san.counters();
        assert_eq!(counters.messages_sent, u64::from(MESSAGES) * 2);
        assert_eq!(counters.messages_received, counters.messages_sent);
        assert_eq!(counters.bytes_received, counters.bytes_sent);
        assert_eq!(
            (counters.protocol_violations, counters.stray_completions),
            (0, 0)
        );
    });
}

#[test]
fn messages_that_need_not_wait_need_no_operation() {
    bounded(|| {
        const MESSAGES: u32 = 1000;
        let san = San::start();
        let (connected, accepted) = san.pair();
        // More than fit into a send queue, and of both kinds: in the request, and in a buffer.
        for n in 0..MESSAGES {
            let message = pattern(3, n);
            eventually("the message goes out", STEP, || {
                match connected.try_send(&message, 7) {
                    Ok(()) => true,
                    Err(TransferError::WouldBlock) => false,
                    Err(error) => panic!("message {n}: {error}"),
                }
            });
            let received = accepted.receive_within(STEP).expect("received");
            assert_eq!((&*received, received.kind()), (&message[..], 7));
        }
        let counters = san.counters();
        assert_eq!(
            (counters.messages_sent, counters.stray_completions),
            (u64::from(MESSAGES), 0)
        );
    });
}

#[test]
fn what_has_to_wait_says_so_and_passes_nobody() {
    bounded(|| {
        let san = San::start();
        let (connected, accepted) = san.pair();
        // Nobody receives, so the only credits that come are those by which the peer's window grows.
        let most = u32::from(ProviderConfig::default().max_window);
        let mut sent = 0_u32;
        eventually("the peer's window is used up", STEP, || {
            match connected.try_send(&sent.to_be_bytes(), 0) {
                Ok(()) => sent += 1,
                Err(TransferError::WouldBlock) => {}
                Err(error) => panic!("{error}"),
            }
            sent == most
        });
        let queued = connected
            .send(&sent.to_be_bytes(), 0, Notification::Poll)
            .expect("queued");
        let passing = connected.try_send(b"first", 0);
        assert!(
            matches!(passing, Err(TransferError::WouldBlock)),
            "{passing:?}"
        );
        let long = connected.try_send(&[0; 5000], 0);
        assert!(
            matches!(long, Err(TransferError::MessageTooLong { .. })),
            "{long:?}"
        );
        for n in 0..=sent {
            assert_eq!(
                *accepted.receive_within(STEP).expect("kept"),
                n.to_be_bytes()
            );
        }
        san::wait(&connected, queued).outcome.expect("sent");
        eventually("room again", STEP, || {
            connected.try_send(b"and again", 0).is_ok()
        });
        assert_eq!(*accepted.receive_within(STEP).expect("sent"), *b"and again");
    });
}

#[test]
fn receivers_without_operations_share_a_connection() {
    bounded(|| {
        const MESSAGES: u32 = 200;
        let san = San::start();
        let (connected, accepted) = san.pair();
        let none = accepted.receive_within(Duration::from_millis(30));
        assert!(matches!(none, Err(TransferError::WouldBlock)), "{none:?}");
        let receivers = [(); 3].map(|()| {
            let accepted = accepted.clone();
            thread::spawn(move || {
                let mut seen = Vec::new();
                loop {
                    match accepted.receive_within(Duration::from_millis(200)) {
                        Ok(message) if message.is_empty() => return seen,
                        Ok(message) => seen.push(u32::from_be_bytes(
                            (*message).try_into().expect("four bytes"),
                        )),
                        Err(TransferError::WouldBlock) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        });
        for n in 0..MESSAGES {
            san::send(&connected, &n.to_be_bytes());
        }
        for _ in &receivers {
            san::send(&connected, b"");
        }
        let mut seen: Vec<u32> = receivers
            .into_iter()
            .flat_map(|receiver| receiver.join().expect("it received"))
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..MESSAGES).collect::<Vec<_>>(), "each once");
    });
}

#[test]
fn a_waiting_receiver_hears_of_the_end() {
    bounded(|| {
        let san = San::start();
        let (connected, accepted) = san.pair();
        let own = connected.clone();
        let waiting = thread::spawn(move || own.receive_within(STEP));
        let theirs = accepted.clone();
        let peer = thread::spawn(move || theirs.receive_within(STEP));
        thread::sleep(Duration::from_millis(100));
        connected.close().expect("closed");
        let own = waiting.join().expect("it returned");
        assert!(matches!(own, Err(TransferError::NotSocket)), "{own:?}");
        let peer = peer.join().expect("it returned");
        assert!(matches!(peer, Err(TransferError::Reset)), "{peer:?}");
    });
}

#[test]
fn the_kind_of_a_message_and_its_buffer_are_carried() {
    bounded(|| {
        let san = San::start();
        let (connected, accepted) = san.pair();
        let mut buffer = connected.buffer().expect("a registered buffer");
        buffer.fill(b"from where it is");
        let sent = connected
            .send_registered(buffer, 201, Notification::Poll)
            .expect("started");
        san::wait(&connected, sent).outcome.expect("sent");
        let receive = accepted.receive(Notification::Poll).expect("started");
        let message = san::wait(&accepted, receive)
            .outcome
            .expect("received")
            .message
            .expect("a message");
        assert_eq!((&*message, message.kind()), (&b"from where it is"[..], 201));
    });
}

#[test]
fn a_ready_event_follows_messages() {
    bounded(|| {
        let san = San::start();
        let (connected, accepted) = san.pair();
        let readable = EventObject::new().expect("an event object");
        accepted
            .select_ready(Readiness::Readable, Some(&readable))
            .expect("selected");
        assert!(
            !readable.wait(Duration::from_millis(300)),
            "nothing was sent"
        );
        assert!(matches!(
            accepted.try_receive(),
            Err(TransferError::WouldBlock)
        ));
        connected
            .send(b"one", 0, Notification::Poll)
            .expect("started");
        connected
            .send(b"two", 0, Notification::Poll)
            .expect("started");
        assert!(readable.wait(STEP), "a message came");
        assert_eq!(&*try_receive(&accepted, &readable), b"one");
        assert_eq!(&*try_receive(&accepted, &readable), b"two");
        eventually("the event is reset when nothing is left", STEP, || {
            matches!(accepted.try_receive(), Err(TransferError::WouldBlock)) && !readable.is_set()
        });
        connected.close().expect("close");
        assert!(readable.wait(STEP), "the end is something to read");
        assert_eq!(
            accepted.try_receive().expect_err("over").code(),
            WsaCode::ConnReset
        );
    });
}

#[test]
fn many_connections_share_a_device() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(32);
        let connectors: Vec<_> = (0..32).map(|_| san.connect(listener.addr)).collect();
        let accepted: Vec<_> = connectors.iter().map(|_| listener.accept()).collect();
        for connector in &connectors {
            connector.result().expect("accepted");
        }
        let failed = AtomicBool::new(false);
        thread::scope(|scope| {
            for accepted in &accepted {
                scope.spawn(|| {
                    for _ in 0..10 {
                        let message = san::receive(&accepted.socket);
                        san::send(&accepted.socket, &message);
                    }
                });
            }
            for (n, connector) in connectors.iter().enumerate() {
                let failed = &failed;
                scope.spawn(move || {
                    for round in 0..10 {
                        let message = format!("connection {n}, round {round}").into_bytes();
                        san::send(&connector.socket, &message);
                        if san::receive(&connector.socket) != message {
                            failed.store(true, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert!(
            !failed.load(Ordering::SeqCst),
            "a message came to the wrong connection"
        );
    });
}

fn try_receive(socket: &Socket, readable: &EventObject) -> san_provider::Message {
    assert!(readable.wait(STEP), "a message waits");
    socket.try_receive().expect("the event says so")
}

/// A message of some length that tells its sender and number.
fn pattern(seed: u32, n: u32) -> Vec<u8> {
    let len = (n * 97 + seed * 13) % 4096 + 1;
    (0..len).map(|at| (at * 31 + n * 7 + seed) as u8).collect()
}
