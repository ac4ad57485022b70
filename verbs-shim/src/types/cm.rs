//! CM events, carried out of the library whole: nothing of an [`Event`] points into it.

use std::fmt;
use std::ops::Deref;

/// The parameters of a connection.
#[derive(Debug, Clone, Copy)]
pub struct ConnParams<'a> {
    /// Carried to the peer, which sees it zero-padded: put the length inside.
    pub private_data: &'a [u8],
    /// RDMA READs of the peer that this end serves at a time; 255: as many as it can.
    pub responder_resources: u8,
    /// RDMA READs that this end has under way at a time; 255: as many as it can.
    pub initiator_depth: u8,
    /// How often the transport repeats before it gives up: at most 6, since 7 means for ever on
    /// some devices. Of no meaning when accepting.
    pub retry_count: u8,
    /// How often it repeats when the peer has no receive posted; 7 means for ever.
    pub rnr_retry: u8,
}

impl Default for ConnParams<'_> {
    fn default() -> Self {
        Self {
            private_data: &[],
            responder_resources: 255,
            initiator_depth: 255,
            retry_count: 6,
            rnr_retry: 6,
        }
    }
}

/// Private data of a CM message, as it came: zero-padded to the full length of its kind.
#[derive(Clone, Copy)]
pub struct PrivateData {
    len: u8,
    bytes: [u8; 255],
}

impl PrivateData {
    /// None at all.
    pub const EMPTY: Self = Self {
        len: 0,
        bytes: [0; 255],
    };

    /// A copy of at most the first 255 bytes; no CM message holds more.
    pub(crate) fn copy(from: &[u8]) -> Self {
        let mut data = Self::EMPTY;
        let len = from.len().min(data.bytes.len());
        data.bytes[..len].copy_from_slice(&from[..len]);
        data.len = len as u8;
        data
    }
}

impl Deref for PrivateData {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl PartialEq for PrivateData {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for PrivateData {}

impl fmt::Debug for PrivateData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateData({} bytes)", self.len)
    }
}

/// What the two ends agreed on, as one of them sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionDetails {
    /// RDMA READs that this end may be asked to serve at a time.
    pub responder_resources: u8,
    /// RDMA READs that this end may have under way at a time.
    pub initiator_depth: u8,
    /// The peer's queue pair number.
    pub qp_num: u32,
}

/// A connect request.
#[derive(Debug)]
pub struct Request<Id> {
    /// The token of the listener that it came to.
    pub listener: u64,
    /// The new id: to be accepted or rejected. Dropping it destroys it; the peer then sees a
    /// reject without private data.
    pub id: Id,
    /// What the peer sent along: 56 bytes, zero-padded.
    pub private_data: PrivateData,
    /// What the peer asks for.
    pub details: ConnectionDetails,
}

/// A CM event. `id` is the token of the CM id it is about; errors are positive `errno` numbers.
#[derive(Debug)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant)] // private data travels inline: no allocation per event
pub enum Event<Id> {
    /// The address is resolved, the id has a device.
    AddrResolved {
        /// The id.
        id: u64,
    },
    /// The address could not be resolved.
    AddrError {
        /// The id.
        id: u64,
        /// Why: `ETIMEDOUT` when ARP found nobody.
        errno: i32,
    },
    /// The route is resolved.
    RouteResolved {
        /// The id.
        id: u64,
    },
    /// The route could not be resolved.
    RouteError {
        /// The id.
        id: u64,
        /// Why.
        errno: i32,
    },
    /// A peer wants to connect.
    ConnectRequest(Request<Id>),
    /// The peer accepted; comes only on ids without a queue pair (with one, the connection is
    /// completed on the way and [`Event::Established`] comes).
    ConnectResponse {
        /// The id.
        id: u64,
        /// What the peer sent along.
        private_data: PrivateData,
        /// What was agreed on.
        details: ConnectionDetails,
    },
    /// The connection is established.
    Established {
        /// The id.
        id: u64,
        /// On the connecting side what the peer sent along with its accept; else empty.
        private_data: PrivateData,
        /// What was agreed on.
        details: ConnectionDetails,
    },
    /// The connection failed half-way.
    ConnectError {
        /// The id.
        id: u64,
        /// Why.
        errno: i32,
    },
    /// The peer does not answer, or went away while connecting.
    Unreachable {
        /// The id.
        id: u64,
        /// Why: `ETIMEDOUT` after all repetitions.
        errno: i32,
    },
    /// The peer, or its kernel, refused. Comes to accepting sides too.
    Rejected {
        /// The id.
        id: u64,
        /// Why.
        reason: RejectReason,
        /// What was sent along, zero-padded to 148 bytes.
        private_data: PrivateData,
    },
    /// The connection has ended.
    Disconnected {
        /// The id.
        id: u64,
    },
    /// The device is going away: everything on this id has to be let go.
    DeviceRemoval {
        /// The id.
        id: u64,
    },
    /// The local address of the id's device changed.
    AddrChange {
        /// The id.
        id: u64,
    },
    /// The queue pair number can be used again.
    TimewaitExit {
        /// The id.
        id: u64,
    },
    /// An event that this crate does not know.
    Unknown {
        /// The id.
        id: u64,
        /// The event's number.
        event: u32,
        /// Its status.
        status: i32,
    },
}

impl<Id> Event<Id> {
    /// The same, of a connect request with another kind of id.
    pub(crate) fn with_id<Other>(self, make: impl FnOnce(Id) -> Other) -> Event<Other> {
        match self {
            Self::ConnectRequest(request) => Event::ConnectRequest(Request {
                listener: request.listener,
                id: make(request.id),
                private_data: request.private_data,
                details: request.details,
            }),
            Self::AddrResolved { id } => Event::AddrResolved { id },
            Self::AddrError { id, errno } => Event::AddrError { id, errno },
            Self::RouteResolved { id } => Event::RouteResolved { id },
            Self::RouteError { id, errno } => Event::RouteError { id, errno },
            Self::ConnectResponse {
                id,
                private_data,
                details,
            } => Event::ConnectResponse {
                id,
                private_data,
                details,
            },
            Self::Established {
                id,
                private_data,
                details,
            } => Event::Established {
                id,
                private_data,
                details,
            },
            Self::ConnectError { id, errno } => Event::ConnectError { id, errno },
            Self::Unreachable { id, errno } => Event::Unreachable { id, errno },
            Self::Rejected {
                id,
                reason,
                private_data,
            } => Event::Rejected {
                id,
                reason,
                private_data,
            },
            Self::Disconnected { id } => Event::Disconnected { id },
            Self::DeviceRemoval { id } => Event::DeviceRemoval { id },
            Self::AddrChange { id } => Event::AddrChange { id },
            Self::TimewaitExit { id } => Event::TimewaitExit { id },
            Self::Unknown { id, event, status } => Event::Unknown { id, event, status },
        }
    }

    /// The token of the id that it is about; of a connect request, the listener's.
    #[must_use]
    pub fn id(&self) -> u64 {
        match self {
            Self::ConnectRequest(request) => request.listener,
            Self::AddrResolved { id }
            | Self::AddrError { id, .. }
            | Self::RouteResolved { id }
            | Self::RouteError { id, .. }
            | Self::ConnectResponse { id, .. }
            | Self::Established { id, .. }
            | Self::ConnectError { id, .. }
            | Self::Unreachable { id, .. }
            | Self::Rejected { id, .. }
            | Self::Disconnected { id }
            | Self::DeviceRemoval { id }
            | Self::AddrChange { id }
            | Self::TimewaitExit { id }
            | Self::Unknown { id, .. } => *id,
        }
    }
}

macro_rules! reject_reasons {
    ($($(#[$doc:meta])* $name:ident = $n:literal,)*) => {
        /// Why a connection was refused: the reject reasons of IBTA volume 1, 12.6.7.2.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum RejectReason {
            $($(#[$doc])* $name,)*
            /// A number that this crate does not know; negative ones are `errno` numbers of iWARP.
            Unknown(i32),
        }

        impl RejectReason {
            /// The reason with this number.
            #[must_use]
            pub fn from_raw(n: i32) -> Self {
                match n {
                    $($n => Self::$name,)*
                    n => Self::Unknown(n),
                }
            }

            /// Its number.
            #[must_use]
            pub fn raw(self) -> i32 {
                match self {
                    $(Self::$name => $n,)*
                    Self::Unknown(n) => n,
                }
            }
        }
    };
}

reject_reasons! {
    /// No queue pair left.
    NoQueuePair = 1,
    /// No end-to-end context left.
    NoEec = 2,
    /// No resources.
    NoResources = 3,
    /// The other end waited too long.
    Timeout = 4,
    /// The request is not supported.
    Unsupported = 5,
    /// A communication id that is not known.
    InvalidCommId = 6,
    /// A combination of ids that is not known.
    InvalidCommInstance = 7,
    /// Nobody listens.
    InvalidServiceId = 8,
    /// Not this transport.
    InvalidTransportType = 9,
    /// The queue pair is taken for one that is still connected.
    StaleConnection = 10,
    /// No such reliable datagram channel.
    NoRdc = 11,
    /// The primary GID was not accepted.
    InvalidGid = 12,
    /// The primary LID was not accepted.
    InvalidLid = 13,
    /// The service level was not accepted.
    InvalidServiceLevel = 14,
    /// The traffic class was not accepted.
    InvalidTrafficClass = 15,
    /// The hop limit was not accepted.
    InvalidHopLimit = 16,
    /// The packet rate was not accepted.
    InvalidPacketRate = 17,
    /// The alternate GID was not accepted.
    InvalidAltGid = 18,
    /// The alternate LID was not accepted.
    InvalidAltLid = 19,
    /// The alternate service level was not accepted.
    InvalidAltServiceLevel = 20,
    /// The alternate traffic class was not accepted.
    InvalidAltTrafficClass = 21,
    /// The alternate hop limit was not accepted.
    InvalidAltHopLimit = 22,
    /// The alternate packet rate was not accepted.
    InvalidAltPacketRate = 23,
    /// To be asked at another port, CM and queue pair.
    PortCmRedirect = 24,
    /// To be asked at another port.
    PortRedirect = 25,
    /// The MTU was not accepted.
    InvalidMtu = 26,
    /// Too few responder resources.
    InsufficientResponderResources = 27,
    /// An application refused, or its process ended.
    ConsumerDefined = 28,
    /// The RNR retry count was not accepted.
    InvalidRnrRetry = 29,
    /// The communication id is in use already.
    DuplicateLocalCommId = 30,
    /// The class version is not supported.
    InvalidClassVersion = 31,
    /// The flow label was not accepted.
    InvalidFlowLabel = 32,
    /// The alternate flow label was not accepted.
    InvalidAltFlowLabel = 33,
    /// A vendor's option was not accepted.
    VendorOptionNotSupported = 35,
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(n) => write!(f, "reject reason {n}"),
            known => write!(f, "{known:?} (reject reason {})", known.raw()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_keeps_its_number() {
        for n in (-200..200).chain([i32::MIN, i32::MAX]) {
            assert_eq!(RejectReason::from_raw(n).raw(), n);
        }
        assert_eq!(RejectReason::from_raw(8), RejectReason::InvalidServiceId);
        assert_eq!(RejectReason::from_raw(28), RejectReason::ConsumerDefined);
        assert_eq!(RejectReason::from_raw(34), RejectReason::Unknown(34));
        let text = RejectReason::ConsumerDefined.to_string();
        assert_eq!(text, "ConsumerDefined (reject reason 28)");
    }

    #[test]
    fn private_data_is_copied_up_to_what_a_message_holds() {
        assert!(PrivateData::EMPTY.is_empty());
        assert_eq!(&*PrivateData::copy(b"abc"), b"abc");
        assert_eq!(PrivateData::copy(&[7; 300]).len(), 255);
        assert_eq!(PrivateData::copy(b"abc"), PrivateData::copy(b"abc"));
        assert_ne!(PrivateData::copy(b"abc"), PrivateData::copy(b"abc\0"));
    }
}
