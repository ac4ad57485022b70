//! Versions of the SPI.

use std::fmt;

/// A version of the SPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiVersion {
    /// Major.
    pub major: u8,
    /// Minor.
    pub minor: u8,
}

impl SpiVersion {
    /// The version that this provider offers.
    pub const CURRENT: Self = Self { major: 2, minor: 2 };
}

impl fmt::Display for SpiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
