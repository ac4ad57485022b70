//! Kernel TCP: a server that takes connections and lets them go when their peer does.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use san_benches::Result;
use san_benches::server::{commands, say_ready};

/// A server for connects.
pub(crate) fn server(address: IpAddr) -> Result<()> {
    let listener = TcpListener::bind((address, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // One connection at a time is all that there ever is.
            let _ = stream.read(&mut [0]);
        }
    });
    say_ready(&port.to_string())?;
    commands().for_each(drop);
    Ok(())
}

/// Connects.
pub(crate) fn connect(to: SocketAddr) -> Result<TcpStream> {
    Ok(TcpStream::connect(to)?)
}
