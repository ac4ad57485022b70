//! The two ends that are counted, each a process that is told what to do line by line. Neither spins before it sleeps.
//!
//! The server sends back what it gets on one connection after the other. The client knows `open`, `ping SIZE COUNT`,
//! `close` and `connects COUNT`; the server `ended COUNT`: wait until so many connections ended. Both know `mark`.

use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use san_benches::Result;
use san_benches::server::{answer, commands, say_ready};
use san_provider::{
    AddressFamily, ConnectOptions, DataPath, Decision, EventObject, NetworkEvents, NoUpcalls,
    Protocol, Provider, ProviderConfig, Socket, SocketType, SpiVersion,
};
use san_switch::{Connection, ListenOptions, Switch};

use crate::Layer;

/// What an end answers to `mark`.
pub(crate) const MARKED: &str = "marked";

/// Whoever counts slows everything down.
const PATIENCE: Duration = Duration::from_secs(60);

/// When this is called, callgrind writes down what it has: it knows the name.
#[inline(never)]
fn callgrind_mark() {
    std::hint::black_box(());
}

/// One end of a connection.
trait Stream: Sized {
    fn send(&self, bytes: &[u8]) -> Result<()>;
    /// Receives a message as long as `bytes`, or for the server of any length up to it: how long it is; 0: no more.
    fn receive(&self, bytes: &mut [u8]) -> Result<usize>;
}

impl Stream for Connection {
    fn send(&self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let sent = Connection::send(self, bytes)?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    fn receive(&self, bytes: &mut [u8]) -> Result<usize> {
        Ok(Connection::receive(self, bytes)?)
    }
}

/// A socket of the provider; dropping it closes it.
struct Plain {
    socket: Socket,
    data: DataPath,
}

impl Plain {
    fn of(socket: Socket) -> Result<Self> {
        let data = socket.data_path()?;
        Ok(Self { socket, data })
    }
}

impl Stream for Plain {
    fn send(&self, bytes: &[u8]) -> Result<()> {
        Ok(self.data.try_send(bytes, 0)?)
    }

    fn receive(&self, bytes: &mut [u8]) -> Result<usize> {
        // As a socket without a timeout: a deadline would cost a timer each time.
        let mut buffers = [IoSliceMut::new(bytes)];
        Ok(self.data.receive_into(&mut buffers, Duration::MAX)?.bytes)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // Closed already is as good.
        let _ = self.socket.close();
    }
}

/// The client's process.
pub(crate) fn client(layer: Layer, to: SocketAddr) -> Result<()> {
    match layer {
        Layer::Provider => {
            let provider = started()?;
            let event = EventObject::new()?;
            follow(|| connect_plain(&provider, &event, to))
        }
        Layer::Switch => {
            let switch = switch()?;
            let options = san_switch::ConnectOptions::default();
            follow(|| over_san(switch.connect(to, &options)?))
        }
    }
}

/// The server's process.
pub(crate) fn server(layer: Layer, address: IpAddr) -> Result<()> {
    let address = SocketAddr::new(address, 0);
    match layer {
        Layer::Provider => {
            let provider = started()?;
            let socket = new_socket(&provider, &address)?;
            socket.bind(address)?;
            let event = EventObject::new()?;
            socket.event_select(&event, NetworkEvents::ACCEPT)?;
            socket.listen(8)?;
            let port = socket.local_addr()?.ok_or("no address after bind")?.port();
            serve(port, move || {
                if !event.wait(Duration::from_secs(1_000_000)) {
                    return Err("nobody came".into());
                }
                Plain::of(socket.accept(|_| Decision::Accept)?.socket)
            })
        }
        Layer::Switch => {
            let listener = switch()?.listen(address, ListenOptions::default())?;
            let port = listener.local_addr().port();
            serve(port, move || over_san(listener.accept()?))
        }
    }
}

/// Follows the client's commands.
fn follow<S: Stream>(connect: impl Fn() -> Result<S>) -> Result<()> {
    say_ready("")?;
    let mut open = None;
    for command in commands() {
        let words: Vec<&str> = command.split(' ').collect();
        match words[..] {
            ["open"] => open = Some(connect()?),
            ["ping", size, count] => {
                let stream = open.as_ref().ok_or("not open")?;
                ping(stream, size.parse()?, count.parse()?)?;
            }
            ["close"] => drop(open.take()),
            ["connects", count] => {
                for _ in 0..count.parse::<u32>()? {
                    drop(connect()?);
                }
            }
            ["mark"] => {
                callgrind_mark();
                answer(MARKED)?;
                continue;
            }
            _ => return Err(format!("no command {command}").into()),
        }
        answer("done")?;
    }
    Ok(())
}

fn ping(stream: &impl Stream, size: usize, count: u32) -> Result<()> {
    let mut text = vec![b'x'; size];
    for _ in 0..count {
        stream.send(&text)?;
        let mut filled = 0;
        while filled < size {
            match stream.receive(&mut text[filled..])? {
                0 => return Err("the peer ended its stream".into()),
                n => filled += n,
            }
        }
    }
    Ok(())
}

/// Follows the server's commands, while another thread serves.
fn serve<S: Stream>(port: u16, accept: impl Fn() -> Result<S> + Send + 'static) -> Result<()> {
    let ended = Arc::new((Mutex::new(0_u32), Condvar::new()));
    let count = ended.clone();
    std::thread::spawn(move || {
        loop {
            match accept() {
                Ok(stream) => echo(&stream),
                Err(error) => {
                    eprintln!("instructions: the server: {error}");
                    return;
                }
            }
            *count.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            count.1.notify_all();
        }
    });
    say_ready(&port.to_string())?;
    for command in commands() {
        let words: Vec<&str> = command.split(' ').collect();
        match words[..] {
            ["ended", wanted] => {
                let wanted = wanted.parse()?;
                let count = ended.0.lock().unwrap_or_else(PoisonError::into_inner);
                let few = |count: &mut u32| *count < wanted;
                let waited = ended.1.wait_timeout_while(count, PATIENCE, few);
                if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
                    return Err("a connection does not end".into());
                }
                answer("done")?;
            }
            ["mark"] => {
                callgrind_mark();
                answer(MARKED)?;
            }
            _ => return Err(format!("no command {command}").into()),
        }
    }
    Ok(())
}

/// Sends back what comes, until the peer goes.
fn echo(stream: &impl Stream) {
    let mut text = [0; 4096];
    while let Ok(length @ 1..) = stream.receive(&mut text) {
        if stream.send(&text[..length]).is_err() {
            return;
        }
    }
}

fn config() -> ProviderConfig {
    ProviderConfig {
        spin: Duration::ZERO,
        ..ProviderConfig::default()
    }
}

fn started() -> Result<Provider> {
    let provider = Provider::new(config())?;
    provider.startup(SpiVersion::CURRENT, false, Arc::new(NoUpcalls))?;
    Ok(provider)
}

/// A switch whose one provider does not spin.
fn switch() -> Result<Switch> {
    san_benches::switch::with_spin(config().spin)
}

fn over_san(connection: Connection) -> Result<Connection> {
    match connection.is_san() {
        true => Ok(connection),
        false => Err(format!("not over the SAN: {}", connection.route()).into()),
    }
}

fn new_socket(provider: &Provider, address: &SocketAddr) -> Result<Socket> {
    let family = AddressFamily::of(address);
    Ok(provider.socket(family, SocketType::Stream, Protocol::Tcp)?)
}

fn connect_plain(provider: &Provider, event: &EventObject, to: SocketAddr) -> Result<Plain> {
    let socket = new_socket(provider, &to)?;
    socket.event_select(event, NetworkEvents::CONNECT)?;
    let options = ConnectOptions {
        deadline: Some(PATIENCE),
        ..ConnectOptions::default()
    };
    match socket.connect(to, options) {
        Err(error) if !error.is_in_progress() => return Err(error.into()),
        _ => {}
    }
    if !event.wait(PATIENCE) {
        return Err("no FD_CONNECT".into());
    }
    let record = socket.enum_network_events(Some(event))?;
    record.connect.ok_or("an event without FD_CONNECT")??;
    Plain::of(socket)
}
