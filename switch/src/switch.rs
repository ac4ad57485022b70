//! The switch itself: TCP and all providers as one (duties 1, 4-8, 51).
//!
//! It owns the providers' startup and cleanup and the accept thread. Listening and connecting are
//! in `net/`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use san_base::{Deadline, lock};
use san_provider::{Counters, Provider, ProviderConfig, WsaCode};
use san_stream::Role;
use socket2::Socket;

use crate::companion::accept_thread::AcceptThread;
use crate::companion::condition::Condition;
use crate::config::{FabricChoice, RouteChoice, SwitchConfig};
use crate::counters::SwitchStats;
use crate::error::{ConnectError, ListenError, OpenError};
use crate::net::connect::{ConnectOptions, PendingConnect};
use crate::net::connection::Connection;
use crate::net::handover::Duplicate;
use crate::net::listener::{ListenOptions, Listener};
use crate::net::rooms::{Lease, Rooms};
use crate::route::fallback::FallbackReason;
use crate::route::table::{SanEntry, SanTable};
use crate::san::provider::{StartedProvider, settings};
use crate::stat::{Report, StatThread};

/// How long closed streams may take for their last bytes when the switch shuts down.
const MOVING_PATIENCE: Duration = Duration::from_secs(2);

/// The switch. Clones are the same switch; it ends with the last of them and of its listeners
/// and connections, or with [`Switch::shutdown`].
#[derive(Debug, Clone)]
pub struct Switch {
    running: Arc<Running>,
}

/// Makes a switch of providers that the caller has.
#[derive(Debug, Default)]
pub struct SwitchBuilder {
    config: SwitchConfig,
    providers: Vec<(String, Provider)>,
}

/// The rooms and the threads that serve them. Every [`Lease`] keeps it; dropped, it ends all.
#[derive(Debug)]
struct Running {
    rooms: Arc<Rooms>,
    accept_thread: Mutex<Option<AcceptThread>>,
    stat_thread: Mutex<Option<StatThread>>,
}

impl Switch {
    /// A switch with the provider that the settings choose. With [`FabricChoice::Auto`] a machine
    /// without a fabric gets a switch that is plain TCP; [`Switch::no_san_reason`] says why.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn new(config: SwitchConfig) -> Result<Self, OpenError> {
        config.check()?;
        let fabric = config.fabric;
        let builder = Switch::builder().config(config.clone());
        if config.route == RouteChoice::Off && !config.rules.want_a_fabric() {
            return builder.build();
        }
        let absent = match fabric {
            FabricChoice::Off => return builder.build(),
            FabricChoice::Soft => {
                let loopback = SwitchConfig {
                    loopback: true,
                    ..config.clone()
                };
                let provider = StartedProvider::soft(&config)?;
                let builder = builder.config(loopback).provider("soft", provider);
                return builder.build();
            }
            FabricChoice::Auto | FabricChoice::Rdma => {
                let provider = StartedProvider::rdma(&config)?;
                match builder.provider("rdma", provider).build() {
                    Err(OpenError::Provider {
                        code: WsaCode::NotReady,
                        source,
                        ..
                    }) => source,
                    outcome => return outcome,
                }
            }
        };
        if fabric != FabricChoice::Auto {
            return Err(OpenError::Fabric {
                fabric,
                source: absent,
            });
        }
        tracing::info!(reason = %absent, "no SAN; connections go over TCP");
        let absent = absent.to_string();
        Switch::builder().config(config).finish(Some(absent))
    }

    /// Makes a switch of providers that the caller has, or of none.
    pub fn builder() -> SwitchBuilder {
        SwitchBuilder::default()
    }

    /// Listens: on TCP always, and on the SAN where `address` is a SAN NIC's or the wildcard.
    ///
    /// # Errors
    /// [`ListenError`], for TCP's failures only.
    pub fn listen(
        &self,
        address: SocketAddr,
        options: ListenOptions,
    ) -> Result<Listener, ListenError> {
        Listener::open(self.lease(), address, options)
    }

    /// Connects, over the SAN where it has a way there, else over TCP, and waits for the end.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect(
        &self,
        destination: SocketAddr,
        options: &ConnectOptions,
    ) -> Result<Connection, ConnectError> {
        PendingConnect::connect(self.lease(), destination, options)
    }

    /// Starts to connect; the caller polls for the end (duty 23).
    ///
    /// # Errors
    /// [`ConnectError`], for what fails at once.
    pub fn start_connect(
        &self,
        destination: SocketAddr,
        options: &ConnectOptions,
    ) -> Result<PendingConnect, ConnectError> {
        PendingConnect::start(self.lease(), destination, options)
    }

    /// Listens on the SAN beside a socket that listens on TCP already. The socket's owner goes on
    /// using it; accepting is done by the listener.
    pub(crate) fn adopt_listener(
        &self,
        socket: Socket,
        backlog: u32,
    ) -> Result<Listener, ListenError> {
        Listener::adopt(self.lease(), socket, backlog)
    }

    /// Starts to connect over the SAN alone, or says why it does not serve this connect.
    pub(crate) fn start_san_connect(
        &self,
        destination: SocketAddr,
        options: &ConnectOptions,
        companion: Socket,
    ) -> Result<Result<PendingConnect, FallbackReason>, ConnectError> {
        PendingConnect::start_san(self.lease(), destination, options, companion)
    }

    /// A connection of a connected TCP socket's, which may move to the SAN; `None`: the SAN has no way
    /// there.
    ///
    /// # Errors
    /// ENOTCONN.
    pub(crate) fn adopt_stream(
        &self,
        socket: Socket,
        role: Role,
    ) -> std::io::Result<Option<Connection>> {
        Connection::adopt(self.lease(), socket, role)
    }

    /// Takes up a connection that another process has offered ([`Connection::duplicate`]). It asks that process
    /// now, and waits half a minute at most.
    ///
    /// # Errors
    /// EINVAL, EACCES: it was offered to another process. ENOTCONN: the offer was used before or is too old,
    /// or the connection is gone. ETIMEDOUT: a call of the other process goes on, or it does not
    /// answer; EBUSY: the peer moves at this moment, too: the connection stays where it is. ECONNRESET:
    /// the connection broke on the way. ENETDOWN: it is over a fabric that this switch has not.
    pub fn connection_from(&self, duplicate: &Duplicate) -> std::io::Result<Connection> {
        Connection::arrive(self.lease(), duplicate)
    }

    /// Takes up a listener that another process has offered ([`Listener::duplicate`]). `condition` takes the
    /// place of the one that it had there; without one it takes all.
    ///
    /// # Errors
    /// As [`Switch::connection_from`]. ETIMEDOUT: an accept of the other process goes on.
    pub fn listener_from(
        &self,
        duplicate: &Duplicate,
        condition: Option<Condition>,
    ) -> std::io::Result<Listener> {
        Listener::arrive(self.lease(), duplicate, condition)
    }

    /// Waits until no closed connection has bytes under way, at most so long; whether that is so.
    pub(crate) fn wait_for_closing(&self, timeout: Duration) -> bool {
        let until = Deadline::after(timeout);
        let is_done = self.running.rooms.closing.wait(timeout);
        is_done && self.running.rooms.moving.wait_for_closed(until)
    }

    /// Adds a provider to the running switch. It joins every listener that its addresses fit
    /// (duty 7).
    ///
    /// # Errors
    /// [`OpenError::Provider`] when it does not start, [`OpenError::System`] when there is no
    /// thread for it.
    pub fn add_provider(&self, name: &str, provider: Provider) -> Result<(), OpenError> {
        self.running.add_provider(name, provider)?;
        self.running.rooms.companions.refresh();
        Ok(())
    }

    /// The addresses that the SAN serves on this host.
    pub fn san_addresses(&self) -> Vec<SanEntry> {
        self.table().entries().to_vec()
    }

    /// The table of SAN subnets as it stands.
    pub fn table(&self) -> Arc<SanTable> {
        self.running.rooms.routes.table()
    }

    /// The providers' names, in the order of their registration.
    pub fn providers(&self) -> Vec<String> {
        let providers = self.running.rooms.providers.all();
        providers.iter().map(|one| one.name.clone()).collect()
    }

    /// Why there is no SAN, where one was looked for in vain.
    pub fn no_san_reason(&self) -> Option<&str> {
        self.running.rooms.absent.as_deref()
    }

    /// The settings in force.
    pub fn config(&self) -> &SwitchConfig {
        &self.running.rooms.config
    }

    /// What was done so far.
    pub fn stats(&self) -> SwitchStats {
        self.running.rooms.counters.snapshot()
    }

    /// What each provider has counted, by its name.
    pub fn provider_counters(&self) -> Vec<(String, Counters)> {
        let providers = self.running.rooms.providers.all();
        let counters = |one: &Arc<StartedProvider>| (one.name.clone(), one.provider.counters());
        providers.iter().map(counters).collect()
    }

    /// What the switch is doing and what it has counted: what `san stat` shows. Nothing is stopped
    /// for it.
    pub fn report(&self) -> Report {
        Report::of(&self.running.rooms)
    }

    /// Closes all listeners, ends the accept thread and cleans up every provider (duty 51). SAN
    /// connections break; TCP connections stay, since they are the kernel's. Connections that are
    /// closed already get two seconds for the next of their last bytes to arrive. Says whether the
    /// thread ended in time: it does not while the application's condition function has it.
    pub fn shutdown(&self) -> bool {
        self.running.shutdown()
    }

    fn lease(&self) -> Lease {
        let running: Arc<Running> = Arc::clone(&self.running);
        Lease::new(&self.running.rooms, running)
    }
}

impl SwitchBuilder {
    /// Takes these settings.
    #[must_use]
    pub fn config(mut self, config: SwitchConfig) -> Self {
        self.config = config;
        self
    }

    /// What the switch starts its own providers with. A provider that is registered
    /// ([`SwitchBuilder::provider`]) without these settings carries streams by messages alone, without bulk
    /// and urgent data.
    pub fn provider_config(config: &SwitchConfig) -> ProviderConfig {
        settings(config)
    }

    /// Registers a provider. The first one registered is preferred where two serve a subnet.
    #[must_use]
    pub fn provider(mut self, name: &str, provider: Provider) -> Self {
        self.providers.push((name.to_owned(), provider));
        self
    }

    /// Makes the switch and starts the providers.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn build(self) -> Result<Switch, OpenError> {
        self.finish(None)
    }

    fn finish(self, absent: Option<String>) -> Result<Switch, OpenError> {
        self.config.check()?;
        let rooms = Rooms::new(self.config, absent).map_err(|source| OpenError::System {
            step: "make an epoll set",
            source,
        })?;
        let running = Running {
            rooms: Arc::new(rooms),
            accept_thread: Mutex::new(None),
            stat_thread: Mutex::new(None),
        };
        for (name, provider) in self.providers {
            running.add_provider(&name, provider)?;
        }
        running.rooms.companions.refresh();
        running.start_stat();
        Ok(Switch {
            running: Arc::new(running),
        })
    }
}

impl Running {
    fn add_provider(&self, name: &str, provider: Provider) -> Result<(), OpenError> {
        if self.rooms.is_closed() {
            return Err(OpenError::ShutDown);
        }
        self.ensure_accept_thread()?;
        let signals = Arc::clone(self.rooms.companions.signals());
        let started = StartedProvider::start(name, provider, signals)?;
        tracing::info!(provider = name, "provider started");
        self.rooms.providers.add(Arc::new(started));
        Ok(())
    }

    /// The accept thread runs as soon as there is a provider: a switch that is plain TCP has
    /// none.
    fn ensure_accept_thread(&self) -> Result<(), OpenError> {
        let mut thread = lock(&self.accept_thread);
        if thread.is_none() {
            let started = AcceptThread::start(Arc::clone(&self.rooms.companions));
            *thread = Some(started.map_err(|source| OpenError::System {
                step: "start the accept thread",
                source,
            })?);
        }
        Ok(())
    }

    /// Statistics are a help: a process that cannot tell them goes on.
    fn start_stat(&self) {
        if !self.rooms.config.stat {
            return;
        }
        match StatThread::start(&self.rooms) {
            Ok(thread) => *lock(&self.stat_thread) = Some(thread),
            Err(error) => tracing::warn!(
                %error, "san stat will not find this process (SAN_STAT=off says so less loudly)"
            ),
        }
    }

    fn shutdown(&self) -> bool {
        // Each startup is undone once, whoever asks how often.
        let first = self.rooms.close();
        for listener in self.rooms.companions.listeners() {
            self.rooms.companions.close(&listener);
        }
        let stat = lock(&self.stat_thread).take();
        drop(stat);
        self.rooms.offers.shut_down();
        self.rooms.moving.shut_down(MOVING_PATIENCE);
        self.rooms.closing.shut_down();
        let thread = lock(&self.accept_thread).take();
        let timeout = self.rooms.config.shutdown_timeout;
        let ended = thread.is_none_or(|thread| thread.stop(timeout));
        if first {
            for provider in self.rooms.providers.all() {
                provider.cleanup();
            }
        }
        ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown();
    }
}
