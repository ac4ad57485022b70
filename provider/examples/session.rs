//! A listener and its clients in one process, on two addresses of RDMA devices:
//! `session [LISTEN_ADDR [CLIENT_COUNT [BACKLOG]]]`, by default `SAN_TEST_ADDR_B`, 10 clients and a
//! backlog of 4.
//!
//! Prints who was queued and who was refused, rejects one by condition function, and has an echo
//! over each accepted connection.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use san_provider::{
    AddressFamily, ConnectError, ConnectOptions, Decision, EventObject, NetworkEvents, NoUpcalls,
    Notification, Protocol, Provider, ProviderConfig, Rejection, Socket, SocketType, SpiVersion,
};

type Failure = Box<dyn std::error::Error>;

const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let mut args = std::env::args().skip(1);
    let ip: IpAddr = match args.next() {
        Some(ip) => ip.parse()?,
        None => std::env::var("SAN_TEST_ADDR_B")?.parse()?,
    };
    let clients: usize = args.next().map_or(Ok(10), |n| n.parse())?;
    let backlog: u32 = args.next().map_or(Ok(4), |n| n.parse())?;

    let provider = Provider::new(ProviderConfig::default())?;
    let data = provider.startup(SpiVersion::CURRENT, false, Arc::new(NoUpcalls))?;
    println!("{}, SPI {}", data.description, data.version);
    for address in provider.address_list()? {
        println!(
            "  {}/{} on {}",
            address.ip, address.prefix_len, address.device
        );
    }

    let listener = socket(&provider, ip)?;
    listener.bind(SocketAddr::new(ip, 0))?;
    listener.listen(backlog)?;
    let requests = EventObject::new()?;
    listener.event_select(&requests, NetworkEvents::ACCEPT)?;
    let addr = listener.local_addr()?.ok_or("no local address")?;
    println!("listening on {addr}, backlog {backlog}");

    let mut connecting = Vec::new();
    for number in 0..clients {
        connecting.push(Client::start(&provider, addr, number)?);
    }
    // Nobody accepts yet: those past the backlog get their answer now.
    let clients_seen = || provider.counters().requests >= clients as u64;
    let start = Instant::now();
    while !clients_seen() && start.elapsed() < PATIENCE {
        for client in &mut connecting {
            client.look()?;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let counters = provider.counters();
    println!(
        "queued {}, refused {}, event set: {}",
        counters.queued,
        counters.refused_backlog,
        requests.is_set()
    );

    let mut accepted = Vec::new();
    while requests.wait(Duration::from_millis(200)) {
        let record = listener.enum_network_events(Some(&requests))?;
        println!("FD_ACCEPT: {}", record.accept);
        let first = accepted.is_empty() && backlog > 1;
        let result = listener.accept(|request| {
            println!("  request from {:?}", request.peer);
            match first && provider.counters().refused_condition == 0 {
                true => Decision::Reject(Rejection::Unwanted),
                false => Decision::Accept,
            }
        });
        match result {
            Ok(connection) => accepted.push(connection.socket),
            Err(error) => println!("  accept: {error}"),
        }
    }
    let mut connected = Vec::new();
    for mut client in connecting {
        client.wait()?;
        if client.result.as_ref().is_some_and(Result::is_ok) {
            connected.push(client.socket.clone());
        }
        println!("{}", client.report());
    }
    println!("accepted {}, connected {}", accepted.len(), connected.len());

    let server = std::thread::spawn(move || serve(&accepted).map_err(|e| e.to_string()));
    for (number, socket) in connected.iter().enumerate() {
        for size in [1, 64, 512, 4096] {
            let text = vec![u8::try_from(number & 0xff)?; size];
            let start = Instant::now();
            let send = socket.send(&text, 7, Notification::Poll)?;
            let receive = socket.receive(Notification::Poll)?;
            let result = socket
                .get_overlapped_result(receive, Some(PATIENCE))?
                .outcome?;
            let message = result.message.ok_or("no message")?;
            assert_eq!((&message[..], message.kind()), (&text[..], 8));
            let sent = socket
                .get_overlapped_result(send, Some(PATIENCE))?
                .outcome?;
            assert_eq!(sent.bytes, size);
            println!("echo {number}: {size} bytes in {:?}", start.elapsed());
        }
        socket.close()?;
    }
    server.join().map_err(|_| "the server panicked")??;
    println!("{:#?}", provider.counters());
    listener.close()?;
    provider.cleanup()?;
    println!("left: {:?}", verbs_shim::live_objects());
    Ok(())
}

fn socket(provider: &Provider, ip: IpAddr) -> Result<Socket, Failure> {
    let family = AddressFamily::of(&SocketAddr::new(ip, 0));
    Ok(provider.socket(family, SocketType::Stream, Protocol::Tcp)?)
}

/// Echoes on every connection until its peer closes it.
fn serve(accepted: &[Socket]) -> Result<(), Failure> {
    for socket in accepted {
        loop {
            let receive = socket.receive(Notification::Poll)?;
            let result = socket.get_overlapped_result(receive, Some(PATIENCE))?;
            let message = match result.outcome {
                Ok(received) => received.message.ok_or("no message")?,
                Err(error) => {
                    println!("server: {error}");
                    break;
                }
            };
            socket.send(&message, message.kind() + 1, Notification::Poll)?;
        }
        socket.close()?;
    }
    Ok(())
}

struct Client {
    number: usize,
    socket: Socket,
    event: EventObject,
    started: Instant,
    took: Duration,
    result: Option<Result<(), ConnectError>>,
}

impl Client {
    fn start(provider: &Provider, addr: SocketAddr, number: usize) -> Result<Self, Failure> {
        let socket = socket(provider, addr.ip())?;
        let event = EventObject::new()?;
        socket.event_select(&event, NetworkEvents::CONNECT)?;
        let started = Instant::now();
        match socket.connect(addr, ConnectOptions::default()) {
            Err(error) if error.is_in_progress() => {}
            other => other?,
        }
        Ok(Self {
            number,
            socket,
            event,
            started,
            took: Duration::ZERO,
            result: None,
        })
    }

    fn look(&mut self) -> Result<(), Failure> {
        if self.event.is_set() {
            self.took = self.started.elapsed();
            self.result = self.socket.enum_network_events(Some(&self.event))?.connect;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), Failure> {
        if self.result.is_none() && self.event.wait(PATIENCE) {
            self.look()?;
        }
        Ok(())
    }

    fn report(&self) -> String {
        let (number, took) = (self.number, self.took);
        match &self.result {
            None => format!("client {number}: no answer"),
            Some(Ok(())) => format!("client {number}: connected after {took:?}"),
            Some(Err(error)) => {
                format!(
                    "client {number}: {} after {took:?}: {error}",
                    error.code().name()
                )
            }
        }
    }
}
