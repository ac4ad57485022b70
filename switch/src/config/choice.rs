//! The types of settings that are neither numbers nor times.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Which fabric the switch puts its companions on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FabricChoice {
    /// The rdma fabric if this machine has one, else TCP alone.
    #[default]
    Auto,
    /// The rdma fabric; its absence is an error.
    Rdma,
    /// The soft fabric (user-space RoCEv2); its absence is an error.
    Soft,
    /// No fabric: the switch is plain TCP.
    Off,
}

impl fmt::Display for FabricChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FabricChoice::Auto => "auto",
            FabricChoice::Rdma => "rdma",
            FabricChoice::Soft => "soft",
            FabricChoice::Off => "off",
        })
    }
}

impl FromStr for FabricChoice {
    type Err = UnknownFabric;

    fn from_str(name: &str) -> Result<Self, UnknownFabric> {
        match name {
            "auto" => Ok(FabricChoice::Auto),
            "rdma" => Ok(FabricChoice::Rdma),
            "soft" => Ok(FabricChoice::Soft),
            "off" => Ok(FabricChoice::Off),
            _ => Err(UnknownFabric),
        }
    }
}

/// A name that no fabric has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fabric is auto, rdma, soft or off")]
pub struct UnknownFabric;

/// How long, and for how many destinations, a failed SAN connect is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct NegativeCacheConfig {
    /// Destinations remembered at once; 0 turns the memory off.
    pub entries: usize,
    /// How long a failure counts.
    pub lifetime: Duration,
}

impl NegativeCacheConfig {
    /// So many destinations (0: none), for so long.
    #[must_use]
    pub fn new(entries: usize, lifetime: Duration) -> Self {
        Self { entries, lifetime }
    }
}
