//! A provider as the switch has registered it, and a socket of its that closes itself.
//!
//! Thin: it turns the provider's errors, one enum per operation, into what a companion's failure
//! needs to say, and makes sure that every socket is closed whichever way it is let go.

use crate::companion::plan::CompanionFailure;
use crate::config::{FabricChoice, SwitchConfig};
use crate::core::Signals;
use crate::error::{FallbackReason, OpenError};
use crate::san::upcalls::Upcalls;
use san_provider::{
    AcceptError, AddressFamily, ConnectError, ConnectOptions, ConnectionRequest, Decision,
    EventObject, Fabric, NetworkEventRecord, NetworkEvents, Protocol, Provider, ProviderConfig,
    SelectError, Socket, SocketOption, SocketType, SoftConfig, SpiVersion, WsaCode,
};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

/// A provider that was started.
pub(crate) struct Registered {
    pub(crate) name: String,
    pub(crate) provider: Provider,
}

/// A socket of a provider. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct ProviderSocket(Socket);

/// An address that the kernel does not tell.
pub(crate) const UNKNOWN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));

/// What a provider's accept gave.
#[derive(Debug)]
pub(crate) struct AcceptedSocket {
    pub(crate) socket: ProviderSocket,
    pub(crate) peer: SocketAddr,
}

impl Registered {
    /// Starts a provider, telling it that the switch does so (duty 5).
    pub(crate) fn start(
        name: &str,
        provider: Provider,
        signals: Arc<Signals>,
    ) -> Result<Self, OpenError> {
        let upcalls = Arc::new(Upcalls::new(signals));
        provider
            .startup(SpiVersion::CURRENT, true, upcalls)
            .map_err(|error| OpenError::Provider {
                provider: name.to_owned(),
                reason: error.to_string(),
                code: error.code(),
            })?;
        Ok(Registered {
            name: name.to_owned(),
            provider,
        })
    }

    /// A provider on the rdma fabric, which is opened when it starts.
    pub(crate) fn rdma(config: &SwitchConfig) -> Result<Provider, OpenError> {
        Provider::new(settings(config)).map_err(|error| bad_settings("rdma", &error))
    }

    /// A provider on the soft fabric, which is opened now.
    pub(crate) fn soft(config: &SwitchConfig) -> Result<Provider, OpenError> {
        let soft = SoftConfig {
            addresses: config.soft_addresses.clone(),
            ..SoftConfig::default()
        };
        let fabric = Fabric::soft(&soft).map_err(|error| OpenError::Fabric {
            fabric: FabricChoice::Soft,
            reason: error.to_string(),
        })?;
        Provider::with_fabric(fabric, settings(config)).map_err(|e| bad_settings("soft", &e))
    }

    /// A socket of the address's family.
    pub(crate) fn socket(&self, address: SocketAddr) -> Result<ProviderSocket, CompanionFailure> {
        let family = AddressFamily::of(&address);
        let socket = self
            .provider
            .socket(family, SocketType::Stream, Protocol::Tcp)
            .map_err(|error| CompanionFailure::new("make a socket", error.code(), &error))?;
        Ok(ProviderSocket(socket))
    }

    pub(crate) fn event_object(&self) -> Result<EventObject, CompanionFailure> {
        EventObject::new().map_err(|error| CompanionFailure::system("make an event object", &error))
    }

    /// Undoes the startup (duty 51).
    pub(crate) fn cleanup(&self) {
        if let Err(error) = self.provider.cleanup() {
            tracing::debug!(provider = self.name, %error, "cleanup");
        }
    }
}

impl ProviderSocket {
    pub(crate) fn bind(&self, address: SocketAddr) -> Result<(), CompanionFailure> {
        self.0
            .bind(address)
            .map_err(|error| CompanionFailure::new("bind", error.code(), &error))
    }

    pub(crate) fn listen(&self, backlog: u32) -> Result<(), CompanionFailure> {
        self.0
            .listen(backlog)
            .map_err(|error| CompanionFailure::new("listen", error.code(), &error))
    }

    pub(crate) fn event_select(
        &self,
        event: &EventObject,
        events: NetworkEvents,
    ) -> Result<(), CompanionFailure> {
        self.0
            .event_select(event, events)
            .map_err(|error| CompanionFailure::new("select events", error.code(), &error))
    }

    /// What happened since the last call; the event object is reset.
    pub(crate) fn network_events(
        &self,
        event: &EventObject,
    ) -> Result<NetworkEventRecord, SelectError> {
        self.0.enum_network_events(Some(event))
    }

    pub(crate) fn connect(
        &self,
        destination: SocketAddr,
        budget: Duration,
    ) -> Result<(), ConnectError> {
        let deadline = Some(budget);
        let options = ConnectOptions {
            deadline,
            ..ConnectOptions::default()
        };
        self.0.connect(destination, options)
    }

    /// Answers the request that waits longest, as the condition decides.
    pub(crate) fn accept(
        &self,
        condition: impl FnMut(&ConnectionRequest) -> Decision,
    ) -> Result<AcceptedSocket, AcceptError> {
        let accepted = self.0.accept(condition)?;
        let peer = accepted.peer.unwrap_or(UNKNOWN);
        Ok(AcceptedSocket {
            socket: ProviderSocket(accepted.socket),
            peer,
        })
    }

    /// Sets an option of the TCP socket on its companion (duty 15).
    pub(crate) fn set_option(
        &self,
        option: SocketOption,
        value: u32,
    ) -> Result<(), CompanionFailure> {
        self.0
            .set_option(option, value)
            .map_err(|error| CompanionFailure::new("set an option", error.code(), &error))
    }

    /// Bytes of the largest message that the peer takes.
    pub(crate) fn max_message_size(&self) -> usize {
        let size = self.0.option(SocketOption::MaxMessageSize);
        // One that is closed already sends nothing anyway.
        size.map_or(1, |size| usize::try_from(size).unwrap_or(usize::MAX).max(1))
    }

    /// Our end's address; the wildcard if the provider does not know it.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.0.local_addr().ok().flatten().unwrap_or(UNKNOWN)
    }

    /// The socket itself, for data.
    pub(crate) fn data(&self) -> &Socket {
        &self.0
    }

    /// Closes it; again does nothing.
    pub(crate) fn close(&self) {
        let _ = self.0.close();
    }
}

impl Drop for ProviderSocket {
    fn drop(&mut self) {
        self.close();
    }
}

impl CompanionFailure {
    pub(crate) fn new(step: &'static str, code: WsaCode, reason: &dyn fmt::Display) -> Self {
        CompanionFailure {
            step,
            code,
            reason: reason.to_string(),
        }
    }

    pub(crate) fn system(step: &'static str, error: &io::Error) -> Self {
        let code = error
            .raw_os_error()
            .map_or(WsaCode::Invalid, WsaCode::from_errno);
        Self::new(step, code, error)
    }
}

impl From<CompanionFailure> for FallbackReason {
    fn from(failure: CompanionFailure) -> Self {
        FallbackReason::Companion {
            step: failure.step,
            reason: failure.reason,
            code: failure.code,
        }
    }
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn settings(config: &SwitchConfig) -> ProviderConfig {
    ProviderConfig {
        strict: config.strict,
        ..ProviderConfig::default()
    }
}

fn bad_settings(provider: &str, error: &san_provider::ConfigError) -> OpenError {
    OpenError::Provider {
        provider: provider.to_owned(),
        reason: error.to_string(),
        code: WsaCode::Invalid,
    }
}
