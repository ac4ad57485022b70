//! RDMA READ and WRITE between sockets: bytes, order, bounds, errors, the end (duties 93, 95, 97,
//! 105, 106, 113).

use std::thread;
use std::time::{Duration, Instant};

use san_provider::wire::Descriptor;
use san_provider::{
    Fence, MAX_SEGMENTS, MemoryAccess, Notification, ProviderConfig, ResultError, SocketOption,
    TransferError, WsaCode,
};
use san_tests::memory::{all, filled, finished, open, patterned, read, register, segment, write};
use san_tests::san::{self, San, Upcall};
use san_tests::time::{STEP, bounded, eventually};

const POLL: Notification = Notification::Poll;
const UNFENCED: Fence = Fence::None;

#[test]
fn bytes_of_every_length_are_read_and_written() {
    bounded(|| {
        let san = San::start();
        let (socket, peer) = san.pair();
        for len in [1, 7, 1024, 4096, 4097, 65_536, 1 << 20] {
            let theirs = patterned(len + 10, 3);
            let opened = open(&peer, (&theirs).into(), MemoryAccess::ReadWrite);
            let got = read(&socket, &opened, 5, len).expect("read");
            assert_eq!(got, all(&theirs)[5..5 + len], "read {len}");
            let new = all(&patterned(len, 100));
            assert_eq!(write(&socket, &opened, 5, &new).expect("written"), len);
            let after = all(&theirs);
            assert_eq!(after[5..5 + len], new, "written {len}");
            let before = all(&patterned(len + 10, 3));
            assert_eq!(after[..5], before[..5]);
            assert_eq!(after[5 + len..], before[5 + len..]);
            peer.deregister_rdma_memory(opened.handle).expect("open");
        }
        let counters = san.counters();
        assert_eq!((counters.rdma_reads, counters.rdma_writes), (7, 7));
        let bytes = 1 + 7 + 1024 + 4096 + 4097 + 65_536 + (1 << 20);
        assert_eq!(counters.rdma_bytes_read, bytes);
        assert_eq!(counters.rdma_bytes_written, bytes);
    });
}

#[test]
fn segments_are_gathered_and_scattered_in_order() {
    bounded(|| {
        let san = San::start();
        let (socket, peer) = san.pair();
        let theirs = filled(10_000, 0);
        let opened = open(&peer, (&theirs).into(), MemoryAccess::ReadWrite);
        let (one, two) = (patterned(5000, 1), patterned(5000, 2));
        let first = register(&socket, &one, MemoryAccess::ReadWrite);
        let second = register(&socket, &two, MemoryAccess::ReadWrite);
        // One of them of no bytes, which counts but carries nothing.
        let pieces = [
            (first, 10, 1000),
            (second, 0, 0),
            (second, 4000, 1000),
            (first, 0, 10),
        ]
        .map(|(handle, offset, length)| segment(handle, offset, length));
        let written = socket.rdma_write(&pieces, &opened.descriptor, 100, UNFENCED, POLL);
        assert_eq!(finished(&socket, written).expect("written"), 2010);
        let expected = [
            &all(&one)[10..1010],
            &all(&two)[4000..5000],
            &all(&one)[..10],
        ]
        .concat();
        let there = all(&theirs);
        assert_eq!(there[100..2110], expected);
        assert!(
            there[..100]
                .iter()
                .chain(&there[2110..])
                .all(|&byte| byte == 0)
        );

        one.write_at(0, &[0; 5000]).expect("inside");
        let scattered = socket.rdma_read(&pieces, &opened.descriptor, 100, UNFENCED, POLL);
        assert_eq!(finished(&socket, scattered).expect("read"), 2010);
        assert_eq!(all(&one)[10..1010], expected[..1000]);
        assert_eq!(all(&one)[..10], expected[2000..]);
        assert_eq!(all(&one)[1010..], [0; 3990]);
        assert_eq!(all(&two), all(&patterned(5000, 2)));
    });
}

#[test]
fn wsd_093_rdma_operations_start_and_return() {
    bounded(|| {
        let san = San::start();
        let (socket, peer) = san.pair();
        let theirs = patterned(1 << 20, 1);
        let opened = open(&peer, (&theirs).into(), MemoryAccess::Read);
        let mine = filled(1 << 20, 0);
        let handle = register(&socket, &mine, MemoryAccess::Write);
        let operations: Vec<_> = (0..4_usize)
            .map(|n| {
                let piece = segment(handle, n << 18, 1 << 18);
                let place = (n as u64) << 18;
                socket
                    .rdma_read(&[piece], &opened.descriptor, place, UNFENCED, POLL)
                    .expect("started")
            })
            .collect();
        // The last of them first: each has a result of its own, given once.
        for &operation in operations.iter().rev() {
            assert_eq!(
                san::wait(&socket, operation).outcome.expect("read").bytes,
                1 << 18
            );
            let again = socket.get_overlapped_result(operation, None);
            assert!(matches!(again, Err(ResultError::UnknownOperation)));
        }
        assert_eq!(all(&mine), all(&theirs));
    });
}

#[test]
fn wsd_095_rdma_operations_end_by_upcall_when_asked() {
    bounded(|| {
        let san = San::start();
        let (socket, peer) = san.pair();
        let theirs = patterned(5000, 1);
        let opened = open(&peer, (&theirs).into(), MemoryAccess::Read);
        let mine = filled(5000, 0);
        let handle = register(&socket, &mine, MemoryAccess::Write);
        let place = &opened.descriptor;
        let operation = socket
            .rdma_read(
                &[segment(handle, 0, 5000)],
                place,
                0,
                UNFENCED,
                Notification::Upcall,
            )
            .expect("started");
        let wanted = socket.handle().expect("one");
        let told = || {
            san.upcalls.about(wanted).into_iter().filter(|upcall| {
                matches!(upcall, Upcall::Completed { operation: told, outcome: Ok(5000), .. }
                if *told == operation)
            })
        };
        eventually("the upcall", STEP, || told().count() == 1);
        assert_eq!(all(&mine), all(&theirs));
        socket.deregister_memory(handle).expect("free by then");
    });
}

#[test]
fn wsd_097_no_transfer_is_over_the_limit() {
    bounded(|| {
        let small = ProviderConfig {
            max_rdma_size: 65_536,
            ..ProviderConfig::default()
        };
        let (server, client) = (San::start_with(small), San::start());
        let listener = server.listen_a(1);
        let connector = client.connect(listener.addr);
        let accepted = listener.accept().socket;
        connector.result().expect("accepted");
        for socket in [&connector.socket, &accepted] {
            let most = socket.option(SocketOption::MaxRdmaSize).expect("open");
            assert_eq!(most, 65_536, "what both allow");
        }
        let theirs = patterned(65_537, 1);
        let opened = open(&accepted, (&theirs).into(), MemoryAccess::Read);
        assert_eq!(
            read(&connector.socket, &opened, 1, 65_536).expect("just so"),
            all(&theirs)[1..]
        );
        let refused = read(&connector.socket, &opened, 0, 65_537).expect_err("too long");
        let limit = 65_536;
        assert!(
            matches!(refused, TransferError::RdmaTooLong { length: 65_537, limit: l } if l == limit),
            "{refused:?}"
        );
        assert_eq!(refused.code(), WsaCode::MessageSize);
    });
}

#[test]
fn wsd_096_rdma_operations_are_bounded() {
    bounded(|| {
        let san = San::start_with(ProviderConfig {
            max_operations: 3,
            ..ProviderConfig::default()
        });
        let (socket, peer) = san.pair();
        let theirs = patterned(1000, 1);
        let opened = open(&peer, (&theirs).into(), MemoryAccess::Read);
        let mine = filled(1000, 0);
        let handle = register(&socket, &mine, MemoryAccess::Write);
        let start = || {
            let piece = [segment(handle, 0, 1000)];
            socket.rdma_read(&piece, &opened.descriptor, 0, UNFENCED, POLL)
        };
        let three: Vec<_> = (0..3).map(|_| start().expect("room")).collect();
        // Their results are not taken.
        let refused = start().expect_err("a fourth");
        assert!(matches!(refused, TransferError::WouldBlock), "{refused:?}");
        for operation in three {
            san::wait(&socket, operation).outcome.expect("read");
        }
        assert_eq!(finished(&socket, start()).expect("room again"), 1000);
    });
}

#[test]
fn bad_arguments_have_their_errors() {
    bounded(|| {
        let san = San::start();
        let (socket, peer) = san.pair();
        let theirs = patterned(1000, 1);
        let opened = open(&peer, (&theirs).into(), MemoryAccess::ReadWrite);
        let mine = filled(1000, 0);
        let handle = register(&socket, &mine, MemoryAccess::Read);
        let place = &opened.descriptor;
        let refused = |segments: &[_], place: &[u8], offset| {
            socket
                .rdma_write(segments, place, offset, UNFENCED, POLL)
                .expect_err("bad arguments")
        };
        let whole = [segment(handle, 0, 1000)];
        let nothing = refused(&[], place, 0);
        assert!(matches!(nothing, TransferError::Nothing), "{nothing:?}");
        let nothing = refused(&[segment(handle, 1000, 0)], place, 0);
        assert!(matches!(nothing, TransferError::Nothing), "{nothing:?}");
        let many = refused(&[whole[0]; MAX_SEGMENTS + 1], place, 0);
        assert!(matches!(
            many,
            TransferError::TooManySegments { count: 5, limit: 4 }
        ));
        for beyond in [
            segment(handle, 1, 1000),
            segment(handle, 1001, 0),
            segment(handle, usize::MAX, 2),
            segment(handle, 0, usize::MAX),
        ] {
            let beyond = refused(&[beyond], place, 0);
            assert!(matches!(
                beyond,
                TransferError::OutOfBounds { limit: 1000, .. }
            ));
            assert_eq!(beyond.code(), WsaCode::Fault);
        }
        for offset in [1, 1000, u64::MAX] {
            let beyond = refused(&whole, place, offset);
            assert!(matches!(
                beyond,
                TransferError::OutOfBounds { limit: 1000, .. }
            ));
        }
        for none in [&place[..39], &[], &[0; Descriptor::LENGTH]] {
            let none = refused(&whole, none, 0);
            assert!(matches!(none, TransferError::Descriptor { .. }), "{none:?}");
            assert_eq!(none.code(), WsaCode::Invalid);
        }
        let refused = socket
            .rdma_read(&whole, place, 0, UNFENCED, POLL)
            .expect_err("into memory that is to be read");
        assert!(matches!(refused, TransferError::NotAllowed), "{refused:?}");
        assert_eq!(refused.code(), WsaCode::Invalid);

        let started = socket.rdma_write(&whole, place, 0, UNFENCED, POLL);
        assert_eq!(
            finished(&socket, started).expect("nothing was harmed"),
            1000
        );
        peer.close().expect("open");
        eventually("the end is noticed", STEP, || {
            socket
                .rdma_write(&whole, place, 0, UNFENCED, POLL)
                .map(|operation| san::wait(&socket, operation).outcome.map(|_| ()))
                .is_err_and(|error| error.code() == WsaCode::ConnReset)
        });
        socket.close().expect("open");
        let closed = socket
            .rdma_write(&whole, place, 0, UNFENCED, POLL)
            .expect_err("closed");
        assert!(matches!(closed, TransferError::NotSocket), "{closed:?}");
    });
}

#[test]
fn a_message_after_a_write_arrives_after_its_bytes() {
    bounded(|| {
        const LEN: usize = 100_000;
        let san = San::start();
        let (socket, peer) = san.pair();
        let theirs = filled(LEN, 0);
        let opened = open(&peer, (&theirs).into(), MemoryAccess::Write);
        let mine = filled(LEN, 0);
        let handle = register(&socket, &mine, MemoryAccess::Read);
        for round in 1..=20_u8 {
            mine.write_at(0, &[round; LEN]).expect("inside");
            let whole = [segment(handle, 0, LEN)];
            let written = socket
                .rdma_write(&whole, &opened.descriptor, 0, UNFENCED, POLL)
                .expect("started");
            let said = socket.send(&[round], 0, POLL).expect("started");
            assert_eq!(san::receive(&peer), [round]);
            assert_eq!(all(&theirs), [round; LEN]);
            san::wait(&socket, written).outcome.expect("written");
            san::wait(&socket, said).outcome.expect("sent");
        }
    });
}

#[test]
fn operations_behind_messages_without_credits_keep_their_order() {
    bounded(|| {
        let san = San::start_with_one_credit();
        let (socket, peer) = san.pair();
        let theirs = filled(100, 0);
        let opened = open(&peer, (&theirs).into(), MemoryAccess::Write);
        let mine = filled(100, 7);
        let handle = register(&socket, &mine, MemoryAccess::Read);
        let mut messages = Vec::new();
        while san.counters().sends_delayed == 0 {
            messages.push(socket.send(b"before", 0, POLL).expect("room"));
        }
        let whole = [segment(handle, 0, 100)];
        let written = socket
            .rdma_write(&whole, &opened.descriptor, 0, UNFENCED, POLL)
            .expect("queued");
        messages.push(socket.send(b"after", 0, POLL).expect("room"));
        thread::sleep(Duration::from_millis(100));
        let waits = socket.get_overlapped_result(written, None);
        assert!(matches!(waits, Err(ResultError::Incomplete)), "{waits:?}");
        assert_eq!(all(&theirs), [0; 100], "not before the messages");
        for _ in 1..messages.len() {
            assert_eq!(san::receive(&peer), b"before");
        }
        assert_eq!(san::receive(&peer), b"after");
        assert_eq!(all(&theirs), [7; 100]);
        san::wait(&socket, written).outcome.expect("written");
    });
}

#[test]
fn what_is_fenced_waits_for_reads() {
    bounded(|| {
        const LEN: usize = 400_000;
        let san = San::start();
        let (socket, peer) = san.pair();
        let source = filled(LEN, 0);
        let from = open(&peer, (&source).into(), MemoryAccess::Read);
        let target = filled(LEN, 0);
        let to = open(&peer, (&target).into(), MemoryAccess::Write);
        let mine = filled(LEN, 0);
        let handle = register(&socket, &mine, MemoryAccess::ReadWrite);
        let whole = [segment(handle, 0, LEN)];
        for round in 1..=5_u8 {
            source.write_at(0, &[round; LEN]).expect("inside");
            // What the READ brings is what the WRITE carries on.
            let reads = socket
                .rdma_read(&whole, &from.descriptor, 0, UNFENCED, POLL)
                .expect("started");
            let writes = socket
                .rdma_write(&whole, &to.descriptor, 0, Fence::AfterReads, POLL)
                .expect("started");
            san::wait(&socket, writes).outcome.expect("written");
            assert_eq!(all(&target), [round; LEN], "round {round}");
            san::wait(&socket, reads).outcome.expect("read");

            // And a message says that the READ is over.
            let reads = socket
                .rdma_read(&whole, &from.descriptor, 0, UNFENCED, POLL)
                .expect("started");
            let said = socket.send_after_reads(b"done", 0, POLL).expect("started");
            assert_eq!(san::receive(&peer), b"done");
            source.write_at(0, &[0xff; LEN]).expect("inside");
            san::wait(&socket, reads).outcome.expect("read");
            san::wait(&socket, said).outcome.expect("sent");
            assert_eq!(all(&mine), [round; LEN], "round {round}");
        }
    });
}

#[test]
fn wsd_106_close_frees_the_memory_of_rdma_operations_before_they_end() {
    bounded(|| {
        const LEN: usize = 1 << 20;
        // What is registered goes with its registration.
        let san = San::start_with(ProviderConfig {
            memory_cache_entries: 0,
            ..ProviderConfig::default()
        });
        let (socket, peer) = san.pair();
        let theirs = patterned(LEN, 1);
        let opened = open(&peer, (&theirs).into(), MemoryAccess::Read);
        let mine = filled(LEN, 0);
        let before = verbs_shim::live_objects().mrs;
        let handle = register(&socket, &mine, MemoryAccess::Write);
        let number = socket.handle().expect("one");
        let whole = [segment(handle, 0, LEN)];
        let started: Vec<_> = (0..30)
            .map(|_| {
                socket
                    .rdma_read(
                        &whole,
                        &opened.descriptor,
                        0,
                        UNFENCED,
                        Notification::Upcall,
                    )
                    .expect("started")
            })
            .collect();
        let start = Instant::now();
        socket.close().expect("open");
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "{:?}",
            start.elapsed()
        );
        // From here on it is the application's again, and stays as it is.
        assert_eq!(verbs_shim::live_objects().mrs, before);
        mine.write_at(0, &[0xcc; LEN]).expect("inside");
        let ended = || -> Vec<_> {
            let about = san.upcalls.about(number).into_iter();
            about
                .filter_map(|upcall| match upcall {
                    Upcall::Completed {
                        operation,
                        outcome,
                        live,
                        ..
                    } => Some((operation, outcome, live)),
                    _ => None,
                })
                .collect()
        };
        eventually("every end", STEP, || ended().len() == started.len());
        let mut aborted = 0;
        for (operation, outcome, live) in ended() {
            assert!(started.contains(&operation));
            match outcome {
                Ok(bytes) => assert_eq!(bytes, LEN),
                Err(code) => {
                    assert_eq!(code, WsaCode::OperationAborted);
                    assert!(live.mrs <= before, "freed before it was told");
                    aborted += 1;
                }
            }
        }
        assert!(aborted > 0, "thirty megabytes were not that fast");
        thread::sleep(Duration::from_millis(100));
        assert_eq!(all(&mine), vec![0xcc; LEN]);
    });
}

#[test]
fn wsd_113_rdma_operations_end_when_the_peer_does() {
    bounded(|| {
        const LEN: usize = 1 << 20;
        let san = San::start();
        let (socket, peer) = san.pair();
        let theirs = patterned(LEN, 1);
        let opened = open(&peer, (&theirs).into(), MemoryAccess::Read);
        let mine = filled(LEN, 0);
        let handle = register(&socket, &mine, MemoryAccess::Write);
        let whole = [segment(handle, 0, LEN)];
        let started: Vec<_> = (0..30)
            .map(|_| {
                socket
                    .rdma_read(&whole, &opened.descriptor, 0, UNFENCED, POLL)
                    .expect("started")
            })
            .collect();
        peer.close().expect("open");
        for operation in started {
            if let Err(error) = san::wait(&socket, operation).outcome {
                assert!(
                    matches!(
                        error.code(),
                        WsaCode::ConnReset | WsaCode::TimedOut | WsaCode::Fault
                    ),
                    "{error:?}"
                );
            }
        }
        socket.deregister_memory(handle).expect("nobody uses it");
    });
}
