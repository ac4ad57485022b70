//! Handing a connection to another process: duties 116 to 121.
//!
//! The processes are puppets (`support/puppet.rs`); the end that stays is in this one. Somebody has to
//! serve it while it does nothing: its readiness is followed.

use std::thread;
use std::time::{Duration, Instant};

use san_provider::{
    Duplicate, EventObject, Fence, MemoryAccess, Notification, ProviderConfig, Readiness, Socket,
    SocketOption, WsaCode,
};
use san_tests::census::Census;
use san_tests::memory::{all, open, patterned, read, register, segment};
use san_tests::net;
use san_tests::puppet::{Puppet, receive_number, send_number};
use san_tests::san::{self, San, Upcall};
use san_tests::time::{STEP, eventually, within};

const PEER: &str = env!("CARGO_BIN_EXE_san-test-peer");

const LIMIT: Duration = Duration::from_secs(120);

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// How long a move waits for a peer that does not answer, where a test waits for that: enough for one that
/// does, on a busy machine.
const SHORT: Duration = Duration::from_secs(3);

/// Where the session's secret begins in a duplicate.
const SECRET: usize = 128;

fn this() -> u32 {
    std::process::id()
}

fn puppet() -> Puppet {
    Puppet::start(PEER, LONG)
}

fn san_that_waits(move_deadline: Duration) -> San {
    San::start_with(ProviderConfig {
        move_deadline,
        ..ProviderConfig::default()
    })
}

/// Has the socket served while nobody uses it. Good as long as what it gives is kept.
fn served(socket: &Socket) -> EventObject {
    let event = EventObject::new().expect("an event object");
    socket
        .select_ready(Readiness::Readable, Some(&event))
        .expect("a connected socket");
    event
}

/// A connection from a puppet to this process; its end here.
fn connection_of(puppet: &mut Puppet, san: &San) -> Socket {
    let listener = san.listen_a(1);
    puppet.begins(&format!("connect {}", listener.addr));
    let accepted = listener.accept().socket;
    puppet.answers("connected");
    accepted
}

/// A connection from this process to a puppet; its end here.
fn connection_to(puppet: &mut Puppet, san: &San) -> Socket {
    let addr = net::at_a();
    puppet.does(&format!("listen {addr}"), "listening");
    let connector = san.connect(addr);
    puppet.does("accept", "accepted");
    connector.result().expect("accepted");
    connector.socket
}

fn names(socket: &Socket) -> String {
    let local = socket.local_addr().expect("open").expect("bound");
    let peer = socket.peer_addr().expect("open").expect("connected");
    format!("{local} {peer}")
}

#[test]
fn wsd_116_receives_that_wait_end_with_success_and_no_bytes() {
    within(LIMIT, || {
        let (here, there) = (San::start(), San::start());
        let (source, accepted) = here.pair_with(&there);
        let _served = served(&accepted);

        san::send(&accepted, b"for the first receive");
        let first = source.receive(Notification::Poll).expect("started");
        let told = source.receive(Notification::Upcall).expect("started");
        let polled = source.receive(Notification::Poll).expect("started");
        let got = san::wait(&source, first).outcome.expect("a message");
        assert_eq!(
            &**got.message.as_ref().expect("one"),
            b"for the first receive"
        );

        let duplicate = source.duplicate(this()).expect("duplicate");
        let ended = san::wait(&source, polled).outcome.expect("success");
        assert_eq!(ended.bytes, 0);
        assert!(ended.message.is_none());
        let handle = source.handle().expect("one");
        eventually("the upcall for the other", STEP, || {
            here.upcalls.about(handle).iter().any(|upcall| {
                matches!(upcall, Upcall::Completed { operation, outcome: Ok(0), message: None, .. }
                    if *operation == told)
            })
        });
        // What follows does not wait for anything either.
        let error = source.receive(Notification::Poll).expect_err("handed over");
        assert_eq!(error.code(), WsaCode::NotConnected);
        let error = source.send(b"x", 0, Notification::Poll).expect_err("too");
        assert_eq!(error.code(), WsaCode::NotConnected);

        let target = here.provider.socket_from(&duplicate).expect("taken up");
        san::send(&accepted, b"after");
        assert_eq!(san::receive(&target), b"after");
    });
}

#[test]
fn wsd_117_good_in_the_named_process_alone() {
    within(LIMIT, || {
        let san = San::start();
        let (mut source, mut target, mut other) = (puppet(), puppet(), puppet());
        let stays = connection_of(&mut source, &san);
        let _served = served(&stays);

        let answer = source.does(&format!("duplicate {}", u32::MAX), "refused");
        assert!(answer.starts_with("WSAEINVAL"), "{answer}");
        let bytes = source.duplicate(target.pid());
        let duplicate = Duplicate::from_bytes(&bytes).expect("a duplicate");
        assert_eq!(duplicate.target(), target.pid());

        let error = san
            .provider
            .socket_from(&duplicate)
            .expect_err("not meant for us");
        assert_eq!(error.code(), WsaCode::Invalid);
        let answer = other.may_not_take(&bytes);
        assert!(answer.starts_with("WSAEINVAL"), "{answer}");
        // A process with the right number that began at another time is not the named one.
        let mut later = bytes.clone();
        later[47] ^= 1;
        let answer = target.may_not_take(&later);
        assert!(answer.starts_with("WSAEINVAL"), "{answer}");

        target.take(&bytes);
        san::send(&stays, b"hello");
        assert_eq!(target.does("receive", "received"), "hello");
        // The connection is taken up once.
        let answer = target.may_not_take(&bytes);
        assert!(answer.starts_with("WSAECONNRESET"), "{answer}");
        san::send(&stays, b"still there");
        assert_eq!(target.does("receive", "received"), "still there");
    });
}

#[test]
fn wsd_117_no_two_ids_are_the_same() {
    within(LIMIT, || {
        let san = San::start();
        let (mut source, mut target) = (puppet(), puppet());
        let mut ids = Vec::new();
        for _ in 0..2 {
            let stays = connection_of(&mut source, &san);
            let _served = served(&stays);
            let bytes = source.duplicate(target.pid());
            ids.push(Duplicate::from_bytes(&bytes).expect("one").id());
            target.take(&bytes);
            let bytes = target.duplicate(this());
            ids.push(Duplicate::from_bytes(&bytes).expect("one").id());
        }
        assert!(
            (1..ids.len()).all(|n| !ids[..n].contains(&ids[n])),
            "{ids:?}"
        );
        assert_eq!(ids[0].0, source.pid());
    });
}

/// The puppet's end of a connection moves, with all it has.
fn everything_goes_along(mut source: Puppet, stays: &Socket) {
    let mut target = puppet();
    let _served = served(stays);
    let here = names(stays);
    let (local, peer) = here.split_once(' ').expect("two names");
    source.does("threshold 4711", "threshold");
    // Both ways, before the move: what was not asked for goes along.
    for message in ["one", "two", "three"] {
        san::send(stays, message.as_bytes());
    }
    source.does("send from the source", "sent");
    assert_eq!(source.does("receive", "received"), "one");
    let bytes = source.duplicate(target.pid());
    // While it moves: this waits in a queue.
    let waits = stays.send(b"four", 0, Notification::Poll).expect("started");
    assert_eq!(target.take(&bytes), format!("{peer} {local}"), "the names");
    assert_eq!(target.does("threshold", "threshold"), "4711");
    san::send(stays, b"five");
    for message in ["two", "three", "four", "five"] {
        assert_eq!(target.does("receive", "received"), message);
    }
    let sent = san::wait(stays, waits).outcome.expect("sent");
    assert_eq!(sent.bytes, 4);
    assert_eq!(names(stays), here, "it sees no change");
    let stats = stays.stats().expect("open").connection.expect("connected");
    assert_eq!(stats.messages_sent, 5, "what it counts goes on");
    target.does("send from the target", "sent");
    assert_eq!(san::receive(stays), b"from the source");
    assert_eq!(san::receive(stays), b"from the target");
    // The source's end is nobody's any more.
    source.does("close", "closed");
    san::send(stays, b"six");
    assert_eq!(target.does("receive", "received"), "six");
    target.does("close", "closed");
    assert_eq!(end_of(stays).0, WsaCode::ConnReset);
}

#[test]
fn wsd_118_the_connecting_end_moves_with_all_it_has() {
    within(LIMIT, || {
        let san = San::start();
        let mut source = puppet();
        let stays = connection_of(&mut source, &san);
        everything_goes_along(source, &stays);
    });
}

#[test]
fn wsd_118_the_accepting_end_moves_with_all_it_has() {
    within(LIMIT, || {
        let san = San::start();
        let mut source = puppet();
        let stays = connection_to(&mut source, &san);
        everything_goes_along(source, &stays);
        resumed(&san, 1);
    });
}

#[test]
fn wsd_119_nothing_is_lost_or_doubled_while_both_ends_send() {
    const EACH: u64 = 200;
    within(LIMIT, || {
        let san = San::start();
        let mut puppets: Vec<Puppet> = (0..4).map(|_| puppet()).collect();
        let stays = connection_of(&mut puppets[0], &san);
        let moves = puppets.len() as u64;
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                for number in 0..moves * EACH {
                    send_number(&stays, number);
                }
            });
            let receiver = scope.spawn(|| {
                for number in 0..moves * EACH * 2 {
                    assert_eq!(receive_number(&stays), number);
                }
            });
            let mut echoed = 0;
            for nth in 0..puppets.len() {
                // Its numbers, in the middle of ours; then it moves with ours on the way.
                let first = nth as u64 * EACH * 2;
                let command = format!("count {first} {}", first + EACH * 2);
                puppets[nth].does(&command, "counted");
                let asks = EACH / 2;
                for _ in 0..asks {
                    let got = puppets[nth].does("number", "number");
                    assert_eq!(got, echoed.to_string());
                    echoed += 1;
                }
                if nth + 1 < puppets.len() {
                    let target = puppets[nth + 1].pid();
                    let bytes = puppets[nth].duplicate(target);
                    puppets[nth + 1].take(&bytes);
                }
            }
            let last = puppets.last_mut().expect("one");
            while echoed < moves * EACH {
                assert_eq!(last.does("number", "number"), echoed.to_string());
                echoed += 1;
            }
            sender.join().expect("the sender");
            receiver.join().expect("the receiver");
        });
        resumed(&san, moves - 1);
        assert_eq!(san.counters().connections_ended, 0);
    });
}

#[test]
fn wsd_119_rdma_under_way_is_done_and_what_was_open_is_closed() {
    const BYTES: usize = 1 << 18;
    within(LIMIT, || {
        let (here, there) = (San::start(), San::start());
        let (source, stays) = here.pair_with(&there);
        let _served = served(&stays);
        // Both ends have opened memory, and read and write the other's.
        let memory = [patterned(2 * BYTES, 1), patterned(2 * BYTES, 2)];
        let opened = [
            open(&source, (&memory[0]).into(), MemoryAccess::ReadWrite),
            open(&stays, (&memory[1]).into(), MemoryAccess::ReadWrite),
        ];
        let mine = [patterned(2 * BYTES, 3), patterned(2 * BYTES, 4)];
        let start = |socket: &Socket, nth: usize, theirs: &[u8]| {
            let handle = register(socket, &mine[nth], MemoryAccess::ReadWrite);
            let poll = Notification::Poll;
            let (reads, writes) = (segment(handle, 0, BYTES), segment(handle, BYTES, BYTES));
            let offset = BYTES as u64;
            let read = socket.rdma_read(&[reads], theirs, 0, Fence::None, poll);
            let write = socket.rdma_write(&[writes], theirs, offset, Fence::None, poll);
            [read, write].map(|started| started.expect("started"))
        };
        let of_stays = start(&stays, 1, &opened[0].descriptor);
        let of_source = start(&source, 0, &opened[1].descriptor);
        let duplicate = source.duplicate(this()).expect("duplicate");
        let target = here.provider.socket_from(&duplicate).expect("taken up");
        for operation in of_source {
            let ended = san::wait(&source, operation).outcome.expect("done");
            assert_eq!(ended.bytes, BYTES);
        }
        for operation in of_stays {
            let ended = san::wait(&stays, operation).outcome.expect("done");
            assert_eq!(ended.bytes, BYTES);
        }
        let original = [patterned(2 * BYTES, 1), patterned(2 * BYTES, 2)];
        for (nth, other) in [(0, 1), (1, 0)] {
            let (mine, theirs) = (all(&mine[nth]), all(&memory[other]));
            assert!(mine[..BYTES] == all(&original[other])[..BYTES], "read");
            assert!(theirs[BYTES..] == mine[BYTES..], "written");
        }
        // The end that stays opens its memory anew, and lets go of what it had.
        let again = open(&stays, (&memory[1]).into(), MemoryAccess::ReadWrite);
        assert_ne!(again.descriptor, opened[1].descriptor);
        assert_ne!(again.handle, opened[1].handle);
        stays
            .deregister_rdma_memory(opened[1].handle)
            .expect("the old one is a registration still");
        let got = read(&target, &again, 0, BYTES).expect("open");
        assert!(got == all(&memory[1])[..BYTES]);
        let error = read(&target, &opened[1], 0, BYTES).expect_err("closed");
        assert_eq!(error.code(), WsaCode::Fault);
    });
}

#[test]
fn all_that_the_window_holds_goes_along() {
    const COUNT: u64 = 300;
    within(LIMIT, || {
        let (here, there) = (San::start(), San::start());
        let (source, stays) = here.pair_with(&there);
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                for number in 0..COUNT {
                    send_number(&stays, number);
                }
            });
            let _served = served(&source);
            let waiting = |socket: &Socket| {
                let stats = socket.stats().expect("open").connection.expect("connected");
                (stats.messages_waiting, u64::from(stats.window))
            };
            assert_eq!(receive_number(&source), 0);
            eventually("the window is full", STEP, || {
                let (waiting, window) = waiting(&source);
                waiting as u64 + 2 >= window
            });
            let duplicate = source.duplicate(this()).expect("duplicate");
            let target = here.provider.socket_from(&duplicate).expect("taken up");
            assert!(waiting(&target).0 > 0, "some came along");
            for number in 1..COUNT {
                assert_eq!(receive_number(&target), number);
            }
            sender.join().expect("the sender");
            san::send(&target, b"back");
        });
        assert_eq!(san::receive(&stays), b"back");
    });
}

#[test]
fn wsd_120_a_socket_that_was_duplicated_stays_until_it_is_closed() {
    within(LIMIT, || {
        let (here, there) = (San::start(), San::start());
        let (source, accepted) = here.pair_with(&there);
        let _served = served(&accepted);
        let handle = source.handle().expect("one");

        let duplicate = source.duplicate(this()).expect("duplicate");
        let again = source.duplicate(this()).expect_err("handed over");
        assert_eq!(again.code(), WsaCode::Invalid);
        let target = here.provider.socket_from(&duplicate).expect("taken up");
        assert_ne!(target.number(), source.number());
        let others: Vec<Socket> = (0..50).map(|_| here.socket(net::addr_a())).collect();
        assert!(others.iter().all(|other| other.number() != source.number()));
        assert!(others.iter().all(|other| other.handle() != Some(handle)));
        let about = here.upcalls.about(handle);
        assert!(!about.contains(&Upcall::Closed(handle)), "{about:?}");

        source.close().expect("close");
        let error = source.duplicate(this()).expect_err("closed");
        assert_eq!(error.code(), WsaCode::NotSocket);
        eventually("the last upcall is the close", STEP, || {
            here.upcalls.about(handle).last() == Some(&Upcall::Closed(handle))
        });
        san::send(&target, b"as ever");
        assert_eq!(san::receive(&accepted), b"as ever");
    });
}

/// So many peers came back. It is counted after they were told, so it may be seen later than what they do.
fn resumed(san: &San, count: u64) {
    eventually("all that came back are counted", STEP, || {
        san.counters().resumes_accepted >= count
    });
    assert_eq!(san.counters().resumes_accepted, count);
}

/// Waits for the end of the connection; what it is called, and how long it took.
fn end_of(socket: &Socket) -> (WsaCode, Duration) {
    let start = Instant::now();
    let receive = socket.receive(Notification::Poll);
    let error = match receive {
        Ok(started) => san::wait(socket, started).outcome.expect_err("an end"),
        Err(error) => error,
    };
    (error.code(), start.elapsed())
}

#[test]
fn wsd_121_a_target_that_dies_resets_the_peer() {
    const PATIENCE: Duration = Duration::from_millis(1500);
    within(LIMIT, || {
        let san = san_that_waits(PATIENCE);
        let (mut source, mut target) = (puppet(), puppet());
        let stays = connection_of(&mut source, &san);
        let _served = served(&stays);
        let start = Instant::now();
        let _bytes = source.duplicate(target.pid());
        target.kill();
        let queued = stays
            .send(b"for nobody", 0, Notification::Poll)
            .expect("started");
        let (code, _) = end_of(&stays);
        assert_eq!(code, WsaCode::ConnReset);
        let took = start.elapsed();
        assert!(took >= PATIENCE, "it waits for the target: {took:?}");
        let error = san::wait(&stays, queued).outcome.expect_err("never sent");
        assert_eq!(error.code(), WsaCode::ConnReset);
        assert_eq!(san.counters().resumes_timed_out, 1);
    });
}

#[test]
fn wsd_121_a_source_that_dies_before_it_asks_resets_the_peer() {
    within(LIMIT, || {
        let san = San::start();
        let mut source = puppet();
        let stays = connection_of(&mut source, &san);
        source.kill();
        let (code, took) = end_of(&stays);
        assert_eq!(code, WsaCode::ConnReset);
        assert!(took < LONG, "{took:?}");
        assert_eq!(san.counters().resumes_timed_out, 0);
    });
}

#[test]
fn wsd_121_a_source_that_dies_afterwards_is_not_missed() {
    within(LIMIT, || {
        let san = San::start();
        let (mut source, mut target) = (puppet(), puppet());
        let stays = connection_of(&mut source, &san);
        let _served = served(&stays);
        san::send(&stays, b"before");
        let bytes = source.duplicate(target.pid());
        source.kill();
        // Its kernel says so at once.
        thread::sleep(Duration::from_millis(300));
        target.take(&bytes);
        san::send(&stays, b"after");
        for message in ["before", "after"] {
            assert_eq!(target.does("receive", "received"), message);
        }
    });
}

#[test]
fn wsd_121_a_source_that_dies_in_the_middle_resets_the_peer() {
    const PATIENCE: Duration = Duration::from_millis(400);
    within(LIMIT, || {
        let san = san_that_waits(PATIENCE);
        let target = puppet();
        for nth in 0..6 {
            let mut source = puppet();
            let stays = connection_of(&mut source, &san);
            let _served = served(&stays);
            source.begins(&format!("duplicate {}", target.pid()));
            // Before the question, before the answer, after it.
            thread::sleep(Duration::from_micros(400 * nth));
            source.kill();
            let (code, took) = end_of(&stays);
            assert_eq!(code, WsaCode::ConnReset, "{nth}");
            assert!(took < STEP, "{took:?}");
        }
    });
}

#[test]
fn wsd_121_a_peer_that_dies_resets_the_target() {
    within(LIMIT, || {
        let san = San::start();
        let mut peer = puppet();
        let source = connection_to(&mut peer, &san);
        let duplicate = source.duplicate(this()).expect("duplicate");
        peer.kill();
        let error = san.provider.socket_from(&duplicate).expect_err("nobody");
        assert_eq!(error.code(), WsaCode::ConnReset, "{error}");
        source.close().expect("close");
        assert_eq!(san.counters().sockets_taken_up, 0);
    });
}

#[test]
fn wsd_121_a_peer_that_does_not_answer_is_reset() {
    within(LIMIT, || {
        let quick = ProviderConfig {
            connect_deadline: SHORT,
            ..ProviderConfig::default()
        };
        // Nor does the keepalive.
        let (here, there) = (
            San::start_with(quick),
            San::start_with(ProviderConfig {
                move_deadline: Duration::from_millis(500),
                keepalive: Duration::ZERO,
                ..ProviderConfig::default()
            }),
        );
        let listener = there.listen_a(1);
        let connector = here.connect(listener.addr);
        let accepted = listener.accept().socket;
        connector.result().expect("accepted");
        // Nobody serves the accepted end. It may find the question when it is too late, and wait.
        let start = Instant::now();
        let error = connector.socket.duplicate(this()).expect_err("no answer");
        assert_eq!(error.code(), WsaCode::ConnReset, "{error}");
        assert!(start.elapsed() < STEP);
        assert_eq!(end_of(&accepted).0, WsaCode::ConnReset);
        assert_eq!(end_of(&connector.socket).0, WsaCode::ConnReset);
    });
}

#[test]
fn wsd_121_closing_ends_the_wait() {
    within(LIMIT, || {
        let san = San::start();
        let (mut source, mut target) = (puppet(), puppet());
        let stays = connection_of(&mut source, &san);
        let _served = served(&stays);
        let bytes = source.duplicate(target.pid());
        stays.close().expect("close");
        let answer = target.may_not_take(&bytes);
        assert!(answer.starts_with("WSAECONNRESET"), "{answer}");
    });
}

#[test]
fn a_wrong_secret_is_refused_and_the_right_one_still_good() {
    within(LIMIT, || {
        let san = San::start();
        let (mut source, mut target) = (puppet(), puppet());
        let stays = connection_of(&mut source, &san);
        let _served = served(&stays);
        let bytes = source.duplicate(target.pid());
        for at in [SECRET, SECRET + 15, SECRET - 1] {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            let answer = target.may_not_take(&wrong);
            assert!(answer.starts_with("WSAECONNRESET"), "{answer}");
        }
        assert_eq!(san.counters().resumes_refused, 3);
        target.take(&bytes);
        san::send(&stays, b"hello");
        assert_eq!(target.does("receive", "received"), "hello");
    });
}

#[test]
fn what_is_not_connected_is_not_duplicated() {
    within(LIMIT, || {
        let san = San::start();
        let code = |socket: &Socket| socket.duplicate(this()).expect_err("no connection").code();
        assert_eq!(code(&san.socket(net::addr_a())), WsaCode::Invalid);
        assert_eq!(code(&san.bound(net::at_a())), WsaCode::Invalid);
        assert_eq!(code(&san.listen_a(1).socket), WsaCode::Invalid);
        let closed = san.socket(net::addr_a());
        closed.close().expect("close");
        assert_eq!(code(&closed), WsaCode::NotSocket);
    });
}

#[test]
fn a_peer_that_takes_nothing_in_keeps_its_connection() {
    within(LIMIT, || {
        let quick = ProviderConfig {
            connect_deadline: SHORT,
            ..ProviderConfig::default()
        };
        let (here, there) = (San::start_with(quick), San::start());
        let (source, accepted) = here.pair_with(&there);
        let _served = served(&accepted);
        // More than there are credits for.
        let sends: Vec<_> = (0..60_u8)
            .map(|n| source.send(&[n], 0, Notification::Poll).expect("started"))
            .collect();
        eventually("some wait", STEP, || {
            let stats = source.stats().expect("open").connection.expect("connected");
            stats.sends_waiting > 0 || stats.messages_sent == 60
        });
        let more: Vec<_> = (60..120_u8)
            .map_while(|n| source.send(&[n], 0, Notification::Poll).ok())
            .collect();
        let receive = source.receive(Notification::Poll).expect("started");
        let error = source
            .duplicate(this())
            .expect_err("it does not take them in");
        assert_eq!(error.code(), WsaCode::NoBuffers, "{error}");
        for n in 0..sends.len() + more.len() {
            assert_eq!(san::receive(&accepted), [u8::try_from(n).expect("small")]);
        }
        for sent in sends.into_iter().chain(more) {
            san::wait(&source, sent).outcome.expect("sent");
        }
        san::send(&accepted, b"back");
        let got = san::wait(&source, receive).outcome.expect("a message");
        assert_eq!(&*got.message.expect("one"), b"back");
        // And now it goes.
        let duplicate = source.duplicate(this()).expect("duplicate");
        let target = here.provider.socket_from(&duplicate).expect("taken up");
        san::send(&target, b"on");
        assert_eq!(san::receive(&accepted), b"on");
    });
}

#[test]
fn when_both_ends_move_at_once_the_connection_goes_on() {
    within(LIMIT, || {
        let (here, there) = (San::start(), San::start());
        for _ in 0..10 {
            let (connected, accepted) = here.pair_with(&there);
            let ends = [&connected, &accepted];
            let sans = [&here, &there];
            let moved = thread::scope(|scope| {
                let moves = [0, 1].map(|n| scope.spawn(move || ends[n].duplicate(this())));
                moves.map(|one| one.join().expect("a thread"))
            });
            let mut ends = [connected.clone(), accepted.clone()];
            for (nth, one) in moved.into_iter().enumerate() {
                match one {
                    Ok(duplicate) => {
                        let taken = sans[nth].provider.socket_from(&duplicate);
                        ends[nth] = taken.expect("taken up");
                    }
                    Err(error) => assert_eq!(error.code(), WsaCode::NoBuffers, "{error}"),
                }
            }
            for (from, to) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
                san::send(from, b"on");
                assert_eq!(san::receive(to), b"on");
            }
        }
    });
}

#[test]
fn moves_leave_nothing_behind() {
    within(LIMIT, || {
        let san = San::start();
        let (mut one, mut two) = (puppet(), puppet());
        let listener = san.listen_a(1);
        let mut live = |rounds: usize| {
            for _ in 0..rounds {
                one.begins(&format!("connect {}", listener.addr));
                let stays = listener.accept().socket;
                one.answers("connected");
                let _served = served(&stays);
                san::send(&stays, &[b'x'; 200]);
                let bytes = one.duplicate(two.pid());
                two.take(&bytes);
                one.does("close", "closed");
                assert_eq!(two.does("receive", "received").len(), 200);
                let bytes = two.duplicate(one.pid());
                one.take(&bytes);
                two.does("close", "closed");
                one.does("send back", "sent");
                assert_eq!(san::receive(&stays), b"back");
                one.does("close", "closed");
                let (code, _) = end_of(&stays);
                assert_eq!(code, WsaCode::ConnReset);
                stays.close().expect("close");
            }
            let held = |puppet: &mut Puppet| puppet.does("held", "held");
            // What ends in their kernels may take a moment.
            let mut both = (String::new(), String::new());
            eventually("the puppets hold no connection", STEP, || {
                both = (held(&mut one), held(&mut two));
                both.0.starts_with("0 0") && both.1.starts_with("0 0")
            });
            both
        };
        let puppets = live(6);
        let before = Census::take();
        assert_eq!(live(6), puppets);
        before.assert_back();
    });
}

#[test]
fn options_of_a_socket_in_this_process_go_along() {
    within(LIMIT, || {
        let san = San::start();
        let (source, stays) = san.pair();
        let _served = served(&stays);
        source
            .set_option(SocketOption::RdmaThresholdSize, 1234)
            .expect("an option");
        let before = names(&source);
        let duplicate = source.duplicate(this()).expect("duplicate");
        let target = san.provider.socket_from(&duplicate).expect("taken up");
        assert_eq!(names(&target), before);
        assert_eq!(
            target.option(SocketOption::RdmaThresholdSize).ok(),
            Some(1234)
        );
        let events = target.enum_network_events(None).expect("open");
        assert!(events.connect.is_none(), "no event of a connect");
    });
}
