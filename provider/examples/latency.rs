//! Round trips of messages between two processes: `latency serve` prints an address,
//! `latency ADDR [SIZE [ROUNDS]]` measures. Half the median round trip is printed in microseconds.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use san_provider::{
    AddressFamily, Completion, ConnectOptions, Decision, EventObject, NetworkEvents, NoUpcalls,
    Operation, Protocol, Provider, ProviderConfig, Socket, SocketType, SpiVersion,
};

type Failure = Box<dyn std::error::Error>;

const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let spin = std::env::var("SPIN_US").map_or(Ok(0), |n| n.parse())?;
    let config = ProviderConfig {
        spin: Duration::from_micros(spin),
        ..ProviderConfig::default()
    };
    let provider = Provider::new(config)?;
    provider.startup(SpiVersion::CURRENT, false, Arc::new(NoUpcalls))?;
    match args.first().map(String::as_str) {
        None | Some("serve") => serve(&provider),
        Some(addr) => {
            let number =
                |at: usize, default: usize| args.get(at).map_or(Ok(default), |n| n.parse());
            measure(&provider, addr.parse()?, number(1, 64)?, number(2, 1000)?)
        }
    }
}

fn socket(provider: &Provider, ip: IpAddr) -> Result<Socket, Failure> {
    let family = AddressFamily::of(&SocketAddr::new(ip, 0));
    Ok(provider.socket(family, SocketType::Stream, Protocol::Tcp)?)
}

fn serve(provider: &Provider) -> Result<(), Failure> {
    let ip: IpAddr = std::env::var("SAN_TEST_ADDR_B")?.parse()?;
    let listener = socket(provider, ip)?;
    listener.bind(SocketAddr::new(ip, 4790))?;
    listener.listen(1)?;
    let event = EventObject::new()?;
    listener.event_select(&event, NetworkEvents::ACCEPT)?;
    println!("{}", listener.local_addr()?.ok_or("no address")?);
    if !event.wait(PATIENCE) {
        return Err("nobody came".into());
    }
    let socket = listener.accept(|_| Decision::Accept)?.socket;
    let mut sent = None;
    loop {
        let receive = socket.receive(Completion::Poll)?;
        let result = socket.get_overlapped_result(receive, Some(PATIENCE))?;
        let Ok(received) = result.outcome else {
            return Ok(());
        };
        let message = received.message.ok_or("no message")?;
        finish(&socket, &mut sent)?;
        sent = Some(socket.send(&message, 0, Completion::Poll)?);
    }
}

/// The send before the last message that came: its completion came first.
fn finish(socket: &Socket, sent: &mut Option<Operation>) -> Result<(), Failure> {
    if let Some(operation) = sent.take() {
        socket
            .get_overlapped_result(operation, Some(PATIENCE))?
            .outcome?;
    }
    Ok(())
}

fn measure(
    provider: &Provider,
    addr: SocketAddr,
    size: usize,
    rounds: usize,
) -> Result<(), Failure> {
    let socket = socket(provider, addr.ip())?;
    let event = EventObject::new()?;
    socket.event_select(&event, NetworkEvents::CONNECT)?;
    match socket.connect(addr, ConnectOptions::default()) {
        Err(error) if error.is_in_progress() => {}
        other => other?,
    }
    if !event.wait(PATIENCE) {
        return Err("no answer".into());
    }
    socket
        .enum_network_events(Some(&event))?
        .connect
        .ok_or("no result")??;
    let text = vec![7; size];
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        let send = socket.send(&text, 0, Completion::Poll)?;
        let receive = socket.receive(Completion::Poll)?;
        let result = socket
            .get_overlapped_result(receive, Some(PATIENCE))?
            .outcome?;
        assert_eq!(result.bytes, size);
        drop(result);
        times.push(start.elapsed());
        finish(&socket, &mut Some(send))?;
    }
    times.sort_unstable();
    let median = times[times.len() / 2].as_nanos() as f64 / 2000.0;
    println!("{size} bytes: {median:.2} us one way, {rounds} rounds");
    let counters = provider.counters();
    println!(
        "sleeps {}, credit messages {}",
        counters.sleeps, counters.credit_messages_sent
    );
    Ok(())
}
