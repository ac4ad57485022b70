//! What mends a connect that the SAN did not serve: one remedy for each [`ConnectFailure`].
//!
//! The match has no catch-all arm, so a new failure does not compile without a remedy. The `san` command
//! and the switch's report print these words; nothing here is on the way of a connection.

use std::net::SocketAddr;

use super::ConnectFailure;

impl ConnectFailure {
    /// Every failure once, its numbers set to 1: for lists of what may happen.
    pub fn every() -> impl Iterator<Item = Self> {
        std::iter::successors(Some(Self::NobodyListens { strict: false }), |one| {
            one.next()
        })
    }

    /// The one behind it in [`ConnectFailure::every`]. No arm for all others: a new failure does not
    /// compile until it has its place.
    fn next(self) -> Option<Self> {
        Some(match self {
            Self::NobodyListens { .. } => Self::TimedOut,
            Self::TimedOut => Self::Unreachable,
            Self::Unreachable => Self::BacklogFull { backlog: 1 },
            Self::BacklogFull { .. } => Self::RejectedByPeer,
            Self::RejectedByPeer => Self::NotNow,
            Self::NotNow => Self::NoSuchConnection,
            Self::NoSuchConnection => Self::ListenerClosing,
            Self::ListenerClosing => Self::PeerOutOfResources,
            Self::PeerOutOfResources => Self::PathMtu,
            Self::PathMtu => Self::VersionMismatch {
                lowest: 1,
                highest: 1,
            },
            Self::VersionMismatch { .. } => Self::NotOurProtocol,
            Self::NotOurProtocol => Self::ForeignReject { reason: 1 },
            Self::ForeignReject { .. } => Self::ForeignReply,
            Self::ForeignReply => Self::NoRoute,
            Self::NoRoute => Self::OutOfResources,
            Self::OutOfResources => Self::NetDown,
            Self::NetDown => Self::System,
            Self::System => Self::BadAddress,
            Self::BadAddress => Self::NotInitialised,
            Self::NotInitialised => Self::AddressFamily,
            Self::AddressFamily => Self::NotSocket,
            Self::NotSocket => Self::WrongState,
            Self::WrongState => Self::AlreadyConnected,
            Self::AlreadyConnected => Self::AlreadyConnecting,
            Self::AlreadyConnecting => Self::InProgress,
            Self::InProgress => return None,
        })
    }

    /// What an operator can type, or do, about a connect to `destination` that failed in this way. Plain
    /// words, one line.
    #[must_use]
    pub fn remedy(self, destination: SocketAddr) -> String {
        let (ip, port) = (destination.ip(), destination.port());
        match self {
            Self::NobodyListens { .. } => format!(
                "on the peer: san stat (is the program there, with a companion?); start it with the same \
                 SAN_FABRIC, and listening on {destination} or on 0.0.0.0:{port}"
            ),
            Self::BacklogFull { .. } => {
                "on the peer: san stat PID; raise it: export SAN_BACKLOG=1024, or listen()'s number"
                    .to_owned()
            }
            Self::RejectedByPeer => {
                "ask who runs the program; on the peer: san stat PID counts refused_condition"
                    .to_owned()
            }
            Self::NotOurProtocol | Self::ForeignReject { .. } | Self::ForeignReply => format!(
                "on the peer, see who listens with RDMA: rdma resource show cm_id | grep {port}"
            ),
            Self::VersionMismatch { .. } => {
                "install the same version on both hosts; see it: san --version".to_owned()
            }
            Self::ListenerClosing | Self::NotNow | Self::NoSuchConnection => {
                "try again in a moment; on the peer: san stat".to_owned()
            }
            Self::PeerOutOfResources => {
                "on the peer: san doctor (memlock, descriptors); san stat PID".to_owned()
            }
            Self::PathMtu => {
                "give both interfaces the same MTU: ip link show; ip link set NETDEV mtu 4200"
                    .to_owned()
            }
            Self::TimedOut | Self::Unreachable => {
                format!("see who answers: san doctor {destination}; on the peer: san doctor")
            }
            Self::NoRoute => {
                format!("see the way: ip route get {ip}; ip neighbour show {ip}")
            }
            Self::OutOfResources => {
                "see the lines memlock and descriptors of: san doctor; who has some: rdma resource show"
                    .to_owned()
            }
            Self::NetDown => "see what happened: dmesg | tail; rdma link show".to_owned(),
            Self::BadAddress => "connect to an address and a port other than 0".to_owned(),
            Self::System => {
                format!("see the system's own error: SAN_LOG=debug san connect {destination}")
            }
            // A call that did not fit the socket, or none that failed: the switch makes no such call.
            Self::InProgress
            | Self::AlreadyConnecting
            | Self::AlreadyConnected
            | Self::WrongState
            | Self::NotSocket
            | Self::NotInitialised
            | Self::AddressFamily => format!(
                "a program should never see this; report it with: SAN_LOG=debug san connect {destination}"
            ),
        }
    }
}
