//! Queue pairs.
//!
//! What it does: makes and destroys them; posts, and sends at once what posting
//! made ready.
//! What it does not do: the protocol (`rc`), or what follows from a run of it
//! (`shared::qp`).

use std::fmt;
use std::sync::Arc;

use super::config::{MAX_INLINE, MAX_WR};
use super::cq::CompletionQueue;
use super::device::Device;
use super::shared::qp::QpShared;
use crate::rc::{
    self, Access, MAX_SGE, Modify, Pd, PostError, QpConfig, QpLinks, QpState, RecvRequest,
    SendRequest, SharedReceiveQueue,
};
use crate::wire::MAX_24;

/// What a queue pair is made of.
#[derive(Clone, Copy, Debug)]
pub struct QpInit<'a> {
    /// Its protection domain.
    pub pd: Pd,
    /// Where completed sends go.
    pub send_cq: &'a CompletionQueue,
    /// Where completed receives go.
    pub recv_cq: &'a CompletionQueue,
    /// Where receives come from, if not from a queue of its own.
    pub srq: Option<&'a Arc<SharedReceiveQueue>>,
    /// Requests that the send queue holds.
    pub send_wr: u32,
    /// Requests that the receive queue holds.
    pub recv_wr: u32,
    /// Pieces of a send request.
    pub send_sge: usize,
    /// Pieces of a receive.
    pub recv_sge: usize,
    /// Inline bytes of a send request.
    pub inline: usize,
    /// What the peer may do with regions that allow it.
    pub access: Access,
}

/// Why there is no queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QpError {
    /// As many queue pairs as there may be.
    #[error("no room for more than {0} queue pairs")]
    Full(usize),
    /// More than the device's limit.
    #[error("{name} is more than {limit}")]
    Limit {
        /// Of what.
        name: &'static str,
        /// How much there may be.
        limit: usize,
    },
}

/// A queue pair. When it is dropped its number is free, and packets for it are
/// dropped; work that is posted does not complete any more.
pub struct QueuePair {
    pub(super) shared: Arc<QpShared>,
    device: Arc<Device>,
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair")
            .field("qpn", &self.shared.qpn())
            .finish_non_exhaustive()
    }
}

impl QueuePair {
    pub(super) fn new(device: &Arc<Device>, init: &QpInit<'_>) -> Result<Self, QpError> {
        let most = MAX_WR as usize;
        for (name, value, limit) in [
            ("send_wr", init.send_wr as usize, most),
            ("recv_wr", init.recv_wr as usize, most),
            ("send_sge", init.send_sge, MAX_SGE),
            ("recv_sge", init.recv_sge, MAX_SGE),
            ("inline", init.inline, MAX_INLINE),
        ] {
            if value > limit {
                return Err(QpError::Limit { name, limit });
            }
        }
        if device.qps.count() >= device.config.max_qp {
            return Err(QpError::Full(device.config.max_qp));
        }
        loop {
            let qpn = device.keys.next_u32() & MAX_24;
            // 0 and 1 are the management queue pairs, all ones is multicast.
            if !(2..MAX_24).contains(&qpn) {
                continue;
            }
            let shared = Arc::new(Self::shared(device, init, qpn));
            if device.qps.insert(qpn, shared.clone()) {
                return Ok(Self {
                    shared,
                    device: device.clone(),
                });
            }
        }
    }

    fn shared(device: &Arc<Device>, init: &QpInit<'_>, qpn: u32) -> QpShared {
        let config = QpConfig {
            qpn,
            pd: init.pd,
            send_wr: init.send_wr,
            recv_wr: init.recv_wr,
            send_sge: init.send_sge,
            recv_sge: init.recv_sge,
            inline: init.inline,
        };
        let links = QpLinks {
            regions: device.regions.clone(),
            send_cq: init.send_cq.shared.ring.clone(),
            recv_cq: init.recv_cq.shared.ring.clone(),
            srq: init.srq.cloned(),
            reorder: device.reorder.clone(),
        };
        let mut qp = rc::QueuePair::new(config, links);
        let access = init.access;
        // The way from RESET to INIT is always open.
        let _ = qp.modify(&Modify::Init { access });
        QpShared::new(
            qp,
            init.send_cq.shared.clone(),
            init.recv_cq.shared.clone(),
            init.srq.is_some(),
        )
    }

    /// Its number.
    #[must_use]
    pub fn qpn(&self) -> u32 {
        self.shared.qpn()
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> QpState {
        self.shared.state()
    }

    /// What it has counted.
    #[must_use]
    pub fn counters(&self) -> rc::Counters {
        self.shared.counters()
    }

    /// Posts a send request and sends what the window allows. While others are
    /// under way it may wait until the caller next polls or sleeps, for more to go
    /// along with: a millisecond at most.
    ///
    /// # Errors
    /// [`PostError`]; nothing was posted.
    pub fn post_send(&self, request: &SendRequest<'_>) -> Result<(), PostError> {
        self.post(|qp| qp.post_send(request))
    }

    fn post<R>(&self, work: impl FnOnce(&mut rc::QueuePair) -> R) -> R {
        let device = &self.device;
        let gathers = device.sleepers.thread_stands_back();
        let (result, put_off) = self.shared.post(&device.schedule, gathers, work);
        if let Some(number) = put_off {
            device.put_off.push(self.shared.clone(), number);
        }
        result
    }

    /// Posts several send requests, then sends. On an error those before the
    /// failed one are posted; the error says how many.
    ///
    /// # Errors
    /// The first [`PostError`], and how many requests were posted before it.
    pub fn post_sends(&self, requests: &[SendRequest<'_>]) -> Result<(), (usize, PostError)> {
        self.post(|qp| {
            for (done, request) in requests.iter().enumerate() {
                qp.post_send(request).map_err(|why| (done, why))?;
            }
            Ok(())
        })
    }

    /// Posts a receive to the queue pair's own queue.
    ///
    /// # Errors
    /// [`PostError`]; nothing was posted.
    pub fn post_receive(&self, request: &RecvRequest<'_>) -> Result<(), PostError> {
        self.shared.post_receive(request)
    }

    /// Does what dropping it does, now: afterwards no memory of posted work is
    /// touched any more. May be called again.
    pub fn destroy(&self) {
        // An acknowledgement that it owes keeps it alive.
        self.device.send_put_off();
        self.device.qps.remove(self.shared.qpn(), &self.shared);
        self.shared.reset();
    }

    /// Breaks the queue pair off: posted work completes as flushed.
    pub fn set_error(&self) {
        // What was posted goes out before.
        self.shared.catch_up(&self.device.schedule);
        // There is a way from every state.
        let _ = self.shared.modify(&self.device.schedule, &Modify::Error);
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.destroy();
    }
}
