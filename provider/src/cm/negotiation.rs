//! What a connection begins with, whichever end asks for it: its data path, what this side says of
//! itself, and what is asked of the transport.

use std::sync::Arc;

use verbs_shim::{CmId, ConnParams, VerbsError};

use crate::config::ProviderConfig;
use crate::runtime::Runtime;
use crate::transfer::{Connection, Ingredients};
use crate::wire::{Features, Hello, Session};

/// What this side says in a request or a reply.
pub(crate) fn own_hello(
    config: &ProviderConfig,
    connection: &Connection,
    session: Session,
) -> Hello {
    let max_rdma_size = connection.own_rdma_limit();
    Hello {
        features: Features {
            rdma_read: max_rdma_size > 0,
            send_with_invalidate: false,
            moving: true,
            layer: config.layer_features,
        },
        credits: config.initial_window,
        max_message_size: config.max_message_size,
        max_rdma_size,
        session,
    }
}

/// The data path of a connection on `id`, in a lane of this hint.
pub(crate) fn prepare(
    runtime: &Runtime,
    id: &CmId,
    hint: Option<u32>,
) -> Result<Arc<Connection>, VerbsError> {
    let no_device =
        || VerbsError::from_errno("rdma_create_qp", rustix::io::Errno::NODEV.raw_os_error());
    let device = id.device().ok_or_else(no_device)?;
    let lane = runtime
        .devices
        .lane(&device, &runtime.config, &runtime.progress, hint)?;
    let parts = Ingredients {
        lane,
        progress: &runtime.progress,
        control: &runtime.control,
        config: &runtime.config,
        memory: &runtime.memory,
        id,
    };
    let no_receives = || {
        VerbsError::from_errno(
            "ibv_post_srq_recv",
            rustix::io::Errno::NOBUFS.raw_os_error(),
        )
    };
    Connection::prepare(parts)?.ok_or_else(no_receives)
}

/// Whether the port of a request can take the packets that its peer wants to send. The kernel does
/// not look: larger ones never arrive.
pub(crate) fn takes_path(id: &CmId) -> bool {
    let Some(wanted) = id.path_mtu() else {
        return true;
    };
    let port = id.device().map(|device| device.port(id.port()));
    // A port that does not answer has other troubles.
    let Some(Ok(port)) = port else {
        return true;
    };
    if wanted > port.active_mtu {
        let peer = id.peer_addr();
        tracing::warn!(
            ?peer,
            wanted,
            active = port.active_mtu,
            "the MTUs of both ends differ"
        );
    }
    wanted <= port.active_mtu
}

/// What both sides ask of the transport.
pub(crate) fn transport<'a>(config: &ProviderConfig, private_data: &'a [u8]) -> ConnParams<'a> {
    ConnParams {
        private_data,
        retry_count: config.retry_count,
        // For ever. Between two that keep to the protocol it never happens. But a peer that does not
        // may use up the receives that others were promised, until somebody polls and finds it out.
        rnr_retry: 7,
        ..ConnParams::default()
    }
}

/// Not every device can, and a connection without is better than none.
pub(crate) fn set_ack_timeout(id: &CmId, code: u8) {
    if let Err(error) = id.set_ack_timeout(code) {
        tracing::debug!(%error, "the ACK timeout stays as it is");
    }
}
