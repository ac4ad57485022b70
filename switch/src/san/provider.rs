//! A provider that the switch has started.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use san_provider::{
    AddressFamily, EventObject, Fabric, Protocol, Provider, ProviderConfig, SocketType, SoftConfig,
    SpiVersion, WsaCode,
};

use super::failure::StepFailure;
use super::signals::Signals;
use super::socket::ProviderSocket;
use super::upcalls::Upcalls;
use crate::config::{FabricChoice, SwitchConfig};
use crate::error::OpenError;

/// A provider that was started.
pub(crate) struct StartedProvider {
    pub(crate) name: String,
    pub(crate) provider: Provider,
}

impl StartedProvider {
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
                code: error.code(),
                source: error.into(),
            })?;
        Ok(StartedProvider {
            name: name.to_owned(),
            provider,
        })
    }

    /// A provider on the rdma fabric, which is opened when it starts.
    pub(crate) fn rdma(config: &SwitchConfig) -> Result<Provider, OpenError> {
        Provider::new(settings(config)).map_err(|error| bad_settings("rdma", error))
    }

    /// A provider on the soft fabric, which is opened now.
    pub(crate) fn soft(config: &SwitchConfig) -> Result<Provider, OpenError> {
        let soft = SoftConfig {
            addresses: config.soft_addresses.clone(),
            ..SoftConfig::default()
        };
        let fabric = Fabric::soft(&soft).map_err(|error| OpenError::Fabric {
            fabric: FabricChoice::Soft,
            source: error.into(),
        })?;
        Provider::with_fabric(fabric, settings(config)).map_err(|e| bad_settings("soft", e))
    }

    /// A socket of the address's family.
    pub(crate) fn socket(&self, address: SocketAddr) -> Result<ProviderSocket, StepFailure> {
        let family = AddressFamily::of(&address);
        let socket = self
            .provider
            .socket(family, SocketType::Stream, Protocol::Tcp)
            .map_err(|error| StepFailure::new("make a socket", error.code(), error))?;
        Ok(ProviderSocket::new(socket))
    }

    pub(crate) fn event_object(&self) -> Result<EventObject, StepFailure> {
        EventObject::new().map_err(|error| StepFailure::system("make an event object", error))
    }

    /// Undoes the startup (duty 51).
    pub(crate) fn cleanup(&self) {
        if let Err(error) = self.provider.cleanup() {
            tracing::debug!(provider = self.name, %error, "cleanup");
        }
    }
}

impl fmt::Debug for StartedProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartedProvider")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What a switch says of itself in the negotiation: it speaks streams (`docs/protocol.md`), with bulk and
/// urgent data. Those before it speak DATA and END alone.
pub(crate) const STREAMS: u8 = 1;

/// The same: it is told of urgent data by MARK.
pub(crate) const MARKS: u8 = 2;

/// The same: it rests while its peer moves to another process.
pub(crate) const MOVES: u8 = 4;

/// The same: it takes bulk on a stream that moves, too. Those before it go back to TCP for good when they
/// are offered some.
pub(crate) const MOVING_BULK: u8 = 8;

/// What a provider of the switch is started with.
pub(crate) fn settings(config: &SwitchConfig) -> ProviderConfig {
    ProviderConfig {
        layer_features: STREAMS | MARKS | MOVES | MOVING_BULK,
        // Rings for bulk, which are used again (`carrier/bulk.rs`), and nothing else so far.
        memory_cache_bytes: 32 << 20,
        strict: config.strict,
        ..ProviderConfig::default()
    }
}

fn bad_settings(provider: &str, error: san_provider::ConfigError) -> OpenError {
    OpenError::Provider {
        provider: provider.to_owned(),
        source: error.into(),
        code: WsaCode::Invalid,
    }
}
