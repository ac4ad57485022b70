//! What the one process gives the other: where to ask, and the right to.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

/// More than any has.
const LONGEST: usize = 4096;

/// A connection or a listener that another process may take up: what `WSADuplicateSocket` writes down. It
/// is good once, within a minute, in the process that it names. How it gets there is the caller's affair.
/// Nothing happens until it is used.
#[doc(alias = "WSADuplicateSocket")]
#[derive(Clone)]
pub struct Duplicate {
    bytes: Vec<u8>,
    pub(super) ticket: Ticket,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ticket {
    version: u32,
    /// The process that has it.
    pub(super) source: u32,
    /// The process that may take it up.
    pub(super) target: u32,
    /// Where that asks.
    pub(super) path: PathBuf,
    pub(super) token: Token,
}

/// What the right to it is known by: nobody can guess it.
pub(super) type Token = [u8; 16];

/// A new one.
pub(super) fn token() -> io::Result<Token> {
    let mut token = Token::default();
    match getrandom(&mut token[..], GetRandomFlags::empty())? {
        16 => Ok(token),
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}

const VERSION: u32 = 1;

impl Duplicate {
    pub(super) fn new(target: u32, path: PathBuf, token: Token) -> io::Result<Self> {
        let ticket = Ticket {
            version: VERSION,
            source: std::process::id(),
            target,
            path,
            token,
        };
        let bytes = serde_json::to_vec(&ticket)?;
        Ok(Self { bytes, ticket })
    }

    /// The bytes to give to the other process.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads what another process has written.
    ///
    /// # Errors
    /// `InvalidData`: it is no duplicate, or one of another version.
    pub fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        let bad = |why: String| io::Error::new(ErrorKind::InvalidData, why);
        if bytes.len() > LONGEST {
            return Err(bad("too long for a duplicate".to_owned()));
        }
        let ticket: Ticket =
            serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
        if ticket.version != VERSION {
            return Err(bad(format!("a duplicate of version {}", ticket.version)));
        }
        Ok(Self {
            bytes: bytes.to_vec(),
            ticket,
        })
    }

    /// The process that can take it up.
    #[must_use]
    pub fn target(&self) -> u32 {
        self.ticket.target
    }
}

// Without the token, which the bytes hold, too.
impl fmt::Debug for Duplicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Duplicate")
            .field("source", &self.ticket.source)
            .field("target", &self.ticket.target)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_again_and_nothing_else_is() {
        let duplicate = Duplicate::new(7, "/tmp/x".into(), token().unwrap()).unwrap();
        let again = Duplicate::from_bytes(duplicate.as_bytes()).unwrap();
        assert_eq!(again.ticket, duplicate.ticket);
        assert!(!format!("{again:?}").contains("token"));
        let bytes = duplicate.as_bytes();
        for bad in [&b""[..], b"{}", &bytes[1..], &bytes[..bytes.len() - 1]] {
            let error = Duplicate::from_bytes(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
        }
        let other = String::from_utf8(bytes.to_vec()).unwrap();
        let other = other.replacen("\"version\":1", "\"version\":2", 1);
        assert!(Duplicate::from_bytes(other.as_bytes()).is_err());
        assert!(Duplicate::from_bytes(&[b' '; 5000]).is_err());
    }
}
