//! A listening companion: a provider's socket with its event object.

use std::net::SocketAddr;
use std::sync::Arc;

use san_provider::{EventObject, NetworkEvents, SocketOption};

use crate::san::failure::StepFailure;
use crate::san::provider::StartedProvider;
use crate::san::socket::ProviderSocket;

/// A listening companion.
#[derive(Debug)]
pub(crate) struct Companion {
    /// Its number in the accept thread's epoll set.
    pub(crate) token: u64,
    pub(crate) provider: Arc<StartedProvider>,
    pub(crate) socket: ProviderSocket,
    pub(crate) event: EventObject,
}

impl Companion {
    /// Duties 13-16, 24-26: socket, bind, event object, listen.
    pub(super) fn listen(
        token: u64,
        provider: &Arc<StartedProvider>,
        address: SocketAddr,
        backlog: u32,
    ) -> Result<Self, StepFailure> {
        let socket = provider.socket(address)?;
        // Duty 15: as TCP's listening socket has it.
        socket.set_option(SocketOption::ReuseAddr, 1)?;
        socket.bind(address)?;
        let event = provider.event_object()?;
        socket.event_select(&event, NetworkEvents::ACCEPT)?;
        socket.listen(backlog)?;
        Ok(Self {
            token,
            provider: Arc::clone(provider),
            socket,
            event,
        })
    }
}
