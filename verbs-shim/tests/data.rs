//! Every operation, over a real fabric, with the bytes compared.

mod support;

use std::os::fd::AsFd;
use std::time::Duration;

use arrayvec::ArrayVec;
use rustix::io::Errno;
use support::{End, SLOT, SOON, Shape, addr_a, addr_b, pair, pair_with, readable};
use verbs_shim::{
    Access, BufferPool, CompletionBatch, MemoryRegion, Payload, Piece, Pieces, QpCaps, SendRequest,
    Verb, WcStatus,
};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

/// Takes the next completion of `end`, which has to be this success, and gives its memory back.
fn finished(end: &End, token: u32) -> verbs_shim::Claim {
    let done = end.parts.completion();
    assert_eq!(
        (done.token(), done.status()),
        (token, WcStatus::Success),
        "{done:?}"
    );
    assert_eq!(done.qp_num(), end.qp.qp_num());
    end.qp.claim(&done).expect("a claim")
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn send_from_buffers_of_every_length() {
    let (client, server) = pair(Shape::default());
    for (n, len) in [0, 1, 63, 1024, 4096, 4097, SLOT].into_iter().enumerate() {
        let data = pattern(len);
        let buffer = client.parts.filled(&data);
        client
            .qp
            .post(SendRequest::piece(n as u32, Verb::Send, buffer))
            .unwrap();
        let got = server.parts.completion();
        assert!(got.is_recv() && !got.is_shared_recv() && !got.is_rdma_write());
        assert_eq!(
            (got.token(), got.byte_len(), got.imm()),
            (1000 + 1000 + n as u32, len, None)
        );
        let received = server.qp.claim(&got).unwrap().into_buffer().unwrap();
        assert_eq!(*received, *data);
        assert!(!finished(&client, n as u32).pieces.is_empty());
    }
    assert_eq!(client.parts.pool.free(), 64 - 8);
    assert_eq!(server.parts.pool.free(), 64 - 1);
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn send_inline_with_immediate_data() {
    let (client, server) = pair(Shape::default());
    let inline = client.qp.caps().inline as usize;
    assert!(inline >= 128);
    for (n, len) in [0, 1, 64, inline].into_iter().enumerate() {
        let data = pattern(len);
        let imm = 0x0102_0300 + n as u32;
        client
            .qp
            .post(SendRequest::inline(5, Verb::SendWithImm(imm), &data))
            .unwrap();
        let got = server.parts.completion();
        assert_eq!((got.imm(), got.byte_len()), (Some(imm), len));
        assert_eq!(
            *server.qp.claim(&got).unwrap().into_buffer().unwrap(),
            *data
        );
        assert!(finished(&client, 5).pieces.is_empty());
    }
    let long = pattern(inline + 1);
    let refused = client
        .qp
        .post(SendRequest::inline(6, Verb::Send, &long))
        .unwrap_err();
    assert_eq!(refused.error.errno(), Errno::INVAL.raw_os_error());
    assert!(matches!(refused.request.payload, Payload::Inline(bytes) if bytes == long));
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn gather_from_buffers_and_regions() {
    let (client, server) = pair(Shape::default());
    let region = client.parts.pd.region(10_000, Access::READ_ONLY).unwrap();
    region.write_at(5000, b"from a region, ").unwrap();
    let mut pieces = Pieces::new();
    pieces.push(client.parts.filled(b"first, ").into());
    pieces.push(region.slice(5000, 15).unwrap().into());
    pieces.push(client.parts.filled(b"").into());
    pieces.push(client.parts.filled(b"last").into());
    let request = SendRequest::with_payload(9, Verb::Send, Payload::Pieces(pieces));
    client.qp.post(request).unwrap();
    let got = server.parts.completion();
    let received = server.qp.claim(&got).unwrap().into_buffer().unwrap();
    assert_eq!(&*received, b"first, from a region, last");
    let claim = finished(&client, 9);
    assert_eq!(claim.pieces.len(), 4);
    assert!(matches!(&claim.pieces[1], Piece::Region(slice) if slice.offset() == 5000));
}

/// A region of `end`'s, open to the peer.
fn open_region(end: &End, len: usize, access: Access) -> std::sync::Arc<MemoryRegion> {
    end.parts.pd.region(len, access).unwrap()
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn write_and_read_of_the_peers_memory() {
    let (client, server) = pair(Shape::default());
    let target = open_region(&server, 70_000, Access::REMOTE_WRITE | Access::REMOTE_READ);
    let data = pattern(65_536);
    let source = open_region(&client, 65_536, Access::READ_ONLY);
    source.write_at(0, &data).unwrap();
    let slice = source.slice(0, 65_536).unwrap();
    let write = Verb::Write(target.remote(100));
    client.qp.post(SendRequest::piece(1, write, slice)).unwrap();
    finished(&client, 1);
    let mut seen = vec![0; 65_536];
    target.read_at(100, &mut seen).unwrap();
    assert!(seen == data);
    server.parts.quiet();

    let sink = open_region(&client, 65_536, Access::LOCAL_WRITE);
    let read = Verb::Read(target.remote(100));
    client
        .qp
        .post(SendRequest::piece(2, read, sink.slice(0, 65_536).unwrap()))
        .unwrap();
    finished(&client, 2);
    let mut back = vec![0; 65_536];
    sink.read_at(0, &mut back).unwrap();
    assert!(back == data);

    // Into a buffer, for its length; inline as the source of a write.
    let mut buffer = client.parts.buffer();
    buffer.set_len(300);
    client
        .qp
        .post(SendRequest::piece(3, read, buffer).fenced())
        .unwrap();
    assert_eq!(*finished(&client, 3).into_buffer().unwrap(), data[..300]);
    let inline = SendRequest::inline(4, Verb::Write(target.remote(0)), b"inline");
    client.qp.post(inline).unwrap();
    finished(&client, 4);
    let mut six = [0; 6];
    target.read_at(0, &mut six).unwrap();
    assert_eq!(&six, b"inline");
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn write_with_immediate_takes_a_receive() {
    let (client, server) = pair(Shape::default());
    let target = open_region(&server, 4096, Access::REMOTE_WRITE);
    let op = Verb::WriteWithImm(target.remote(8), 0xdead_beef);
    client
        .qp
        .post(SendRequest::piece(1, op, client.parts.filled(b"written")))
        .unwrap();
    let got = server.parts.completion();
    assert!(got.is_recv() && got.is_rdma_write());
    assert_eq!((got.imm(), got.byte_len()), (Some(0xdead_beef), 7));
    let unused = server.qp.claim(&got).unwrap().into_buffer().unwrap();
    assert!(unused.is_empty());
    let mut seen = [0; 7];
    target.read_at(8, &mut seen).unwrap();
    assert_eq!(&seen, b"written");
    finished(&client, 1);
}

/// The peer's memory is what its owner said, and no more.
#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn the_peers_memory_is_guarded() {
    let check = |access: Access, op: fn(&MemoryRegion) -> Verb| {
        let (client, server) = pair(Shape::default());
        let target = open_region(&server, 4096, access);
        let buffer = client.parts.filled(b"12345678");
        client
            .qp
            .post(SendRequest::piece(1, op(&target), buffer))
            .unwrap();
        let done = client.parts.completion();
        assert_eq!(done.status(), WcStatus::RemoteAccess, "{access:?}");
        assert!(client.qp.claim(&done).is_some());
        let mut seen = [1; 8];
        target.read_at(0, &mut seen).unwrap();
        assert_eq!(seen, [0; 8]);
    };
    check(Access::REMOTE_READ, |r| Verb::Write(r.remote(0)));
    check(Access::REMOTE_WRITE, |r| Verb::Read(r.remote(0)));
    check(Access::LOCAL_WRITE, |r| Verb::Write(r.remote(0)));
    check(Access::REMOTE_WRITE, |r| Verb::Write(r.remote(4096 - 4)));
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn unsignaled_sends_are_freed_by_the_next_signaled_one() {
    let (client, server) = pair(Shape::default());
    for n in 0..5 {
        let buffer = client.parts.filled(b"quiet");
        let request = SendRequest::piece(n, Verb::Send, buffer).unsignaled();
        client.qp.post(request).unwrap();
    }
    assert_eq!(client.qp.send_room(), 11);
    assert_eq!(client.parts.pool.free(), 64 - 8 - 5);
    client
        .qp
        .post(SendRequest::inline(5, Verb::Send, b"loud").solicited())
        .unwrap();
    finished(&client, 5);
    assert_eq!(
        (client.qp.send_room(), client.parts.pool.free()),
        (16, 64 - 8)
    );
    assert_eq!(server.parts.completions(6).len(), 6);
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_chain_goes_with_one_doorbell_and_stops_where_the_queue_is_full() {
    let shape = Shape {
        receives: 16,
        ..Shape::default()
    };
    let (client, server) = pair(shape);
    let mut chain = ArrayVec::<SendRequest<'_>, 20>::new();
    for n in 0..20_u32 {
        let buffer = client.parts.filled(&n.to_be_bytes());
        chain.push(SendRequest::piece(n, Verb::Send, buffer));
    }
    let error = client.qp.post_batch(&mut chain).unwrap_err();
    assert_eq!(error.errno(), Errno::NOMEM.raw_os_error(), "{error}");
    assert_eq!((chain.len(), chain[0].token), (4, 16));
    for (n, got) in server.parts.completions(16).iter().enumerate() {
        let received = server.qp.claim(got).unwrap().into_buffer().unwrap();
        assert_eq!(*received, (n as u32).to_be_bytes());
    }
    // Full until completions are claimed, whether they were polled or not.
    let done = client.parts.completions(16);
    let full = client.qp.post(chain.remove(0)).unwrap_err();
    assert_eq!(full.error.errno(), Errno::NOMEM.raw_os_error());
    assert!(matches!(&full.request.payload, Payload::Pieces(p) if p.len() == 1));
    for completion in &done {
        assert!(client.qp.claim(completion).is_some());
    }
    assert_eq!(client.qp.send_room(), 16);
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_receive_queue_takes_what_was_granted() {
    let shape = Shape {
        receives: 16,
        ..Shape::default()
    };
    let (client, _server) = pair(shape);
    let full = client.qp.post_recv(1, client.parts.buffer()).unwrap_err();
    assert_eq!(full.error.errno(), Errno::NOMEM.raw_os_error());
    assert_eq!(full.buffer.unwrap().capacity(), SLOT);
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn shared_receive_queue() {
    let (client, server, srq) = pair_with(Shape::default(), true, addr_a(), addr_b());
    let srq = srq.unwrap();
    assert_eq!(srq.room(), 8);
    let refused = server.qp.post_recv(1, server.parts.buffer()).unwrap_err();
    assert_eq!(refused.error.errno(), Errno::INVAL.raw_os_error());
    for n in 0..40_u32 {
        let op = Verb::SendWithImm(n);
        client
            .qp
            .post(SendRequest::inline(n, op, &n.to_le_bytes()))
            .unwrap();
        let got = server.parts.completion();
        assert!(got.is_recv() && got.is_shared_recv());
        assert_eq!(got.qp_num(), server.qp.qp_num());
        assert!(
            server.qp.claim(&got).is_none(),
            "claimed where it does not belong"
        );
        let buffer = srq.claim(&got).unwrap();
        assert_eq!(*buffer, n.to_le_bytes());
        assert!(srq.claim(&got).is_none(), "claimed twice");
        srq.post(3000 + n, buffer).unwrap();
        finished(&client, n);
    }
    assert_eq!(
        (srq.unknown_claims(), server.qp.unknown_claims(), srq.room()),
        (40, 40, 8)
    );

    let mut many = ArrayVec::<_, 32>::new();
    for _ in 0..20 {
        many.push(server.parts.buffer());
    }
    let full = srq.post_batch(7, &mut many).unwrap_err();
    assert_eq!(
        (full.errno(), many.len(), srq.room()),
        (Errno::NOMEM.raw_os_error(), 12, 0)
    );
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn completion_channel() {
    let (client, server) = pair(Shape::default());
    let channel = &server.parts.cq_channel;
    let send = |n| {
        client
            .qp
            .post(SendRequest::inline(n, Verb::Send, b"x"))
            .unwrap();
        finished(&client, n);
    };
    assert_eq!(channel.consume().unwrap(), 0);
    server.parts.cq.request_notify().unwrap();
    assert!(!readable(channel, Duration::from_millis(100)));
    send(1);
    assert!(readable(channel, SOON));
    assert_eq!(channel.consume().unwrap(), 1);
    assert!(!readable(channel, Duration::from_millis(50)));
    // Once a request: the second message is not announced.
    send(2);
    assert!(!readable(channel, Duration::from_millis(200)));
    assert_eq!(server.parts.completions(2).len(), 2);

    // Solicited only.
    server.parts.cq.request_notify_solicited().unwrap();
    send(3);
    assert!(!readable(channel, Duration::from_millis(200)));
    client
        .qp
        .post(SendRequest::inline(4, Verb::Send, b"!").solicited())
        .unwrap();
    assert!(readable(channel, SOON));
    assert_eq!(channel.consume().unwrap(), 1);
    assert!(channel.as_fd().try_clone_to_owned().is_ok());
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn the_error_state_flushes_and_the_kind_of_work_is_still_known() {
    let (client, server) = pair(Shape::default());
    server.qp.to_error().unwrap();
    let flushed = server.parts.completions(8);
    for completion in &flushed {
        assert_eq!(completion.status(), WcStatus::WrFlushed);
        assert!(completion.is_recv());
        assert_eq!((completion.byte_len(), completion.imm()), (0, None));
        let buffer = server.qp.claim(completion).unwrap().into_buffer().unwrap();
        assert!(buffer.is_empty());
    }
    // Sends in the error state are flushed too.
    server
        .qp
        .post(SendRequest::piece(77, Verb::Send, server.parts.buffer()))
        .unwrap();
    let done = server.parts.completion();
    assert_eq!(
        (done.token(), done.status(), done.is_recv()),
        (77, WcStatus::WrFlushed, false)
    );
    assert!(server.qp.claim(&done).is_some());
    assert_eq!(server.parts.pool.free(), 64);
    drop(client);
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_message_longer_than_the_receive_breaks_the_connection() {
    let (client, server) = pair(Shape::default());
    let region = open_region(&client, SLOT + 1, Access::READ_ONLY);
    let slice = region.slice(0, SLOT + 1).unwrap();
    client
        .qp
        .post(SendRequest::piece(1, Verb::Send, slice))
        .unwrap();
    let sent = client.parts.completion();
    let known = [
        WcStatus::RemoteInvalidRequest,
        WcStatus::RemoteOperation,
        WcStatus::RemoteAccess,
    ];
    assert!(known.contains(&sent.status()), "{sent:?}");
    let got = server.parts.completion();
    assert!(!got.status().is_success(), "{got:?}");
    assert!(
        server
            .qp
            .claim(&got)
            .unwrap()
            .into_buffer()
            .unwrap()
            .is_empty()
    );
}

/// A key that the peer has not: its NIC must not take the message for a success.
#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn send_with_invalidate_of_an_unknown_key_fails_at_the_peer() {
    let (client, server) = pair(Shape::default());
    let op = Verb::SendWithInvalidate(0x00ab_cd00);
    client
        .qp
        .post(SendRequest::inline(1, op, b"withdraw"))
        .unwrap();
    let got = server.parts.completion();
    assert!(got.is_recv() && !got.status().is_success(), "{got:?}");
    assert_eq!(got.imm(), None);
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn claims_are_checked() {
    let (client, server) = pair(Shape::default());
    let (other, _peer) = pair(Shape::default());
    client
        .qp
        .post(SendRequest::piece(1, Verb::Send, client.parts.filled(b"x")))
        .unwrap();
    other
        .qp
        .post(SendRequest::piece(1, Verb::Send, other.parts.filled(b"y")))
        .unwrap();
    let mine = client.parts.completion();
    let foreign = other.parts.completion();
    assert!(client.qp.claim(&foreign).is_none());
    assert!(server.qp.claim(&mine).is_none());
    assert_eq!(
        (client.qp.unknown_claims(), server.qp.unknown_claims()),
        (1, 1)
    );
    assert!(client.qp.claim(&mine).is_some());
    assert!(client.qp.claim(&mine).is_none());
    assert!(other.qp.claim(&foreign).is_some());
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn memory_of_another_domain_is_refused() {
    let (client, _server) = pair(Shape::default());
    let device = client.id.device().unwrap();
    let pd = device.alloc_pd().unwrap();
    let pool = BufferPool::new(&pd, 64, 2, Access::LOCAL_WRITE).unwrap();
    let einval = Errno::INVAL.raw_os_error();
    let sent = client
        .qp
        .post(SendRequest::piece(1, Verb::Send, pool.take().unwrap()));
    assert_eq!(sent.unwrap_err().error.errno(), einval);
    let received = client.qp.post_recv(1, pool.take().unwrap());
    assert_eq!(received.unwrap_err().error.errno(), einval);

    // A READ needs a target that may be written.
    let region = open_region(&client, 64, Access::READ_ONLY);
    let read = Verb::Read(region.remote(0));
    let refused = client
        .qp
        .post(SendRequest::piece(1, read, region.slice(0, 64).unwrap()));
    assert_eq!(refused.unwrap_err().error.errno(), einval);
    assert!(client.qp.post(SendRequest::inline(1, read, b"x")).is_err());
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn what_a_queue_pair_cannot_be() {
    let (client, _server) = pair(Shape::default());
    let (id, parts) = (&client.id, &client.parts);
    let good = QpCaps::default();
    for caps in [
        QpCaps { send_wr: 0, ..good },
        QpCaps {
            send_wr: 1 << 17,
            ..good
        },
        QpCaps { recv_wr: 0, ..good },
        QpCaps { sge: 0, ..good },
        QpCaps { sge: 5, ..good },
    ] {
        let error = id
            .create_qp(&parts.pd, caps, &parts.cq, &parts.cq, None)
            .unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL.raw_os_error(), "{caps:?}");
    }
    let device = id.device().unwrap();
    assert!(device.create_cq(u32::MAX, None).is_err());
    assert!(
        device
            .create_cq(device.limits().unwrap().max_cqe + 1, None)
            .is_err()
    );
    assert!(parts.pd.create_srq(0).is_err());
    assert!(BufferPool::new(&parts.pd, 0, 1, Access::LOCAL_WRITE).is_err());
    assert!(BufferPool::new(&parts.pd, 1, 1, Access::REMOTE_WRITE).is_err());
    assert!(parts.pd.region(0, Access::LOCAL_WRITE).is_err());
    assert!(parts.pd.region(usize::MAX, Access::LOCAL_WRITE).is_err());
}

/// Two threads a side, each with its own messages: nothing is lost, swapped or handed out twice.
#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn several_threads_post_poll_and_claim() {
    const EACH: u32 = 300;
    let shape = Shape {
        receives: 16,
        ..Shape::default()
    };
    let (client, server) = pair(shape);
    let credits = std::sync::atomic::AtomicI64::new(16);
    let until = std::time::Instant::now() + 3 * SOON;
    let (client, server, credits) = (&client, &server, &credits);
    std::thread::scope(|scope| {
        for thread in 0..2_u32 {
            scope.spawn(move || {
                for n in 0..EACH {
                    use std::sync::atomic::Ordering::SeqCst;
                    while credits.fetch_sub(1, SeqCst) <= 0 {
                        credits.fetch_add(1, SeqCst);
                        reap(client);
                        assert!(std::time::Instant::now() < until);
                        std::thread::yield_now();
                    }
                    let mut request = SendRequest::piece(
                        thread,
                        Verb::SendWithImm(thread << 16 | n),
                        client.parts.filled(&(thread << 16 | n).to_be_bytes()),
                    );
                    while let Err(back) = client.qp.post(request) {
                        assert_eq!(back.error.errno(), Errno::NOMEM.raw_os_error());
                        request = back.request;
                        reap(client);
                    }
                    reap(client);
                }
            });
        }
        let mut next = [0, 0];
        for _ in 0..2 * EACH {
            let got = server.parts.completion();
            let imm = got.imm().unwrap();
            let buffer = server.qp.claim(&got).unwrap().into_buffer().unwrap();
            assert_eq!(*buffer, imm.to_be_bytes());
            let thread = (imm >> 16) as usize;
            assert_eq!(imm & 0xffff, next[thread]);
            next[thread] += 1;
            server.qp.post_recv(0, buffer).unwrap();
            credits.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    });
    while client.qp.send_room() < 16 {
        reap(client);
        assert!(std::time::Instant::now() < until);
    }
    assert_eq!(client.parts.pool.free(), 64 - 16);
    assert_eq!(client.qp.unknown_claims(), 0);
}

fn reap(end: &End) {
    let mut batch = CompletionBatch::new();
    end.parts.cq.poll(&mut batch).unwrap();
    for completion in &batch {
        assert!(end.qp.claim(completion).is_some());
    }
}
