//! A connect in a runtime: the switch's machine, driven by the reactor and a timer.

use std::io;
use std::net::SocketAddr;

use san_switch::{ConnectOptions, Connection, Switch};
use tokio::io::Interest;
use tokio::time::{Instant, timeout_at};

use crate::blocking;
use crate::watched::watch;

/// Connects; dropping the future calls it off.
pub(crate) async fn connect(
    switch: Switch,
    address: SocketAddr,
    options: ConnectOptions,
) -> io::Result<Connection> {
    // Making a queue pair is work for the kernel.
    let pending = blocking(move || Ok(switch.start_connect(address, &options)?)).await?;
    let mut pending = watch(pending, Interest::READABLE)?;
    loop {
        if let Some(connection) = pending.get_mut().poll()? {
            return Ok(connection);
        }
        let deadline = pending.get_ref().deadline();
        let mut readable = match deadline {
            None => pending.readable_mut().await?,
            Some(deadline) => {
                match timeout_at(Instant::from_std(deadline), pending.readable_mut()).await {
                    Ok(readable) => readable?,
                    // The machine knows what a deadline means.
                    Err(_) => continue,
                }
            }
        };
        // What comes from here on is told anew; what came before is found by the next poll.
        readable.clear_ready();
    }
}
