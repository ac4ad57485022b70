//! What a request and a reply carry for a layer above the provider: bytes 24 to 56 of both.
//!
//! ```text
//! 24 session id u64      or a nonce of the sender; 0 = none
//! 32 secret 16 bytes     or a proof
//! 48 purpose u8          0 = ordinary
//! 49 flags u8            of the purpose
//! 50 TCP port u16        of the sender's end
//! 52 generation u16      of that TCP connection
//! 54 reserved u16 = 0
//! ```
//! With zeros from 48 on these are the bytes of version 1's first speakers, which refuse all else
//! there with reason 3. The provider reads them only where a peer comes back from another process
//! (`moving.rs`); it judges nothing else.

use super::head::{Malformed, field};

/// Where they begin in the message.
pub(super) const OFFSET: usize = 24;
pub(super) const LENGTH: usize = 32;

const SECRET: usize = 8;
const PURPOSE: usize = 24;
const FLAGS: usize = 25;
const PORT: usize = 26;
const GENERATION: usize = 28;
const RESERVED: usize = 30;

/// What one side says of the session that a connection belongs to. The provider carries it and
/// does not read it; all zeros is none.
///
/// ```
/// use san_provider::wire::Session;
///
/// let session = Session::with_id(7).secret([9; 16]).purpose(1).tcp_port(80);
/// assert_eq!((session.id, session.tcp_port, session.flags), (7, 80, 0));
/// assert!(Session::NONE.is_none() && !session.is_none());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Session {
    /// The session's id, or a nonce; 0 is none.
    pub id: u64,
    /// Proves the right to the session.
    pub secret: [u8; 16],
    /// What the connection is for: 0 is an ordinary one, 1 the second carrier of a TCP connection.
    pub purpose: u8,
    /// Flags of the purpose.
    pub flags: u8,
    /// The TCP port of the sender's end.
    pub tcp_port: u16,
    /// Which life of that TCP connection it is about.
    pub generation: u16,
}

impl Session {
    /// No session.
    pub const NONE: Self = Self {
        id: 0,
        secret: [0; 16],
        purpose: 0,
        flags: 0,
        tcp_port: 0,
        generation: 0,
    };

    /// A session with this id.
    #[must_use]
    pub const fn with_id(id: u64) -> Self {
        Self { id, ..Self::NONE }
    }

    /// The same with this secret.
    #[must_use]
    pub const fn secret(self, secret: [u8; 16]) -> Self {
        Self { secret, ..self }
    }

    /// The same with this purpose.
    #[must_use]
    pub const fn purpose(self, purpose: u8) -> Self {
        Self { purpose, ..self }
    }

    /// The same with these flags.
    #[must_use]
    pub const fn flags(self, flags: u8) -> Self {
        Self { flags, ..self }
    }

    /// The same with this TCP port.
    #[must_use]
    pub const fn tcp_port(self, tcp_port: u16) -> Self {
        Self { tcp_port, ..self }
    }

    /// The same with this generation.
    #[must_use]
    pub const fn generation(self, generation: u16) -> Self {
        Self { generation, ..self }
    }

    /// Whether it says nothing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    pub(super) fn parse(bytes: &[u8; LENGTH]) -> Result<Self, Malformed> {
        if field::<2>(bytes, RESERVED) != [0; 2] {
            return Err(Malformed::Field("reserved"));
        }
        Ok(Self {
            id: u64::from_be_bytes(field(bytes, 0)),
            secret: field(bytes, SECRET),
            purpose: bytes[PURPOSE],
            flags: bytes[FLAGS],
            tcp_port: u16::from_be_bytes(field(bytes, PORT)),
            generation: u16::from_be_bytes(field(bytes, GENERATION)),
        })
    }

    pub(super) fn emit(&self) -> [u8; LENGTH] {
        let mut out = [0; LENGTH];
        out[..SECRET].copy_from_slice(&self.id.to_be_bytes());
        out[SECRET..PURPOSE].copy_from_slice(&self.secret);
        out[PURPOSE] = self.purpose;
        out[FLAGS] = self.flags;
        out[PORT..GENERATION].copy_from_slice(&self.tcp_port.to_be_bytes());
        out[GENERATION..RESERVED].copy_from_slice(&self.generation.to_be_bytes());
        out
    }
}

// The secret stays out of logs.
impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .field("purpose", &self.purpose)
            .field("flags", &self.flags)
            .field("tcp_port", &self.tcp_port)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}
