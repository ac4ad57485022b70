//! San Direct as applications use it: listen, connect, send and receive through the switch.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};

use san_benches::Result;
use san_benches::server::{Server, commands, say_ready};
use san_benches::stats::Samples;
use san_switch::{
    CompanionState, CompanionStatus, ConnectError, ConnectOptions, Connection, ListenOptions,
    Listener, Switch,
};

use crate::pings::{ping_times, rounds};
use crate::provider::{KEPT, QUIET, config};

/// The connecting side.
pub(crate) struct Client {
    switch: Switch,
}

impl Client {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { switch: switch()? })
    }

    /// Connects, over the SAN and not otherwise.
    pub(crate) fn connect(&self, to: SocketAddr) -> Result<Connection> {
        let connection = self.switch.connect(to, &ConnectOptions::default())?;
        over_san(&connection)?;
        Ok(connection)
    }

    /// Connects where that must end with ECONNREFUSED.
    pub(crate) fn refused(&self, to: SocketAddr) -> Result<()> {
        match self.switch.connect(to, &ConnectOptions::default()) {
            Ok(connection) => Err(format!("{to}: connected, {}", connection.route()).into()),
            // TCP's own refusal is another variant.
            Err(error @ ConnectError::San { .. }) => match io::Error::from(error) {
                error if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
                error => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }
}

/// A server that accepts everything; it lets a connection go when nothing came for a while, or when
/// it has too many.
pub(crate) fn server(address: IpAddr) -> Result<()> {
    let switch = switch()?;
    let listener = listen(&switch, address, 64)?;
    std::thread::spawn(move || {
        let mut kept = VecDeque::new();
        loop {
            let accepted = match kept.is_empty() {
                true => listener.accept(),
                false => listener.accept_timeout(QUIET),
            };
            match accepted {
                Ok(connection) => kept.push_back(connection),
                Err(_) => kept.clear(),
            }
            while kept.len() > KEPT {
                kept.pop_front();
            }
        }
    });
    commands().for_each(drop);
    Ok(())
}

/// A server that listens and never accepts.
pub(crate) fn deaf_server(address: IpAddr, backlog: u32) -> Result<()> {
    let switch = switch()?;
    let _listener = listen(&switch, address, backlog)?;
    commands().for_each(drop);
    Ok(())
}

/// A server that sends back what it gets, messages of `size` bytes.
pub(crate) fn echo(address: IpAddr, size: u32) -> Result<()> {
    serve_one(address, |connection| {
        let mut text = vec![0; size as usize];
        while receive_all(connection, &mut text)? {
            send_all(connection, &text)?;
        }
        Ok(())
    })
}

/// A server that takes in what comes, and says so by one byte after each so many.
pub(crate) fn drain(address: IpAddr, bytes: u32) -> Result<()> {
    serve_one(address, |connection| {
        let mut buffer = vec![0; 256 << 10];
        let mut left = bytes as usize;
        loop {
            let most = left.min(buffer.len());
            match connection.receive(&mut buffer[..most])? {
                0 => return Ok(()),
                n => left -= n,
            }
            if left == 0 {
                send_all(connection, &[1])?;
                left = bytes as usize;
            }
        }
    })
}

/// Serves one connection, over the SAN. The process ends with it, or with its input.
fn serve_one(address: IpAddr, serve: impl FnOnce(&Connection) -> Result<()>) -> Result<()> {
    let switch = switch()?;
    let listener = listen(&switch, address, 1)?;
    std::thread::spawn(|| {
        commands().for_each(drop);
        std::process::exit(0);
    });
    let connection = listener.accept()?;
    over_san(&connection)?;
    serve(&connection)
}

/// Samples of half a round trip.
pub(crate) fn round_trips(server: IpAddr, size: usize) -> Result<Samples> {
    let args = [
        "serve",
        "switch-echo",
        &server.to_string(),
        &size.to_string(),
    ]
    .map(String::from);
    let (_server, port) = Server::start(&args)?;
    let client = Client::new()?;
    let connection = client.connect(SocketAddr::new(server, port.parse()?))?;
    let mut text = vec![b'x'; size];
    ping_times(rounds(size), || {
        send_all(&connection, &text)?;
        match receive_all(&connection, &mut text)? {
            true => Ok(()),
            false => Err("the peer ended its stream".into()),
        }
    })
}

/// A switch whose one provider does not spin.
fn switch() -> Result<Switch> {
    san_benches::switch::with_spin(config().spin)
}

fn listen(switch: &Switch, address: IpAddr, backlog: u32) -> Result<Listener> {
    let options = ListenOptions::default().backlog(backlog);
    let listener = switch.listen(SocketAddr::new(address, 0), options)?;
    let companions = listener.san_status();
    let listens = |one: &CompanionStatus| matches!(one.state, CompanionState::Listening);
    if !companions.iter().any(listens) {
        return Err("the listener has no companion on the SAN".into());
    }
    say_ready(&listener.local_addr().port().to_string())?;
    Ok(listener)
}

fn over_san(connection: &Connection) -> Result<()> {
    match connection.is_san() {
        true => Ok(()),
        false => Err(format!("not over the SAN: {}", connection.route()).into()),
    }
}

pub(crate) fn send_all(connection: &Connection, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let sent = connection.send(bytes)?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Fills `bytes`; `false`: the stream ended first.
pub(crate) fn receive_all(connection: &Connection, bytes: &mut [u8]) -> Result<bool> {
    let mut filled = 0;
    while filled < bytes.len() {
        match connection.receive(&mut bytes[filled..])? {
            0 => return Ok(false),
            n => filled += n,
        }
    }
    Ok(true)
}
