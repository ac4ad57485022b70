//! The switch's errors: one enum per operation, each with its Linux error number.
//!
//! Every one turns into an [`io::Error`] of the kind that TCP would give (ECONNREFUSED is
//! [`io::ErrorKind::ConnectionRefused`], and so on) with itself inside, so that a program written
//! for std's sockets need not know this crate's types. Why a connection went to TCP is no error
//! but a [`FallbackReason`].

use crate::config::{ConfigError, FabricChoice};
use crate::route::fallback::FallbackReason;
use rustix::io::Errno;
use san_provider::{ConnectError as SpiConnectError, WsaCode};
use std::io;
use std::net::SocketAddr;

/// What a layer below said, whichever of its errors that is.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why the switch could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The fabric that the settings demand cannot be had.
    #[error("the settings demand the {fabric} fabric (SAN_FABRIC), but {source}")]
    Fabric {
        /// Which one.
        fabric: FabricChoice,
        /// What is missing.
        source: BoxError,
    },
    /// A provider did not start.
    #[error("the provider '{provider}' did not start: {source}")]
    Provider {
        /// Which one.
        provider: String,
        /// What it said.
        source: BoxError,
        /// Its error code.
        code: WsaCode,
    },
    /// The switch was shut down.
    #[error("the switch was shut down")]
    ShutDown,
    /// The system gave no descriptor or thread.
    #[error("cannot {step}: {source}")]
    System {
        /// What was asked for.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a listener could not be made. A companion on the SAN that cannot be made is no such error:
/// see [`Listener::san_status`](crate::Listener::san_status).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// TCP cannot listen there.
    #[error("cannot listen on {address}: {source}")]
    Tcp {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A backlog past [`SOMAXCONN`](crate::SOMAXCONN).
    #[error("a backlog of {backlog} is past the limit of 4096 (SOMAXCONN)")]
    Backlog {
        /// What was asked for.
        backlog: u32,
    },
    /// The switch was shut down.
    #[error("the switch was shut down")]
    ShutDown,
}

/// Why an accept gave no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The listener was closed, or its switch shut down.
    #[error("the listener is closed")]
    Closed,
    /// Nobody came in time.
    #[error("nobody connected in time")]
    TimedOut,
    /// Another thread called the accept off.
    #[error("the accept was cancelled")]
    Cancelled,
    /// TCP's accept failed.
    #[error("cannot accept: {0}")]
    System(#[from] io::Error),
}

/// Why a connect gave no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The SAN's answer is final: TCP would find the same, so it was not tried.
    #[error("cannot connect to {destination} over the SAN: {source}")]
    San {
        /// Where to.
        destination: SocketAddr,
        /// The provider's answer.
        source: SpiConnectError,
    },
    /// TCP failed.
    #[error("cannot connect to {destination}: {source}{}", after(fallback.as_ref()))]
    Tcp {
        /// Where to.
        destination: SocketAddr,
        /// What the system said.
        source: io::Error,
        /// Why the SAN was not taken, if it was thought of.
        fallback: Option<FallbackReason>,
    },
    /// The deadline passed.
    #[error("no connection to {destination} in time{}", after(fallback.as_ref()))]
    TimedOut {
        /// Where to.
        destination: SocketAddr,
        /// Why the SAN was not taken, if it was thought of.
        fallback: Option<FallbackReason>,
    },
    /// Another thread called the connect off.
    #[error("the connect to {destination} was cancelled")]
    Cancelled {
        /// Where to.
        destination: SocketAddr,
    },
    /// The local address cannot be used.
    #[error("cannot bind to the local address {address}: {source}")]
    Local {
        /// Which one.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The switch was shut down.
    #[error("the switch was shut down")]
    ShutDown,
}

impl OpenError {
    /// The Linux error number.
    pub fn errno(&self) -> i32 {
        match self {
            OpenError::Config(_) => Errno::INVAL.raw_os_error(),
            OpenError::Fabric { .. } => Errno::NODEV.raw_os_error(),
            OpenError::Provider { code, .. } => code.errno(),
            OpenError::ShutDown => WsaCode::NotInitialised.errno(),
            OpenError::System { source, .. } => errno_of(source),
        }
    }
}

impl ListenError {
    /// The Linux error number.
    pub fn errno(&self) -> i32 {
        match self {
            ListenError::Tcp { source, .. } => errno_of(source),
            ListenError::Backlog { .. } => Errno::INVAL.raw_os_error(),
            ListenError::ShutDown => WsaCode::NotInitialised.errno(),
        }
    }
}

impl AcceptError {
    /// Whether the system lacked descriptors or memory: the connection still waits, and another
    /// accept, a moment later, may find what others have given back.
    pub fn is_want_of_resources(&self) -> bool {
        let wants = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
        matches!(self, AcceptError::System(_))
            && wants
                .iter()
                .any(|errno| errno.raw_os_error() == self.errno())
    }

    /// The Linux error number.
    pub fn errno(&self) -> i32 {
        match self {
            AcceptError::Closed => Errno::INVAL.raw_os_error(),
            AcceptError::TimedOut => Errno::TIMEDOUT.raw_os_error(),
            AcceptError::Cancelled => Errno::CANCELED.raw_os_error(),
            AcceptError::System(source) => errno_of(source),
        }
    }
}

impl ConnectError {
    /// The Linux error number.
    pub fn errno(&self) -> i32 {
        match self {
            ConnectError::San { source, .. } => source.errno(),
            ConnectError::Tcp { source, .. } | ConnectError::Local { source, .. } => {
                errno_of(source)
            }
            ConnectError::TimedOut { .. } => Errno::TIMEDOUT.raw_os_error(),
            ConnectError::Cancelled { .. } => Errno::CANCELED.raw_os_error(),
            ConnectError::ShutDown => WsaCode::NotInitialised.errno(),
        }
    }

    /// Why the SAN was not taken, if it was thought of and TCP failed too.
    pub fn fallback(&self) -> Option<&FallbackReason> {
        match self {
            ConnectError::Tcp { fallback, .. } | ConnectError::TimedOut { fallback, .. } => {
                fallback.as_ref()
            }
            _ => None,
        }
    }
}

macro_rules! into_io_error {
    ($($name:ident),*) => { $(
        impl From<$name> for io::Error {
            fn from(error: $name) -> Self {
                let kind = io::Error::from_raw_os_error(error.errno()).kind();
                io::Error::new(kind, error)
            }
        }
    )* };
}

into_io_error!(OpenError, ListenError, AcceptError, ConnectError);

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(Errno::IO.raw_os_error())
}

fn after(fallback: Option<&FallbackReason>) -> String {
    fallback
        .map(|reason| format!(" (the SAN was not taken: {reason})"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use san_provider::ConnectFailure;
    use std::io::ErrorKind;
    use std::sync::Arc;

    fn there() -> SocketAddr {
        "10.0.7.2:9".parse().unwrap()
    }

    #[test]
    fn an_application_gets_the_kinds_that_tcp_gives() {
        let kind = |error: io::Error| error.kind();
        let san = |failure: ConnectFailure| {
            io::Error::from(ConnectError::San {
                destination: there(),
                source: failure.into(),
            })
        };
        assert_eq!(
            kind(san(ConnectFailure::BacklogFull { backlog: 4 })),
            ErrorKind::ConnectionRefused
        );
        assert_eq!(
            kind(san(ConnectFailure::NobodyListens { strict: true })),
            ErrorKind::ConnectionReset
        );
        assert_eq!(
            kind(san(ConnectFailure::NoRoute)),
            ErrorKind::HostUnreachable
        );
        assert_eq!(kind(AcceptError::TimedOut.into()), ErrorKind::TimedOut);
        assert_eq!(kind(AcceptError::Closed.into()), ErrorKind::InvalidInput);
        let in_use = io::Error::from_raw_os_error(Errno::ADDRINUSE.raw_os_error());
        let error = ListenError::Tcp {
            address: there(),
            source: in_use,
        };
        assert_eq!(kind(error.into()), ErrorKind::AddrInUse);
    }

    #[test]
    fn what_the_layer_below_said_is_the_source() {
        use std::error::Error;
        let failure: SpiConnectError = ConnectFailure::TimedOut.into();
        let said = failure.to_string();
        let said_below = |error: &dyn Error| error.source().map(ToString::to_string);
        let san = ConnectError::San {
            destination: there(),
            source: failure.clone(),
        };
        assert_eq!(said_below(&san), Some(said.clone()));
        let reason = FallbackReason::Remembered(Box::new(FallbackReason::Connect(failure)));
        assert_eq!(said_below(&reason), Some(said));
        let taken = io::Error::from_raw_os_error(Errno::ADDRINUSE.raw_os_error());
        let companion = FallbackReason::Companion {
            step: "bind",
            source: Arc::new(taken),
            code: WsaCode::AddrNotAvailable,
        };
        let source = companion.source().unwrap().downcast_ref::<io::Error>();
        let errno = source.and_then(io::Error::raw_os_error);
        assert_eq!(errno, Some(Errno::ADDRINUSE.raw_os_error()));
        let provider = OpenError::Provider {
            provider: "soft".into(),
            source: io::Error::from_raw_os_error(Errno::MFILE.raw_os_error()).into(),
            code: WsaCode::NotReady,
        };
        let source = provider.source().unwrap().downcast_ref::<io::Error>();
        let errno = source.and_then(io::Error::raw_os_error);
        assert_eq!(errno, Some(Errno::MFILE.raw_os_error()));
    }

    #[test]
    fn the_reason_for_tcp_is_told_with_tcps_own_error() {
        let reason = FallbackReason::Connect(ConnectFailure::TimedOut.into());
        let error = ConnectError::Tcp {
            destination: there(),
            source: io::Error::from_raw_os_error(Errno::CONNREFUSED.raw_os_error()),
            fallback: Some(FallbackReason::Remembered(Box::new(reason))),
        };
        let text = error.to_string();
        assert!(
            text.starts_with("cannot connect to 10.0.7.2:9: Connection refused"),
            "{text}"
        );
        assert!(
            text.contains("not tried again so soon: no answer before the deadline"),
            "{text}"
        );
        assert!(matches!(
            error.fallback().unwrap().root(),
            FallbackReason::Connect(_)
        ));
    }
}
