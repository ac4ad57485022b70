//! The two frames that a stream's TCP connection carries between its bytes: PROOF and RESUME.
//!
//! A frame announces itself by nothing: the reader knows from the queue pair where one may stand,
//! and recognises it by a tag that only the two ends can compute. What is elsewhere is application
//! data, whatever it looks like.

use std::fmt;

/// Bytes of a frame.
pub const FRAME: usize = 32;

/// Bytes at its beginning that the reader knows beforehand.
pub const TAG: usize = 16;

/// Which frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Who writes here is the peer of the queue pair.
    Proof = 1,
    /// The queue pair is given up: this is the next byte that is wanted.
    Resume = 2,
}

/// The end that opened the TCP connection, or the one that accepted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// Called `connect`: listens for the queue pair.
    Connector = 1,
    /// Called `accept`: dials the queue pair.
    Acceptor = 2,
}

impl Role {
    /// The other end.
    pub fn peer(self) -> Self {
        match self {
            Self::Connector => Self::Acceptor,
            Self::Acceptor => Self::Connector,
        }
    }
}

/// A message authentication code under the key of one excursion to a queue pair, for instance
/// HMAC-SHA-256 cut to 16 bytes. The key comes of both nonces of the connect (and a configured key,
/// where there is one), so no two excursions have the same.
///
/// The shell brings it, so that this crate depends on nothing.
pub trait Mac {
    /// The code of these bytes.
    fn mac(&self, bytes: &[u8]) -> [u8; TAG];
}

/// Where a frame belongs: all that its tag is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Which frame.
    pub kind: FrameKind,
    /// The end that writes it.
    pub writer: Role,
    /// Which excursion of this stream it belongs to, counted from 1.
    pub generation: u16,
    /// PROOF: its place in the stream of the writer. RESUME: 0.
    pub place: u64,
}

/// Why bytes at a place are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// As far as they go they are the tag; more must be seen.
    Incomplete,
    /// Not the tag: bytes of the application.
    OtherBytes,
    /// The tag, but the position is forged.
    WrongCheck,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Incomplete => "the frame is not complete",
            Self::OtherBytes => "no frame stands here",
            Self::WrongCheck => "the frame's position is not what its writer sealed",
        })
    }
}

impl std::error::Error for FrameError {}

impl Slot {
    /// What a frame here begins with.
    fn tag(&self, key: &impl Mac) -> [u8; TAG] {
        key.mac(&self.sealed(0, self.place))
    }

    fn check(&self, key: &impl Mac, position: u64) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = key.mac(&self.sealed(1, position));
        [a, b, c, d, e, f, g, h]
    }

    /// What is sealed: domain 0 the tag, 1 the check.
    fn sealed(&self, domain: u8, number: u64) -> [u8; 13] {
        let [g, h] = self.generation.to_be_bytes();
        let [n0, n1, n2, n3, n4, n5, n6, n7] = number.to_be_bytes();
        let (kind, writer) = (self.kind as u8, self.writer as u8);
        [domain, kind, writer, g, h, n0, n1, n2, n3, n4, n5, n6, n7]
    }

    /// The frame that belongs here, with its position: the place of a PROOF, the next byte wanted of
    /// a RESUME.
    pub fn emit(&self, key: &impl Mac, position: u64) -> [u8; FRAME] {
        let parts = [
            &self.tag(key)[..],
            &position.to_be_bytes()[..],
            &self.check(key, position)[..],
        ];
        let mut frame = [0; FRAME];
        for (to, from) in frame.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        frame
    }

    /// The position in the frame that these bytes begin with.
    ///
    /// # Errors
    ///
    /// [`FrameError`]: no frame of this slot, or not yet.
    pub fn parse(&self, key: &impl Mac, bytes: &[u8]) -> Result<u64, FrameError> {
        let tag = self.tag(key);
        if bytes.iter().zip(&tag).any(|(is, wanted)| is != wanted) {
            return Err(FrameError::OtherBytes);
        }
        let (position, rest) = bytes
            .get(TAG..)
            .and_then(<[u8]>::split_first_chunk::<8>)
            .ok_or(FrameError::Incomplete)?;
        let check = rest.first_chunk::<8>().ok_or(FrameError::Incomplete)?;
        let position = u64::from_be_bytes(*position);
        let is_proof_elsewhere = self.kind == FrameKind::Proof && position != self.place;
        if is_proof_elsewhere || *check != self.check(key, position) {
            return Err(FrameError::WrongCheck);
        }
        Ok(position)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// No MAC at all, but different for different bytes.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Weak(pub(crate) u64);

    impl Mac for Weak {
        fn mac(&self, bytes: &[u8]) -> [u8; TAG] {
            let mut state = [self.0, !self.0];
            for byte in bytes {
                for (salt, word) in (1u64..).zip(&mut state) {
                    *word = (*word ^ u64::from(*byte) ^ salt << 32)
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                        .rotate_left(29);
                }
            }
            let mut code = [0; TAG];
            code[..8].copy_from_slice(&state[0].to_be_bytes());
            code[8..].copy_from_slice(&state[1].to_be_bytes());
            code
        }
    }

    const SLOT: Slot = Slot {
        kind: FrameKind::Resume,
        writer: Role::Acceptor,
        generation: 3,
        place: 0,
    };

    #[test]
    fn a_frame_is_read_where_it_belongs_and_nowhere_else() {
        let key = Weak(7);
        let frame = SLOT.emit(&key, 99);
        assert_eq!(SLOT.parse(&key, &frame), Ok(99));
        for other in [
            Slot {
                generation: 4,
                ..SLOT
            },
            Slot {
                writer: Role::Connector,
                ..SLOT
            },
            Slot {
                kind: FrameKind::Proof,
                ..SLOT
            },
        ] {
            assert_eq!(other.parse(&key, &frame), Err(FrameError::OtherBytes));
        }
        assert_eq!(SLOT.parse(&Weak(8), &frame), Err(FrameError::OtherBytes));
    }

    #[test]
    fn a_beginning_waits_for_the_rest() {
        let frame = SLOT.emit(&Weak(7), 99);
        for n in 0..FRAME {
            assert_eq!(
                SLOT.parse(&Weak(7), &frame[..n]),
                Err(FrameError::Incomplete)
            );
        }
    }

    #[test]
    fn a_changed_position_is_noticed() {
        let mut frame = SLOT.emit(&Weak(7), 99);
        frame[23] ^= 1;
        assert_eq!(SLOT.parse(&Weak(7), &frame), Err(FrameError::WrongCheck));
        let proof = Slot {
            kind: FrameKind::Proof,
            place: 5,
            ..SLOT
        };
        assert_eq!(
            proof.parse(&Weak(7), &proof.emit(&Weak(7), 6)),
            Err(FrameError::WrongCheck)
        );
    }
}
