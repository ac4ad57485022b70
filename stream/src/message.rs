//! What the two ends of a stream say to each other on a queue pair.
//!
//! A message's kind travels beside its bytes (for the provider it is one opaque byte), so the bytes
//! of DATA are bytes of the stream and nothing else. All numbers are in network byte order. This
//! module knows lengths and values; whether a message may come now is the engine's business.

use std::fmt;

/// Bytes of the descriptor in a RING: the provider's, which this crate does not look into but for
/// the length of the ring.
pub const DESCRIPTOR: usize = 40;

/// Bytes of an OFFER before those of the stream.
pub const OFFER_HEAD: usize = 12;

/// The lowest kind that is handled as soon as it comes, past messages that nobody has read: control
/// must not wait for an application that does not read.
pub const FIRST_CONTROL: u8 = 16;

/// The most bytes that any message but DATA and OFFER has.
const MOST: usize = DESCRIPTOR;

/// The number of a kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Bytes of the stream, in order.
    Data = 0,
    /// The sender's stream ends here (TCP's FIN).
    End = 1,
    /// The urgent byte, which stands here in the stream.
    Urgent = 2,
    /// The sender has given up; nothing more comes and nothing more is taken (TCP's RST).
    Abort = 3,
    /// A frame may follow at this place of the sender's stream on TCP.
    Prepare = 16,
    /// The place that was prepared is known.
    Ready = 17,
    /// The PROOF was read and is right.
    Verified = 18,
    /// The connecting end knows that its place is known.
    Go = 19,
    /// The carrier is declined.
    No = 20,
    /// The memory that OFFERs are about.
    Ring = 32,
    /// Bytes of the stream that lie in the ring, to be read by RDMA.
    Offer = 33,
    /// Offered bytes were read.
    Done = 34,
    /// An urgent byte comes, and where.
    Mark = 35,
    /// The sender moves to another process: it sends nothing more for now, and asks for the same.
    Suspend = 36,
    /// The answer: nothing more comes until the other end says RESUMED.
    Suspended = 37,
    /// The end that was to move is there, or stays: the stream goes on.
    Resumed = 38,
}

impl Kind {
    /// Every kind, in the order of the numbers.
    pub const ALL: [Self; 16] = [
        Self::Data,
        Self::End,
        Self::Urgent,
        Self::Abort,
        Self::Prepare,
        Self::Ready,
        Self::Verified,
        Self::Go,
        Self::No,
        Self::Ring,
        Self::Offer,
        Self::Done,
        Self::Mark,
        Self::Suspend,
        Self::Suspended,
        Self::Resumed,
    ];

    /// The kind's number on the wire.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The kind that has this number, if any has.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

/// What a frame on TCP says, and what a place is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum What {
    /// The end that writes it holds this TCP connection.
    Proof = 1,
    /// Raw bytes end here; they go on over the queue pair.
    Cut = 2,
}

impl What {
    fn parse(number: u8) -> Result<Self, MessageError> {
        match number {
            1 => Ok(Self::Proof),
            2 => Ok(Self::Cut),
            number => Err(MessageError::UnknownPlace { number }),
        }
    }
}

/// Why a carrier is declined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decline {
    /// The place lies behind what was read already: the peer had given up and gone on.
    PastPlace,
    /// One of the directions has ended.
    HalfClosed,
    /// The kernel and the engine count differently: others use the socket too.
    Counts,
    /// The peer broke the protocol.
    Violation,
    /// A reason of a later version.
    Unknown(u8),
}

impl Decline {
    /// The reason's number on the wire.
    pub fn number(self) -> u8 {
        match self {
            Self::PastPlace => 1,
            Self::HalfClosed => 2,
            Self::Counts => 3,
            Self::Violation => 4,
            Self::Unknown(number) => number,
        }
    }
}

impl From<u8> for Decline {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::PastPlace,
            2 => Self::HalfClosed,
            3 => Self::Counts,
            4 => Self::Violation,
            number => Self::Unknown(number),
        }
    }
}

/// A message, parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// Bytes of the stream, at least one.
    Data(&'a [u8]),
    /// The stream of the sender ends.
    End,
    /// The urgent byte.
    Urgent(u8),
    /// The sender has given up.
    Abort,
    /// A frame may follow at `place`.
    Prepare {
        /// What for.
        what: What,
        /// A position in the sender's stream, in bytes.
        place: u64,
    },
    /// The place is known.
    Ready {
        /// Which of the two.
        what: What,
        /// Bytes, frames included, that its sender has read from TCP so far.
        read: u64,
    },
    /// The proof was right.
    Verified,
    /// The connecting end may be sent data.
    Go,
    /// The carrier is declined.
    No(Decline),
    /// The sender's ring.
    Ring(Ring),
    /// Bytes in the ring.
    Offer {
        /// The position in the stream of the first byte. Its place in the ring is the rest of the
        /// division of this by the ring's length.
        position: u64,
        /// How many bytes, those in the message included.
        length: u32,
        /// The first of these bytes.
        first: &'a [u8],
    },
    /// Offered bytes were read: their place in the ring is free.
    Done {
        /// How many more, in the order in which they were offered.
        length: u32,
    },
    /// An urgent byte comes: told before the bytes that stand before it are read.
    Mark {
        /// Its position in the sender's stream.
        position: u64,
        /// The byte.
        byte: u8,
    },
    /// The sender moves to another process.
    Suspend {
        /// Where what it has read of the peer's offers ends, as a position in the peer's stream.
        reached: u64,
    },
    /// The sender rests until RESUMED.
    Suspended {
        /// The same.
        reached: u64,
    },
    /// The stream goes on.
    Resumed,
}

/// What a peer needs to read from a ring, as its provider told it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ring(pub [u8; DESCRIPTOR]);

impl Ring {
    /// Bytes in the ring, by the descriptor.
    pub fn length(&self) -> u64 {
        let [.., a, b, c, d, e, f, g, h, _, _, _, _, _, _, _, _] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Debug for Ring {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("length", &self.length())
            .finish_non_exhaustive()
    }
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageError {
    /// Nobody knows this kind.
    UnknownKind {
        /// Its number.
        number: u8,
    },
    /// The kind has another length.
    Length {
        /// Of which message.
        kind: Kind,
        /// Bytes that came.
        len: usize,
    },
    /// PREPARE or READY for something that nobody knows.
    UnknownPlace {
        /// Its number.
        number: u8,
    },
    /// An offer of fewer bytes than come with it.
    OfferTooShort {
        /// Bytes offered.
        length: u32,
        /// Bytes that came with it.
        first: usize,
    },
    /// DONE for no byte.
    NothingDone,
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKind { number } => write!(f, "unknown kind of message {number}"),
            Self::Length { kind, len } => write!(f, "{kind:?} of {len} bytes"),
            Self::UnknownPlace { number } => write!(f, "place for an unknown frame {number}"),
            Self::OfferTooShort { length, first } => {
                write!(f, "offer of {length} bytes comes with {first}")
            }
            Self::NothingDone => write!(f, "DONE for no byte"),
        }
    }
}

impl std::error::Error for MessageError {}

impl<'a> Message<'a> {
    /// Reads a message.
    ///
    /// # Errors
    ///
    /// [`MessageError`] says what is wrong with it.
    pub fn parse(number: u8, bytes: &'a [u8]) -> Result<Self, MessageError> {
        let kind = Kind::from_number(number).ok_or(MessageError::UnknownKind { number })?;
        let wrong = MessageError::Length {
            kind,
            len: bytes.len(),
        };
        Ok(match (kind, bytes) {
            (Kind::Data, [_, ..]) => Self::Data(bytes),
            (Kind::End, []) => Self::End,
            (Kind::Urgent, &[byte]) => Self::Urgent(byte),
            (Kind::Abort, []) => Self::Abort,
            (Kind::Prepare | Kind::Ready, &[what, ref number @ ..]) => {
                let number = u64::from_be_bytes(number.try_into().map_err(|_| wrong)?);
                let what = What::parse(what)?;
                if kind == Kind::Prepare {
                    Self::Prepare {
                        what,
                        place: number,
                    }
                } else {
                    Self::Ready { what, read: number }
                }
            }
            (Kind::Verified, []) => Self::Verified,
            (Kind::Go, []) => Self::Go,
            (Kind::No, &[reason]) => Self::No(reason.into()),
            (Kind::Ring, _) => Self::Ring(Ring(bytes.try_into().map_err(|_| wrong)?)),
            (Kind::Offer, _) => {
                let (position, rest) = bytes.split_first_chunk::<8>().ok_or(wrong)?;
                let (length, first) = rest.split_first_chunk::<4>().ok_or(wrong)?;
                let length = u32::from_be_bytes(*length);
                if first.len() >= length as usize {
                    return Err(MessageError::OfferTooShort {
                        length,
                        first: first.len(),
                    });
                }
                Self::Offer {
                    position: u64::from_be_bytes(*position),
                    length,
                    first,
                }
            }
            (Kind::Done, _) => {
                let length = u32::from_be_bytes(bytes.try_into().map_err(|_| wrong)?);
                if length == 0 {
                    return Err(MessageError::NothingDone);
                }
                Self::Done { length }
            }
            (Kind::Mark, &[ref position @ .., byte]) => Self::Mark {
                position: u64::from_be_bytes(position.try_into().map_err(|_| wrong)?),
                byte,
            },
            (Kind::Suspend, _) => Self::Suspend {
                reached: u64::from_be_bytes(bytes.try_into().map_err(|_| wrong)?),
            },
            (Kind::Suspended, _) => Self::Suspended {
                reached: u64::from_be_bytes(bytes.try_into().map_err(|_| wrong)?),
            },
            (Kind::Resumed, []) => Self::Resumed,
            _ => return Err(wrong),
        })
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Data(_) => Kind::Data,
            Self::End => Kind::End,
            Self::Urgent(_) => Kind::Urgent,
            Self::Abort => Kind::Abort,
            Self::Prepare { .. } => Kind::Prepare,
            Self::Ready { .. } => Kind::Ready,
            Self::Verified => Kind::Verified,
            Self::Go => Kind::Go,
            Self::No(_) => Kind::No,
            Self::Ring(_) => Kind::Ring,
            Self::Offer { .. } => Kind::Offer,
            Self::Done { .. } => Kind::Done,
            Self::Mark { .. } => Kind::Mark,
            Self::Suspend { .. } => Kind::Suspend,
            Self::Suspended { .. } => Kind::Suspended,
            Self::Resumed => Kind::Resumed,
        }
    }

    /// The message's own bytes. Those of the stream in DATA and OFFER are not among them: they
    /// follow, from wherever they lie.
    pub fn head(&self) -> Head {
        let mut head = Head {
            bytes: [0; MOST],
            len: 0,
        };
        match *self {
            Self::Data(_) | Self::End | Self::Abort | Self::Verified | Self::Go | Self::Resumed => {
            }
            Self::Urgent(byte) => head.put(&[byte]),
            Self::Prepare {
                what,
                place: number,
            }
            | Self::Ready { what, read: number } => {
                head.put(&[what as u8]);
                head.put(&number.to_be_bytes());
            }
            Self::No(reason) => head.put(&[reason.number()]),
            Self::Ring(ring) => head.put(&ring.0),
            Self::Offer {
                position, length, ..
            } => {
                head.put(&position.to_be_bytes());
                head.put(&length.to_be_bytes());
            }
            Self::Done { length } => head.put(&length.to_be_bytes()),
            Self::Mark { position, byte } => {
                head.put(&position.to_be_bytes());
                head.put(&[byte]);
            }
            Self::Suspend { reached } | Self::Suspended { reached } => {
                head.put(&reached.to_be_bytes());
            }
        }
        head
    }
}

/// Bytes at the beginning of a message; see [`Message::head`].
#[derive(Clone, Copy)]
pub struct Head {
    bytes: [u8; MOST],
    len: usize,
}

impl Head {
    fn put(&mut self, bytes: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.len).zip(bytes) {
            *to = *from;
        }
        self.len += bytes.len();
    }
}

impl std::ops::Deref for Head {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_bytes() {
        let prepare = [1, 0, 0, 0, 0, 0, 0, 1, 2];
        let wanted = Message::Prepare {
            what: What::Proof,
            place: 258,
        };
        assert_eq!(Message::parse(16, &prepare), Ok(wanted));
        assert_eq!(*wanted.head(), prepare);
        let offer = [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 128, 0, 7, 8];
        let wanted = Message::Offer {
            position: 65_536,
            length: 32_768,
            first: &[7, 8],
        };
        assert_eq!(Message::parse(33, &offer), Ok(wanted));
        assert_eq!(*wanted.head(), offer[..OFFER_HEAD]);
        let mark = [0, 0, 0, 0, 0, 0, 1, 2, 33];
        let wanted = Message::Mark {
            position: 258,
            byte: 33,
        };
        assert_eq!(Message::parse(35, &mark), Ok(wanted));
        assert_eq!(*wanted.head(), mark);
    }

    #[test]
    fn what_is_no_message_is_named() {
        let length = |kind, len| Err(MessageError::Length { kind, len });
        assert_eq!(Message::parse(0, &[]), length(Kind::Data, 0));
        assert_eq!(Message::parse(1, &[1]), length(Kind::End, 1));
        assert_eq!(Message::parse(17, &[2; 8]), length(Kind::Ready, 8));
        assert_eq!(Message::parse(32, &[0; 41]), length(Kind::Ring, 41));
        assert_eq!(Message::parse(33, &[0; 11]), length(Kind::Offer, 11));
        assert_eq!(Message::parse(35, &[0; 8]), length(Kind::Mark, 8));
        assert_eq!(
            Message::parse(16, &[3; 9]),
            Err(MessageError::UnknownPlace { number: 3 })
        );
        assert_eq!(Message::parse(34, &[0; 4]), Err(MessageError::NothingDone));
        assert_eq!(
            Message::parse(21, &[]),
            Err(MessageError::UnknownKind { number: 21 })
        );
        let short = Err(MessageError::OfferTooShort {
            length: 1,
            first: 1,
        });
        assert_eq!(
            Message::parse(33, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 9]),
            short
        );
    }

    #[test]
    fn the_length_of_a_ring() {
        let mut bytes = [0; DESCRIPTOR];
        bytes[24..32].copy_from_slice(&262_144u64.to_be_bytes());
        assert_eq!(Ring(bytes).length(), 262_144);
    }
}
