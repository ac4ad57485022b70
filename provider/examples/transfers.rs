//! Messages in every way they can be had, over real connections between `SAN_TEST_ADDR_A` and
//! `SAN_TEST_ADDR_B`: `transfers [MESSAGES [PART]]`, by default 2,000 in each part.
//!
//! Every byte is checked. Exits with a failure if one is wrong, or if something takes too long.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use san_provider::{
    AddressFamily, ConnectOptions, Decision, EventObject, NetworkEvents, Notification,
    OverlappedResult, Protocol, Provider, ProviderConfig, Readiness, Socket, SocketType,
    SpiVersion, SwitchHandle, SwitchUpcalls, TransferError, WsaCode,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(io::stderr)
        .init();
    let messages = std::env::args().nth(1).map_or(Ok(2000), |n| n.parse())?;
    let upcalls = Arc::new(Upcalls::default());
    let provider = Provider::new(ProviderConfig::default())?;
    provider.startup(SpiVersion::CURRENT, false, upcalls.clone())?;
    let pairs = Pairs::new(&provider)?;

    run("ping-pong", || ping_pong(&pairs.connect()?, messages))?;
    run("one way", || one_way(&pairs.connect()?, messages))?;
    run("both ways at once", || {
        both_ways(&pairs.connect()?, messages)
    })?;
    run("slow receiver", || {
        slow_receiver(&pairs.connect()?, messages.min(400))
    })?;
    run("many threads", || many_threads(&pairs, 6, messages / 4))?;
    run("by upcall", || {
        by_upcall(&pairs.connect()?, &upcalls, messages)
    })?;
    run("by ready event", || {
        by_ready_event(&pairs.connect()?, messages)
    })?;
    run("sent before the peer confirmed", || early_send(&pairs))?;
    run("close with pending operations", || close_pending(&pairs))?;
    run("peer closes", || peer_closes(&pairs))?;
    run("bad calls", || bad_calls(&pairs.connect()?))?;

    for (name, value) in provider.counters().rows().filter(|(_, value)| *value > 0) {
        println!("  {name} {value}");
    }
    drop(pairs);
    provider.cleanup()?;
    println!("left: {:?}", verbs_shim::live_objects());
    assert_eq!(
        verbs_shim::live_objects(),
        verbs_shim::LiveObjects::default()
    );
    Ok(())
}

fn run(name: &str, part: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    if std::env::args()
        .nth(2)
        .is_some_and(|only| !name.contains(&only))
    {
        return Ok(());
    }
    let start = Instant::now();
    part().map_err(|error| format!("{name}: {error}"))?;
    println!("{name}: fine, {:?}", start.elapsed());
    Ok(())
}

type Pair = (Socket, Socket);

struct Pairs {
    provider: Provider,
    listener: Socket,
    requests: EventObject,
    addr: SocketAddr,
}

impl Pairs {
    fn new(provider: &Provider) -> Result<Self, Failure> {
        let ip: IpAddr = std::env::var("SAN_TEST_ADDR_B")?.parse()?;
        let listener = socket(provider, ip)?;
        listener.bind(SocketAddr::new(ip, 0))?;
        listener.listen(16)?;
        let requests = EventObject::new()?;
        listener.event_select(&requests, NetworkEvents::ACCEPT)?;
        let addr = listener.local_addr()?.ok_or("no address")?;
        Ok(Self {
            provider: provider.clone(),
            listener,
            requests,
            addr,
        })
    }

    fn start(&self) -> Result<(Socket, EventObject), Failure> {
        let client = socket(&self.provider, self.addr.ip())?;
        let event = EventObject::new()?;
        client.event_select(&event, NetworkEvents::CONNECT)?;
        match client.connect(
            self.addr,
            ConnectOptions {
                deadline: Some(PATIENCE),
                ..ConnectOptions::default()
            },
        ) {
            Err(error) if error.is_in_progress() => Ok((client, event)),
            other => Err(format!("connect: {other:?}").into()),
        }
    }

    fn accept(&self) -> Result<Socket, Failure> {
        if !self.requests.wait(PATIENCE) {
            return Err("no request came".into());
        }
        Ok(self.listener.accept(|_| Decision::Accept)?.socket)
    }

    fn connect(&self) -> Result<Pair, Failure> {
        let (client, event) = self.start()?;
        let server = self.accept()?;
        finish(&client, &event)?;
        Ok((client, server))
    }
}

fn finish(client: &Socket, event: &EventObject) -> Result<(), Failure> {
    if !event.wait(PATIENCE) {
        return Err("the connect did not end".into());
    }
    Ok(client
        .enum_network_events(Some(event))?
        .connect
        .ok_or("no result")??)
}

fn socket(provider: &Provider, ip: IpAddr) -> Result<Socket, Failure> {
    let family = AddressFamily::of(&SocketAddr::new(ip, 0));
    Ok(provider.socket(family, SocketType::Stream, Protocol::Tcp)?)
}

/// The bytes of message `n`: of any length, and unlike its neighbours.
fn text(n: usize) -> Vec<u8> {
    let sizes = [0, 1, 63, 64, 65, 300, 1024, 4000, 4096];
    let size = sizes[n % sizes.len()];
    (0..size)
        .map(|at| (n.wrapping_mul(31).wrapping_add(at) & 0xff) as u8)
        .collect()
}

fn kind(n: usize) -> u8 {
    (n % 251) as u8
}

/// Sends message `n`, waiting for earlier ones where as many as allowed are under way.
fn send(
    socket: &Socket,
    pending: &mut VecDeque<san_provider::Operation>,
    n: usize,
) -> Result<(), Failure> {
    loop {
        match socket.send(&text(n), kind(n), Notification::Poll) {
            Ok(operation) => {
                pending.push_back(operation);
                return Ok(());
            }
            Err(TransferError::WouldBlock) => drain(socket, pending, 1)?,
            Err(error) => return Err(error.into()),
        }
    }
}

fn drain(
    socket: &Socket,
    pending: &mut VecDeque<san_provider::Operation>,
    count: usize,
) -> Result<(), Failure> {
    for _ in 0..count {
        if let Some(operation) = pending.pop_front() {
            socket
                .get_overlapped_result(operation, Some(PATIENCE))?
                .outcome?;
        }
    }
    Ok(())
}

fn receive(socket: &Socket, n: usize) -> Result<(), Failure> {
    let operation = socket.receive(Notification::Poll)?;
    let result = socket.get_overlapped_result(operation, Some(PATIENCE))?;
    check(result, n)
}

fn check(result: OverlappedResult, n: usize) -> Result<(), Failure> {
    let received = result.outcome?;
    let message = received.message.ok_or("no message")?;
    if message[..] != text(n)[..] || message.kind() != kind(n) || received.bytes != message.len() {
        return Err(format!("message {n} is not what was sent: {} bytes", message.len()).into());
    }
    Ok(())
}

fn ping_pong((client, server): &Pair, messages: usize) -> Result<(), Failure> {
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| -> Result<(), Failure> {
            let mut pending = VecDeque::new();
            for n in 0..messages {
                receive(server, n)?;
                send(server, &mut pending, n)?;
            }
            drain(server, &mut pending, messages)
        });
        let mut pending = VecDeque::new();
        for n in 0..messages {
            send(client, &mut pending, n)?;
            receive(client, n)?;
        }
        drain(client, &mut pending, messages)?;
        echo.join().map_err(|_| "panicked")?
    })
}

fn one_way((client, server): &Pair, messages: usize) -> Result<(), Failure> {
    std::thread::scope(|scope| {
        let sink = scope.spawn(|| -> Result<(), Failure> {
            (0..messages).try_for_each(|n| receive(server, n))
        });
        let mut pending = VecDeque::new();
        for n in 0..messages {
            send(client, &mut pending, n)?;
        }
        drain(client, &mut pending, messages)?;
        sink.join().map_err(|_| "panicked")?
    })
}

fn both_ways((client, server): &Pair, messages: usize) -> Result<(), Failure> {
    let side = |socket: &Socket| -> Result<(), Failure> {
        let mut pending = VecDeque::new();
        let mut receives = VecDeque::new();
        for n in 0..messages {
            receives.push_back((socket.receive(Notification::Poll)?, n));
            send(socket, &mut pending, n)?;
            if receives.len() > 20 {
                let (operation, n) = receives.pop_front().ok_or("none")?;
                check(socket.get_overlapped_result(operation, Some(PATIENCE))?, n)?;
            }
        }
        for (operation, n) in receives {
            check(socket.get_overlapped_result(operation, Some(PATIENCE))?, n)?;
        }
        drain(socket, &mut pending, messages)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| side(server));
        side(client)?;
        other.join().map_err(|_| "panicked")?
    })
}

/// Holds messages for a while: its peer has to wait, and nothing may get lost or stuck.
fn slow_receiver((client, server): &Pair, messages: usize) -> Result<(), Failure> {
    std::thread::scope(|scope| {
        let sink = scope.spawn(|| -> Result<(), Failure> {
            let mut held = VecDeque::new();
            for n in 0..messages {
                let operation = server.receive(Notification::Poll)?;
                let result = server
                    .get_overlapped_result(operation, Some(PATIENCE))?
                    .outcome?;
                let bytes = result.message.ok_or("no message")?.into_bytes();
                held.push_back((n, bytes));
                // One less than the first window could ever be.
                while held.len() > 1 {
                    let (n, bytes) = held.pop_front().ok_or("none")?;
                    if bytes[..] != text(n)[..] {
                        return Err(format!("message {n} changed while it was held").into());
                    }
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            Ok(())
        });
        let mut pending = VecDeque::new();
        for n in 0..messages {
            send(client, &mut pending, n)?;
        }
        drain(client, &mut pending, messages)?;
        sink.join().map_err(|_| "panicked")?
    })
}

fn many_threads(pairs: &Pairs, count: usize, messages: usize) -> Result<(), Failure> {
    let pairs: Vec<Pair> = (0..count)
        .map(|_| pairs.connect())
        .collect::<Result<_, _>>()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = pairs
            .iter()
            .map(|pair| scope.spawn(move || ping_pong(pair, messages)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "panicked")?)
    })
}

#[derive(Default)]
struct Upcalls {
    next: AtomicU64,
    sends: AtomicUsize,
    receives: AtomicUsize,
    wrong: AtomicUsize,
    aborted: AtomicUsize,
    server: OnceLock<Mutex<Socket>>,
    closed: Mutex<Vec<SwitchHandle>>,
}

impl SwitchUpcalls for Upcalls {
    fn create_socket_handle(&self, _: u64) -> io::Result<SwitchHandle> {
        Ok(SwitchHandle(self.next.fetch_add(1, Ordering::SeqCst)))
    }

    fn complete_overlapped(&self, _: SwitchHandle, result: OverlappedResult) {
        match result.outcome {
            Ok(transferred) => match transferred.message {
                Some(message) => {
                    let n = self.receives.fetch_add(1, Ordering::SeqCst);
                    if message[..] != text(n)[..] {
                        self.wrong.fetch_add(1, Ordering::SeqCst);
                    }
                    // The next receive is started from within the upcall.
                    if let Some(server) = self.server.get() {
                        let server = server.lock().map(|s| s.clone());
                        if let Ok(server) = server {
                            let _ = server.receive(Notification::Upcall);
                        }
                    }
                }
                None => {
                    self.sends.fetch_add(1, Ordering::SeqCst);
                }
            },
            Err(_) => {
                self.aborted.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    fn close_socket_handle(&self, handle: SwitchHandle) {
        if let Ok(mut closed) = self.closed.lock() {
            closed.push(handle);
        }
    }
}

fn by_upcall((client, server): &Pair, upcalls: &Upcalls, messages: usize) -> Result<(), Failure> {
    let _ = upcalls.server.set(Mutex::new(server.clone()));
    for _ in 0..4 {
        server.receive(Notification::Upcall)?;
    }
    for n in 0..messages {
        let start = Instant::now();
        loop {
            match client.send(&text(n), kind(n), Notification::Upcall) {
                Ok(_) => break,
                Err(TransferError::WouldBlock) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_micros(100));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    wait_until("all upcalls", || {
        upcalls.receives.load(Ordering::SeqCst) == messages
            && upcalls.sends.load(Ordering::SeqCst) == messages
    })?;
    assert_eq!(upcalls.wrong.load(Ordering::SeqCst), 0);
    let handle = server.handle().ok_or("no handle")?;
    let pending = upcalls.aborted.load(Ordering::SeqCst);
    server.close()?;
    wait_until("the last upcall", || {
        upcalls.closed.lock().is_ok_and(|c| c.contains(&handle))
    })?;
    assert_eq!(
        upcalls.aborted.load(Ordering::SeqCst) - pending,
        4,
        "aborted before the handle closed"
    );
    Ok(())
}

fn by_ready_event((client, server): &Pair, messages: usize) -> Result<(), Failure> {
    let readable = EventObject::new()?;
    server.select_ready(Readiness::Readable, Some(&readable))?;
    assert!(!readable.is_set());
    let writable = EventObject::new()?;
    client.select_ready(Readiness::Writable, Some(&writable))?;
    assert!(writable.is_set());
    std::thread::scope(|scope| {
        let sink = scope.spawn(|| -> Result<(), Failure> {
            let mut n = 0;
            while n < messages {
                if !readable.wait(PATIENCE) {
                    return Err(format!("not readable after message {n}").into());
                }
                match server.try_receive() {
                    Ok(message) if message[..] == text(n)[..] => n += 1,
                    Ok(message) => {
                        return Err(format!("message {n}: {} bytes", message.len()).into());
                    }
                    Err(TransferError::WouldBlock) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        });
        let mut pending = VecDeque::new();
        for n in 0..messages {
            if !writable.wait(PATIENCE) {
                return Err(format!("not writable before message {n}").into());
            }
            send(client, &mut pending, n)?;
            while pending.len() > 8 {
                let operation = *pending.front().ok_or("none")?;
                match client.get_overlapped_result(operation, None) {
                    Ok(result) => {
                        result.outcome?;
                        pending.pop_front();
                    }
                    Err(_) => break,
                }
            }
        }
        drain(client, &mut pending, messages)?;
        sink.join().map_err(|_| "panicked")??;
        assert!(!readable.is_set());
        client.close()?;
        if !readable.wait(PATIENCE) {
            return Err("the end of the connection was not signalled".into());
        }
        let end = server.try_receive().map(|_| ()).unwrap_err();
        assert_eq!(end.code(), WsaCode::ConnReset);
        Ok(())
    })
}

fn early_send(pairs: &Pairs) -> Result<(), Failure> {
    for _ in 0..20 {
        let (client, event) = pairs.start()?;
        let server = pairs.accept()?;
        let mut pending = VecDeque::new();
        for n in 0..10 {
            send(&server, &mut pending, n)?;
        }
        finish(&client, &event)?;
        for n in 0..10 {
            receive(&client, n)?;
        }
        drain(&server, &mut pending, 10)?;
    }
    Ok(())
}

fn close_pending(pairs: &Pairs) -> Result<(), Failure> {
    let (client, _server) = pairs.connect()?;
    let receive = client.receive(Notification::Poll)?;
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| client.get_overlapped_result(receive, Some(PATIENCE)));
        std::thread::sleep(Duration::from_millis(50));
        let start = Instant::now();
        client.close()?;
        let took = start.elapsed();
        let result = waiter.join().map_err(|_| "panicked")??;
        assert_eq!(
            result.outcome.unwrap_err().code(),
            WsaCode::OperationAborted
        );
        assert!(took < Duration::from_secs(2), "close took {took:?}");
        assert_eq!(
            client.send(b"x", 0, Notification::Poll).unwrap_err().code(),
            WsaCode::NotSocket
        );
        Ok(())
    })
}

fn peer_closes(pairs: &Pairs) -> Result<(), Failure> {
    let (client, server) = pairs.connect()?;
    let mut pending = VecDeque::new();
    // Credits of the first window only: these arrive without the receiver doing anything.
    for n in 0..2 {
        send(&server, &mut pending, n)?;
    }
    drain(&server, &mut pending, 2)?;
    server.close()?;
    receive(&client, 0)?;
    receive(&client, 1)?;
    // The news of the end may come before the call or after it.
    let end = match client.receive(Notification::Poll) {
        Ok(third) => client
            .get_overlapped_result(third, Some(PATIENCE))?
            .outcome
            .unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(end.code(), WsaCode::ConnReset);
    assert_eq!(
        client.receive(Notification::Poll).unwrap_err().code(),
        WsaCode::ConnReset
    );
    assert_eq!(
        client.send(b"x", 0, Notification::Poll).unwrap_err().code(),
        WsaCode::ConnReset
    );
    Ok(())
}

fn bad_calls((client, _server): &Pair) -> Result<(), Failure> {
    let too_long = client.send(&[0; 4097], 0, Notification::Poll).unwrap_err();
    assert_eq!(too_long.code(), WsaCode::MessageSize);
    let receive = client.receive(Notification::Poll)?;
    let early = client.get_overlapped_result(receive, None).unwrap_err();
    assert_eq!(early.code(), WsaCode::IoIncomplete);
    let start = Instant::now();
    let waited = client.get_overlapped_result(receive, Some(Duration::from_millis(30)));
    assert_eq!(waited.unwrap_err().code(), WsaCode::IoIncomplete);
    assert!(start.elapsed() >= Duration::from_millis(30));
    let mut started = 1;
    let full = loop {
        match client.receive(Notification::Poll) {
            Ok(_) => started += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((full.code(), started), (WsaCode::WouldBlock, 64));
    Ok(())
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) -> Result<(), Failure> {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > PATIENCE {
            return Err(format!("{what} did not come").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
