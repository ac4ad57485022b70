//! The two ends of a connection of the provider, in two processes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use rustix::thread::{CpuSet, sched_setaffinity};
use san_benches::Result;
use san_benches::server::{Server, say_ready};
use san_provider::{
    AcceptOptions, AddressFamily, ConnectOptions, Decision, EventObject, NetworkEvents, NoUpcalls,
    Notification, Protocol, Provider, ProviderConfig, Socket, SocketType, SoftConfig, SpiVersion,
    TransferError,
};

/// As blocking sockets without a timeout wait; whoever runs this program sets it a time.
pub(crate) const WITHOUT_END: Duration = Duration::MAX;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fabric {
    /// `RoCEv2` in user space.
    Soft,
    /// The kernel's devices.
    Rdma,
}

/// Where it runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site {
    pub(crate) fabric: Fabric,
    pub(crate) address: IpAddr,
}

impl Site {
    pub(crate) fn name(self) -> &'static str {
        match self.fabric {
            Fabric::Soft => "soft",
            Fabric::Rdma => "rdma",
        }
    }

    /// Starts the other end, and connects to it. All that is returned has to live as long as the
    /// connection is used.
    pub(crate) fn connect(
        self,
        serve: &[String],
        config: ProviderConfig,
    ) -> Result<(Server, Provider, Socket)> {
        let mut args = vec![format!("--fabric={}", self.name())];
        args.push(format!("--address={}", self.address));
        args.extend_from_slice(serve);
        let (server, port) = Server::start(&args)?;
        let to = SocketAddr::new(self.address, port.parse()?);
        let provider = self.started(config)?;
        let socket = self.connect_from(&provider, to, None)?;
        Ok((server, provider, socket))
    }

    /// Connects, and waits until that is done.
    pub(crate) fn connect_from(
        self,
        provider: &Provider,
        to: SocketAddr,
        lane: Option<u32>,
    ) -> Result<Socket> {
        let socket = socket(provider, to)?;
        let event = EventObject::new()?;
        socket.event_select(&event, NetworkEvents::CONNECT)?;
        let options = ConnectOptions {
            lane,
            ..ConnectOptions::default()
        };
        match socket.connect(to, options) {
            Err(error) if !error.is_in_progress() => return Err(error.into()),
            _ => {}
        }
        if !event.wait(PATIENCE) {
            return Err("the connect did not end".into());
        }
        let record = socket.enum_network_events(Some(&event))?;
        record.connect.ok_or("no connect ended")??;
        Ok(socket)
    }

    /// In the other process: listens, and accepts one connection.
    pub(crate) fn accept(self, config: ProviderConfig) -> Result<(Provider, Socket)> {
        let (provider, sockets) = self.accept_all(config, 1)?;
        let socket = sockets.into_iter().next().ok_or("nobody came")?;
        Ok((provider, socket))
    }

    /// The same with `count` connections, on lanes 0, 1 and so on.
    pub(crate) fn accept_all(
        self,
        config: ProviderConfig,
        count: u32,
    ) -> Result<(Provider, Vec<Socket>)> {
        let provider = self.started(config)?;
        let address = SocketAddr::new(self.address, 0);
        let listener = socket(&provider, address)?;
        let event = EventObject::new()?;
        listener.bind(address)?;
        listener.event_select(&event, NetworkEvents::ACCEPT)?;
        listener.listen(count)?;
        let bound = listener.local_addr()?.ok_or("no address after bind")?;
        say_ready(&bound.port().to_string())?;
        let mut sockets = Vec::new();
        for lane in 0..count {
            if !event.wait(PATIENCE) {
                return Err("nobody came".into());
            }
            let options = AcceptOptions::default().lane(lane);
            let accepted = listener.accept(|_| Decision::AcceptWith(options))?;
            listener.enum_network_events(Some(&event))?;
            sockets.push(accepted.socket);
        }
        Ok((provider, sockets))
    }

    pub(crate) fn started(self, config: ProviderConfig) -> Result<Provider> {
        let provider = match self.fabric {
            Fabric::Rdma => Provider::new(config)?,
            Fabric::Soft => {
                let soft = SoftConfig::default();
                Provider::with_fabric(san_provider::Fabric::soft(&soft)?, config)?
            }
        };
        provider.startup(SpiVersion::CURRENT, false, Arc::new(NoUpcalls))?;
        Ok(provider)
    }
}

fn socket(provider: &Provider, address: SocketAddr) -> Result<Socket> {
    let family = AddressFamily::of(&address);
    Ok(provider.socket(family, SocketType::Stream, Protocol::Tcp)?)
}

/// Sends at once, or, where the peer has to take something in first, as an operation that is waited
/// for.
pub(crate) fn message(socket: &Socket, bytes: &[u8]) -> Result<()> {
    match socket.try_send(bytes, 0) {
        Err(TransferError::WouldBlock) => {
            let operation = socket.send(bytes, 0, Notification::Poll)?;
            let result = socket.get_overlapped_result(operation, Some(WITHOUT_END))?;
            result.outcome?;
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Keeps this process, and what it will start, on one processor.
pub(crate) fn stay_on(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    Ok(sched_setaffinity(None, &set)?)
}
