//! Registered memory: handles, errors, and who may reach it (duties 100 to 105, 112).

use std::ptr::NonNull;

use san_provider::wire::Descriptor;
use san_provider::{
    AppMemory, Fence, MemoryAccess, Notification, ProviderConfig, RegisterError, TransferError,
    WsaCode,
};
use san_tests::census::Census;
use san_tests::memory::{all, filled, finished, open, read, register, segment, write};
use san_tests::net;
use san_tests::program::Program;
use san_tests::san::{self, San};
use san_tests::time::{STEP, bounded, eventually};

const LEN: usize = 10_000;
const DATA: [u8; 100] = [0x77; 100];

fn is_remote_access<T: std::fmt::Debug>(outcome: Result<T, TransferError>) {
    let error = outcome.expect_err("the peer's memory is closed");
    assert!(matches!(error, TransferError::RemoteAccess), "{error:?}");
    assert_eq!(error.code(), WsaCode::Fault);
}

#[test]
fn wsd_100_registrations_are_counted() {
    bounded(|| {
        let san = San::start();
        let (socket, _peer) = san.pair();
        let memory = filled(LEN, 1);
        let first = register(&socket, &memory, MemoryAccess::Read);
        let again = register(&socket, &memory, MemoryAccess::Read);
        assert_eq!(first, again, "the same memory for the same use");
        let other = register(&socket, &memory, MemoryAccess::ReadWrite);
        assert_ne!(first, other, "another use");
        socket.deregister_memory(first).expect("one of two");
        socket.deregister_memory(first).expect("the last");
        let gone = socket.deregister_memory(first).expect_err("it is gone");
        assert!(matches!(gone, RegisterError::UnknownHandle), "{gone:?}");
        let new = register(&socket, &memory, MemoryAccess::Read);
        assert_ne!(first, new, "an old handle is not a new registration");
        assert!(socket.deregister_memory(first).is_err());
        socket.deregister_memory(new).expect("registered");
        socket.deregister_memory(other).expect("registered");
    });
}

#[test]
fn wsd_100_open_memory_is_counted_too() {
    bounded(|| {
        let san = San::start();
        let (socket, peer) = san.pair();
        let memory = filled(LEN, 5);
        let first = open(&socket, (&memory).into(), MemoryAccess::Read);
        let again = open(&socket, (&memory).into(), MemoryAccess::Read);
        assert_eq!(first, again);
        socket.deregister_rdma_memory(first.handle).expect("one");
        assert_eq!(read(&peer, &again, 0, 100).expect("still open"), [5; 100]);
        socket
            .deregister_rdma_memory(first.handle)
            .expect("the last");
        is_remote_access(read(&peer, &again, 0, 100));
    });
}

#[test]
fn wsd_100_a_handle_is_good_for_its_socket_only() {
    bounded(|| {
        let san = San::start();
        let (socket, peer) = san.pair();
        let (other, _) = san.pair();
        let memory = filled(LEN, 1);
        let handle = register(&socket, &memory, MemoryAccess::ReadWrite);
        let opened = open(&peer, (&memory).into(), MemoryAccess::ReadWrite);
        for foreign in [&other, &peer] {
            let refused = foreign.deregister_memory(handle).expect_err("foreign");
            assert!(
                matches!(refused, RegisterError::UnknownHandle),
                "{refused:?}"
            );
            assert_eq!(refused.code(), WsaCode::Invalid);
            let refused = foreign
                .rdma_write(
                    &[segment(handle, 0, 1)],
                    &opened.descriptor,
                    0,
                    Fence::None,
                    Notification::Poll,
                )
                .expect_err("foreign");
            assert!(
                matches!(refused, TransferError::UnknownHandle),
                "{refused:?}"
            );
            assert_eq!(refused.code(), WsaCode::Invalid);
        }
        socket.deregister_memory(handle).expect("its own");
    });
}

#[test]
fn wsd_101_register_errors() {
    bounded(|| {
        let san = San::start_with(ProviderConfig {
            max_registrations: 2,
            ..ProviderConfig::default()
        });
        let memory = filled(LEN, 1);
        let unconnected = san.socket(net::addr_a());
        let refused = unconnected
            .register_memory((&memory).into(), MemoryAccess::Read)
            .expect_err("not connected");
        assert_eq!(refused.code(), WsaCode::NotConnected, "{refused:?}");

        let (socket, peer) = san.pair();
        let refused = socket
            .register_memory(memory.part(5, 0).expect("inside"), MemoryAccess::Read)
            .expect_err("no bytes");
        assert_eq!(refused.code(), WsaCode::Invalid, "{refused:?}");

        let one = register(&socket, &memory, MemoryAccess::Read);
        let two = register(&socket, &memory, MemoryAccess::Write);
        let mut descriptor = [0; Descriptor::LENGTH];
        let refused = socket
            .register_rdma_memory((&memory).into(), MemoryAccess::Read, &mut descriptor)
            .expect_err("one too many");
        assert!(matches!(refused, RegisterError::TooMany { limit: 2 }));
        assert_eq!(refused.code(), WsaCode::NoBuffers);
        socket.deregister_memory(one).expect("registered");
        let three = register(&socket, &memory, MemoryAccess::ReadWrite);
        socket.deregister_memory(two).expect("registered");
        socket.deregister_memory(three).expect("registered");

        peer.close().expect("open");
        eventually("the end is noticed", STEP, || {
            socket
                .register_memory((&memory).into(), MemoryAccess::Read)
                .map(|handle| socket.deregister_memory(handle))
                .is_err_and(|error| error.code() == WsaCode::NotConnected)
        });
        socket.close().expect("open");
        let refused = socket
            .register_memory((&memory).into(), MemoryAccess::Read)
            .expect_err("closed");
        assert_eq!(refused.code(), WsaCode::NotSocket, "{refused:?}");
        assert_eq!(
            socket.deregister_memory(three).expect_err("closed").code(),
            WsaCode::NotSocket
        );
    });
}

#[test]
#[allow(unsafe_code)]
fn wsd_101_memory_that_is_not_there_is_a_fault() {
    bounded(|| {
        let san = San::start();
        let (socket, _peer) = san.pair();
        // The zero page of every process, and constants, which cannot be written.
        static CONSTANT: [u8; 64] = [7; 64];
        let nowhere = NonNull::new(std::ptr::without_provenance_mut(0x1000)).expect("not null");
        let constant = NonNull::from(&CONSTANT).cast();
        let memory = |at, len| {
            // SAFETY: nothing is transferred from or to it, so it may as well not be there.
            unsafe { AppMemory::new(at, len) }
        };
        for access in [MemoryAccess::Read, MemoryAccess::Write] {
            let refused = socket
                .register_memory(memory(nowhere, 4096), access)
                .expect_err("nothing there");
            assert!(matches!(refused, RegisterError::NotThere), "{refused:?}");
            assert_eq!(refused.code(), WsaCode::Fault);
        }
        let refused = socket
            .register_memory(memory(constant, 64), MemoryAccess::Write)
            .expect_err("cannot be written");
        assert!(matches!(refused, RegisterError::NotThere), "{refused:?}");
        let handle = socket
            .register_memory(memory(constant, 64), MemoryAccess::Read)
            .expect("to be read only");
        socket.deregister_memory(handle).expect("registered");
    });
}

#[test]
fn wsd_101_too_little_lockable_memory_says_what_to_raise() {
    bounded(|| {
        // The soft fabric locks nothing.
        if net::is_soft() {
            return;
        }
        let said = |bytes: &str| {
            let args = [
                "--memlock=4194304:4194304",
                "setpriv",
                "--bounding-set=-ipc_lock",
                "--inh-caps=-ipc_lock",
                env!("CARGO_BIN_EXE_san-test-peer"),
                "register",
                bytes,
            ];
            let mut program = Program::start("prlimit", &args);
            program.expect("", STEP)
        };
        assert_eq!(said("1048576"), "registered");
        let refused = said("16777216");
        assert!(
            refused.starts_with("failed WSAENOBUFS ibv_reg_mr"),
            "{refused}"
        );
        assert!(
            refused.contains("only 4096 KiB may be locked") && refused.contains("ulimit -l"),
            "{refused}"
        );
    });
}

#[test]
fn wsd_102_unknown_and_busy_memory_is_not_deregistered() {
    bounded(|| {
        let san = San::start_with_one_credit();
        let (socket, peer) = san.pair();
        let theirs = filled(LEN, 1);
        let opened = open(&peer, (&theirs).into(), MemoryAccess::Read);
        let refused = peer
            .deregister_memory(opened.handle)
            .expect_err("of the other call");
        assert!(
            matches!(refused, RegisterError::UnknownHandle),
            "{refused:?}"
        );

        // Behind messages that wait for credits an operation waits too, and has its memory.
        let mine = filled(LEN, 0);
        let handle = register(&socket, &mine, MemoryAccess::Write);
        let mut sends = Vec::new();
        while san.counters().sends_delayed == 0 {
            sends.push(
                socket
                    .send(b"one more", 0, Notification::Poll)
                    .expect("room"),
            );
        }
        let operation = socket
            .rdma_read(
                &[segment(handle, 0, LEN)],
                &opened.descriptor,
                0,
                Fence::None,
                Notification::Poll,
            )
            .expect("queued");
        let busy = socket.deregister_memory(handle).expect_err("in use");
        assert!(matches!(busy, RegisterError::InUse), "{busy:?}");
        assert_eq!(busy.code(), WsaCode::Invalid);
        for _ in 0..sends.len() {
            assert_eq!(san::receive(&peer), b"one more");
        }
        let result = san::wait(&socket, operation);
        assert_eq!(result.outcome.expect("read").bytes, LEN);
        socket.deregister_memory(handle).expect("free again");
        assert_eq!(all(&mine), [1; LEN]);
    });
}

#[test]
fn wsd_103_too_short_a_descriptor_buffer_says_the_length() {
    bounded(|| {
        let san = San::start();
        let (socket, _peer) = san.pair();
        let memory = filled(LEN, 1);
        let mut short = [0xee; Descriptor::LENGTH - 1];
        let refused = socket
            .register_rdma_memory((&memory).into(), MemoryAccess::Read, &mut short)
            .expect_err("too short");
        assert_eq!(refused.code(), WsaCode::Fault);
        assert!(
            matches!(
                refused,
                RegisterError::DescriptorTooShort {
                    given: 39,
                    needed: 40
                }
            ),
            "{refused:?}"
        );
        assert_eq!(short, [0xee; 39], "nothing was written");
        let mut long = [0xee; 64];
        let (_, length) = socket
            .register_rdma_memory((&memory).into(), MemoryAccess::Read, &mut long)
            .expect("long enough");
        assert_eq!(length, 40);
        assert_eq!(long[40..], [0xee; 24]);
        let descriptor = Descriptor::parse(&long).expect("a descriptor");
        assert_eq!((descriptor.read, descriptor.write), (true, false));
        assert_eq!(descriptor.length, LEN as u64);
    });
}

#[test]
fn wsd_104_another_connections_peer_gets_nothing() {
    bounded(|| {
        let san = San::start();
        let (owner, peer) = san.pair();
        // Of the same two providers, so on the same devices and domains.
        let (bystander, stranger) = san.pair();
        let memory = filled(LEN, 9);
        let opened = open(&owner, (&memory).into(), MemoryAccess::ReadWrite);
        is_remote_access(write(&stranger, &opened, 0, &DATA));
        assert_eq!(all(&memory), [9; LEN]);
        // Its own connection is over, that of the owner is not touched.
        eventually("the stranger's connection ends", STEP, || {
            stranger.receive(Notification::Poll).is_err()
        });
        assert_eq!(read(&peer, &opened, 0, 100).expect("its own"), [9; 100]);
        drop(bystander);

        let (_bystander, stranger) = san.pair();
        is_remote_access(read(&stranger, &opened, 0, 100));
        assert_eq!(write(&peer, &opened, 0, &DATA).expect("its own"), 100);
    });
}

#[test]
fn wsd_105_what_was_withdrawn_opens_nothing() {
    bounded(|| {
        for _ in 0..2 {
            let san = San::start();
            let (owner, peer) = san.pair();
            let memory = filled(LEN, 3);
            let opened = open(&owner, (&memory).into(), MemoryAccess::ReadWrite);
            assert_eq!(write(&peer, &opened, 50, &DATA).expect("open"), 100);
            assert_eq!(all(&memory)[50..150], [0x77; 100]);
            owner
                .deregister_rdma_memory(opened.handle)
                .expect("withdrawn");
            memory.write_at(0, &[4; LEN]).expect("inside");
            is_remote_access(write(&peer, &opened, 50, &DATA));
            assert_eq!(all(&memory), [4; LEN], "not a byte");
        }
    });
}

#[test]
fn wsd_105_a_new_opening_of_the_same_memory_is_a_new_key() {
    bounded(|| {
        let san = San::start();
        let (owner, peer) = san.pair();
        let memory = filled(LEN, 3);
        let before = open(&owner, (&memory).into(), MemoryAccess::ReadWrite);
        owner
            .deregister_rdma_memory(before.handle)
            .expect("withdrawn");
        let now = open(&owner, (&memory).into(), MemoryAccess::ReadWrite);
        assert_ne!(before.descriptor, now.descriptor);
        assert_eq!(read(&peer, &now, 0, 100).expect("open"), [3; 100]);
        is_remote_access(read(&peer, &before, 0, 100));
    });
}

#[test]
fn wsd_105_read_only_is_not_written() {
    bounded(|| {
        let san = San::start();
        let (owner, peer) = san.pair();
        let memory = filled(LEN, 3);
        let opened = open(&owner, (&memory).into(), MemoryAccess::Read);
        assert_eq!(read(&peer, &opened, 0, 100).expect("to be read"), [3; 100]);
        let refused = write(&peer, &opened, 0, &DATA).expect_err("by the descriptor");
        assert!(matches!(refused, TransferError::NotAllowed), "{refused:?}");
        // And by the device, if the peer says otherwise.
        is_remote_access(write(&peer, &opened.forged(|d| d.write = true), 0, &DATA));
        assert_eq!(all(&memory), [3; LEN]);
    });
}

#[test]
fn wsd_105_write_only_is_not_read() {
    bounded(|| {
        let san = San::start();
        let (owner, peer) = san.pair();
        let memory = filled(LEN, 3);
        let opened = open(&owner, (&memory).into(), MemoryAccess::Write);
        assert_eq!(write(&peer, &opened, 0, &DATA).expect("to be written"), 100);
        let refused = read(&peer, &opened, 0, 100).expect_err("by the descriptor");
        assert!(matches!(refused, TransferError::NotAllowed), "{refused:?}");
        is_remote_access(read(&peer, &opened.forged(|d| d.read = true), 0, 100));
    });
}

#[test]
fn wsd_105_nothing_beyond_is_reached() {
    bounded(|| {
        let san = San::start();
        let (owner, peer) = san.pair();
        let memory = filled(LEN, 3);
        // What is kept of more memory must not be what a part of it is opened by.
        let whole = open(&owner, (&memory).into(), MemoryAccess::ReadWrite);
        let _stays = register(&owner, &memory, MemoryAccess::ReadWrite);
        owner.deregister_rdma_memory(whole.handle).expect("open");
        let part = memory.part(1000, 1000).expect("inside");
        let opened = open(&owner, part, MemoryAccess::ReadWrite);
        assert_eq!(
            write(&peer, &opened, 900, &DATA).expect("the last 100"),
            100
        );
        let refused = write(&peer, &opened, 901, &DATA).expect_err("by the descriptor");
        assert!(
            matches!(
                refused,
                TransferError::OutOfBounds {
                    offset: 901,
                    length: 100,
                    limit: 1000
                }
            ),
            "{refused:?}"
        );
        assert_eq!(refused.code(), WsaCode::Fault);
        is_remote_access(write(
            &peer,
            &opened.forged(|d| d.length = 5000),
            901,
            &DATA,
        ));
        let after = all(&memory);
        assert_eq!(after[..1900], [3; 1900]);
        assert_eq!(after[1900..2000], [0x77; 100]);
        assert_eq!(after[2000..], [3; LEN - 2000]);
    });
}

#[test]
fn wsd_105_nothing_is_reached_after_close() {
    bounded(|| {
        let san = San::start();
        let (owner, peer) = san.pair();
        let memory = filled(LEN, 3);
        let opened = open(&owner, (&memory).into(), MemoryAccess::ReadWrite);
        owner.close().expect("open");
        memory.write_at(0, &[8; LEN]).expect("inside");
        // The connection is over, or about to be: either way nothing goes.
        let mine = filled(100, 0x77);
        if let Ok(handle) = peer.register_memory((&mine).into(), MemoryAccess::Read) {
            let started = peer.rdma_write(
                &[segment(handle, 0, 100)],
                &opened.descriptor,
                0,
                Fence::None,
                Notification::Poll,
            );
            let outcome = finished(&peer, started);
            outcome.expect_err("closed");
        }
        assert_eq!(all(&memory), [8; LEN]);
    });
}

#[test]
fn wsd_112_what_is_registered_is_gone_after_close() {
    bounded(|| {
        let san = San::start_with(ProviderConfig {
            memory_cache_entries: 0,
            ..ProviderConfig::default()
        });
        // Lanes stay as long as the provider does, and so do buffers; whether something has to wait
        // and takes one is a matter of luck.
        {
            let (owner, peer) = san.pair();
            let memory = filled(LEN, 3);
            let _opened = open(&owner, (&memory).into(), MemoryAccess::Read);
            for socket in [&owner, &peer] {
                drop(socket.buffer().expect("a buffer"));
            }
        }
        eventually("nothing is left of it", STEP, || {
            let live = verbs_shim::live_objects();
            (live.ids, live.qps) == (0, 0)
        });
        let before_all = Census::take();
        {
            let (owner, peer) = san.pair();
            let memory = filled(LEN, 3);
            let before = verbs_shim::live_objects();
            let opened = open(&owner, (&memory).into(), MemoryAccess::ReadWrite);
            let handle = register(&owner, &memory, MemoryAccess::ReadWrite);
            let kept = register(&peer, &memory, MemoryAccess::Read);
            let now = verbs_shim::live_objects();
            assert_eq!((now.mrs, now.mws), (before.mrs + 3, before.mws + 1));
            owner.deregister_memory(handle).expect("registered");
            let now = verbs_shim::live_objects();
            assert_eq!((now.mrs, now.mws), (before.mrs + 2, before.mws + 1));
            owner
                .deregister_rdma_memory(opened.handle)
                .expect("registered");
            let now = verbs_shim::live_objects();
            assert_eq!((now.mrs, now.mws), (before.mrs + 1, before.mws));
            let _left = open(&owner, (&memory).into(), MemoryAccess::Read);
            owner.close().expect("open");
            peer.close().expect("open");
            let now = verbs_shim::live_objects();
            assert_eq!((now.mrs, now.mws), (before.mrs, before.mws));
            assert!(peer.deregister_memory(kept).is_err());
        }
        before_all.assert_back();
    });
}
