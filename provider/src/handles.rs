//! What the switch calls a socket.

/// The switch's own handle of a socket. The provider only hands it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SwitchHandle(pub u64);
