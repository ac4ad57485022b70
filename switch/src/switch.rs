//! The switch itself: TCP and all providers as one (duties 1, 4-8, 51).
//!
//! It owns the providers' startup and cleanup and the accept thread. Listening and connecting are
//! in `net/listener.rs` and `net/connect.rs`.

use crate::companion::accept_thread::AcceptThread;
use crate::config::{FabricChoice, SwitchConfig};
use crate::core::Core;
use crate::counters::SwitchStats;
use crate::error::{ConnectError, ListenError, OpenError};
use crate::net::connect::{ConnectOptions, PendingConnect};
use crate::net::connection::Connection;
use crate::net::listener::{ListenOptions, Listener};
use crate::route::table::{SanEntry, SanTable};
use crate::san::provider::Registered;
use crate::stat::{Report, StatThread};
use san_base::lock;
use san_provider::{Counters, Provider, WsaCode};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// The switch. Clones are the same switch; it ends with the last of them and of its listeners
/// and connections, or with [`Switch::shutdown`].
#[derive(Debug, Clone)]
pub struct Switch {
    inner: Arc<Inner>,
}

/// Makes a switch of providers that the caller has.
#[derive(Debug, Default)]
pub struct SwitchBuilder {
    config: SwitchConfig,
    providers: Vec<(String, Provider)>,
}

/// What switch, listeners and connections keep alive together.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) core: Arc<Core>,
    thread: Mutex<Option<AcceptThread>>,
    stat: Mutex<Option<StatThread>>,
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
        let absent = match fabric {
            FabricChoice::Off => return builder.build(),
            FabricChoice::Soft => {
                let loopback = SwitchConfig {
                    loopback: true,
                    ..config.clone()
                };
                let provider = Registered::soft(&config)?;
                let builder = builder.config(loopback).provider("soft", provider);
                return builder.build();
            }
            FabricChoice::Auto | FabricChoice::Rdma => {
                let provider = Registered::rdma(&config)?;
                match builder.provider("rdma", provider).build() {
                    Err(OpenError::Provider {
                        code: WsaCode::NotReady,
                        reason,
                        ..
                    }) => reason,
                    outcome => return outcome,
                }
            }
        };
        if fabric != FabricChoice::Auto {
            return Err(OpenError::Fabric {
                fabric,
                reason: absent,
            });
        }
        tracing::info!(reason = absent, "no SAN; connections go over TCP");
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
        Listener::open(Arc::clone(&self.inner), address, options)
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
        self.start_connect(destination, options)?
            .wait(options.cancel.as_ref())
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
        PendingConnect::start(Arc::clone(&self.inner), destination, options)
    }

    /// Adds a provider to the running switch. It joins every listener that its addresses fit
    /// (duty 7).
    ///
    /// # Errors
    /// [`OpenError::Provider`] when it does not start, [`OpenError::System`] when there is no
    /// thread for it.
    pub fn add_provider(&self, name: &str, provider: Provider) -> Result<(), OpenError> {
        self.inner.add_provider(name, provider)?;
        self.inner.core.refresh();
        Ok(())
    }

    /// The addresses that the SAN serves on this host.
    pub fn san_addresses(&self) -> Vec<SanEntry> {
        self.inner.core.table().entries().to_vec()
    }

    /// The table of SAN subnets as it stands.
    pub fn table(&self) -> Arc<SanTable> {
        self.inner.core.table()
    }

    /// The providers' names, in the order of their registration.
    pub fn providers(&self) -> Vec<String> {
        let providers = self.inner.core.providers();
        providers.iter().map(|one| one.name.clone()).collect()
    }

    /// Why there is no SAN, where one was looked for in vain.
    pub fn no_san_reason(&self) -> Option<&str> {
        self.inner.core.absent.as_deref()
    }

    /// The settings in force.
    pub fn config(&self) -> &SwitchConfig {
        &self.inner.core.config
    }

    /// What was done so far.
    pub fn stats(&self) -> SwitchStats {
        self.inner.core.counters.snapshot()
    }

    /// What each provider has counted, by its name.
    pub fn provider_counters(&self) -> Vec<(String, Counters)> {
        let providers = self.inner.core.providers();
        let counters = |one: &Arc<Registered>| (one.name.clone(), one.provider.counters());
        providers.iter().map(counters).collect()
    }

    /// What the switch is doing and what it has counted: what `san stat` shows. Nothing is stopped
    /// for it.
    pub fn report(&self) -> Report {
        Report::of(&self.inner.core)
    }

    /// Closes all listeners, ends the accept thread and cleans up every provider (duty 51). SAN
    /// connections break; TCP connections stay, since they are the kernel's. Says whether the
    /// thread ended in time: it does not while the application's condition function has it.
    pub fn shutdown(&self) -> bool {
        self.inner.shutdown()
    }
}

impl SwitchBuilder {
    /// Takes these settings.
    #[must_use]
    pub fn config(mut self, config: SwitchConfig) -> Self {
        self.config = config;
        self
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
        let core = Core::new(self.config, absent).map_err(|source| OpenError::System {
            step: "make an epoll set",
            source,
        })?;
        let inner = Inner {
            core: Arc::new(core),
            thread: Mutex::new(None),
            stat: Mutex::new(None),
        };
        for (name, provider) in self.providers {
            inner.add_provider(&name, provider)?;
        }
        inner.core.refresh();
        inner.start_stat();
        Ok(Switch {
            inner: Arc::new(inner),
        })
    }
}

impl Inner {
    fn add_provider(&self, name: &str, provider: Provider) -> Result<(), OpenError> {
        if self.core.is_closed() {
            return Err(OpenError::ShutDown);
        }
        self.ensure_thread()?;
        let registered = Registered::start(name, provider, Arc::clone(&self.core.signals))?;
        tracing::info!(provider = name, "provider started");
        self.core.add_provider(Arc::new(registered));
        Ok(())
    }

    /// The accept thread runs as soon as there is a provider: a switch that is plain TCP has
    /// none.
    fn ensure_thread(&self) -> Result<(), OpenError> {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let started = AcceptThread::start(Arc::clone(&self.core));
            *thread = Some(started.map_err(|source| OpenError::System {
                step: "start the accept thread",
                source,
            })?);
        }
        Ok(())
    }

    /// Statistics are a help: a process that cannot tell them goes on.
    fn start_stat(&self) {
        if !self.core.config.stat {
            return;
        }
        match StatThread::start(&self.core) {
            Ok(thread) => *lock(&self.stat) = Some(thread),
            Err(error) => tracing::warn!(
                %error, "san stat will not find this process (SAN_STAT=off says so less loudly)"
            ),
        }
    }

    fn shutdown(&self) -> bool {
        // Each startup is undone once, whoever asks how often.
        let first = !self.core.closed.swap(true, Ordering::AcqRel);
        for listener in self.core.listeners() {
            listener.close(&self.core);
        }
        let stat = lock(&self.stat).take();
        drop(stat);
        let thread = lock(&self.thread).take();
        let timeout = self.core.config.shutdown_timeout;
        let ended = thread.is_none_or(|thread| thread.stop(&self.core, timeout));
        if first {
            for provider in self.core.providers() {
                provider.cleanup();
            }
        }
        ended
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
    }
}
