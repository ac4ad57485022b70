//! The provider, used as a program without a switch uses it. Waiting threads do not spin first.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use san_benches::Result;
use san_benches::server::{Server, answer, commands, say_ready};
use san_benches::stats::Samples;
use san_provider::wire::{Features, Hello, HelloKind, Session};
use san_provider::{
    AddressFamily, ConnectFailure, ConnectOptions, Decision, EventObject, NetworkEvents, NoUpcalls,
    Notification, Operation, Protocol, Provider, ProviderConfig, ResultError, Socket, SocketType,
    SpiVersion,
};

use crate::pings::ping;
use crate::{FOR_EVER, PATIENCE};

/// Connections that a server keeps before it lets the oldest go.
pub(crate) const KEPT: usize = 8;

/// When nothing came for so long, a server lets all connections go.
pub(crate) const QUIET: Duration = Duration::from_millis(5);

/// Waiting for a message has no deadline, as in `ib_send_lat -e` and in a socket that has no
/// timeout: one would cost a timer each time. Whoever runs this program sets it a time.
pub(crate) const WITHOUT_END: Duration = Duration::MAX;

/// Sends whose results are not asked for yet.
const UNDER_WAY: usize = 8;

/// How a connect ended.
pub(crate) enum Answer {
    Connected,
    BacklogFull,
    NobodyListens,
    Failed(String),
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connected => write!(f, "it connected"),
            Self::BacklogFull => write!(f, "its backlog is full"),
            Self::NobodyListens => write!(f, "nobody listens there"),
            Self::Failed(why) => write!(f, "{why}"),
        }
    }
}

/// The configuration that all of these measurements use: on one processor a thread that spins only
/// keeps the other end from its work. `COMPARE_SEND_DEPTH` and `COMPARE_MAX_WINDOW` in the environment,
/// which both ends have, stand for other depths of the queues.
pub(crate) fn config() -> ProviderConfig {
    let default = ProviderConfig::default();
    let other = |name, usual| {
        let value = std::env::var(name).ok();
        value.map_or(usual, |value| value.parse().expect(name))
    };
    ProviderConfig {
        spin: Duration::ZERO,
        send_depth: other("COMPARE_SEND_DEPTH", default.send_depth),
        max_window: other("COMPARE_MAX_WINDOW", default.max_window),
        ..default
    }
}

/// The private data of a connect request that the provider takes.
pub(crate) fn hello() -> [u8; Hello::LENGTH] {
    let hello = Hello {
        features: Features::default(),
        credits: 2,
        max_message_size: 4096,
        max_rdma_size: 0,
        session: Session::NONE,
    };
    hello.emit(HelloKind::Request)
}

/// A provider, started.
pub(crate) fn started() -> Result<Provider> {
    let provider = Provider::new(config())?;
    provider.startup(SpiVersion::CURRENT, false, Arc::new(NoUpcalls))?;
    Ok(provider)
}

/// The connecting side.
pub(crate) struct Client {
    provider: Provider,
    event: EventObject,
}

/// A connect under way, or the connection it became.
pub(crate) struct Attempt {
    socket: Socket,
}

impl Client {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            provider: started()?,
            event: EventObject::new()?,
        })
    }

    /// Connects and waits for FD_CONNECT.
    pub(crate) fn connect(&self, to: SocketAddr) -> Result<Attempt> {
        let attempt = self.start(to)?;
        match self.finish(&attempt)? {
            Answer::Connected => Ok(attempt),
            other => Err(format!("{to}: {other}").into()),
        }
    }

    /// Connects, waits for FD_CONNECT, and closes.
    pub(crate) fn attempt(&self, to: SocketAddr) -> Result<Answer> {
        let attempt = self.start(to)?;
        self.finish(&attempt)
    }

    /// Starts to connect.
    pub(crate) fn start(&self, to: SocketAddr) -> Result<Attempt> {
        let family = AddressFamily::of(&to);
        let socket = self
            .provider
            .socket(family, SocketType::Stream, Protocol::Tcp)?;
        socket.event_select(&self.event, NetworkEvents::CONNECT)?;
        let options = ConnectOptions {
            deadline: Some(Duration::from_secs(600)),
            ..ConnectOptions::default()
        };
        match socket.connect(to, options) {
            Ok(()) => {}
            Err(error) if error.is_in_progress() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Attempt { socket })
    }

    fn finish(&self, attempt: &Attempt) -> Result<Answer> {
        if !self.event.wait(PATIENCE) {
            return Err("no FD_CONNECT".into());
        }
        let record = attempt.socket.enum_network_events(Some(&self.event))?;
        Ok(match record.connect.ok_or("an event without FD_CONNECT")? {
            Ok(()) => Answer::Connected,
            Err(error) => match error.failure() {
                ConnectFailure::BacklogFull { .. } => Answer::BacklogFull,
                ConnectFailure::NobodyListens { .. } => Answer::NobodyListens,
                _ => Answer::Failed(error.to_string()),
            },
        })
    }
}

impl Attempt {
    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // Closed already is as good.
        let _ = self.socket.close();
    }
}

/// Closes a connection.
// As a function to hand around.
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn close(connection: Attempt) -> Result<()> {
    drop(connection);
    Ok(())
}

/// A listening socket on a free port of `address`, its event, and the port.
pub(crate) fn listen(
    provider: &Provider,
    address: IpAddr,
    backlog: u32,
) -> Result<(Socket, EventObject, u16)> {
    let address = SocketAddr::new(address, 0);
    let family = AddressFamily::of(&address);
    let socket = provider.socket(family, SocketType::Stream, Protocol::Tcp)?;
    socket.bind(address)?;
    let event = EventObject::new()?;
    socket.event_select(&event, NetworkEvents::ACCEPT)?;
    socket.listen(backlog)?;
    let port = socket.local_addr()?.ok_or("no address after bind")?.port();
    Ok((socket, event, port))
}

/// A server that accepts everything; it lets a connection go when nothing came for a while, or when
/// it has too many.
pub(crate) fn server(address: IpAddr) -> Result<()> {
    let provider = started()?;
    let (socket, event, port) = listen(&provider, address, 64)?;
    std::thread::spawn(move || {
        let mut kept = VecDeque::new();
        loop {
            if !event.wait(if kept.is_empty() { FOR_EVER } else { QUIET }) {
                kept.drain(..).for_each(drop);
                continue;
            }
            while let Ok(accepted) = socket.accept(|_| Decision::Accept) {
                kept.push_back(Attempt {
                    socket: accepted.socket,
                });
            }
            while kept.len() > KEPT {
                kept.pop_front();
            }
        }
    });
    say_ready(&port.to_string())?;
    commands().for_each(drop);
    Ok(())
}

/// A server that listens and never accepts, unless told to: `accept` takes and keeps what is
/// queued, and says how many that were; `counters` gives the counters.
pub(crate) fn deaf_server(address: IpAddr, backlog: u32) -> Result<()> {
    let provider = started()?;
    let (socket, _event, port) = listen(&provider, address, backlog)?;
    say_ready(&port.to_string())?;
    let mut kept = Vec::new();
    for command in commands() {
        match command.as_str() {
            "accept" => {
                let before = kept.len();
                while let Ok(accepted) = socket.accept(|_| Decision::Accept) {
                    kept.push(Attempt {
                        socket: accepted.socket,
                    });
                }
                answer(&(kept.len() - before).to_string())?;
            }
            "close" => {
                kept.clear();
                answer("closed")?;
            }
            "holdings" => answer(&crate::held::holdings()?)?,
            "refused" => answer(&provider.counters().refused_backlog.to_string())?,
            other => return Err(format!("no command {other}").into()),
        }
    }
    Ok(())
}

/// How messages are transferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// `try_send` and `receive_within`: no operation stands for a message.
    Direct,
    /// `send` and `receive`, and the results asked for: those of sends in passing.
    Overlapped,
}

impl Style {
    fn of(number: u32) -> Self {
        match number {
            0 => Self::Direct,
            _ => Self::Overlapped,
        }
    }
}

/// Says where it listens, and accepts the only client.
pub(crate) fn accept_one(provider: &Provider, address: IpAddr) -> Result<Socket> {
    let (socket, event, port) = listen(provider, address, 1)?;
    say_ready(&port.to_string())?;
    if !event.wait(FOR_EVER) {
        return Err("nobody came".into());
    }
    Ok(socket.accept(|_| Decision::Accept)?.socket)
}

/// Ends this process when its client, who tells it nothing, does.
pub(crate) fn end_with_its_client() {
    std::thread::spawn(|| {
        commands().for_each(drop);
        std::process::exit(0);
    });
}

/// A server that sends back what it gets. `number`: 0 for the direct way, 1 for the other.
pub(crate) fn echo(address: IpAddr, number: u32) -> Result<()> {
    let provider = started()?;
    end_with_its_client();
    let accepted = accept_one(&provider, address)?;
    let mut pipe = Pipe::new(&accepted, Style::of(number));
    while let Ok(message) = pipe.receive() {
        pipe.send(&message)?;
    }
    Ok(())
}

/// Samples of half a round trip of messages.
pub(crate) fn round_trips(server: IpAddr, size: usize, style: Style) -> Result<Samples> {
    let number = u32::from(style == Style::Overlapped).to_string();
    let args = ["serve", "provider-echo", &server.to_string(), &number].map(String::from);
    let (_server, port) = Server::start(&args)?;
    let client = Client::new()?;
    let connection = client.connect(SocketAddr::new(server, port.parse()?))?;
    let mut pipe = Pipe::new(&connection.socket, style);
    let text = vec![b'x'; size];
    ping(|| {
        pipe.send(&text)?;
        match pipe.receive()?.len() {
            n if n == size => Ok(()),
            n => Err(format!("{n} bytes came").into()),
        }
    })
}

/// Messages both ways on one connection. The results of sends are collected in passing.
struct Pipe<'a> {
    socket: &'a Socket,
    style: Style,
    under_way: VecDeque<Operation>,
}

impl<'a> Pipe<'a> {
    fn new(socket: &'a Socket, style: Style) -> Self {
        Self {
            socket,
            style,
            under_way: VecDeque::with_capacity(UNDER_WAY + 1),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        if self.style == Style::Direct {
            return Ok(self.socket.try_send(bytes, 0)?);
        }
        let operation = self.socket.send(bytes, 0, Notification::Poll)?;
        self.under_way.push_back(operation);
        if self.under_way.len() > UNDER_WAY {
            self.collect()?;
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<()> {
        while let Some(&operation) = self.under_way.front() {
            let must = self.under_way.len() > UNDER_WAY;
            let wait = must.then_some(PATIENCE);
            match self.socket.get_overlapped_result(operation, wait) {
                Ok(result) => {
                    result.outcome?;
                    self.under_way.pop_front();
                }
                Err(ResultError::Incomplete) if !must => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<san_provider::Message> {
        if self.style == Style::Direct {
            return Ok(self.socket.receive_within(WITHOUT_END)?);
        }
        let operation = self.socket.receive(Notification::Poll)?;
        let result = self
            .socket
            .get_overlapped_result(operation, Some(WITHOUT_END))?;
        let message = result.outcome?.message;
        Ok(message.ok_or("a receive without a message")?)
    }
}
