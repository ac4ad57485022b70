//! One enum per operation. Each holds only what the SPI lets that operation report, and keeps what
//! the system said in its variant `System`.
//!
//! Connect has a file of its own, since its errors decide about TCP.

use super::{SystemError, Unusable, WsaCode};

macro_rules! spi_error {
    (
        $(#[$doc:meta])*
        $name:ident, system = |$found:ident| $map:expr;
        $( $variant:ident $({ $($field:ident : $ty:ty),* })? => $code:ident, $text:literal; )*
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, thiserror::Error)]
        #[non_exhaustive]
        #[allow(missing_docs, reason = "the fields are named in the text of their variant")]
        pub enum $name {
            $(
                #[doc = $text]
                #[error($text)]
                $variant $({ $($field: $ty),* })?,
            )*
            /// What the system said.
            #[error("{0}")]
            System(#[source] SystemError),
        }

        impl $name {
            /// The Winsock code.
            #[must_use]
            pub fn code(&self) -> WsaCode {
                match self {
                    $( Self::$variant $({ $($field: _),* })? => WsaCode::$code, )*
                    Self::System(source) => {
                        let $found = WsaCode::from_errno(source.errno());
                        $map
                    }
                }
            }

            /// The Linux error number.
            #[must_use]
            pub fn errno(&self) -> i32 {
                self.code().errno()
            }
        }

        impl From<verbs_shim::VerbsError> for $name {
            fn from(error: verbs_shim::VerbsError) -> Self {
                Self::System(error.into())
            }
        }
    };
}

spi_error! {
    /// Why startup failed (duty 64).
    StartupError, system = |_found| WsaCode::NotReady;
    NotReady { why: String } => NotReady, "RDMA is not usable: {why}";
    VersionNotSupported { asked: crate::SpiVersion } => VersionNotSupported, "version {asked} of the SPI is not offered";
    TooManyProcesses { limit: u32 } => TooManyProcesses, "the provider was started {limit} times, its limit";
}

spi_error! {
    /// Why a socket could not be made (duty 68).
    SocketError, system = |found| match found {
        WsaCode::TooManySockets | WsaCode::NetDown => found,
        _ => WsaCode::NoBuffers,
    };
    NotInitialised => NotInitialised, "the provider was not started";
    NetDown => NetDown, "the provider is going down";
    Family => AfNoSupport, "only IPv4 and IPv6 are offered";
    TooMany { limit: u32 } => TooManySockets, "there are {limit} sockets, the limit";
    Protocol => ProtoNoSupport, "only TCP's protocol is offered";
    Type => ProtoType, "only stream sockets are offered";
    Handle { why: String } => NoBuffers, "the switch gave no handle: {why}";
}

spi_error! {
    /// Why an address could not be bound. Never `WSAEADDRINUSE` (duty 69).
    BindError, system = |found| match found {
        WsaCode::NetDown | WsaCode::NoBuffers | WsaCode::AddrNotAvailable | WsaCode::Invalid => found,
        WsaCode::TooManySockets => WsaCode::NoBuffers,
        _ => WsaCode::Invalid,
    };
    NotInitialised => NotInitialised, "the provider was not started";
    NotSocket => NotSocket, "the socket is closed";
    AlreadyBound => Invalid, "the socket is bound already";
    Family => Fault, "the address is of another family than the socket";
    NotLocal => AddrNotAvailable, "the address is not one of this provider's";
    PortTaken => AddrNotAvailable, "the port is taken";
}

spi_error! {
    /// Why a socket could not listen. Never `WSAEADDRINUSE` (duty 77).
    ListenError, system = |found| match found {
        WsaCode::TooManySockets | WsaCode::NetDown => found,
        _ => WsaCode::NoBuffers,
    };
    NotInitialised => NotInitialised, "the provider was not started";
    NetDown => NetDown, "the device of the socket's address is gone";
    NotSocket => NotSocket, "the socket is closed";
    NotBound => Invalid, "the socket is not bound";
    BacklogOutOfRange { asked: u32 } => Invalid, "a backlog of {asked} is out of range";
    BacklogFixed { fixed: u32, asked: u32 } => Invalid, "the socket listens with a backlog of {fixed}, which {asked} cannot replace";
    Connected => IsConnected, "the socket is connected, or was";
}

spi_error! {
    /// Why events could not be selected or read (duty 82).
    SelectError, system = |_found| WsaCode::NetDown;
    NotInitialised => NotInitialised, "the provider was not started";
    NetDown => NetDown, "the provider is going down";
    NotSocket => NotSocket, "the socket is closed";
}

spi_error! {
    /// Why no connection was accepted (duty 90).
    AcceptError, system = |found| match found {
        WsaCode::TooManySockets | WsaCode::NetDown | WsaCode::ConnReset => found,
        _ => WsaCode::NoBuffers,
    };
    NotInitialised => NotInitialised, "the provider was not started";
    NotSocket => NotSocket, "the socket is closed";
    NotListening => Invalid, "the socket does not listen";
    WouldBlock => WouldBlock, "no request waits";
    Refused => ConnRefused, "the condition function refused the request";
    Deferred => TryAgain, "the condition function put the request off";
    PeerGone => ConnReset, "the peer withdrew its request";
    TooMany { limit: u32 } => TooManySockets, "there are {limit} sockets, the limit";
    Handle { why: String } => NoBuffers, "the switch gave no handle: {why}";
    NetDown => NetDown, "the device of the request is gone";
}

spi_error! {
    /// Why a transfer was not started, or how it ended.
    TransferError, system = |found| match found {
        WsaCode::NetDown => found,
        _ => WsaCode::NoBuffers,
    };
    NotInitialised => NotInitialised, "the provider was not started";
    NotSocket => NotSocket, "the socket is closed";
    NotConnected => NotConnected, "the socket is not connected";
    WouldBlock => WouldBlock, "as many operations as are allowed are under way";
    MessageTooLong { length: usize, limit: usize } => MessageSize, "a message of {length} bytes is over the limit of {limit}";
    NoBuffers => NoBuffers, "no registered memory is left";
    ForeignBuffer => Fault, "the buffer belongs to another device than the connection";
    UnknownHandle => Invalid, "no such registration of this socket";
    NotAllowed => Invalid, "the rights of the memory do not allow that";
    Nothing => Invalid, "there are no bytes to transfer";
    TooManySegments { count: usize, limit: usize } => Invalid, "{count} segments, where {limit} are allowed";
    Descriptor { why: crate::wire::Malformed } => Invalid, "not a descriptor of memory: {why}";
    OutOfBounds { offset: u64, length: u64, limit: u64 } => Fault, "{length} bytes at {offset} of memory of {limit}";
    RdmaTooLong { length: usize, limit: usize } => MessageSize, "an RDMA transfer of {length} bytes is over the limit of {limit}";
    RemoteAccess => Fault, "the peer's memory is not open to that";
    Aborted => OperationAborted, "the socket was closed";
    Reset => ConnReset, "the connection was ended by the peer";
    TimedOut => TimedOut, "the peer does not answer any more";
    NetDown => NetDown, "the device is gone";
    Moved => NotConnected, "the connection was handed to another process, or is being handed over";
    Protocol { violation: crate::wire::Violation } => ConnReset, "the peer broke the protocol: {violation}";
}

spi_error! {
    /// Why memory was not registered or deregistered (duties 101 to 103).
    RegisterError, system = |found| match found {
        WsaCode::Fault | WsaCode::OpNotSupported => found,
        _ => WsaCode::NoBuffers,
    };
    NotInitialised => NotInitialised, "the provider was not started";
    NotSocket => NotSocket, "the socket is closed";
    NotConnected => NotConnected, "the socket is not connected";
    NotConfirmed => NotConnected, "the peer does not confirm the connection, or does not answer any more";
    Empty => Invalid, "memory of no bytes";
    UnknownHandle => Invalid, "no such registration of this socket";
    InUse => Invalid, "an operation that has not ended uses the memory";
    NotThere => Fault, "the memory is not mapped, or not to be written";
    DescriptorTooShort { given: usize, needed: usize } => Fault, "{given} bytes for a descriptor of {needed}";
    TooMany { limit: usize } => NoBuffers, "the connection has {limit} registrations, the limit";
    NoWindows => OpNotSupported, "the device cannot open memory to one peer alone";
}

spi_error! {
    /// Why the result of an overlapped operation could not be had (duty 96).
    ResultError, system = |_found| WsaCode::NetDown;
    NotSocket => NotSocket, "the socket is closed";
    NotConnected => NotConnected, "the socket was never connected";
    UnknownOperation => Invalid, "no such operation, or its result was taken";
    Incomplete => IoIncomplete, "the operation has not ended yet";
}

spi_error! {
    /// Why a connection was not handed to another process (duties 116 to 121).
    DuplicateError, system = |found| match found {
        WsaCode::NetDown => found,
        _ => WsaCode::NoBuffers,
    };
    NotInitialised => NotInitialised, "the provider was not started";
    NotSocket => NotSocket, "the socket is closed";
    NotConnected => Invalid, "the socket is not connected";
    Moved => Invalid, "the connection was handed to another process, or is being handed over";
    NoProcess { pid: u32 } => Invalid, "there is no process {pid}";
    NoReceive => NoBuffers, "no receive is left for the peer's answer";
    PeerCannot => OpNotSupported, "the peer's version cannot wait for another process";
    NotDrained => NoBuffers, "the peer did not take in what was sent before, the connection goes on";
    PeerMoves => NoBuffers, "the peer is being handed over itself, the connection goes on";
    PeerRefused => NoBuffers, "the peer cannot wait for another process now, the connection goes on";
    PeerSilent => ConnReset, "the peer did not answer in time, the connection is broken";
    Ended { why: TransferError } => ConnReset, "the connection ended: {why}";
}

spi_error! {
    /// Why a connection was not taken up from another process (duties 117, 118, 121).
    TakeUpError, system = |found| match found {
        WsaCode::NetDown | WsaCode::TooManySockets => found,
        _ => WsaCode::NoBuffers,
    };
    NotInitialised => NotInitialised, "the provider was not started";
    OtherProcess { pid: u32 } => Invalid, "it is meant for process {pid}, which is not this one";
    TooMany { limit: u32 } => TooManySockets, "there are {limit} sockets, the limit";
    Handle { why: String } => NoBuffers, "the switch gave no handle: {why}";
    Address { why: BindError } => NetDown, "the connection's local address cannot be used: {why}";
    Gone { why: super::ConnectError } => ConnReset, "the connection cannot be taken up, or was: {why}";
}

spi_error! {
    /// Why an option could not be read or set (duty 97).
    OptionError, system = |found| found;
    NotInitialised => NotInitialised, "the provider was not started";
    NotSocket => NotSocket, "the socket is closed";
    ReadOnly => NoProtoOption, "the option cannot be set";
    TooLate => Invalid, "the option has to be set before bind or connect";
    Value { value: u32 } => Invalid, "the value {value} is out of range";
    NotConnected => NotConnected, "the socket is not connected";
}

spi_error! {
    /// Why a question to the provider was not answered.
    QueryError, system = |_found| WsaCode::NetDown;
    NotInitialised => NotInitialised, "the provider was not started";
    NotSocket => NotSocket, "the socket is closed";
}

spi_error! {
    /// Why a socket was not closed.
    CloseError, system = |_found| WsaCode::NetDown;
    NotSocket => NotSocket, "the socket is closed already";
}

macro_rules! says_unusable {
    ($( $name:ident )*) => {
        $(
            impl From<Unusable> for $name {
                fn from(why: Unusable) -> Self {
                    match why {
                        Unusable::Stopped => Self::NotInitialised,
                        Unusable::Inherited => Self::NotSocket,
                    }
                }
            }
        )*
    };
}

says_unusable! {
    BindError ListenError SelectError QueryError AcceptError TransferError RegisterError OptionError DuplicateError
}
