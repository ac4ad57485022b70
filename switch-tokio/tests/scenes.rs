//! What holds of streams on either carrier: each test program runs these on its own.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use san_switch_tokio::{ConnectOptions, ListenOptions, Switch, TcpListener, TcpStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Where the two ends are.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) switch: Switch,
    /// Where it listens; the port is the system's.
    pub(crate) listens: SocketAddr,
    /// Where clients connect to, with the listener's port.
    pub(crate) reached: SocketAddr,
    pub(crate) options: ConnectOptions,
}

impl Setup {
    pub(crate) async fn listener(&self) -> TcpListener {
        let options = ListenOptions::default().backlog(64);
        let listener = TcpListener::bind_with(&self.switch, self.listens, options);
        listener.await.unwrap()
    }

    pub(crate) async fn client(&self, listener: &TcpListener) -> TcpStream {
        let mut to = self.reached;
        to.set_port(listener.local_addr().port());
        let client = TcpStream::connect_with(&self.switch, to, self.options.clone());
        client.await.unwrap()
    }

    pub(crate) async fn pair(&self) -> (TcpStream, TcpStream) {
        let listener = self.listener().await;
        let client = self.client(&listener).await;
        let (server, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, client.local_addr());
        (client, server)
    }
}

/// A runtime of one thread, and one of several.
pub(crate) fn runtimes() -> [Runtime; 2] {
    let several = || {
        Builder::new_multi_thread()
            .worker_threads(3)
            .enable_all()
            .build()
    };
    [alone(), several().unwrap()]
}

pub(crate) fn alone() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

pub(crate) fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at * 7 + at / 251 + seed) as u8)
        .collect()
}

/// Both ends send and receive at once, in tasks of their own.
pub(crate) async fn both_ways(client: TcpStream, server: TcpStream, length: usize) {
    let one_way = |seed: usize, end: TcpStream| async move {
        let (mut read, mut write) = end.into_split();
        let sent = pattern(length, seed);
        let sends = tokio::spawn(async move {
            for piece in sent.chunks(50_001) {
                write.write_all(piece).await.unwrap();
            }
            write.shutdown().await.unwrap();
            write
        });
        let mut got = Vec::new();
        read.read_to_end(&mut got).await.unwrap();
        let end = read.reunite(sends.await.unwrap()).unwrap();
        (got, end)
    };
    let (here, there) = tokio::join!(one_way(1, client), one_way(2, server));
    assert!(here.0 == pattern(length, 2), "{} bytes", here.0.len());
    assert!(there.0 == pattern(length, 1), "{} bytes", there.0.len());
}

/// Many streams at a time, each with many small messages to and fro.
pub(crate) async fn many(setup: &Setup, streams: usize, rounds: usize) {
    let listener = setup.listener().await;
    let clients = async {
        let mut clients = Vec::new();
        for number in 0..streams {
            let mut client = setup.client(&listener).await;
            clients.push(tokio::spawn(async move {
                for round in 0..rounds {
                    let sent = pattern(1 + round % 300, number + round);
                    client.write_all(&sent).await.unwrap();
                    let mut back = vec![0; sent.len()];
                    client.read_exact(&mut back).await.unwrap();
                    assert_eq!(back, sent);
                }
            }));
        }
        for client in clients {
            client.await.unwrap();
        }
    };
    let servers = async {
        let mut servers = Vec::new();
        for _ in 0..streams {
            let (mut server, _) = listener.accept().await.unwrap();
            servers.push(tokio::spawn(async move {
                let (mut read, mut write) = server.split();
                tokio::io::copy(&mut read, &mut write).await.unwrap()
            }));
        }
        for server in servers {
            assert!(server.await.unwrap() > 0);
        }
    };
    tokio::join!(clients, servers);
}

/// Who does not read stops who writes; the first read lets it go on.
pub(crate) async fn back_pressure(setup: &Setup) {
    let (mut client, mut server) = setup.pair().await;
    let piece = vec![7; 100_000];
    let mut written = 0;
    while let Ok(taken) = timeout(Duration::from_millis(300), client.write(&piece)).await {
        written += taken.unwrap();
        assert!(written < 100_000_000, "nothing stops a writer");
    }
    let reads = async {
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        got.len()
    };
    let writes = async {
        client.write_all(&piece).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let (got, ()) = timeout(PATIENCE, async { tokio::join!(reads, writes) })
        .await
        .unwrap();
    assert_eq!(got, written + piece.len());
}

/// A read that waits is woken by bytes, by the end and by a reset; one that is called off takes nothing.
pub(crate) async fn waits(setup: &Setup) {
    let (mut client, mut server) = setup.pair().await;
    let mut bytes = [0; 10];
    let nothing = timeout(Duration::from_millis(30), server.read(&mut bytes)).await;
    assert!(nothing.is_err());
    let waits = tokio::spawn(async move {
        let count = server.read(&mut bytes).await.unwrap();
        (server, bytes, count)
    });
    tokio::task::yield_now().await;
    client.write_all(b"there").await.unwrap();
    let (mut server, bytes, count) = timeout(PATIENCE, waits).await.unwrap().unwrap();
    assert_eq!(&bytes[..count], b"there");

    let mut peeked = [0; 2];
    client.write_all(b"again").await.unwrap();
    assert!(server.peek(&mut peeked).await.unwrap() > 0);
    let mut again = [0; 5];
    server.read_exact(&mut again).await.unwrap();
    assert_eq!(&again, b"again");

    let waits = tokio::spawn(async move {
        let end = server.read(&mut [0; 10]).await.unwrap();
        (server, end)
    });
    tokio::task::yield_now().await;
    client.shutdown().await.unwrap();
    let (mut server, end) = timeout(PATIENCE, waits).await.unwrap().unwrap();
    assert_eq!(end, 0);
    // The other direction is still open.
    server.write_all(b"and back").await.unwrap();
    let mut back = [0; 8];
    client.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"and back");

    let waits = tokio::spawn(async move { client.read(&mut [0; 10]).await });
    tokio::task::yield_now().await;
    server
        .connection()
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(server);
    let error = timeout(PATIENCE, waits)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// An accept that is called off has taken no connection.
pub(crate) async fn accepts(setup: &Setup) {
    let listener = setup.listener().await;
    let nobody = timeout(Duration::from_millis(30), listener.accept()).await;
    assert!(nobody.is_err());
    let once =
        std::future::poll_fn(|context| Poll::Ready(listener.poll_accept(context).is_pending()));
    assert!(once.await);
    let client = setup.client(&listener).await;
    let (server, peer) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    assert_eq!(
        (peer, server.local_addr()),
        (client.local_addr(), client.peer_addr())
    );
}

/// A stream belongs to a runtime; when that is gone its calls fail or work, and it can be dropped.
pub(crate) fn a_runtime_that_ends(setup: &Setup) {
    let runtime = alone();
    let (client, mut server) = runtime.block_on(setup.pair());
    drop(runtime);
    drop(client);
    let runtime = alone();
    let outcome = runtime.block_on(async { timeout(PATIENCE, server.read(&mut [0; 4])).await });
    if let Ok(Ok(count)) = outcome {
        assert_eq!(count, 0);
    }
    drop(server);
    // The next runtime has a driver of its own.
    runtime.block_on(waits(setup));
}

/// A server and a client of hyper, which knows nothing of this crate.
pub(crate) async fn http(setup: &Setup) {
    use http_body_util::{BodyExt, Full};
    use hyper::body::{Bytes, Incoming};
    use hyper::{Request, Response};
    use hyper_util::rt::TokioIo;

    let listener = setup.listener().await;
    let serves = async {
        let (stream, _) = listener.accept().await.unwrap();
        let answer = hyper::service::service_fn(|request: Request<Incoming>| async {
            let body = request.into_body().collect().await?.to_bytes();
            let turned: Vec<u8> = body.iter().rev().copied().collect();
            Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(turned))))
        });
        let connection = hyper::server::conn::http1::Builder::new();
        connection
            .serve_connection(TokioIo::new(stream), answer)
            .await
            .unwrap();
    };
    let asks = async {
        let stream = setup.client(&listener).await;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let runs = tokio::spawn(connection);
        for length in [0, 1, 4_000, 200_000] {
            let sent = pattern(length, length);
            let body = Full::new(Bytes::from(sent.clone()));
            let request = Request::post("/")
                .header("host", "there")
                .body(body)
                .unwrap();
            sender.ready().await.unwrap();
            let answer = sender.send_request(request).await.unwrap();
            let mut got = answer
                .into_body()
                .collect()
                .await
                .unwrap()
                .to_bytes()
                .to_vec();
            got.reverse();
            assert!(got == sent, "{length} bytes");
        }
        drop(sender);
        runs.await.unwrap().unwrap();
    };
    timeout(PATIENCE, async { tokio::join!(serves, asks) })
        .await
        .unwrap();
}
