//! Connections are made, refused, ended and lost.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use soft_roce::cm;
use soft_roce::endpoint::{CmEventKind, Config, ConnParams};
use soft_roce::rc::{Payload, QpState, RecvRequest, SendOp, SendRequest, Status};
use soft_roce::wire::cm::RejReason;

use crate::util::{Node, PATIENCE, Pair, TempDir, address, connect};

/// Who waits for events works the sockets itself: a connection is made and ended, again and again, by one
/// thread at each end, which never sleeps on the descriptor.
#[test]
fn events_are_waited_for_by_who_works_the_sockets() {
    let dir = TempDir::new();
    let mut nodes = [Node::new(dir.config()), Node::new(dir.config())];
    nodes.iter_mut().for_each(|node| node.waits = true);
    let [client, server] = &nodes;
    let dst = SocketAddr::new(address(), 7471);
    let _listener = server.listen(dst, 4);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..50 {
                let (id, _) = server.request();
                let side = server.queue_pair();
                id.accept(&side.qp, &ConnParams::default()).unwrap();
                let event = server.event();
                assert!(
                    matches!(event.kind, CmEventKind::Established { .. }),
                    "{event:?}"
                );
                let event = server.event();
                assert!(matches!(event.kind, CmEventKind::Disconnected), "{event:?}");
            }
        });
        for _ in 0..50 {
            let id = client.resolved(dst);
            let side = client.queue_pair();
            id.connect(&side.qp, &ConnParams::default()).unwrap();
            let event = client.event();
            assert!(
                matches!(event.kind, CmEventKind::Established { .. }),
                "{event:?}"
            );
        }
    });
}

#[test]
fn a_wait_for_events_ends_with_the_time_or_another_descriptor() {
    let dir = TempDir::new();
    let node = Node::new(dir.config());
    let began = Instant::now();
    node.events.wait(None, Duration::from_millis(30)).unwrap();
    assert!(began.elapsed() >= Duration::from_millis(30));
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(30));
            rustix::io::write(&writer, b"x").unwrap();
        });
        let other = Some(std::os::fd::AsFd::as_fd(&reader));
        node.events.wait(other, PATIENCE).unwrap();
    });
    assert!(began.elapsed() < PATIENCE, "the descriptor ended the wait");
    assert!(node.events.next().is_none());
    // An event that is there needs no wait, and who asks for the descriptor then is told of it there.
    let id = node.endpoint.create_id(&node.events);
    id.resolve_addr(None, SocketAddr::new(address(), 7471), PATIENCE)
        .unwrap();
    node.events.wait(None, PATIENCE).unwrap();
    let fd = rustix::event::PollFd::new(&node.events, rustix::event::PollFlags::IN);
    let no_time = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    assert_eq!(rustix::event::poll(&mut [fd], Some(&no_time)).unwrap(), 1);
    assert!(matches!(node.event().kind, CmEventKind::AddrResolved));
    let fd = rustix::event::PollFd::new(&node.events, rustix::event::PollFlags::IN);
    assert_eq!(rustix::event::poll(&mut [fd], Some(&no_time)).unwrap(), 0);
}

#[test]
fn a_message_each_way_and_an_end() {
    let pair = Pair::new();
    let (a, b) = (&pair.connection.client, &pair.connection.server);
    let inbox = pair.server.memory(soft_roce::memory::HeapMemory::new(100));
    b.qp.post_receive(&RecvRequest {
        wr_id: 7,
        sges: &inbox.sge(0, 100),
    })
    .unwrap();
    let send = SendRequest {
        wr_id: 1,
        op: SendOp::SendImm(0xabcd),
        payload: Payload::Inline(b"a message"),
        signaled: true,
        fence: false,
        solicited: false,
    };
    a.qp.post_send(&send).unwrap();
    let got = b.success();
    assert_eq!((got.wr_id, got.byte_len, got.imm), (7, 9, Some(0xabcd)));
    assert_eq!(&inbox.memory.to_vec()[..9], b"a message");
    assert_eq!(a.success().wr_id, 1);

    b.qp.post_receive(&RecvRequest {
        wr_id: 8,
        sges: &[],
    })
    .unwrap();
    pair.connection.client_id.disconnect().unwrap();
    assert!(matches!(
        pair.server.event().kind,
        CmEventKind::Disconnected
    ));
    assert!(matches!(
        pair.client.event().kind,
        CmEventKind::Disconnected
    ));
    assert_eq!(a.qp.state(), QpState::Error);
    pair.connection.server_id.disconnect().unwrap();
    let flushed = b.poll();
    assert_eq!((flushed.wr_id, flushed.status), (8, Status::WrFlush));
    assert!(matches!(
        pair.client.event().kind,
        CmEventKind::TimewaitExit
    ));
    assert!(matches!(
        pair.server.event().kind,
        CmEventKind::TimewaitExit
    ));
    assert_eq!(pair.server.endpoint.counters().connections, 0);
    assert_eq!(pair.server.endpoint.counters().bad_icrc, 0);
}

/// Towards one of this host they have no ICRC: they are no damage.
#[test]
fn packets_for_a_queue_pair_that_is_gone_are_counted_as_such() {
    for bundles in [true, false] {
        let dir = TempDir::new();
        let config = || Config {
            bundles,
            ..dir.config()
        };
        let (client, server) = (Node::new(config()), Node::new(config()));
        let dst = SocketAddr::new(address(), 7471);
        let _listener = server.listen(dst, 16);
        let connection = connect(&client, &server, dst);
        connection.server.qp.destroy();
        let send = SendRequest {
            wr_id: 1,
            op: SendOp::Send,
            payload: Payload::Inline(b"for nobody"),
            signaled: true,
            fence: false,
            solicited: false,
        };
        connection.client.qp.post_send(&send).unwrap();
        let end = Instant::now() + PATIENCE;
        while server.endpoint.counters().unknown_qp == 0 {
            assert!(Instant::now() < end, "{:?}", server.endpoint.counters());
            thread::sleep(Duration::from_millis(1));
        }
        let counters = server.endpoint.counters();
        assert_eq!((counters.bad_icrc, counters.malformed), (0, 0));
    }
}

#[test]
fn refused_with_reason_and_data() {
    let dir = TempDir::new();
    let (client, server) = (Node::new(dir.config()), Node::new(dir.config()));
    let dst = SocketAddr::new(address(), 7471);
    let _listener = server.listen(dst, 16);
    let side = client.queue_pair();
    let id = client.resolved(dst);
    assert_eq!(id.peer_addr(), Some(dst));
    id.connect(&side.qp, &ConnParams::default()).unwrap();
    let (request, _) = server.request();
    assert_eq!(request.peer_addr(), id.local_addr());
    request.reject(b"no room").unwrap();
    match client.event().kind {
        CmEventKind::Rejected {
            reason,
            private_data,
        } => {
            assert_eq!(reason, RejReason::CONSUMER_DEFINED);
            assert_eq!(
                (private_data.len(), &private_data[..8]),
                (148, &b"no room\0"[..])
            );
        }
        other => panic!("{other:?}"),
    }
    // Nobody listens on another port of that address.
    let other = client.resolved(SocketAddr::new(dst.ip(), 7472));
    other
        .connect(&client.queue_pair().qp, &ConnParams::default())
        .unwrap();
    match client.event().kind {
        CmEventKind::Rejected { reason, .. } => assert_eq!(reason, RejReason::INVALID_SERVICE_ID),
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_that_nobody_read_are_refused_when_the_listener_goes() {
    let dir = TempDir::new();
    let (client, server) = (Node::new(dir.config()), Node::new(dir.config()));
    let dst = SocketAddr::new(address(), 7471);
    let listener = server.listen(dst, 16);
    let side = client.queue_pair();
    let id = client.resolved(dst);
    id.connect(&side.qp, &ConnParams::default()).unwrap();
    while server.endpoint.counters().connections == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    drop(listener);
    match client.event().kind {
        CmEventKind::Rejected { reason, .. } => assert_eq!(reason, RejReason::CONSUMER_DEFINED),
        other => panic!("{other:?}"),
    }
    assert!(server.events.next().is_none());
    assert_eq!(server.endpoint.counters().connections, 0);
}

#[test]
fn the_backlog_refuses_what_is_too_much() {
    let dir = TempDir::new();
    let (client, server) = (Node::new(dir.config()), Node::new(dir.config()));
    let dst = SocketAddr::new(address(), 7471);
    let _listener = server.listen(dst, 2);
    let attempts: Vec<_> = (0..5)
        .map(|_| (client.resolved(dst), client.queue_pair()))
        .collect();
    for (id, side) in &attempts {
        id.connect(&side.qp, &ConnParams::default()).unwrap();
    }
    for _ in 0..3 {
        match client.event().kind {
            CmEventKind::Rejected { reason, .. } => assert_eq!(reason, RejReason::NO_RESOURCES),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(server.endpoint.counters().cm.backlog_full, 3);
    drop(attempts);
}

#[test]
fn a_vanished_server_is_unreachable() {
    let dir = TempDir::new();
    let quick = cm::Config {
        retry_first: Duration::from_millis(10),
        retries: 3,
        ..cm::Config::default()
    };
    let client = Node::new(Config {
        cm: quick,
        ..dir.config()
    });
    // A socket that never answers.
    let dst = SocketAddr::new(address(), 4791);
    let _mute = std::net::UdpSocket::bind(dst).unwrap();
    let id = client.resolved(SocketAddr::new(dst.ip(), 7471));
    let side = client.queue_pair();
    id.connect(&side.qp, &ConnParams::default()).unwrap();
    match client.event().kind {
        CmEventKind::Unreachable(errno) => assert_eq!(errno, 110),
        other => panic!("{other:?}"),
    }
}

#[test]
fn where_no_process_has_the_socket_a_connect_is_refused_at_once() {
    let dir = TempDir::new();
    let client = Node::new(dir.config());
    let id = client.resolved(SocketAddr::new(address(), 7471));
    let side = client.queue_pair();
    id.connect(&side.qp, &ConnParams::default()).unwrap();
    match client.event_within(Duration::from_secs(5)).unwrap().kind {
        CmEventKind::Rejected { reason, .. } => assert_eq!(reason, RejReason::INVALID_SERVICE_ID),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.endpoint.counters().cm.nobody, 1);
}

/// A socket of another kind stands for a process: it asks, and is closed without a word.
#[test]
fn a_process_that_ends_without_a_word_is_noticed() {
    let dir = TempDir::new();
    let client = Node::new(dir.config());
    let dst = SocketAddr::new(address(), 4791);
    let mute = std::net::UdpSocket::bind(dst).unwrap();
    let id = client.resolved(SocketAddr::new(dst.ip(), 7471));
    let side = client.queue_pair();
    id.connect(&side.qp, &ConnParams::default()).unwrap();
    assert!(client.event_within(Duration::from_millis(700)).is_none());
    drop(mute);
    match client.event_within(Duration::from_secs(5)).unwrap().kind {
        CmEventKind::Rejected { reason, .. } => assert_eq!(reason, RejReason::CONSUMER_DEFINED),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_that_is_withdrawn_is_told_of_at_accept() {
    let dir = TempDir::new();
    let (client, server) = (Node::new(dir.config()), Node::new(dir.config()));
    let dst = SocketAddr::new(address(), 7471);
    let _listener = server.listen(dst, 2);
    let side = client.queue_pair();
    let id = client.resolved(dst);
    id.connect(&side.qp, &ConnParams::default()).unwrap();
    let (request, _) = server.request();
    assert!(request.is_pending());
    drop(id);
    let other = server.queue_pair();
    let answer = request.accept(&other.qp, &ConnParams::default());
    assert_eq!(answer.unwrap_err().raw_os_error(), Some(107), "ENOTCONN");
    assert!(!request.is_pending());
    assert!(server.event_within(Duration::from_millis(100)).is_none());
}

#[test]
fn a_dead_peer_is_noticed_on_an_idle_connection() {
    let dir = TempDir::new();
    let config = Config {
        keepalive: Some(Duration::from_millis(100)),
        ..dir.config()
    };
    let (client, server) = (Node::new(config), Node::new(dir.config()));
    let dst = SocketAddr::new(address(), 7471);
    let _listener = server.listen(dst, 2);
    let side = client.queue_pair();
    let id = client.resolved(dst);
    id.set_ack_timeout(16).unwrap();
    id.connect(
        &side.qp,
        &ConnParams {
            retry_count: 2,
            ..ConnParams::default()
        },
    )
    .unwrap();
    let (request, _) = server.request();
    let other = server.queue_pair();
    request.accept(&other.qp, &ConnParams::default()).unwrap();
    assert!(matches!(
        client.event().kind,
        CmEventKind::Established { .. }
    ));
    // Signs of life keep an idle connection.
    assert!(client.event_within(Duration::from_secs(1)).is_none());
    assert_eq!(side.qp.state(), QpState::Rts);
    // A queue pair that is gone answers nothing, as if its host had died.
    drop(other);
    assert!(matches!(client.event().kind, CmEventKind::Disconnected));
    assert_eq!(side.qp.state(), QpState::Error);
}

#[test]
fn wrong_calls_are_refused() {
    let dir = TempDir::new();
    let node = Node::new(dir.config());
    let id = node.endpoint.create_id(&node.events);
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    let invalid = Some(22);
    assert_eq!(errno(id.resolve_route(Duration::ZERO)), invalid);
    assert_eq!(
        errno(id.connect(&node.queue_pair().qp, &ConnParams::default())),
        invalid
    );
    assert_eq!(
        errno(id.accept(&node.queue_pair().qp, &ConnParams::default())),
        invalid
    );
    assert_eq!(errno(id.reject(&[])), invalid);
    assert_eq!(errno(id.disconnect()), invalid);
    assert_eq!(errno(id.set_ack_timeout(0)), invalid);
    let foreign = "192.0.2.1:1".parse().unwrap();
    assert_eq!(errno(id.bind(foreign)), Some(99), "EADDRNOTAVAIL");
    let here = SocketAddr::new(address(), 7471);
    id.bind(here).unwrap();
    assert_eq!(errno(id.bind(here)), invalid);
    let other = node.endpoint.create_id(&node.events);
    assert_eq!(errno(other.bind(here)), Some(98), "EADDRINUSE");
    assert_eq!(errno(other.listen(1)), Some(19), "ENODEV: no addresses");
    let third = node.resolved(here);
    let long = ConnParams {
        private_data: &[0; 57],
        ..ConnParams::default()
    };
    assert_eq!(errno(third.connect(&node.queue_pair().qp, &long)), invalid);
}

#[test]
fn one_endpoint_talks_to_itself() {
    let dir = TempDir::new();
    let node = Node::new(dir.config());
    let dst = SocketAddr::new(address(), 7471);
    let _listener = node.listen(dst, 2);
    let side = node.queue_pair();
    let id = node.resolved(dst);
    id.connect(&side.qp, &ConnParams::default()).unwrap();
    let (request, _) = node.request();
    let other = node.queue_pair();
    request.accept(&other.qp, &ConnParams::default()).unwrap();
    for _ in 0..2 {
        assert!(matches!(node.event().kind, CmEventKind::Established { .. }));
    }
    other
        .qp
        .post_receive(&RecvRequest {
            wr_id: 1,
            sges: &[],
        })
        .unwrap();
    let send = SendRequest {
        wr_id: 2,
        op: SendOp::Send,
        payload: Payload::Inline(&[]),
        signaled: true,
        fence: false,
        solicited: false,
    };
    side.qp.post_send(&send).unwrap();
    assert_eq!(other.success().wr_id, 1);
    assert_eq!(side.success().wr_id, 2);
}

#[test]
fn objects_may_go_in_any_order_and_nothing_stays() {
    let pair = Pair::new();
    let server = pair.server.endpoint.clone();
    let Pair {
        connection,
        client,
        server: node,
        listener,
        dir,
    } = pair;
    drop(node);
    drop(connection.server.channel);
    drop(connection.server.cq);
    drop(connection.server.qp);
    drop(listener);
    drop(client);
    drop(connection.server_id);
    drop(connection.client);
    assert_eq!(server.counters().queue_pairs, 0);
    drop(connection.client_id);
    drop(dir);
    let end = Instant::now() + PATIENCE;
    while server.counters().connections > 0 {
        assert!(Instant::now() < end);
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn many_connections_at_once() {
    let dir = TempDir::new();
    let (client, server) = (Node::new(dir.config()), Node::new(dir.config()));
    let dst = SocketAddr::new(address(), 7471);
    let _listener = server.listen(dst, 16);
    let connections: Vec<_> = (0..50).map(|_| connect(&client, &server, dst)).collect();
    assert_eq!(server.endpoint.counters().connections, 50);
    drop(connections);
    assert_eq!(server.endpoint.counters().queue_pairs, 0);
}
