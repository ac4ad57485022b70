//! The errors of the SPI: one table of Winsock codes with their Linux numbers, and one small enum
//! per operation that can only hold what that operation may report.
//!
//! The table ([`WsaCode::ALL`]) is the single source: `docs/errors.md` is checked against it. It
//! does not decide what an error means for a connection; that is in [`ConnectError::may_try_tcp`]
//! and in the modules that raise the errors.

mod connect;
mod operations;
mod remedy;

pub use connect::{ConnectError, ConnectFailure};
pub use operations::{
    AcceptError, BindError, CloseError, DuplicateError, ListenError, OptionError, QueryError,
    RegisterError, ResultError, SelectError, SocketError, StartupError, TakeUpError, TransferError,
};

use std::fmt;
use std::sync::Arc;

use crate::memlock;
use rustix::io::Errno;
use verbs_shim::VerbsError;

macro_rules! wsa_codes {
    ($( $(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $errno:ident, $text:literal; )*) => {
        /// A Winsock error code, as the SPI names it, with the Linux error number that an
        /// application sees in its place.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum WsaCode {
            $( $(#[$doc])* #[doc = $text] $variant, )*
        }

        impl WsaCode {
            /// Every code, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$( Self::$variant ),*];

            const fn row(self) -> (i32, &'static str, Errno, &'static str) {
                match self {
                    $( Self::$variant => ($number, $name, Errno::$errno, $text), )*
                }
            }
        }
    };
}

// Winsock number, Winsock name, Linux errno, text. Several codes share an errno; the first row
// with it is the one that `from_errno` answers.
wsa_codes! {
    OperationAborted = 995, "WSA_OPERATION_ABORTED", CANCELED, "the operation was ended by the closing of its socket";
    IoIncomplete = 996, "WSA_IO_INCOMPLETE", AGAIN, "the overlapped operation has not ended yet";
    IoPending = 997, "WSA_IO_PENDING", INPROGRESS, "the overlapped operation was started and ends later";
    Fault = 10014, "WSAEFAULT", FAULT, "a buffer is too short or lies outside the memory given";
    Invalid = 10022, "WSAEINVAL", INVAL, "an argument, or the state of the socket, does not fit the call";
    TooManySockets = 10024, "WSAEMFILE", MFILE, "no more sockets are allowed";
    WouldBlock = 10035, "WSAEWOULDBLOCK", AGAIN, "nothing can be done at once; an event will tell";
    Already = 10037, "WSAEALREADY", ALREADY, "the socket is connecting already";
    NotSocket = 10038, "WSAENOTSOCK", NOTSOCK, "the socket is closed, or it is none";
    MessageSize = 10040, "WSAEMSGSIZE", MSGSIZE, "the message is longer than the peer can receive";
    ProtoType = 10041, "WSAEPROTOTYPE", PROTOTYPE, "the protocol does not fit the type of socket";
    NoProtoOption = 10042, "WSAENOPROTOOPT", NOPROTOOPT, "there is no such option, or it cannot be set";
    ProtoNoSupport = 10043, "WSAEPROTONOSUPPORT", PROTONOSUPPORT, "only TCP's protocol is offered";
    OpNotSupported = 10045, "WSAEOPNOTSUPP", OPNOTSUPP, "the operation is not offered";
    AfNoSupport = 10047, "WSAEAFNOSUPPORT", AFNOSUPPORT, "only IPv4 and IPv6 are offered";
    AddrNotAvailable = 10049, "WSAEADDRNOTAVAIL", ADDRNOTAVAIL, "the address is not one of this provider's, or its port is taken";
    NetDown = 10050, "WSAENETDOWN", NETDOWN, "the network interface, or the provider, is gone";
    NetUnreachable = 10051, "WSAENETUNREACH", NETUNREACH, "there is no route to that network";
    ConnReset = 10054, "WSAECONNRESET", CONNRESET, "the connection was ended by the peer, or nobody listens there";
    NoBuffers = 10055, "WSAENOBUFS", NOBUFS, "a queue is full, or memory, registered memory or queue pairs have run out";
    IsConnected = 10056, "WSAEISCONN", ISCONN, "the socket is connected already";
    NotConnected = 10057, "WSAENOTCONN", NOTCONN, "the socket is not connected";
    TimedOut = 10060, "WSAETIMEDOUT", TIMEDOUT, "the peer did not answer as a peer of this protocol in time";
    ConnRefused = 10061, "WSAECONNREFUSED", CONNREFUSED, "the connection was refused";
    HostUnreachable = 10065, "WSAEHOSTUNREACH", HOSTUNREACH, "there is no way to that address";
    TooManyProcesses = 10067, "WSAEPROCLIM", USERS, "the provider was started too many times";
    NotReady = 10091, "WSASYSNOTREADY", NODEV, "RDMA is not usable on this system";
    VersionNotSupported = 10092, "WSAVERNOTSUPPORTED", PROTO, "that version of the SPI is not offered";
    NotInitialised = 10093, "WSANOTINITIALISED", NXIO, "the provider was not started";
    TryAgain = 11002, "WSATRY_AGAIN", AGAIN, "the condition function put the request off";
}

impl WsaCode {
    /// The Winsock number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.row().0
    }

    /// The Winsock name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().1
    }

    /// The Linux error number.
    #[must_use]
    pub fn errno(self) -> i32 {
        self.row().2.raw_os_error()
    }

    /// One line of text, without a full stop.
    #[must_use]
    pub const fn text(self) -> &'static str {
        self.row().3
    }

    /// The code of a Winsock number.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.iter().copied().find(|c| c.number() == number)
    }

    /// The code that stands for what the system reported; [`WsaCode::Invalid`] for a number that
    /// has no row.
    #[must_use]
    pub fn from_errno(errno: i32) -> Self {
        let is_one_of = |list: &[Errno]| list.iter().any(|e| e.raw_os_error() == errno);
        if is_one_of(&[Errno::NOMEM, Errno::NOSPC]) {
            Self::NoBuffers
        } else if is_one_of(&[Errno::NFILE]) {
            Self::TooManySockets
        } else if is_one_of(&[Errno::AGAIN]) {
            Self::WouldBlock
        } else if is_one_of(&[Errno::INPROGRESS]) {
            Self::Already
        } else if is_one_of(&[Errno::ADDRINUSE]) {
            Self::AddrNotAvailable
        } else if is_one_of(&[Errno::NOENT, Errno::NODEV, Errno::NXIO, Errno::IO]) {
            Self::NetDown
        } else {
            let found = Self::ALL.iter().copied().find(|c| c.errno() == errno);
            found.unwrap_or(Self::Invalid)
        }
    }
}

impl fmt::Display for WsaCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.name(), self.number(), self.text())
    }
}

/// Why no socket of the provider can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// The provider went down.
    Stopped,
    /// The provider, and all its sockets, are another process's: this one was forked from it.
    Inherited,
}

/// What the system said, kept inside an error. Cheap to clone, so that a result which is recorded
/// can be reported.
#[derive(Debug, Clone)]
pub struct SystemError(Arc<Cause>);

#[derive(Debug)]
struct Cause {
    error: VerbsError,
    /// Bytes that may be locked in memory, where that may be why.
    memlock: Option<u64>,
}

impl SystemError {
    /// The system's error number.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.0.error.errno()
    }
}

impl From<VerbsError> for SystemError {
    fn from(error: VerbsError) -> Self {
        let memlock = memlock::limit_behind(&error);
        Self(Arc::new(Cause { error, memlock }))
    }
}

impl fmt::Display for SystemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.error.fmt(f)?;
        match self.0.memlock {
            None => Ok(()),
            Some(limit) => write!(
                f,
                "; only {} KiB may be locked in memory: raise that (ulimit -l, LimitMEMLOCK=)",
                limit / 1024
            ),
        }
    }
}

impl std::error::Error for SystemError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0.error.source)
    }
}

#[cfg(test)]
mod tests;
