//! Which way a connection took, and why it is not the SAN.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use san_provider::{ConnectError as SpiConnectError, ConnectFailure, WsaCode};

use super::not_moved::NotMoved;

/// Which way a connection took.
#[derive(Debug, Clone)]
pub enum Route {
    /// Over the SAN.
    San {
        /// The provider's name.
        provider: String,
        /// The RDMA device's name.
        device: String,
    },
    /// Over TCP.
    Tcp {
        /// Why. `None` for a connection that was accepted and cannot move: its other end has chosen, and knows.
        why: Option<FallbackReason>,
    },
}

impl Route {
    /// That of a connection which may move, and is not on the SAN.
    pub(crate) fn not_moved(why: NotMoved) -> &'static Route {
        const fn route(why: NotMoved) -> Route {
            Route::Tcp {
                why: Some(FallbackReason::NotTried(NotTried::NotMoved(why))),
            }
        }
        match why {
            NotMoved::Short => const { &route(NotMoved::Short) },
            NotMoved::UnderWay => const { &route(NotMoved::UnderWay) },
            NotMoved::Unanswered => const { &route(NotMoved::Unanswered) },
            NotMoved::Unfinished => const { &route(NotMoved::Unfinished) },
            NotMoved::CameBack => const { &route(NotMoved::CameBack) },
            NotMoved::Ended => const { &route(NotMoved::Ended) },
            NotMoved::Shared => const { &route(NotMoved::Shared) },
            NotMoved::Uncounted => const { &route(NotMoved::Uncounted) },
            NotMoved::NeedsTcp => const { &route(NotMoved::NeedsTcp) },
        }
    }
}

/// Why TCP carries a connection that this end made, or that may move.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum FallbackReason {
    /// The SAN gave no connection, in a way that says nothing about TCP.
    Connect(SpiConnectError),
    /// The companion could not be made.
    Companion {
        /// Which step failed.
        step: &'static str,
        /// What the provider, or the system, said.
        source: Arc<dyn Error + Send + Sync>,
        /// Its error code.
        code: WsaCode,
    },
    /// The same destination failed so short a time ago that the SAN was not tried again.
    Remembered(Box<FallbackReason>),
    /// The SAN was not thought of at all.
    NotTried(NotTried),
}

/// Why the SAN was not thought of for a connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotTried {
    /// The settings, or the options of this connect, say TCP (`SAN_ROUTE=off`, `tcp_only`).
    SaidTcp,
    /// The settings open no fabric (`SAN_FABRIC=off`).
    FabricOff,
    /// No fabric was found, or it has no address on this host.
    NoSan,
    /// The destination is the loopback, which this fabric does not serve.
    Loopback,
    /// The connect came from a local address that is not a SAN device's.
    BoundElsewhere,
    /// The destination lies in no subnet of the SAN, and the SAN is not routed.
    OtherSubnet,
    /// The connection began on TCP, as the route `upgrade` says, and is not on the SAN now.
    NotMoved(NotMoved),
}

impl NotTried {
    /// Every one once.
    pub fn every() -> impl Iterator<Item = NotTried> {
        let others = [
            NotTried::SaidTcp,
            NotTried::FabricOff,
            NotTried::NoSan,
            NotTried::Loopback,
            NotTried::BoundElsewhere,
            NotTried::OtherSubnet,
        ];
        let not_moved = NotMoved::ALL.into_iter().map(NotTried::NotMoved);
        others.into_iter().chain(not_moved)
    }
}

impl FallbackReason {
    /// The first reason, without the "not tried again so soon".
    pub fn root(&self) -> &FallbackReason {
        match self {
            FallbackReason::Remembered(first) => first.root(),
            reason => reason,
        }
    }

    /// Whether the SAN was asked, now or a moment ago, and gave no connection.
    pub fn is_fallback(&self) -> bool {
        !matches!(self, FallbackReason::NotTried(_))
    }

    /// What an operator can type, or do, so that the next connection to this destination takes the SAN.
    /// Plain words, one line.
    pub fn remedy(&self, destination: SocketAddr) -> String {
        // No arm for all others: a new reason does not compile without a remedy.
        match self {
            FallbackReason::Connect(error) => error.failure().remedy(destination),
            FallbackReason::Companion { .. } => {
                "see memlock, descriptors and device: san doctor; see the step that failed: SAN_LOG=debug"
                    .to_owned()
            }
            FallbackReason::Remembered(first) => format!(
                "{}; a failure is remembered for SAN_NEGATIVE_CACHE_MS",
                first.remedy(destination)
            ),
            FallbackReason::NotTried(why) => match why {
                NotTried::SaidTcp => {
                    "see the settings: san config; unset SAN_ROUTE, or take tcp_only out of the program"
                        .to_owned()
                }
                NotTried::FabricOff => "unset SAN_FABRIC, and start the program again".to_owned(),
                NotTried::NoSan => {
                    "see what is missing, and what brings it: san doctor; then start the program again"
                        .to_owned()
                }
                NotTried::Loopback => {
                    "connect to an address of the device (san devices), or: export SAN_LOOPBACK=1"
                        .to_owned()
                }
                NotTried::BoundElsewhere => {
                    "bind to an address of the SAN (san devices), or to none".to_owned()
                }
                NotTried::OtherSubnet => format!(
                    "connect to the peer's address in a subnet of the SAN (there: san devices); see the \
                     kernel's way: ip route get {}",
                    destination.ip()
                ),
                NotTried::NotMoved(why) => why.remedy(destination),
            },
        }
    }
}

impl fmt::Display for NotTried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            NotTried::SaidTcp => "the settings or the program say TCP",
            NotTried::FabricOff => "SAN_FABRIC=off says so",
            NotTried::NoSan => "this process has no SAN",
            NotTried::Loopback => "the loopback is not on the SAN",
            NotTried::BoundElsewhere => "its own address is not on the SAN",
            NotTried::OtherSubnet => "the destination lies in no subnet of the SAN",
            NotTried::NotMoved(why) => return why.fmt(f),
        };
        f.write_str(words)
    }
}

impl fmt::Display for FallbackReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FallbackReason::Connect(error) => error.fmt(f),
            FallbackReason::Companion { step, source, .. } => {
                write!(f, "the companion socket cannot {step}: {source}")
            }
            FallbackReason::Remembered(first) => write!(f, "not tried again so soon: {first}"),
            FallbackReason::NotTried(why) => why.fmt(f),
        }
    }
}

// By hand, since a derived one would give the Arc as the source and not the error in it.
impl Error for FallbackReason {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            FallbackReason::Connect(error) => error.source(),
            FallbackReason::Companion { source, .. } => Some(&**source),
            FallbackReason::Remembered(first) => Some(&**first),
            FallbackReason::NotTried(_) => None,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Route::San { provider, device } => write!(f, "SAN ({provider}, {device})"),
            Route::Tcp { why: None } => f.write_str("TCP"),
            Route::Tcp { why: Some(why) } => write!(f, "TCP, since {why}"),
        }
    }
}

/// Whether a failure costs time, and the next connect would meet it again.
pub(crate) fn is_worth_remembering(failure: ConnectFailure) -> bool {
    matches!(
        failure,
        ConnectFailure::TimedOut | ConnectFailure::Unreachable
    )
}

#[cfg(test)]
#[path = "fallback_tests.rs"]
mod tests;
