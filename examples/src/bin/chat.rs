//! A chat room with one thread: all its connections are in one poller.
//!
//! `SAN_FABRIC=soft cargo run --bin chat -- serve 127.0.0.1:7000`, and in other terminals
//! `SAN_FABRIC=soft cargo run --bin chat -- join 127.0.0.1:7000`.

use std::collections::HashMap;
use std::io::{self, BufRead, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use san_switch::{
    ConnectOptions, Connection, Interest, ListenOptions, Listener, Poller, Switch, SwitchConfig,
};

const LISTENER: u64 = 0;
/// A line that is longer is cut.
const LONGEST: usize = 4096;

fn main() -> ExitCode {
    let usage = "chat serve ADDRESS | chat join ADDRESS";
    san_examples::run("chat", usage, |arguments| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match arguments[..] {
            ["serve", address] => Some(serve(address)),
            ["join", address] => Some(join(address)),
            _ => None,
        }
    })
}

fn switch() -> io::Result<Switch> {
    let config =
        SwitchConfig::from_env().map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
    Ok(Switch::new(config)?)
}

fn address(text: &str) -> io::Result<std::net::SocketAddr> {
    text.parse()
        .map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))
}

/// Somebody in the room.
struct Guest {
    connection: Arc<Connection>,
    /// What came of a line that is not whole yet.
    begun: Vec<u8>,
}

fn serve(at: &str) -> io::Result<()> {
    let listener = switch()?.listen(address(at)?, ListenOptions::default())?;
    println!("listening on {}", listener.local_addr());
    let poller = Poller::new()?;
    poller.add_listener(&listener, LISTENER)?;
    let mut guests = HashMap::new();
    let mut events = Vec::new();
    loop {
        poller.wait(&mut events, None)?;
        for event in &events {
            match event.token {
                LISTENER => let_in(&listener, &poller, &mut guests)?,
                token => hear(token, &poller, &mut guests),
            }
        }
    }
}

fn let_in(
    listener: &Listener,
    poller: &Poller,
    guests: &mut HashMap<u64, Guest>,
) -> io::Result<()> {
    while let Some(connection) = listener.try_accept()? {
        connection.set_nonblocking(true)?;
        let connection = Arc::new(connection);
        let token = (1..).find(|token| !guests.contains_key(token));
        let token = token.expect("there are more numbers than guests");
        poller.add(&connection, token, Interest::READABLE)?;
        let begun = Vec::new();
        guests.insert(token, Guest { connection, begun });
    }
    Ok(())
}

/// Says to all others what one has said, line by line.
fn hear(token: u64, poller: &Poller, guests: &mut HashMap<u64, Guest>) {
    let Some(guest) = guests.get_mut(&token) else {
        return;
    };
    let mut buffer = [0; 1024];
    let is_gone = match guest.connection.receive(&mut buffer) {
        Ok(0) => true,
        Ok(count) => {
            guest.begun.extend(&buffer[..count]);
            false
        }
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    };
    let mut lines = Vec::new();
    while let Some(end) = guest.begun.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = guest.begun.drain(..=end).collect();
        lines.push([format!("{token}: ").as_bytes(), &line].concat());
    }
    guest.begun.truncate(LONGEST);
    if is_gone {
        // It cannot fail: the guest is in there.
        let _ = poller.remove(&guest.connection, token);
        guests.remove(&token);
    }
    for line in lines {
        for (_, other) in guests.iter().filter(|(other, _)| **other != token) {
            // Who does not listen misses something.
            let _ = other.connection.send(&line);
        }
    }
}

fn join(at: &str) -> io::Result<()> {
    let connection = switch()?.connect(address(at)?, &ConnectOptions::default())?;
    eprintln!("by {}", connection.route());
    let connection = Arc::new(connection);
    let speaker = Arc::clone(&connection);
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if (&*speaker)
                .write_all(format!("{line}\n").as_bytes())
                .is_err()
            {
                return;
            }
        }
        let _ = speaker.shutdown_write();
    });
    let mut buffer = [0; 1024];
    loop {
        match connection.receive(&mut buffer)? {
            0 => return Ok(()),
            count => {
                io::stdout().write_all(&buffer[..count])?;
                io::stdout().flush()?;
            }
        }
    }
}
