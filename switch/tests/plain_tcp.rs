//! A switch without any provider behaves as plain TCP does.

use san_switch::{
    AcceptError, CancelToken, ConnectError, ConnectOptions, Connection, Decision, FabricChoice,
    ListenError, ListenOptions, Listener, Route, Side, Switch, SwitchConfig,
};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

fn switch() -> Switch {
    Switch::new(
        SwitchConfig::default()
            .fabric(FabricChoice::Off)
            .connect_timeout(PATIENCE)
            .io_timeout(Some(PATIENCE)),
    )
    .unwrap()
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn listen(switch: &Switch, backlog: u32) -> Listener {
    let options = ListenOptions::default().backlog(backlog);
    switch.listen(loopback(), options).unwrap()
}

fn connect(switch: &Switch, to: SocketAddr) -> Connection {
    switch.connect(to, &ConnectOptions::default()).unwrap()
}

#[test]
fn a_program_connects_to_itself_and_then_accepts() {
    let switch = switch();
    let listener = listen(&switch, 4);
    let client = connect(&switch, listener.local_addr());
    let server = listener.accept_timeout(PATIENCE).unwrap();
    let off = "TCP, since SAN_FABRIC=off says so";
    assert_eq!(client.route().to_string(), off);
    assert!(matches!(server.route(), Route::Tcp { why: None }));
    assert_eq!(client.peer_addr(), listener.local_addr());
    assert_eq!(client.local_addr(), server.peer_addr());
    assert_eq!(server.local_addr(), listener.local_addr());
    (&client).write_all(b"there").unwrap();
    client.shutdown_write().unwrap();
    let mut text = String::new();
    (&server).read_to_string(&mut text).unwrap();
    assert_eq!(text, "there");
    (&server).write_all(b"and back").unwrap();
    drop(server);
    text.clear();
    (&client).read_to_string(&mut text).unwrap();
    assert_eq!(text, "and back");
    assert_eq!(listener.stats().tcp_accepted, 1);
    assert_eq!(switch.stats().connected_tcp, 1);
}

#[test]
fn it_talks_with_programs_that_know_nothing_of_it() {
    let switch = switch();
    let listener = listen(&switch, 4);
    let mut client = TcpStream::connect(listener.local_addr()).unwrap();
    let server = listener.accept_timeout(PATIENCE).unwrap();
    client.write_all(b"x").unwrap();
    let mut byte = [0];
    assert_eq!(server.receive(&mut byte).unwrap(), 1);
    let plain = TcpListener::bind(loopback()).unwrap();
    let client = connect(&switch, plain.local_addr().unwrap());
    let (mut server, peer) = plain.accept().unwrap();
    assert_eq!(peer, client.local_addr());
    server.write_all(b"y").unwrap();
    assert_eq!(client.receive(&mut byte).unwrap(), 1);
}

#[test]
fn connections_come_out_in_the_order_of_arrival() {
    let switch = switch();
    let listener = listen(&switch, 16);
    let clients: Vec<_> = (0..10)
        .map(|_| connect(&switch, listener.local_addr()))
        .collect();
    for client in &clients {
        let server = listener.try_accept().unwrap().unwrap();
        assert_eq!(server.peer_addr(), client.local_addr());
    }
    assert!(listener.try_accept().unwrap().is_none());
}

#[test]
fn wsd_024_what_tcp_refuses_listen_refuses() {
    let switch = switch();
    let taken = TcpListener::bind(loopback()).unwrap();
    let taken = taken.local_addr().unwrap();
    let error = switch.listen(taken, ListenOptions::default()).unwrap_err();
    assert!(error.to_string().contains(&taken.to_string()));
    assert_eq!(std::io::Error::from(error).kind(), ErrorKind::AddrInUse);
    let elsewhere = "192.0.2.1:0".parse().unwrap();
    let error = switch
        .listen(elsewhere, ListenOptions::default())
        .unwrap_err();
    assert_eq!(
        std::io::Error::from(error).kind(),
        ErrorKind::AddrNotAvailable
    );
}

#[test]
fn wsd_025_the_backlog_has_its_limits() {
    let switch = switch();
    assert_eq!(listen(&switch, 0).backlog(), 1);
    assert_eq!(listen(&switch, 4096).backlog(), 4096);
    let options = ListenOptions::default().backlog(4097);
    let error = switch.listen(loopback(), options).unwrap_err();
    assert!(matches!(error, ListenError::Backlog { backlog: 4097 }));
    let default = switch.listen(loopback(), ListenOptions::default()).unwrap();
    assert_eq!(default.backlog(), switch.config().backlog);
}

#[test]
fn an_address_can_be_listened_on_again_at_once() {
    let switch = switch();
    let listener = listen(&switch, 4);
    let address = listener.local_addr();
    let client = connect(&switch, address);
    let server = listener.accept_timeout(PATIENCE).unwrap();
    // The server closes first and keeps the port in TIME_WAIT.
    drop(server);
    assert_eq!(client.receive(&mut [0]).unwrap(), 0);
    drop(client);
    drop(listener);
    switch.listen(address, ListenOptions::default()).unwrap();
}

#[test]
fn an_accept_ends_by_time_by_token_and_by_close() {
    let switch = switch();
    let listener = Arc::new(listen(&switch, 4));
    let begin = Instant::now();
    let short = Duration::from_millis(30);
    let error = listener.accept_timeout(short).unwrap_err();
    assert!(matches!(error, AcceptError::TimedOut));
    assert!(begin.elapsed() >= short);

    let token = CancelToken::new().unwrap();
    let waiter = {
        let (listener, token) = (Arc::clone(&listener), token.clone());
        std::thread::spawn(move || listener.accept_cancellable(&token, Some(PATIENCE)))
    };
    std::thread::sleep(short);
    token.cancel();
    let error = waiter.join().unwrap().unwrap_err();
    assert!(matches!(error, AcceptError::Cancelled));

    let waiters: Vec<_> = (0..2)
        .map(|_| {
            let listener = Arc::clone(&listener);
            std::thread::spawn(move || listener.accept_timeout(PATIENCE))
        })
        .collect();
    std::thread::sleep(short);
    let address = listener.local_addr();
    listener.close();
    for waiter in waiters {
        assert!(matches!(waiter.join().unwrap(), Err(AcceptError::Closed)));
    }
    assert!(matches!(listener.try_accept(), Err(AcceptError::Closed)));
    // The descriptor is still there, but nobody listens any more.
    let error = TcpStream::connect(address).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn readiness_shows_what_accept_would_find() {
    use rustix::event::{PollFd, PollFlags, poll};
    let switch = switch();
    let listener = listen(&switch, 4);
    let readable = |milliseconds: u64| {
        let time = san_base::timespec(Duration::from_millis(milliseconds));
        let mut fds = [PollFd::from_borrowed_fd(
            listener.readiness(),
            PollFlags::IN,
        )];
        poll(&mut fds, Some(&time)).unwrap() == 1
    };
    assert!(!readable(0));
    let _client = connect(&switch, listener.local_addr());
    assert!(readable(10_000));
    let _server = listener.try_accept().unwrap().unwrap();
    assert!(!readable(0));
    listener.close();
    assert!(readable(0));
}

#[test]
fn wsd_028_a_tcp_client_that_the_condition_function_rejects_is_reset() {
    let switch = switch();
    let options = ListenOptions::default().condition(|request| {
        assert_eq!(request.side, Side::Tcp);
        if request.peer.ip().is_loopback() && request.local.port() != 0 {
            Decision::Reject
        } else {
            Decision::Accept
        }
    });
    let listener = switch.listen(loopback(), options).unwrap();
    let client = connect(&switch, listener.local_addr());
    let error = listener
        .accept_timeout(Duration::from_millis(200))
        .unwrap_err();
    assert!(matches!(error, AcceptError::TimedOut));
    let error = client.receive(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(listener.stats().refused_condition, 1);
}

#[test]
fn a_condition_function_that_panics_has_rejected() {
    let switch = switch();
    let options = ListenOptions::default().condition(|_| panic!("on purpose"));
    let listener = switch.listen(loopback(), options).unwrap();
    let client = connect(&switch, listener.local_addr());
    assert!(listener.try_accept().unwrap().is_none());
    assert!(client.receive(&mut [0]).is_err());
}

#[test]
fn a_refused_connect_has_tcps_error() {
    let switch = switch();
    let address = TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
    let error = switch
        .connect(address, &ConnectOptions::default())
        .unwrap_err();
    assert!(error.fallback().is_none());
    assert_eq!(
        std::io::Error::from(error).kind(),
        ErrorKind::ConnectionRefused
    );
}

#[test]
fn a_local_address_is_used_or_refused() {
    let switch = switch();
    let listener = listen(&switch, 4);
    let from = |local: &str| ConnectOptions::default().local(local.parse().unwrap());
    let client = switch
        .connect(listener.local_addr(), &from("127.0.0.9:0"))
        .unwrap();
    assert_eq!(client.local_addr().ip().to_string(), "127.0.0.9");
    let error = switch
        .connect(listener.local_addr(), &from("192.0.2.1:0"))
        .unwrap_err();
    assert!(matches!(error, ConnectError::Local { .. }), "{error}");
}

#[test]
fn wsd_023_a_connect_can_be_polled() {
    let switch = switch();
    let listener = listen(&switch, 4);
    let mut pending = switch
        .start_connect(listener.local_addr(), &ConnectOptions::default())
        .unwrap();
    let client = loop {
        if let Some(connection) = pending.poll().unwrap() {
            break connection;
        }
        assert!(pending.deadline().unwrap() > Instant::now());
        std::thread::yield_now();
    };
    assert_eq!(client.peer_addr(), listener.local_addr());
    assert!(matches!(
        pending.poll(),
        Err(ConnectError::Cancelled { .. })
    ));
}

/// Fills a listener's backlog, so that the next connect is not answered.
fn unanswering(switch: &Switch) -> (Listener, Vec<TcpStream>) {
    let listener = listen(switch, 1);
    let address = listener.local_addr();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        waiting.push(stream);
        assert!(waiting.len() < 20, "the backlog never fills");
    }
    (listener, waiting)
}

#[test]
fn a_connect_that_nobody_answers_ends_at_its_deadline() {
    let switch = switch();
    let (listener, _waiting) = unanswering(&switch);
    let options = ConnectOptions::default().timeout(Duration::from_millis(100));
    let begin = Instant::now();
    let error = switch.connect(listener.local_addr(), &options).unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error}");
    assert!(begin.elapsed() >= Duration::from_millis(100));
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(std::io::Error::from(error).kind(), ErrorKind::TimedOut);
}

#[test]
fn wsd_047_a_connect_can_be_called_off() {
    let switch = switch();
    let (listener, _waiting) = unanswering(&switch);
    let token = CancelToken::new().unwrap();
    let options = ConnectOptions::default().cancel(token.clone());
    std::thread::scope(|scope| {
        let connect = scope.spawn(|| switch.connect(listener.local_addr(), &options));
        std::thread::sleep(Duration::from_millis(50));
        token.cancel();
        let error = connect.join().unwrap().unwrap_err();
        assert!(matches!(error, ConnectError::Cancelled { .. }), "{error}");
    });
}

#[test]
fn waits_for_data_end() {
    let switch = switch();
    let listener = listen(&switch, 4);
    let client = connect(&switch, listener.local_addr());
    assert!(client.set_receive_timeout(Some(Duration::ZERO)).is_err());
    client
        .set_receive_timeout(Some(Duration::from_millis(30)))
        .unwrap();
    let error = client.receive(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

#[test]
fn wsd_051_a_switch_that_was_shut_down_does_nothing_more() {
    let switch = switch();
    let listener = listen(&switch, 4);
    let client = connect(&switch, listener.local_addr());
    let server = listener.accept_timeout(PATIENCE).unwrap();
    assert!(switch.shutdown());
    assert!(matches!(listener.try_accept(), Err(AcceptError::Closed)));
    assert!(matches!(
        switch.listen(loopback(), ListenOptions::default()),
        Err(ListenError::ShutDown)
    ));
    assert!(matches!(
        switch.connect(listener.local_addr(), &ConnectOptions::default()),
        Err(ConnectError::ShutDown)
    ));
    // TCP connections are the kernel's; they stay.
    (&client).write_all(b"z").unwrap();
    assert_eq!(server.receive(&mut [0]).unwrap(), 1);
    assert!(switch.shutdown());
}

#[test]
fn both_families_are_served() {
    let switch = switch();
    let any = switch
        .listen("[::]:0".parse().unwrap(), ListenOptions::default())
        .unwrap();
    let port = any.local_addr().port();
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        let client = connect(&switch, address.parse().unwrap());
        let server = any.accept_timeout(PATIENCE).unwrap();
        assert_eq!(server.peer_addr().port(), client.local_addr().port());
    }
    let only = switch
        .listen(
            "[::]:0".parse().unwrap(),
            ListenOptions::default().only_v6(true),
        )
        .unwrap();
    let v4 = SocketAddr::from(([127, 0, 0, 1], only.local_addr().port()));
    assert!(TcpStream::connect(v4).is_err());
}

#[test]
fn without_a_provider_there_is_no_thread() {
    let switch = switch();
    let _listener = listen(&switch, 4);
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    for thread in threads {
        let name = std::fs::read_to_string(thread.unwrap().path().join("comm"));
        assert_ne!(name.unwrap_or_default().trim(), "san-accept");
    }
    assert!(switch.san_addresses().is_empty());
    assert!(switch.no_san_reason().is_none());
}

#[test]
fn an_end_after_both_ends_is_no_error() {
    let switch = switch();
    let listener = listen(&switch, 4);
    for _ in 0..50 {
        let client = connect(&switch, listener.local_addr());
        let server = listener.accept_timeout(PATIENCE).unwrap();
        client.shutdown_write().unwrap();
        assert_eq!(server.receive(&mut [0; 8]).unwrap(), 0);
        server.finish(None).unwrap();
        assert_eq!(client.receive(&mut [0; 8]).unwrap(), 0);
        // The kernel says ENOTCONN here, once both ends are acknowledged.
        client.shutdown_write().unwrap();
        client.finish(None).unwrap();
    }
}
