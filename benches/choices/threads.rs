//! Threads that have a connection each, on a lane each, and send messages of 64 bytes to and fro: what
//! they share on the way of a message is seen from outside, by the system calls of waiting for a lock.

use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::time::Instant;

use san_benches::Result;
use san_benches::server::{Server, commands};
use san_provider::{DataPath, Provider, ProviderConfig, Socket, TransferError};

use crate::ends::{PATIENCE, Site, WITHOUT_END};

const SIZE: usize = 64;

pub(crate) fn run(site: Site, threads: u32, rounds: usize) -> Result<()> {
    let mut args = vec![format!("--fabric={}", site.name())];
    args.push(format!("--address={}", site.address));
    args.extend(["serve-threads".into(), threads.to_string()]);
    let (_server, port) = Server::start(&args)?;
    let to = SocketAddr::new(site.address, port.parse()?);
    let provider = site.started(ProviderConfig::default())?;
    let sockets: Result<Vec<Socket>> = (0..threads)
        .map(|lane| site.connect_from(&provider, to, Some(lane)))
        .collect();
    std::thread::scope(|scope| {
        let trips = |socket: &Socket| -> Result<()> { trips(&socket.data_path()?, rounds) };
        let threads: Vec<_> = sockets?
            .into_iter()
            .map(|socket| scope.spawn(move || trips(&socket).map_err(|error| error.to_string())))
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    })
}

/// Sends; where the completions of what was sent before are not there yet, as soon as they are.
fn send(data: &DataPath, bytes: &[u8]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match data.try_send(bytes, 0) {
            Err(TransferError::WouldBlock) if Instant::now() < deadline => {
                std::thread::yield_now();
            }
            sent => return Ok(sent?),
        }
    }
}

fn trips(data: &DataPath, rounds: usize) -> Result<()> {
    let mut bytes = [b'x'; SIZE];
    for _ in 0..rounds {
        send(data, &bytes)?;
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        data.receive_into(&mut buffers, WITHOUT_END)?;
    }
    Ok(())
}

/// Each connection has a thread that sends back what comes.
pub(crate) fn serve(site: Site, threads: u32) -> Result<()> {
    let (provider, sockets): (Provider, Vec<Socket>) =
        site.accept_all(ProviderConfig::default(), threads)?;
    for socket in sockets {
        let data = socket.data_path()?;
        std::thread::spawn(move || {
            // Alive as long as it is served.
            let _socket = socket;
            let mut bytes = [0; SIZE];
            loop {
                let mut buffers = [IoSliceMut::new(&mut bytes)];
                let received = data.receive_into(&mut buffers, WITHOUT_END);
                if received.is_err() || send(&data, &bytes).is_err() {
                    return;
                }
            }
        });
    }
    // Until the other end goes.
    for _ in commands() {}
    drop(provider);
    Ok(())
}
