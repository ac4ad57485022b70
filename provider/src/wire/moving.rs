//! The answer to a side that wants to move: where, and with what right, its connection is taken up.
//!
//! ```text
//!  0 head, kind 5
//!  8 port u16         of the answering side's address, not 0
//! 10 reserved 6 = 0
//! 16 session id u64   not 0
//! 24 secret 16 bytes
//! ```
//! 40 bytes. The session id and the secret come back in the request that takes the connection up.

use super::head::{self, Malformed, field};
use super::session::Session;

const LENGTH: usize = 40;
const PORT: usize = 8;
const RESERVED: usize = 10;
const SESSION: usize = 16;
const SECRET: usize = 24;

const KIND: u8 = 5;

/// How a connection is taken up by the process that it moves to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Resumption {
    /// Where the side that stays waits, at its own address of the connection.
    pub port: u16,
    /// Names the connection.
    pub session_id: u64,
    /// Proves the right to it.
    pub secret: [u8; 16],
}

impl Resumption {
    /// How long it is on the wire.
    pub const LENGTH: usize = LENGTH;

    /// Reads the payload of an answer.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(data: &[u8]) -> Result<Self, Malformed> {
        let message = head::parse(data, KIND, LENGTH)?;
        if data.len() != LENGTH {
            return Err(Malformed::Field("length"));
        }
        let answer = Self {
            port: u16::from_be_bytes(field(message, PORT)),
            session_id: u64::from_be_bytes(field(message, SESSION)),
            secret: field(message, SECRET),
        };
        if answer.port == 0 {
            return Err(Malformed::Field("port"));
        }
        if answer.session_id == 0 {
            return Err(Malformed::Field("session id"));
        }
        if field::<6>(message, RESERVED) != [0; 6] {
            return Err(Malformed::Field("reserved"));
        }
        Ok(answer)
    }

    /// The payload on the wire.
    #[must_use]
    pub fn emit(&self) -> [u8; LENGTH] {
        let mut out = [0; LENGTH];
        head::emit(&mut out, KIND);
        out[PORT..RESERVED].copy_from_slice(&self.port.to_be_bytes());
        out[SESSION..SECRET].copy_from_slice(&self.session_id.to_be_bytes());
        out[SECRET..LENGTH].copy_from_slice(&self.secret);
        out
    }

    /// What the request that takes the connection up says.
    #[must_use]
    pub fn session(&self) -> Session {
        Session::with_id(self.session_id).secret(self.secret)
    }

    /// Whether a request with `session` takes the connection up. Takes as long for a wrong secret
    /// as for the right one, wherever it differs.
    #[must_use]
    pub fn admits(&self, session: &Session) -> bool {
        let differs = self
            .secret
            .iter()
            .zip(&session.secret)
            .fold(0, |d, (a, b)| d | (a ^ b));
        // Everything but the secret.
        let is_named = session.secret([0; 16]) == Session::with_id(self.session_id);
        is_named && std::hint::black_box(differs) == 0
    }
}

// The secret stays out of logs.
impl std::fmt::Debug for Resumption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resumption")
            .field("port", &self.port)
            .field("session_id", &self.session_id)
            .finish_non_exhaustive()
    }
}
