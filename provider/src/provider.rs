//! The provider: started and cleaned up, counted (duties 60, 63, 64); makes sockets, answers for
//! its addresses and counters.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use verbs_shim::fork::ForkGuard;
use verbs_shim::{AddressWatch, Fabric, FabricKind};

use crate::address_list::{self, SanAddress};
use crate::cm::thread;
use crate::config::{ConfigError, ProviderConfig};
use crate::control::Control;
use crate::counters::Counters;
use crate::error::{QueryError, SocketError, StartupError, TakeUpError};
use crate::memory::store::RegistrationStore;
use crate::progress::Progress;
use crate::runtime::Runtime;
use crate::socket::duplicate::{self, Duplicate};
use crate::socket::{AddressFamily, Protocol, Socket, SocketType};
use crate::statistics::SocketStats;
use crate::sync::lock;
use crate::upcalls::SwitchUpcalls;
use crate::version::SpiVersion;

/// What startup answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderData {
    /// The version that will be used.
    pub version: SpiVersion,
    /// The highest version there is.
    pub highest_version: SpiVersion,
    /// For people.
    pub description: &'static str,
    /// What the provider runs on.
    pub fabric: FabricKind,
}

/// A SAN service provider. Clones are the same provider.
#[derive(Clone)]
pub struct Provider {
    shared: ForkGuard<Arc<Shared>>,
}

struct Shared {
    config: ProviderConfig,
    /// `None`: opened at startup.
    fabric: Option<Fabric>,
    started: Mutex<Started>,
}

#[derive(Default)]
struct Started {
    count: u32,
    running: Option<Running>,
}

struct Running {
    runtime: Arc<Runtime>,
    data: ProviderData,
    threads: Vec<JoinHandle<()>>,
}

impl Provider {
    /// A provider on the kernel's RDMA. Nothing is opened before startup.
    ///
    /// # Errors
    /// Names the value of the configuration that cannot be.
    pub fn new(config: ProviderConfig) -> Result<Self, ConfigError> {
        Self::build(config, None)
    }

    /// A provider on a fabric that is open already.
    ///
    /// # Errors
    /// Names the value of the configuration that cannot be.
    pub fn with_fabric(fabric: Fabric, config: ProviderConfig) -> Result<Self, ConfigError> {
        Self::build(config, Some(fabric))
    }

    fn build(config: ProviderConfig, fabric: Option<Fabric>) -> Result<Self, ConfigError> {
        config.check()?;
        let started = Mutex::new(Started::default());
        Ok(Self {
            shared: ForkGuard::new(Arc::new(Shared {
                config,
                fabric,
                started,
            })),
        })
    }

    /// Starts the provider, or counts one more start (duties 4, 5, 63, 64). `by_switch` says that
    /// a switch starts it; the provider then works the same, and says so in its log. The upcalls
    /// of the first start stay in use.
    ///
    /// # Errors
    /// `WSASYSNOTREADY`: the text says what an operator can do. `WSAVERNOTSUPPORTED`,
    /// `WSAEPROCLIM`.
    #[doc(alias = "WSPStartup")]
    #[doc(alias = "WSPStartupEx")]
    pub fn startup(
        &self,
        version: SpiVersion,
        by_switch: bool,
        upcalls: Arc<dyn SwitchUpcalls>,
    ) -> Result<ProviderData, StartupError> {
        if version.major != SpiVersion::CURRENT.major {
            return Err(StartupError::VersionNotSupported { asked: version });
        }
        if self.is_inherited() {
            return Err(StartupError::NotReady {
                why: "this process was forked from the provider's".to_owned(),
            });
        }
        let mut started = lock(&self.shared.started);
        let limit = self.shared.config.max_startups;
        if started.count >= limit {
            return Err(StartupError::TooManyProcesses { limit });
        }
        let data = match &started.running {
            Some(running) => running.data.clone(),
            None => {
                let running = self.shared.start(version, upcalls)?;
                let data = running.data.clone();
                started.running = Some(running);
                data
            }
        };
        started.count += 1;
        tracing::debug!(count = started.count, by_switch, %version, "provider started");
        Ok(data)
    }

    /// Undoes one startup; the last one closes every socket and frees everything (duty 63).
    ///
    /// # Errors
    /// `WSANOTINITIALISED`: there was no startup.
    #[doc(alias = "WSPCleanup")]
    pub fn cleanup(&self) -> Result<(), QueryError> {
        if self.is_inherited() {
            return Err(QueryError::NotInitialised);
        }
        let running = {
            let mut started = lock(&self.shared.started);
            started.count = started
                .count
                .checked_sub(1)
                .ok_or(QueryError::NotInitialised)?;
            if started.count > 0 {
                return Ok(());
            }
            started.running.take()
        };
        if let Some(running) = running {
            running.stop();
        }
        Ok(())
    }

    /// Makes a socket (duties 67, 68).
    ///
    /// # Errors
    /// `WSAEAFNOSUPPORT`, `WSAEPROTOTYPE`, `WSAEPROTONOSUPPORT`: only stream sockets of IPv4 and
    /// IPv6. `WSAEMFILE`, `WSAENOBUFS`, `WSANOTINITIALISED`.
    #[doc(alias = "WSPSocket")]
    pub fn socket(
        &self,
        family: AddressFamily,
        socket_type: SocketType,
        protocol: Protocol,
    ) -> Result<Socket, SocketError> {
        let runtime = self.runtime().ok_or(SocketError::NotInitialised)?;
        Socket::open(&runtime, family, socket_type, protocol)
    }

    /// Takes up a connection that another process handed to this one by [`Socket::duplicate`]
    /// (duties 117 to 119). The socket is connected, with the same names and options; what had
    /// arrived before is received first. Waits for that at most as long as a connect may take.
    ///
    /// # Errors
    /// `WSAEINVAL`: it is meant for another process. `WSAECONNRESET`: the peer does not wait for it
    /// any more, or it was taken up before. `WSAEMFILE`, `WSAENOBUFS`, `WSAENETDOWN`,
    /// `WSANOTINITIALISED`.
    #[doc(alias = "WSPSocket")]
    pub fn socket_from(&self, duplicate: &Duplicate) -> Result<Socket, TakeUpError> {
        let runtime = self.runtime().ok_or(TakeUpError::NotInitialised)?;
        duplicate::socket_from(&runtime, duplicate)
    }

    /// The provider's local addresses (duties 6, 99), read anew.
    ///
    /// # Errors
    /// `WSANOTINITIALISED`.
    #[doc(alias = "SIO_ADDRESS_LIST_QUERY")]
    pub fn address_list(&self) -> Result<Vec<SanAddress>, QueryError> {
        let runtime = self.runtime().ok_or(QueryError::NotInitialised)?;
        Ok(runtime.refresh_addresses())
    }

    /// Whether the wildcard address stands for the provider's devices alone. If not, there is a device
    /// that the provider cannot use (iWARP): RDMA CM listens there, too, or fails to, so a listener
    /// binds to each address of [`Provider::address_list`] by itself.
    ///
    /// # Errors
    /// `WSANOTINITIALISED`.
    pub fn is_wildcard_ours(&self) -> Result<bool, QueryError> {
        let runtime = self.runtime().ok_or(QueryError::NotInitialised)?;
        Ok(!address_list::has_unusable(&runtime.fabric))
    }

    /// The mapping of this memory is about to change, or has: registrations of it that were kept end
    /// before this returns, those in use when they are let go, and none of them is used again
    /// (duty 109). Changes that the kernel tells of need no such call; where it tells of none
    /// nothing is kept.
    ///
    /// # Errors
    /// `WSANOTINITIALISED`.
    #[doc(alias = "WSPMemoryRegistrationCacheCallback")]
    pub fn memory_registration_cache_callback(
        &self,
        address: usize,
        length: usize,
    ) -> Result<(), QueryError> {
        let runtime = self.runtime().ok_or(QueryError::NotInitialised)?;
        runtime
            .memory
            .invalidate(&(address..address.saturating_add(length)));
        Ok(())
    }

    /// The counters since the first startup; all 0 before it.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.runtime()
            .map(|runtime| runtime.counters())
            .unwrap_or_default()
    }

    /// What a device itself has counted, by names of its own: [`verbs_shim::Device::counters`]. Empty if it is not
    /// there.
    #[must_use]
    pub fn device_counters(&self, device: &str) -> Vec<(String, u64)> {
        let devices = self
            .runtime()
            .and_then(|runtime| runtime.fabric.devices().ok());
        let named = devices.and_then(|all| all.into_iter().find(|one| one.name() == device));
        named.map(|device| device.counters()).unwrap_or_default()
    }

    /// Every open socket with what it has counted, in the order of their numbers. Nothing is stopped
    /// for it: each socket's own locks are held for a moment, one socket at a time.
    #[must_use]
    pub fn socket_stats(&self) -> Vec<SocketStats> {
        let sockets = self
            .runtime()
            .map(|runtime| runtime.sockets())
            .unwrap_or_default();
        let mut stats: Vec<SocketStats> = sockets.iter().map(|socket| socket.stats()).collect();
        stats.sort_unstable_by_key(|socket| socket.number);
        stats
    }

    /// From now on this process treats every provider it has, with all their sockets, as a forked
    /// child does: drops and cleanup do nothing, calls fail with `WSAENOTSOCK`. `fork` is noticed by
    /// itself. This is for a child that was made without it, by `clone`; it cannot be undone.
    pub fn abandon() {
        verbs_shim::fork::abandon();
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ProviderConfig {
        &self.shared.config
    }

    fn is_inherited(&self) -> bool {
        ForkGuard::is_inherited(&self.shared)
    }

    fn runtime(&self) -> Option<Arc<Runtime>> {
        if self.is_inherited() {
            return None;
        }
        lock(&self.shared.started)
            .running
            .as_ref()
            .map(|r| Arc::clone(&r.runtime))
    }
}

impl Shared {
    fn start(
        &self,
        version: SpiVersion,
        upcalls: Arc<dyn SwitchUpcalls>,
    ) -> Result<Running, StartupError> {
        let not_ready = |why: &dyn fmt::Display| StartupError::NotReady {
            why: why.to_string(),
        };
        let fabric = match &self.fabric {
            Some(fabric) => fabric.clone(),
            None => Fabric::rdma().map_err(|e| not_ready(&e))?,
        };
        let channel = fabric.event_channel()?;
        let progress = Progress::new(upcalls, self.config.keepalive).map_err(|e| not_ready(&e))?;
        let control = Control::new().map_err(|e| not_ready(&e))?;
        let kind = fabric.kind();
        let changed = Arc::clone(&control);
        let notify = Arc::new(move || changed.mappings_changed());
        let memory = RegistrationStore::new(self.config.cache_limits(), notify)
            .map_err(|e| not_ready(&e))?;
        let runtime = Runtime::new(
            self.config.clone(),
            fabric,
            channel,
            progress,
            control,
            memory,
        );
        runtime.read_addresses();
        let watch = match AddressWatch::new() {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::warn!(%error, "address changes will not be noticed by themselves");
                None
            }
        };
        let mut running = Running {
            runtime: Arc::new(runtime),
            data: ProviderData {
                version: version.min(SpiVersion::CURRENT),
                highest_version: SpiVersion::CURRENT,
                description: "San Direct: sockets over RDMA",
                fabric: kind,
            },
            threads: Vec::new(),
        };
        let runtime = Arc::clone(&running.runtime);
        let cm = std::thread::Builder::new().name("san-cm".into());
        let cm = cm.spawn(move || thread::run(&runtime, watch.as_ref()));
        let progress = Arc::clone(&running.runtime.progress);
        let looks_after = Arc::clone(&running.runtime);
        let san_progress = std::thread::Builder::new().name("san-progress".into());
        let san_progress = san_progress.spawn(move || progress.run(|| looks_after.drop_unused()));
        let mut failed = None;
        for thread in [cm, san_progress] {
            match thread {
                Ok(thread) => running.threads.push(thread),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            None => Ok(running),
            Some(error) => {
                running.stop();
                Err(not_ready(&error))
            }
        }
    }
}

impl Running {
    fn stop(self) {
        let Self {
            runtime, threads, ..
        } = self;
        runtime.stop();
        for socket in runtime.sockets() {
            socket.shut();
        }
        runtime.control.stop();
        runtime.progress.stop();
        for thread in threads {
            // Cleanup may be called in an upcall: that thread ends by itself.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("a thread of the provider panicked");
            }
        }
        // Their devices' protection domains go next.
        runtime.memory.close();
        runtime.devices.clear();
        tracing::debug!("provider stopped");
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(running) = lock(&self.started).running.take() {
            running.stop();
        }
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_inherited() {
            return f.write_str("Provider(another process's)");
        }
        let started = lock(&self.shared.started);
        f.debug_struct("Provider")
            .field("started", &started.count)
            .finish_non_exhaustive()
    }
}
