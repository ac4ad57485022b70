//! Why a connect failed, and whether TCP may be tried.
//!
//! It does not look at bytes or CM events; `cm/refusal.rs` and `socket/life_cycle.rs` turn those into a [`ConnectFailure`].

use std::fmt;

use verbs_shim::VerbsError;

use super::{SystemError, Unusable, WsaCode};

/// Why a connect did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectFailure {
    /// The work goes on; the event will tell (duty 71). No failure, but what the SPI calls one.
    InProgress,
    /// A connect is under way on this socket (duty 75).
    AlreadyConnecting,
    /// The socket is connected.
    AlreadyConnected,
    /// The socket listens, or an earlier connect on it failed.
    WrongState,
    /// The socket is closed.
    NotSocket,
    /// The provider was not started.
    NotInitialised,
    /// The address is of the other family than the socket.
    AddressFamily,
    /// The address is a wildcard, or has port 0.
    BadAddress,
    /// The listener's backlog is full; refused by a peer of this protocol (duty 80).
    BacklogFull {
        /// How many requests that listener holds; 0 if it does not say.
        backlog: u32,
    },
    /// The listener's condition function said no (duty 86).
    RejectedByPeer,
    /// The listener did not take our request for one of this protocol.
    NotOurProtocol,
    /// The listener speaks other versions of this protocol only.
    VersionMismatch {
        /// The lowest version it speaks.
        lowest: u8,
        /// The highest version it speaks.
        highest: u8,
    },
    /// The listener was being closed.
    ListenerClosing,
    /// The listener had no queue pair, memory or socket left.
    PeerOutOfResources,
    /// The listener's condition function cannot have the connection now; it may later.
    NotNow,
    /// The listener's condition function knows no connection like the one that the request is
    /// about.
    NoSuchConnection,
    /// The listener's port cannot take packets as large as those of the path from here.
    PathMtu,
    /// Rejected, and not by a peer of this protocol.
    ForeignReject {
        /// IBTA's reason for the reject.
        reason: u16,
    },
    /// No RDMA service listens there. A TCP server may.
    NobodyListens {
        /// The configuration says that all hosts of this network speak RDMA, so TCP would find
        /// nobody either.
        strict: bool,
    },
    /// Accepted by somebody who does not speak this protocol.
    ForeignReply,
    /// No answer before the deadline.
    TimedOut,
    /// There is no route to the address, so TCP would have none either.
    NoRoute,
    /// The address does not resolve, or nobody there speaks RDMA.
    Unreachable,
    /// No queue pair, no memory, no registered memory.
    OutOfResources,
    /// The device went away.
    NetDown,
    /// The RDMA CM refused a call.
    System,
}

/// A connect that failed, or that goes on.
#[derive(Debug, Clone)]
pub struct ConnectError {
    failure: ConnectFailure,
    source: Option<SystemError>,
}

impl ConnectError {
    /// Something that a connect needs could not be had.
    pub(crate) fn of_resources(error: VerbsError) -> Self {
        let failure = match WsaCode::from_errno(error.errno()) {
            WsaCode::NetDown => ConnectFailure::NetDown,
            _ => ConnectFailure::OutOfResources,
        };
        Self::with_source(failure, error)
    }

    pub(crate) fn with_source(failure: ConnectFailure, source: impl Into<SystemError>) -> Self {
        Self {
            failure,
            source: Some(source.into()),
        }
    }

    /// Why.
    #[must_use]
    pub fn failure(&self) -> ConnectFailure {
        self.failure
    }

    /// The Winsock code.
    #[must_use]
    pub fn code(&self) -> WsaCode {
        use ConnectFailure as F;
        match self.failure {
            F::InProgress => WsaCode::WouldBlock,
            F::AlreadyConnecting => WsaCode::Already,
            F::AlreadyConnected => WsaCode::IsConnected,
            F::WrongState => WsaCode::Invalid,
            F::NotSocket => WsaCode::NotSocket,
            F::NotInitialised => WsaCode::NotInitialised,
            F::AddressFamily => WsaCode::AfNoSupport,
            F::BadAddress => WsaCode::AddrNotAvailable,
            F::BacklogFull { .. } | F::RejectedByPeer => WsaCode::ConnRefused,
            F::NobodyListens { strict: true } => WsaCode::ConnReset,
            F::NoRoute => WsaCode::HostUnreachable,
            // Duty 73: nothing final unless TCP would surely fail too.
            F::NotOurProtocol
            | F::VersionMismatch { .. }
            | F::ListenerClosing
            | F::PeerOutOfResources
            | F::NotNow
            | F::NoSuchConnection
            | F::PathMtu
            | F::ForeignReject { .. }
            | F::NobodyListens { strict: false }
            | F::ForeignReply
            | F::TimedOut
            | F::Unreachable => WsaCode::TimedOut,
            F::OutOfResources => WsaCode::NoBuffers,
            F::NetDown => WsaCode::NetDown,
            F::System => self.source.as_ref().map_or(WsaCode::Invalid, |s| {
                match WsaCode::from_errno(s.errno()) {
                    // Final by their code alone, which only the cases above may be (duty 21).
                    WsaCode::ConnReset | WsaCode::ConnRefused | WsaCode::HostUnreachable => {
                        WsaCode::TimedOut
                    }
                    code => code,
                }
            }),
        }
    }

    /// The Linux error number.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.code().errno()
    }

    /// The connect goes on; the event will tell.
    #[must_use]
    pub fn is_in_progress(&self) -> bool {
        self.failure == ConnectFailure::InProgress
    }

    /// Whether the connect may be tried over TCP (duty 21): not after an answer that is final, and
    /// not after a call that did not fit the socket.
    #[must_use]
    pub fn may_try_tcp(&self) -> bool {
        use ConnectFailure as F;
        let misuse = matches!(
            self.failure,
            F::InProgress
                | F::AlreadyConnecting
                | F::AlreadyConnected
                | F::WrongState
                | F::NotSocket
                | F::AddressFamily
        );
        let is_final = matches!(
            self.code(),
            WsaCode::ConnReset | WsaCode::ConnRefused | WsaCode::HostUnreachable
        );
        !misuse && !is_final
    }
}

impl From<Unusable> for ConnectError {
    fn from(why: Unusable) -> Self {
        match why {
            Unusable::Stopped => ConnectFailure::NotInitialised,
            Unusable::Inherited => ConnectFailure::NotSocket,
        }
        .into()
    }
}

impl From<ConnectFailure> for ConnectError {
    fn from(failure: ConnectFailure) -> Self {
        Self {
            failure,
            source: None,
        }
    }
}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InProgress => f.write_str("the connect goes on"),
            Self::AlreadyConnecting => f.write_str("a connect is under way"),
            Self::AlreadyConnected => f.write_str("the socket is connected"),
            Self::WrongState => f.write_str("the socket listens, or its connect failed before"),
            Self::NotSocket => f.write_str("the socket is closed"),
            Self::NotInitialised => f.write_str("the provider was not started"),
            Self::AddressFamily => f.write_str("the address is of another family than the socket"),
            Self::BadAddress => f.write_str("a wildcard address or port 0 cannot be connected to"),
            Self::BacklogFull { backlog: 0 } => {
                f.write_str("refused: the listener's backlog is full")
            }
            Self::BacklogFull { backlog } => {
                write!(f, "refused: the listener's backlog of {backlog} is full")
            }
            Self::RejectedByPeer => f.write_str("refused by the listener's condition function"),
            Self::NotOurProtocol => {
                f.write_str("the listener did not take the request for one of this protocol")
            }
            Self::VersionMismatch { lowest, highest } => {
                write!(f, "the listener speaks versions {lowest} to {highest} only")
            }
            Self::ListenerClosing => f.write_str("the listener was closing"),
            Self::PeerOutOfResources => f.write_str("the listener had no resources left"),
            Self::NotNow => f.write_str("the listener cannot have the connection now"),
            Self::NoSuchConnection => f.write_str("the listener knows no such connection"),
            Self::PathMtu => f.write_str(
                "packets of this port are larger than the listener's port can take (the MTUs differ)",
            ),
            Self::ForeignReject { reason } => {
                write!(
                    f,
                    "rejected with reason {reason}, not by a peer of this protocol"
                )
            }
            Self::NobodyListens { .. } => f.write_str("RDMA answers there but no program listens on that port over RDMA"),
            Self::ForeignReply => {
                f.write_str("accepted by somebody who does not speak this protocol")
            }
            Self::TimedOut => f.write_str("no answer before the deadline"),
            Self::NoRoute => f.write_str("there is no route to the address"),
            Self::Unreachable => {
                f.write_str("nobody who speaks RDMA can be reached at the address")
            }
            Self::OutOfResources => f.write_str("no queue pair or registered memory left"),
            Self::NetDown => f.write_str("the RDMA device is gone"),
            Self::System => f.write_str("the RDMA connection manager failed"),
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{} ({source})", self.failure),
            None => self.failure.fmt(f),
        }
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s as _)
    }
}
