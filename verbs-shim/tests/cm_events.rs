//! Events of every kind, provoked on a real fabric, and what they carry.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use support::{
    End, Parts, SOON, Shape, addr_a, addr_b, any_port, env_addr, event_within, fabric, is_soft,
    listen, next_event, pair, pair_with, readable, resolved, soft_fabric,
};
use verbs_shim::{
    ACCEPT_PRIVATE_DATA, CONNECT_PRIVATE_DATA, CmId, ConnParams, Event, EventChannel, PreparedQp,
    QpCaps, REJECT_PRIVATE_DATA, RejectReason,
};

/// A client that has sent its connect request.
struct Client {
    channel: EventChannel,
    id: CmId,
    _qp: PreparedQp,
    parts: Parts,
}

fn connecting(to: SocketAddr, params: &ConnParams<'_>) -> Client {
    let channel = fabric().event_channel().unwrap();
    let id = resolved(&channel, addr_a(), to);
    let parts = Parts::of(&id);
    let qp = parts.prepared(&id, QpCaps::default(), None);
    id.connect(params).unwrap();
    Client {
        channel,
        id,
        _qp: qp,
        parts,
    }
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn rejected_by_the_application_with_its_data() {
    let listener = listen(any_port(addr_b()), 4);
    let client = connecting(listener.addr, &ConnParams::default());
    let request = listener.request();
    let data: Vec<u8> = (0..REJECT_PRIVATE_DATA as u8).collect();
    request.id.reject(&data).unwrap();
    expect!(&client.channel, Event::Rejected { id, reason, private_data } => {
        assert_eq!(id, client.id.token());
        assert_eq!(reason, RejectReason::ConsumerDefined);
        assert_eq!(*private_data, *data);
    });
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_short_reject_comes_padded_with_zeros() {
    let listener = listen(any_port(addr_b()), 4);
    let client = connecting(listener.addr, &ConnParams::default());
    listener.request().id.reject(b"no").unwrap();
    expect!(&client.channel, Event::Rejected { private_data, .. } => {
        assert_eq!(private_data.len(), REJECT_PRIVATE_DATA);
        assert!(private_data.starts_with(b"no"));
        assert!(private_data[2..].iter().all(|&b| b == 0));
    });
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn nobody_listens_is_reason_8() {
    let gone = listen(any_port(addr_b()), 4).addr;
    let client = connecting(gone, &ConnParams::default());
    expect!(&client.channel, Event::Rejected { id, reason, .. } => {
        assert_eq!(id, client.id.token());
        assert_eq!(reason, RejectReason::InvalidServiceId);
        assert_eq!(reason.raw(), 8);
    });
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_dropped_request_is_reason_28() {
    let listener = listen(any_port(addr_b()), 4);
    let client = connecting(listener.addr, &ConnParams::default());
    drop(listener.request());
    expect!(&client.channel, Event::Rejected { reason, .. } => {
        assert_eq!(reason, RejectReason::ConsumerDefined);
    });
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_listener_that_goes_refuses_what_it_has_not_read() {
    let listener = listen(any_port(addr_b()), 4);
    let client = connecting(listener.addr, &ConnParams::default());
    assert!(readable(&listener.channel, SOON));
    drop(listener);
    expect!(&client.channel, Event::Rejected { reason, .. } => {
        assert_eq!(reason, RejectReason::ConsumerDefined);
    });
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_request_outlives_its_listener() {
    let listener = listen(any_port(addr_b()), 4);
    let client = connecting(listener.addr, &ConnParams::default());
    let request = listener.request();
    let channel = listener.channel.clone();
    drop(listener);
    let parts = Parts::of(&request.id);
    let _qp = parts.prepared(&request.id, QpCaps::default(), None);
    request.id.accept(&ConnParams::default()).unwrap();
    expect!(&client.channel, Event::Established { .. });
    expect!(&channel, Event::Established { id, .. } => assert_eq!(id, request.id.token()));
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn silence_is_an_address_error() {
    let channel = fabric().event_channel().unwrap();
    let id = CmId::new(&channel).unwrap();
    // A neighbour that nobody is.
    let nobody = match addr_b() {
        std::net::IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            SocketAddr::from(([a, b, c, 77], 7000))
        }
        std::net::IpAddr::V6(_) => panic!("SAN_TEST_ADDR_B is expected to be IPv4"),
    };
    let started = Instant::now();
    id.resolve_addr(Some(any_port(addr_a())), nobody, Duration::from_millis(500))
        .unwrap();
    match event_within(&channel, SOON) {
        Some(Event::AddrError { id: token, errno }) => {
            assert_eq!(token, id.token());
            let known = [rustix::io::Errno::TIMEDOUT, rustix::io::Errno::HOSTUNREACH];
            assert!(known.iter().any(|e| e.raw_os_error() == errno), "{errno}");
        }
        other => panic!("{other:?}"),
    }
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn no_route_is_an_error_of_the_call() {
    let channel = fabric().event_channel().unwrap();
    let id = CmId::new(&channel).unwrap();
    let error = id
        .resolve_addr(None, "203.0.113.9:7".parse().unwrap(), SOON)
        .unwrap_err();
    assert_eq!(
        error.errno(),
        rustix::io::Errno::NETUNREACH.raw_os_error(),
        "{error}"
    );
    assert_eq!(error.call, "rdma_resolve_addr");
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn disconnect_by_either_side() {
    for client_first in [true, false] {
        let (client, server) = pair(Shape::default());
        let (first, second): (&End, &End) = match client_first {
            true => (&client, &server),
            false => (&server, &client),
        };
        first.id.disconnect().unwrap();
        expect!(&second.channel, Event::Disconnected { id } => assert_eq!(id, second.id.token()));
        // The side that began hears of the end when the other has answered.
        second.id.disconnect().unwrap();
        expect!(&first.channel, Event::Disconnected { id } => assert_eq!(id, first.id.token()));
        expect!(&first.channel, Event::TimewaitExit { id } => assert_eq!(id, first.id.token()));
    }
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn dropping_one_end_disconnects_the_other() {
    let (client, server) = pair(Shape::default());
    drop(server);
    expect!(&client.channel, Event::Disconnected { .. });
    assert_eq!(client.parts.pool.free(), 64 - 8);
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_wildcard_listener_serves_every_device() {
    let listener = listen("0.0.0.0:0".parse().unwrap(), 8);
    assert_eq!(listener.id.device(), None);
    let mut devices = Vec::new();
    for ip in [addr_a(), addr_b()] {
        let to = SocketAddr::new(ip, listener.addr.port());
        let channel = fabric().event_channel().unwrap();
        let from = if ip == addr_a() { addr_b() } else { addr_a() };
        let id = resolved(&channel, from, to);
        let parts = Parts::of(&id);
        let qp = parts.prepared(&id, QpCaps::default(), None);
        id.connect(&ConnParams::default()).unwrap();
        let request = listener.request();
        assert_eq!(request.listener, listener.id.token());
        assert_eq!(request.id.local_addr(), Some(to));
        assert_eq!(request.id.peer_addr().map(|a| a.ip()), Some(from));
        let device = request.id.device().expect("a request has a device");
        assert!(device.addresses().unwrap().iter().any(|a| a.ip == ip));
        devices.push(device);
        request.id.reject(&[]).unwrap();
        expect!(&channel, Event::Rejected { .. });
        drop(qp);
    }
    assert_eq!(devices[0] == devices[1], is_soft());
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn ipv6() {
    let (a, b) = (env_addr("SAN_TEST_ADDR6_A"), env_addr("SAN_TEST_ADDR6_B"));
    let (client, server, _) = pair_with(Shape::default(), false, a, b);
    assert_eq!(client.id.peer_addr().map(|x| x.ip()), Some(b));
    assert_eq!(server.id.local_addr().map(|x| x.ip()), Some(b));
    assert_eq!(server.id.peer_addr().map(|x| x.ip()), Some(a));
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn ports_taken_reused_and_shared_between_families() {
    let listener = listen(any_port(addr_b()), 4);
    let channel = fabric().event_channel().unwrap();
    let second = CmId::new(&channel).unwrap();
    let error = second.bind(listener.addr).unwrap_err();
    assert_eq!(
        error.errno(),
        rustix::io::Errno::ADDRINUSE.raw_os_error(),
        "{error}"
    );

    // Both ask for it, as with SO_REUSEADDR; listening remains the first one's.
    let first = CmId::new(&channel).unwrap();
    first.set_reuse_addr(true).unwrap();
    first.bind(any_port(addr_b())).unwrap();
    let addr = first.local_addr().unwrap();
    let again = CmId::new(&channel).unwrap();
    again.set_reuse_addr(true).unwrap();
    again.bind(addr).unwrap();

    let v6 = CmId::new(&channel).unwrap();
    v6.set_v6_only(true).unwrap();
    v6.bind("[::]:0".parse().unwrap()).unwrap();
    v6.listen(4).unwrap();
    let port = v6.local_addr().unwrap().port();
    let v4 = CmId::new(&channel).unwrap();
    v4.bind(SocketAddr::from(([0, 0, 0, 0], port))).unwrap();
    v4.listen(4).unwrap();
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn addresses_that_are_not_there() {
    let channel = fabric().event_channel().unwrap();
    let id = CmId::new(&channel).unwrap();
    let error = id.bind("203.0.113.1:0".parse().unwrap()).unwrap_err();
    let known = [rustix::io::Errno::ADDRNOTAVAIL, rustix::io::Errno::NODEV];
    assert!(
        known.iter().any(|e| e.raw_os_error() == error.errno()),
        "{error}"
    );
    assert_eq!(id.local_addr().filter(|a| !a.ip().is_unspecified()), None);
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_migrated_id_has_its_events_on_the_other_channel() {
    let (client, server) = pair(Shape::default());
    let other = fabric().event_channel().unwrap();
    client.id.migrate(&other).unwrap();
    client.id.migrate(&other).unwrap();
    server.id.disconnect().unwrap();
    expect!(&other, Event::Disconnected { id } => assert_eq!(id, client.id.token()));
    assert!(client.channel.next().unwrap().is_none());

    // What was not read yet moves along; the old channel may go.
    let (client, server) = pair(Shape::default());
    server.id.disconnect().unwrap();
    assert!(readable(&client.channel, SOON));
    client.id.migrate(&other).unwrap();
    drop(client.channel);
    expect!(&other, Event::Disconnected { id } => assert_eq!(id, client.id.token()));
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn private_data_to_the_limit_and_past_it() {
    let listener = listen(any_port(addr_b()), 4);
    let full: Vec<u8> = (1..=CONNECT_PRIVATE_DATA as u8).collect();
    let params = |data| ConnParams {
        private_data: data,
        ..ConnParams::default()
    };
    let client = connecting(listener.addr, &params(&full));
    let request = listener.request();
    assert_eq!(*request.private_data, *full);
    let parts = Parts::of(&request.id);
    let _qp = parts.prepared(&request.id, QpCaps::default(), None);

    let long = vec![7; ACCEPT_PRIVATE_DATA + 1];
    let too_long = |result: verbs_shim::Result<()>, limit: usize| {
        let error = result.unwrap_err();
        assert_eq!(error.errno(), rustix::io::Errno::INVAL.raw_os_error());
        assert!(
            error.to_string().contains(&format!("at most {limit}")),
            "{error}"
        );
    };
    too_long(request.id.accept(&params(&long)), ACCEPT_PRIVATE_DATA);
    too_long(
        request.id.reject(&long[..=REJECT_PRIVATE_DATA]),
        REJECT_PRIVATE_DATA,
    );
    too_long(
        client.id.connect(&params(&long[..=CONNECT_PRIVATE_DATA])),
        CONNECT_PRIVATE_DATA,
    );

    request
        .id
        .accept(&params(&long[..ACCEPT_PRIVATE_DATA]))
        .unwrap();
    expect!(&client.channel, Event::Established { private_data, .. } => {
        assert_eq!(*private_data, *vec![7; ACCEPT_PRIVATE_DATA]);
    });
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn calls_out_of_order_are_errors() {
    let channel = fabric().event_channel().unwrap();
    let einval = |result: verbs_shim::Result<()>| {
        assert_eq!(
            result.unwrap_err().errno(),
            rustix::io::Errno::INVAL.raw_os_error()
        );
    };
    let id = CmId::new(&channel).unwrap();
    einval(id.resolve_route(SOON));
    einval(id.connect(&ConnParams::default()));
    einval(id.accept(&ConnParams::default()));
    einval(id.disconnect());
    assert!(id.reject(&[]).is_err());
    assert_eq!(
        (id.local_addr(), id.peer_addr(), id.port()),
        (None, None, 0)
    );
    einval(id.connect(&ConnParams {
        retry_count: 7,
        ..ConnParams::default()
    }));
    einval(id.set_ack_timeout(32));

    // With a device but without a queue pair.
    let listener = listen(any_port(addr_b()), 4);
    let id = resolved(&channel, addr_a(), listener.addr);
    einval(id.connect(&ConnParams::default()));
    let parts = Parts::of(&id);
    let _qp = parts.prepared(&id, QpCaps::default(), None);
    let second = id.create_qp(&parts.pd, QpCaps::default(), &parts.cq, &parts.cq, None);
    assert_eq!(
        second.unwrap_err().errno(),
        rustix::io::Errno::INVAL.raw_os_error()
    );
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn parts_of_another_device_are_refused() {
    let channel = fabric().event_channel().unwrap();
    let others = match is_soft() {
        true => soft_fabric().event_channel().unwrap(),
        false => channel.clone(),
    };
    let (a, b) = (CmId::new(&channel).unwrap(), CmId::new(&others).unwrap());
    a.bind(any_port(addr_a())).unwrap();
    b.bind(any_port(addr_b())).unwrap();
    let (parts_a, parts_b) = (Parts::of(&a), Parts::of(&b));
    let caps = QpCaps::default();
    for (pd, send_cq, recv_cq) in [
        (&parts_b.pd, &parts_a.cq, &parts_a.cq),
        (&parts_a.pd, &parts_b.cq, &parts_a.cq),
        (&parts_a.pd, &parts_a.cq, &parts_b.cq),
    ] {
        let error = a.create_qp(pd, caps, send_cq, recv_cq, None).unwrap_err();
        assert_eq!(
            error.errno(),
            rustix::io::Errno::INVAL.raw_os_error(),
            "{error}"
        );
    }
    let srq = parts_b.pd.create_srq(4).unwrap();
    let shared = QpCaps { recv_wr: 0, ..caps };
    assert!(
        a.create_qp(&parts_a.pd, shared, &parts_a.cq, &parts_a.cq, Some(&srq))
            .is_err()
    );
    let device = b.device().unwrap();
    assert!(device.create_cq(4, Some(&parts_a.cq_channel)).is_err());
}

/// With the default of 2.1 s a lost peer is noticed after 16 s or more.
#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_short_ack_timeout_notices_silence_soon() {
    let listener = listen(any_port(addr_b()), 4);
    let channel = fabric().event_channel().unwrap();
    let id = resolved(&channel, addr_a(), listener.addr);
    id.set_ack_timeout(14).unwrap();
    match id.set_tos(0x10) {
        // The connections of an address share its socket.
        Err(e) if is_soft() => assert_eq!(e.errno(), rustix::io::Errno::OPNOTSUPP.raw_os_error()),
        set => set.unwrap(),
    }
    let parts = Parts::of(&id);
    let qp = parts.prepared(&id, QpCaps::default(), None);
    let params = ConnParams {
        retry_count: 2,
        ..ConnParams::default()
    };
    id.connect(&params).unwrap();
    let request = listener.request();
    let server = Parts::of(&request.id);
    let server_qp = server.prepared(&request.id, QpCaps::default(), None);
    request.id.accept(&ConnParams::default()).unwrap();
    expect!(&channel, Event::Established { .. });
    let qp = qp.established();
    // The peer's queue pair goes without a word; its CM id stays.
    drop(server_qp);
    let started = Instant::now();
    let send = verbs_shim::SendRequest::inline(1, verbs_shim::Verb::Send, b"anyone?");
    qp.post(send).unwrap();
    let done = parts.completion();
    assert_eq!(done.status(), verbs_shim::WcStatus::RetryExceeded);
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn tokens_are_never_used_again() {
    let channel = fabric().event_channel().unwrap();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..100 {
        let id = CmId::new(&channel).unwrap();
        assert_ne!(id.token(), 0);
        assert!(seen.insert(id.token()));
    }
}

/// More requests than the kernel's backlog: those past it are not heard of.
#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn the_kernels_backlog_drops_silently() {
    let listener = listen(any_port(addr_b()), 2);
    let clients: Vec<Client> = (0..4)
        .map(|_| connecting(listener.addr, &ConnParams::default()))
        .collect();
    // All of them have come before the first is read, which gives its place back.
    std::thread::sleep(Duration::from_secs(1));
    let first = listener.request();
    let second = listener.request();
    let third = event_within(&listener.channel, Duration::from_millis(500));
    assert!(third.is_none(), "{third:?}");
    first.id.reject(&[]).unwrap();
    second.id.reject(&[]).unwrap();
    let answered = clients
        .iter()
        .filter(|c| event_within(&c.channel, Duration::from_millis(500)).is_some())
        .count();
    assert_eq!(answered, 2);
    assert!(clients.iter().all(|c| c.parts.pool.free() == 64));
}

#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn an_accept_after_the_peer_has_gone_does_not_hang() {
    let listener = listen(any_port(addr_b()), 4);
    let client = connecting(listener.addr, &ConnParams::default());
    let request = listener.request();
    drop(client);
    std::thread::sleep(Duration::from_millis(500));
    let parts = Parts::of(&request.id);
    let caps = QpCaps::default();
    let started = Instant::now();
    // Once the kernel knows, it refuses to make a queue pair; else the accept fails, or an event
    // tells.
    let qp = request
        .id
        .create_qp(&parts.pd, caps, &parts.cq, &parts.cq, None);
    if let Err(error) = &qp {
        assert_eq!(
            error.errno(),
            rustix::io::Errno::INVAL.raw_os_error(),
            "{error}"
        );
    }
    if qp.is_ok() && request.id.accept(&ConnParams::default()).is_ok() {
        match next_event(&listener.channel) {
            Event::Rejected { id, .. }
            | Event::Unreachable { id, .. }
            | Event::ConnectError { id, .. }
            | Event::Disconnected { id } => assert_eq!(id, request.id.token()),
            other => panic!("{other:?}"),
        }
    }
    assert!(started.elapsed() < SOON);
    assert!(event_within(&listener.channel, Duration::from_millis(200)).is_none());
}
