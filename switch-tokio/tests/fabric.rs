//! Streams over the SAN in runtimes of tokio's. They need two RDMA devices: `ci/rxe`, `ci/soft`.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use san_switch::{RouteChoice, SwitchConfig};
use san_switch_tokio::{ConnectOptions, ListenOptions, Switch, TcpListener, TcpStream};
use san_tests::net::{addr_a, addr_b, is_soft, switch_config};
use san_tests::time::{bounded, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

mod scenes;

use scenes::{PATIENCE, Setup, alone, runtimes};

fn setup_of(config: SwitchConfig) -> Setup {
    let config = config.connect_timeout(PATIENCE).io_timeout(Some(PATIENCE));
    Setup {
        switch: Switch::new(config).expect("the fabric under test"),
        listens: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        reached: SocketAddr::new(addr_b(), 0),
        options: ConnectOptions::default().local(SocketAddr::new(addr_a(), 0)),
    }
}

fn setup() -> Setup {
    setup_of(switch_config())
}

/// The emulated machine does a part of it.
fn part(of: usize) -> usize {
    if is_soft() { of } else { of.div_ceil(5) }
}

async fn san_pair(setup: &Setup) -> (TcpStream, TcpStream) {
    let (client, server) = setup.pair().await;
    assert!(client.connection().is_san(), "{}", client.route());
    assert!(server.connection().is_san(), "{}", server.route());
    (client, server)
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn streams_go_both_ways_at_once() {
    bounded(|| {
        let setup = setup();
        for runtime in runtimes() {
            runtime.block_on(async {
                let (client, server) = san_pair(&setup).await;
                scenes::both_ways(client, server, part(3_000_000)).await;
            });
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn many_streams_share_a_driver() {
    within(Duration::from_secs(120), || {
        let setup = setup();
        for runtime in runtimes() {
            runtime.block_on(scenes::many(&setup, part(40), part(50)));
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn who_waits_is_woken() {
    bounded(|| {
        let setup = setup();
        for runtime in runtimes() {
            runtime.block_on(async {
                scenes::waits(&setup).await;
                scenes::back_pressure(&setup).await;
                scenes::accepts(&setup).await;
            });
        }
        scenes::a_runtime_that_ends(&setup);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn hyper_runs_unchanged() {
    bounded(|| {
        let setup = setup();
        for runtime in runtimes() {
            runtime.block_on(scenes::http(&setup));
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn two_runtimes_share_a_lane() {
    bounded(|| {
        let setup = setup();
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let setup = setup.clone();
                std::thread::spawn(move || alone().block_on(scenes::many(&setup, 4, part(200))))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_full_backlog_refuses() {
    bounded(|| {
        let setup = setup();
        alone().block_on(async {
            let options = ListenOptions::default().backlog(1);
            let listener = TcpListener::bind_with(&setup.switch, setup.listens, options);
            let listener = listener.await.unwrap();
            let _waits = setup.client(&listener).await;
            let to = SocketAddr::new(addr_b(), listener.local_addr().port());
            let refused = TcpStream::connect_with(&setup.switch, to, setup.options.clone());
            let error = refused.await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        });
    });
}

/// Descriptors in the epoll sets of this process.
fn watched() -> usize {
    let lines = |info: PathBuf| {
        let text = std::fs::read_to_string(info).unwrap_or_default();
        text.lines().filter(|line| line.starts_with("tfd:")).count()
    };
    let all = std::fs::read_dir("/proc/self/fdinfo").unwrap();
    all.map(|one| lines(one.unwrap().path())).sum()
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn the_reactor_watches_lanes_and_no_streams() {
    bounded(|| {
        let setup = setup();
        alone().block_on(async {
            let listener = setup.listener().await;
            let mut streams = Vec::new();
            let mut counts = Vec::new();
            for _ in 0..part(20) + 1 {
                streams.push(setup.client(&listener).await);
                streams.push(listener.accept().await.unwrap().0);
                counts.push(watched());
            }
            let least = counts.iter().min().unwrap();
            assert_eq!(counts.last().unwrap(), least, "{counts:?}");
        });
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn what_is_under_way_at_a_drop_still_arrives() {
    bounded(|| {
        let setup = setup();
        alone().block_on(async {
            for _ in 0..5 {
                let (mut client, mut server) = san_pair(&setup).await;
                // More than the peer has receives for.
                let piece = vec![3; 100_000];
                let sent = client.write(&piece).await.unwrap();
                drop(client);
                let mut got = Vec::new();
                server.read_to_end(&mut got).await.unwrap();
                assert_eq!(got.len(), sent, "what was sent still arrives");
            }
        });
    });
}

/// Where streams begin on TCP and move.
fn moving_place() -> Setup {
    let config = switch_config().route(RouteChoice::Upgrade);
    setup_of(config.upgrade_bytes(4096))
}

/// What stands at a place of a stream.
fn byte(at: usize) -> u8 {
    (at * 7 + at / 251) as u8
}

/// Writes, in a task of its own, until `is_over`, and has the stream come back to TCP now and then; reads all
/// that comes. How much of each.
async fn one_end(end: TcpStream, is_over: impl Fn() -> bool + Send + 'static) -> [usize; 2] {
    let (mut read, mut write) = end.into_split();
    let writes = tokio::spawn(async move {
        let mut at = 0;
        for round in 0.. {
            let piece: Vec<u8> = (at..at + 1 + round * 977 % 20_000).map(byte).collect();
            write.write_all(&piece).await.unwrap();
            at += piece.len();
            let connection = write.stream().connection();
            if connection.is_san() && round % 16 == 0 {
                connection.move_to_tcp(false);
            }
            if is_over() {
                break;
            }
        }
        write.shutdown().await.unwrap();
        at
    });
    let (mut at, mut buffer) = (0, vec![0; 30_000]);
    loop {
        let came = tokio::time::timeout(PATIENCE, read.read(&mut buffer)).await;
        match came.expect("bytes or the end").unwrap() {
            0 => break,
            n => {
                let right = |(at, got): (usize, &u8)| *got == byte(at);
                assert!((at..).zip(&buffer[..n]).all(right), "after {at} bytes");
                at += n;
            }
        }
    }
    [writes.await.unwrap(), at]
}

/// The halves are in tasks of their own, both ends are busy, and the stream comes back again and again.
#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn the_halves_of_a_stream_that_moves_lose_nothing() {
    within(Duration::from_secs(120), || {
        for runtime in runtimes() {
            runtime.block_on(async {
                let (mut downs, begun) = (0, Instant::now());
                // Each end counts.
                let enough = 2 * part(4) as u64;
                while downs < enough {
                    assert!(begun.elapsed() < Duration::from_secs(50), "{downs} moves");
                    // A dial may come too late. Then the stream stays on TCP, and for a while the switch
                    // dials nobody there.
                    let setup = moving_place();
                    let (client, server) = setup.pair().await;
                    assert!(client.connection().may_move());
                    let until =
                        Instant::now() + Duration::from_secs(if is_soft() { 8 } else { 20 });
                    let switch = setup.switch.clone();
                    let is_over =
                        move || switch.stats().streams_down >= enough || Instant::now() > until;
                    let here = one_end(client, is_over.clone());
                    let (here, there) = tokio::join!(here, one_end(server, is_over));
                    assert_eq!([here[0], there[0]], [there[1], here[1]]);
                    downs += setup.switch.stats().streams_down;
                }
            });
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn hyper_runs_unchanged_on_streams_that_move() {
    within(Duration::from_secs(120), || {
        for runtime in runtimes() {
            let moves = |_| {
                let setup = moving_place();
                runtime.block_on(scenes::http(&setup));
                setup.switch.stats().streams_up == 2
            };
            // A dial may come too late for so few requests.
            assert!((0..50).any(moves), "none has moved");
        }
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_stream_that_moves_is_read_and_written_all_along() {
    within(Duration::from_secs(120), || {
        let setup = moving_place();
        alone().block_on(async {
            let (mut client, mut server) = setup.pair().await;
            assert!(!client.connection().is_san());
            let echoes = tokio::spawn(async move {
                let (mut read, mut write) = server.split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
            });
            let (mut ups, mut rounds) = (0, 0_usize);
            let begun = Instant::now();
            while ups < 3 {
                assert!(begun.elapsed() < Duration::from_secs(60), "{ups} moves");
                let sent = scenes::pattern(1 + (rounds * 97) % 9000, rounds);
                client.write_all(&sent).await.unwrap();
                let mut back = vec![0; sent.len()];
                let read = tokio::time::timeout(PATIENCE, client.read_exact(&mut back));
                read.await.expect("an answer").unwrap();
                assert!(back == sent, "round {rounds}");
                rounds += 1;
                if client.connection().is_san() && rounds.is_multiple_of(50) {
                    ups += 1;
                    client.connection().move_to_tcp(false);
                }
            }
            client.shutdown().await.unwrap();
            assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
            echoes.await.unwrap();
        });
    });
}
