//! The two ends: connecting in waves, and a server that accepts everything and watches what ends.

use clap::ValueEnum;
use san_benches::Result;
use san_benches::process::{Holdings, cpu_time};
use san_benches::server::{answer, commands, say_ready};
use san_provider::{
    AddressFamily, ConnectOptions, Decision, EventObject, NetworkEvents, NoUpcalls, Protocol,
    Provider, ProviderConfig, Socket, SocketType, SpiVersion,
};
use san_switch::{FabricChoice, ListenOptions, Switch, SwitchConfig};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(50);
const BACKLOG: u32 = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fabric {
    /// `RoCEv2` in user space.
    Soft,
    /// The kernel's devices.
    Rdma,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layer {
    /// Sockets of the provider.
    Provider,
    /// Connections of the switch, each with its TCP socket's descriptor.
    Switch,
}

impl Fabric {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Rdma => "rdma",
        }
    }
}

impl Layer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Switch => "switch",
        }
    }
}

/// The connecting end.
pub(crate) enum End {
    Provider(Provider, EventObject),
    Switch(Switch),
}

/// Connections made together.
#[expect(dead_code, reason = "they are held, and closed by being dropped")]
pub(crate) enum Wave {
    Provider(Vec<Socket>),
    Switch(Vec<san_switch::Connection>),
}

impl End {
    pub(crate) fn new(fabric: Fabric, layer: Layer) -> Result<Self> {
        Ok(match layer {
            Layer::Provider => Self::Provider(started(fabric)?, EventObject::new()?),
            Layer::Switch => Self::Switch(switch(fabric)?),
        })
    }

    /// So many connects at once; waits until all are connected.
    pub(crate) fn connect(&self, to: SocketAddr, count: usize) -> Result<Wave> {
        match self {
            Self::Provider(provider, event) => {
                let sockets = (0..count).map(|_| start(provider, event, to));
                let sockets = sockets.collect::<Result<Vec<_>>>()?;
                finish(&sockets, event)?;
                Ok(Wave::Provider(sockets))
            }
            Self::Switch(switch) => {
                let options = san_switch::ConnectOptions::default();
                let mut connections = Vec::with_capacity(count);
                for _ in 0..count {
                    let connection = switch.connect(to, &options)?;
                    if !connection.is_san() {
                        return Err(format!("a connection took {}", connection.route()).into());
                    }
                    connections.push(connection);
                }
                Ok(Wave::Switch(connections))
            }
        }
    }
}

/// The accepting end: a process of its own that obeys `wait N` and `holdings`.
pub(crate) fn serve(fabric: Fabric, layer: Layer, ip: IpAddr) -> Result<()> {
    crate::raise_descriptor_limit();
    let open = Arc::new(Open::default());
    let port = match layer {
        Layer::Provider => serve_provider(fabric, ip, &open)?,
        Layer::Switch => serve_switch(fabric, ip, &open)?,
    };
    say_ready(&port.to_string())?;
    for command in commands() {
        match command.split_whitespace().collect::<Vec<_>>()[..] {
            ["wait", wanted] => {
                let wanted: usize = wanted.parse()?;
                let started = Instant::now();
                open.watched.store(true, Ordering::Release);
                while open.count() != wanted && started.elapsed() < PATIENCE {
                    std::thread::sleep(Duration::from_millis(2));
                }
                open.watched.store(false, Ordering::Release);
                match open.count() {
                    now if now == wanted => answer("fine")?,
                    now => answer(&now.to_string())?,
                }
            }
            ["holdings"] => {
                let Holdings {
                    resident_kib,
                    descriptors,
                    threads,
                } = Holdings::now()?;
                let cpu = cpu_time()?.as_micros();
                answer(&format!("{resident_kib} {descriptors} {threads} {cpu}"))?;
            }
            _ => return Err(format!("unknown command {command}").into()),
        }
    }
    Ok(())
}

/// What a server has open.
#[derive(Default)]
struct Open {
    count: AtomicUsize,
    /// Somebody waits for the count to change. Otherwise nothing is looked at, so that idle is idle.
    watched: AtomicBool,
}

impl Open {
    fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }
}

/// One thread accepts, and looks which connections have ended while that is waited for.
fn serve_provider(fabric: Fabric, ip: IpAddr, open: &Arc<Open>) -> Result<u16> {
    let provider = started(fabric)?;
    let socket = tcp_socket(&provider, ip)?;
    let event = EventObject::new()?;
    socket.bind(SocketAddr::new(ip, 0))?;
    socket.event_select(&event, NetworkEvents::ACCEPT)?;
    socket.listen(BACKLOG)?;
    let port = socket.local_addr()?.map_or(0, |addr| addr.port());
    let open = Arc::clone(open);
    let held: Mutex<Vec<Socket>> = Mutex::new(Vec::new());
    std::thread::Builder::new()
        .name("accept".into())
        .spawn(move || {
            // It lives as long as the thread.
            let _provider = provider;
            loop {
                let is_set = event.wait(Duration::from_millis(100));
                let mut held = san_base::lock(&held);
                while is_set && let Ok(accepted) = socket.accept(|_| Decision::Accept) {
                    held.push(accepted.socket);
                    open.count.store(held.len(), Ordering::Release);
                }
                if !is_set && open.watched.load(Ordering::Acquire) {
                    held.retain(|socket| {
                        let stats = socket.stats();
                        stats.is_ok_and(|stats| stats.state != "ended")
                    });
                    open.count.store(held.len(), Ordering::Release);
                }
            }
        })?;
    Ok(port)
}

fn serve_switch(fabric: Fabric, ip: IpAddr, open: &Arc<Open>) -> Result<u16> {
    let switch = switch(fabric)?;
    let options = ListenOptions::default().backlog(BACKLOG);
    let listener = switch.listen(SocketAddr::new(ip, 0), options)?;
    let port = listener.local_addr().port();
    let open = Arc::clone(open);
    std::thread::Builder::new()
        .name("accept".into())
        .spawn(move || {
            let mut held = Vec::new();
            loop {
                match listener.accept_timeout(Duration::from_millis(100)) {
                    Ok(connection) => held.push(connection),
                    Err(_) if !open.watched.load(Ordering::Acquire) => {}
                    Err(_) => held.retain(|connection: &san_switch::Connection| {
                        let timeout = Some(Duration::from_micros(1));
                        let _ = connection.set_receive_timeout(timeout);
                        let error = connection.receive(&mut [0]).err();
                        error.is_some_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
                    }),
                }
                open.count.store(held.len(), Ordering::Release);
            }
        })?;
    Ok(port)
}

fn started(fabric: Fabric) -> Result<Provider> {
    let config = ProviderConfig::default();
    let provider = match fabric {
        Fabric::Rdma => Provider::new(config)?,
        Fabric::Soft => {
            let soft = san_provider::Fabric::soft(&san_provider::SoftConfig::default())?;
            Provider::with_fabric(soft, config)?
        }
    };
    provider.startup(SpiVersion::CURRENT, false, Arc::new(NoUpcalls))?;
    Ok(provider)
}

fn switch(fabric: Fabric) -> Result<Switch> {
    let fabric = match fabric {
        Fabric::Soft => FabricChoice::Soft,
        Fabric::Rdma => FabricChoice::Rdma,
    };
    Ok(Switch::new(SwitchConfig::default().fabric(fabric))?)
}

fn tcp_socket(provider: &Provider, ip: IpAddr) -> Result<Socket> {
    let family = AddressFamily::of(&SocketAddr::new(ip, 0));
    Ok(provider.socket(family, SocketType::Stream, Protocol::Tcp)?)
}

fn start(provider: &Provider, event: &EventObject, to: SocketAddr) -> Result<Socket> {
    let socket = tcp_socket(provider, to.ip())?;
    socket.event_select(event, NetworkEvents::CONNECT)?;
    let options = ConnectOptions {
        deadline: Some(PATIENCE),
        ..ConnectOptions::default()
    };
    match socket.connect(to, options) {
        Err(error) if error.is_in_progress() => Ok(socket),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(socket),
    }
}

fn finish(sockets: &[Socket], event: &EventObject) -> Result<()> {
    let mut waiting: Vec<&Socket> = sockets.iter().collect();
    let started = Instant::now();
    while !waiting.is_empty() {
        let _ = event.wait(Duration::from_millis(100));
        event.reset();
        let mut failure = None;
        waiting.retain(|socket| match socket.enum_network_events(None) {
            Ok(record) => match record.connect {
                Some(Ok(())) => false,
                Some(Err(error)) => {
                    failure = Some(error.to_string());
                    false
                }
                None => true,
            },
            Err(error) => {
                failure = Some(error.to_string());
                false
            }
        });
        if let Some(failure) = failure {
            return Err(failure.into());
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("{} connects have not ended", waiting.len()).into());
        }
    }
    Ok(())
}
