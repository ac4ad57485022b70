//! Refusals, both ways: how a request is refused, and what a reject says about TCP.

use verbs_shim::{CmId, RejectReason, Request};

use crate::error::ConnectFailure;
use crate::runtime::Runtime;
use crate::statistics::ListenCounters;
use crate::wire::{Hello, HelloKind, Malformed, Refusal, RefusalReason};

/// Rejects a request with our private data, and lets its id go; it is counted for `listener`, too,
/// where there is one. `false`: the peer had given up, so
/// nobody was told.
pub(crate) fn refuse(
    runtime: &Runtime,
    listener: Option<&ListenCounters>,
    id: CmId,
    reason: RefusalReason,
    backlog: u32,
) -> bool {
    let counters = &runtime.counters;
    if !reject(id, reason, backlog) {
        counters.withdrawn.raise();
        return false;
    }
    match reason {
        RefusalReason::BacklogFull => &counters.refused_backlog,
        RefusalReason::Condition => &counters.refused_condition,
        RefusalReason::ReadyQueueFull => &counters.refused_ready_queue,
        RefusalReason::NotOurProtocol => &counters.refused_foreign,
        RefusalReason::Version => &counters.refused_version,
        RefusalReason::Closing => &counters.refused_closing,
        RefusalReason::NotNow => &counters.refused_not_now,
        RefusalReason::NoSuchConnection => &counters.refused_no_connection,
        RefusalReason::PathMtu => &counters.refused_path_mtu,
        RefusalReason::NoResources | RefusalReason::Unknown(_) => &counters.refused_resources,
    }
    .raise();
    if let Some(listener) = listener {
        listener.refused(reason).raise();
    }
    true
}

/// Rejects a request with our private data, and lets its id go. `false`: nobody was told.
// The id ends here.
#[allow(clippy::needless_pass_by_value)]
pub(crate) fn reject(id: CmId, reason: RefusalReason, backlog: u32) -> bool {
    let told = id.reject(&Refusal::new(reason, backlog).emit());
    match &told {
        Ok(()) => tracing::debug!(?reason, backlog, token = id.token(), "request refused"),
        Err(error) => tracing::debug!(%error, ?reason, token = id.token(), "nobody to refuse"),
    }
    told.is_ok()
}

/// A request arrived where nobody listens any more.
pub(crate) fn refuse_for_nobody(runtime: &Runtime, request: Request) {
    runtime.counters.requests.raise();
    let reason = match Hello::parse(HelloKind::Request, &request.private_data) {
        Ok(_) => RefusalReason::Closing,
        Err(malformed) => reason_for(malformed, &request.id),
    };
    refuse(runtime, None, request.id, reason, 0);
}

/// Why a request is refused that is not one of this protocol.
pub(crate) fn reason_for(malformed: Malformed, id: &CmId) -> RefusalReason {
    tracing::debug!(why = %malformed, peer = ?id.peer_addr(), "not our request");
    match malformed {
        Malformed::Version(_) => RefusalReason::Version,
        _ => RefusalReason::NotOurProtocol,
    }
}

/// Duty 73: what a reject says about TCP.
pub(crate) fn failure_of(
    reason: RejectReason,
    private_data: &[u8],
    strict: bool,
) -> ConnectFailure {
    if let Ok(refusal) = Refusal::parse(private_data) {
        return match refusal.reason {
            RefusalReason::BacklogFull | RefusalReason::ReadyQueueFull => {
                ConnectFailure::BacklogFull {
                    backlog: refusal.backlog,
                }
            }
            RefusalReason::Condition => ConnectFailure::RejectedByPeer,
            RefusalReason::NotOurProtocol => ConnectFailure::NotOurProtocol,
            RefusalReason::Version => ConnectFailure::VersionMismatch {
                lowest: refusal.lowest_version,
                highest: refusal.highest_version,
            },
            RefusalReason::Closing => ConnectFailure::ListenerClosing,
            RefusalReason::NotNow => ConnectFailure::NotNow,
            RefusalReason::NoSuchConnection => ConnectFailure::NoSuchConnection,
            RefusalReason::PathMtu => ConnectFailure::PathMtu,
            RefusalReason::NoResources | RefusalReason::Unknown(_) => {
                ConnectFailure::PeerOutOfResources
            }
        };
    }
    match reason {
        RejectReason::InvalidServiceId => ConnectFailure::NobodyListens { strict },
        other => ConnectFailure::ForeignReject {
            reason: u16::try_from(other.raw()).unwrap_or(u16::MAX),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wsd_073_only_our_refusals_are_final() {
        let ours = |reason| Refusal::new(reason, 16).emit();
        let consumer = RejectReason::ConsumerDefined;
        let failure = |reason| failure_of(consumer, &ours(reason), false);
        assert_eq!(
            failure(RefusalReason::BacklogFull),
            ConnectFailure::BacklogFull { backlog: 16 }
        );
        assert_eq!(
            failure(RefusalReason::ReadyQueueFull),
            ConnectFailure::BacklogFull { backlog: 16 }
        );
        assert_eq!(
            failure(RefusalReason::Condition),
            ConnectFailure::RejectedByPeer
        );
        assert_eq!(
            failure(RefusalReason::Closing),
            ConnectFailure::ListenerClosing
        );
        assert_eq!(
            failure(RefusalReason::Unknown(77)),
            ConnectFailure::PeerOutOfResources
        );
        // The same CM reason without our data: a process that died, or somebody else's program.
        assert_eq!(
            failure_of(consumer, &[0; 148], false),
            ConnectFailure::ForeignReject { reason: 28 }
        );
        assert_eq!(
            failure_of(RejectReason::InvalidServiceId, &[0; 148], false),
            ConnectFailure::NobodyListens { strict: false }
        );
        assert_eq!(
            failure_of(RejectReason::InvalidServiceId, &[], true),
            ConnectFailure::NobodyListens { strict: true }
        );
    }
}
