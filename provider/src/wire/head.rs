//! The common head of request, reply and refusal.
//!
//! ```text
//! 0 magic "SAND" (4) | 4 version (1) | 5 kind (1) | 6 length of the whole (2)
//! ```
//! RDMA CM delivers private data padded with zeros, so the length has to be inside. It checks the
//! head only; what follows is checked by the file of that message.

/// The version of this protocol.
pub const VERSION: u8 = 1;

pub(super) const MAGIC: [u8; 4] = *b"SAND";
pub(super) const HEAD_LENGTH: usize = 8;

/// Why private data is not a message of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// There is none, or less than a head.
    #[error("{0} bytes, too short for a head")]
    TooShort(usize),
    /// It does not begin with the magic bytes: somebody else's protocol.
    #[error("no magic bytes")]
    Magic,
    /// Another version of this protocol.
    #[error("version {0}")]
    Version(u8),
    /// Another message than the one that belongs here.
    #[error("message kind {0}")]
    Kind(u8),
    /// The length inside is not the one of this message, or longer than what came.
    #[error("a length of {inside} in {delivered} bytes")]
    Length {
        /// The length that the message claims.
        inside: u16,
        /// The bytes that were delivered.
        delivered: usize,
    },
    /// A field holds what it must not hold.
    #[error("field {0}")]
    Field(&'static str),
}

/// Checks the head of `data`; the message without what pads it.
pub(super) fn parse(data: &[u8], kind: u8, length: usize) -> Result<&[u8], Malformed> {
    let Some(head) = data.first_chunk::<HEAD_LENGTH>() else {
        return Err(Malformed::TooShort(data.len()));
    };
    if head[..4] != MAGIC {
        return Err(Malformed::Magic);
    }
    if head[4] != VERSION {
        return Err(Malformed::Version(head[4]));
    }
    if head[5] != kind {
        return Err(Malformed::Kind(head[5]));
    }
    let inside = u16::from_be_bytes([head[6], head[7]]);
    match data.get(..usize::from(inside)) {
        Some(message) if message.len() == length => Ok(message),
        _ => Err(Malformed::Length {
            inside,
            delivered: data.len(),
        }),
    }
}

/// Writes the head of a message that fills `out`.
pub(super) fn emit(out: &mut [u8], kind: u8) {
    let length = u16::try_from(out.len()).unwrap_or(u16::MAX);
    out[..4].copy_from_slice(&MAGIC);
    out[4] = VERSION;
    out[5] = kind;
    out[6..8].copy_from_slice(&length.to_be_bytes());
}

/// The `N` bytes at `at`. The callers' offsets are constants below the checked length.
pub(super) fn field<const N: usize>(message: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&message[at..at + N]);
    bytes
}
