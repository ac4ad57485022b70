//! Which way a connection took, and why it is not the SAN.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use san_provider::{ConnectError as SpiConnectError, ConnectFailure, WsaCode};

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
        /// Why, where the SAN was thought of.
        why: Option<FallbackReason>,
    },
}

/// Why TCP carries a connection whose destination lies in a SAN subnet.
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
}

impl FallbackReason {
    /// The first reason, without the "not tried again so soon".
    pub fn root(&self) -> &FallbackReason {
        match self {
            FallbackReason::Remembered(first) => first.root(),
            reason => reason,
        }
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
