//! Why a connection took TCP: each reason that the loopback can bring about, as `route()` and the report of the
//! switch, which `san stat` prints, tell it. `route/fallback_tests.rs` lists where the others are brought about.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use san_provider::ConnectFailure;
use san_switch::{
    ConnectOptions, Connection, FabricChoice, FallbackReason, ListenOptions, NotMoved, NotTried,
    Route, RouteChoice, Switch, SwitchConfig,
};
use san_tests::time::eventually;

const PATIENCE: Duration = Duration::from_secs(20);

/// An address of the loopback that nobody else uses.
fn own_address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let pid = std::process::id();
    let part = |by: u32| u8::try_from(pid / by % 250).unwrap();
    IpAddr::from([127, 200 + number % 50, part(250), 1 + part(1)])
}

fn config(fabric: FabricChoice) -> SwitchConfig {
    SwitchConfig::default()
        .fabric(fabric)
        .fabric_connect_timeout(Duration::from_millis(300))
        .connect_timeout(PATIENCE)
        .io_timeout(Some(PATIENCE))
}

/// On the soft fabric, with this address alone.
fn soft(address: IpAddr) -> SwitchConfig {
    config(FabricChoice::Soft).soft_addresses(vec![address])
}

/// A listener of TCP alone, and its address.
fn plain(at: IpAddr) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((at, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Why TCP carries it; its report says the same, with a remedy.
fn why(switch: &Switch, connection: &Connection) -> FallbackReason {
    let route = connection.route().clone();
    let Route::Tcp { why: Some(why) } = route else {
        panic!("{route}");
    };
    let report = switch.report();
    let told = report
        .connections
        .iter()
        .find(|one| one.local == connection.local_addr() && one.peer == connection.peer_addr())
        .expect("it is listed");
    let words = if why.is_fallback() {
        &told.why
    } else {
        &told.not_tried
    };
    assert_eq!(words.as_deref(), Some(why.to_string().as_str()));
    let remedy = why.remedy(connection.peer_addr());
    assert_eq!(told.remedy.as_deref(), Some(remedy.as_str()));
    why
}

fn not_tried(config: SwitchConfig, to: SocketAddr, options: &ConnectOptions) -> NotTried {
    let switch = Switch::new(config).unwrap();
    let connection = switch.connect(to, options).unwrap();
    match why(&switch, &connection) {
        FallbackReason::NotTried(why) => why,
        other => panic!("{other}"),
    }
}

#[test]
fn who_says_tcp_gets_tcp() {
    let own = own_address();
    let (_listener, to) = plain(own);
    let options = ConnectOptions::default();
    let by_route = not_tried(soft(own).route(RouteChoice::Off), to, &options);
    assert_eq!(by_route, NotTried::SaidTcp);
    let by_option = not_tried(soft(own), to, &options.clone().tcp_only(true));
    assert_eq!(by_option, NotTried::SaidTcp);
    let off = not_tried(config(FabricChoice::Off), to, &options);
    assert_eq!(off, NotTried::FabricOff);
}

#[test]
fn what_lies_outside_the_san_takes_tcp() {
    let own = own_address();
    let (_listener, to) = plain(own_address());
    let options = ConnectOptions::default();
    // The endpoint has one address, and is not asked for the loopback's others.
    assert_eq!(not_tried(soft(own), to, &options), NotTried::Loopback);
    let bound = ConnectOptions::default().local(SocketAddr::new([127, 0, 0, 1].into(), 0));
    let (_own, there) = plain(own);
    assert_eq!(
        not_tried(soft(own), there, &bound),
        NotTried::BoundElsewhere
    );
}

#[test]
fn without_an_address_there_is_no_san() {
    let own = own_address();
    let (_listener, to) = plain(own);
    // A switch whose provider is registered by nobody, as where no device was found.
    let switch = Switch::builder().config(soft(own)).build().unwrap();
    let connection = switch.connect(to, &ConnectOptions::default()).unwrap();
    let reason = why(&switch, &connection);
    assert!(
        matches!(reason, FallbackReason::NotTried(NotTried::NoSan)),
        "{reason}"
    );
}

#[test]
fn where_no_program_listens_tcp_is_taken() {
    let own = own_address();
    let (_listener, to) = plain(own);
    let switch = Switch::new(soft(own)).unwrap();
    let connection = switch.connect(to, &ConnectOptions::default()).unwrap();
    let FallbackReason::Connect(error) = why(&switch, &connection) else {
        panic!("{}", connection.route());
    };
    let failure = error.failure();
    assert_eq!(failure, ConnectFailure::NobodyListens { strict: false });
}

#[test]
fn silence_is_told_and_remembered() {
    let own: IpAddr = [127, 0, 0, 1].into();
    let there = own_address();
    let (_listener, to) = plain(there);
    // It has RoCE's port and never answers.
    let _silent = UdpSocket::bind((there, 4791)).unwrap();
    let switch = Switch::new(soft(own)).unwrap();
    let options = ConnectOptions::default().local(SocketAddr::new(own, 0));
    let first = switch.connect(to, &options).unwrap();
    let reason = why(&switch, &first);
    let FallbackReason::Connect(error) = &reason else {
        panic!("{reason}");
    };
    assert_eq!(error.failure(), ConnectFailure::TimedOut);
    let second = switch.connect(to, &options).unwrap();
    let reason = why(&switch, &second);
    assert!(matches!(reason, FallbackReason::Remembered(_)), "{reason}");
}

/// Connections begin on TCP, and may move soon.
fn moving(own: IpAddr) -> SwitchConfig {
    soft(own).route(RouteChoice::Upgrade).upgrade_bytes(4096)
}

/// Both ends of a connection that may move, of one switch.
fn moving_pair() -> (Switch, Connection, Connection) {
    let own = own_address();
    let switch = Switch::new(moving(own)).unwrap();
    let listener = switch
        .listen(SocketAddr::new(own, 0), ListenOptions::default())
        .unwrap();
    let options = ConnectOptions::default().local(SocketAddr::new(own, 0));
    let client = switch.connect(listener.local_addr(), &options).unwrap();
    let server = listener.accept_timeout(PATIENCE).unwrap();
    (switch, client, server)
}

fn reason_not_moved(switch: &Switch, connection: &Connection) -> NotMoved {
    match why(switch, connection) {
        FallbackReason::NotTried(NotTried::NotMoved(why)) => why,
        other => panic!("{other}"),
    }
}

/// What the route says. While that changes a report is made at another moment.
fn route_not_moved(connection: &Connection) -> Option<NotMoved> {
    match connection.route() {
        Route::Tcp {
            why: Some(FallbackReason::NotTried(NotTried::NotMoved(why))),
        } => Some(*why),
        _ => None,
    }
}

/// Sends bytes there and back, many turns.
fn talk(here: &Connection, there: &TcpStream) {
    use std::io::{Read, Write};
    let mut buffer = [0; 512];
    for _ in 0..32 {
        (&*here).write_all(&[1; 512]).unwrap();
        (&mut &*there).read_exact(&mut buffer).unwrap();
        (&mut &*there).write_all(&buffer).unwrap();
        (&*here).read_exact(&mut buffer).unwrap();
    }
}

#[test]
fn a_connection_that_has_not_moved_says_why() {
    let own = own_address();
    let (listener, to) = plain(own);
    let switch = Switch::new(moving(own)).unwrap();
    let options = ConnectOptions::default().local(SocketAddr::new(own, 0));
    let connection = switch.connect(to, &options).unwrap();
    let (there, _) = listener.accept().unwrap();
    assert_eq!(reason_not_moved(&switch, &connection), NotMoved::Short);
    // The peer knows nothing of the SAN.
    talk(&connection, &there);
    assert_eq!(reason_not_moved(&switch, &connection), NotMoved::Unanswered);
    connection.move_to_tcp(true);
    assert_eq!(reason_not_moved(&switch, &connection), NotMoved::NeedsTcp);

    let ended = switch.connect(to, &options).unwrap();
    let _there = listener.accept().unwrap();
    ended.shutdown_write().unwrap();
    assert_eq!(reason_not_moved(&switch, &ended), NotMoved::Ended);
}

#[test]
fn the_accepting_end_says_why_too() {
    let (own, silent): (IpAddr, _) = ([127, 0, 0, 1].into(), own_address());
    // It has RoCE's port and never answers, so a dial goes on for as long as the acceptor waits.
    let _silent = UdpSocket::bind((silent, 4791)).unwrap();
    let switch = Switch::new(moving(own)).unwrap();
    let listener = switch
        .listen(SocketAddr::new(own, 0), ListenOptions::default())
        .unwrap();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(silent, 0).into()).unwrap();
    socket.connect(&listener.local_addr().into()).unwrap();
    let there = TcpStream::from(socket);
    let accepted = listener.accept_timeout(PATIENCE).unwrap();
    assert_eq!(reason_not_moved(&switch, &accepted), NotMoved::Short);
    talk(&accepted, &there);
    assert_eq!(reason_not_moved(&switch, &accepted), NotMoved::UnderWay);
    let is_through = || route_not_moved(&accepted) != Some(NotMoved::UnderWay);
    eventually("the dial is given up", PATIENCE, is_through);
    assert_eq!(reason_not_moved(&switch, &accepted), NotMoved::Unanswered);
}

#[test]
fn a_connection_that_came_back_says_so() {
    let (switch, client, server) = moving_pair();
    exchange(&client, &server, Connection::is_san);
    assert!(server.is_san());
    client.move_to_tcp(false);
    exchange(&client, &server, |client| !client.is_san());
    assert_eq!(reason_not_moved(&switch, &client), NotMoved::CameBack);
}

/// Asks and answers until this holds.
fn exchange(client: &Connection, server: &Connection, is_done: impl Fn(&Connection) -> bool) {
    use std::io::{Read, Write};
    let begun = Instant::now();
    let mut buffer = [0; 256];
    while !is_done(client) {
        assert!(begun.elapsed() < PATIENCE, "{}", client.route());
        for (from, to) in [(client, server), (server, client)] {
            (&*from).write_all(&[7; 256]).unwrap();
            (&*to).read_exact(&mut buffer).unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_move_behind_bytes_that_nobody_reads_is_not_finished() {
    use std::io::{ErrorKind, Read, Write};
    let (_switch, client, server) = moving_pair();
    client.set_nonblocking(true).unwrap();
    let full = loop {
        match (&client).write(&[1; 65536]) {
            Ok(length) => assert!(length > 0),
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    // Enough that it moves, and far from all that TCP holds.
    (&server).read_exact(&mut [0; 16384]).unwrap();
    let is_through = |end: &Connection| route_not_moved(end) == Some(NotMoved::Unfinished);
    eventually("the acceptor gives the move up", PATIENCE, || {
        is_through(&server)
    });
    eventually("the connector gives the move up", PATIENCE, || {
        is_through(&client)
    });
}
