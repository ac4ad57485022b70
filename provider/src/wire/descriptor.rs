//! The descriptor of memory that a side opens to its peer.
//!
//! ```text
//!  0 head, kind 4
//!  8 rights u32      bit 0 the peer may read, bit 1 the peer may write; others 0, one at least 1
//! 12 key u32         what opens it
//! 16 address u64     of its first byte, as the owner counts
//! 24 length u64      in bytes, at least 1
//! 32 reserved 8 = 0
//! ```
//! 40 bytes. The layer above carries it to the peer. It is good for the peer of the socket that
//! made it, as long as the memory stays open; the owner's device sees to both.

use super::head::{self, Malformed, field};

const LENGTH: usize = 40;
const RIGHTS: usize = 8;
const KEY: usize = 12;
const ADDRESS: usize = 16;
const SIZE: usize = 24;
const RESERVED: usize = 32;

const KIND: u8 = 4;
const READ: u32 = 1;
const WRITE: u32 = 2;

/// Memory of the peer's, as the peer described it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// It may be read.
    pub read: bool,
    /// It may be written.
    pub write: bool,
    /// What opens it.
    pub key: u32,
    /// The address of its first byte, as its owner counts.
    pub address: u64,
    /// Bytes, at least 1.
    pub length: u64,
}

impl Descriptor {
    /// How long it is on the wire.
    pub const LENGTH: usize = LENGTH;

    /// Reads a descriptor; what follows it is ignored.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(data: &[u8]) -> Result<Self, Malformed> {
        let message = head::parse(data, KIND, LENGTH)?;
        let rights = u32::from_be_bytes(field(message, RIGHTS));
        let descriptor = Self {
            read: rights & READ != 0,
            write: rights & WRITE != 0,
            key: u32::from_be_bytes(field(message, KEY)),
            address: u64::from_be_bytes(field(message, ADDRESS)),
            length: u64::from_be_bytes(field(message, SIZE)),
        };
        if rights == 0 || rights & !(READ | WRITE) != 0 {
            return Err(Malformed::Field("rights"));
        }
        if descriptor.length == 0 || descriptor.address.checked_add(descriptor.length).is_none() {
            return Err(Malformed::Field("length"));
        }
        if field::<8>(message, RESERVED) != [0; 8] {
            return Err(Malformed::Field("reserved"));
        }
        Ok(descriptor)
    }

    /// The descriptor on the wire.
    #[must_use]
    pub fn emit(&self) -> [u8; LENGTH] {
        let rights = if self.read { READ } else { 0 } | if self.write { WRITE } else { 0 };
        let mut out = [0; LENGTH];
        head::emit(&mut out, KIND);
        out[RIGHTS..KEY].copy_from_slice(&rights.to_be_bytes());
        out[KEY..ADDRESS].copy_from_slice(&self.key.to_be_bytes());
        out[ADDRESS..SIZE].copy_from_slice(&self.address.to_be_bytes());
        out[SIZE..RESERVED].copy_from_slice(&self.length.to_be_bytes());
        out
    }
}

// The key stays out of logs: whoever has it is half-way in.
impl std::fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Descriptor")
            .field("read", &self.read)
            .field("write", &self.write)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DESCRIPTOR: Descriptor = Descriptor {
        read: true,
        write: false,
        key: 0x0102_0304,
        address: 0x0000_7f12_3456_7890,
        length: 0x0010_0000,
    };

    #[rustfmt::skip]
    const BYTES: [u8; LENGTH] = [
        b'S', b'A', b'N', b'D', 1, 4, 0, 40,
        0, 0, 0, 1, 1, 2, 3, 4,
        0, 0, 0x7f, 0x12, 0x34, 0x56, 0x78, 0x90,
        0, 0, 0, 0, 0, 0x10, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn descriptors_are_these_bytes() {
        assert_eq!(DESCRIPTOR.emit(), BYTES);
        assert_eq!(Descriptor::parse(&BYTES), Ok(DESCRIPTOR));
        let mut longer = BYTES.to_vec();
        longer.extend([9; 30]);
        assert_eq!(Descriptor::parse(&longer), Ok(DESCRIPTOR));
    }

    #[test]
    fn what_is_none_says_why() {
        let with = |at: usize, byte: u8| {
            let mut bytes = BYTES;
            bytes[at] = byte;
            Descriptor::parse(&bytes).unwrap_err()
        };
        assert_eq!(with(3, b'M'), Malformed::Magic);
        assert_eq!(with(4, 2), Malformed::Version(2));
        assert_eq!(with(5, 1), Malformed::Kind(1));
        assert!(matches!(with(7, 39), Malformed::Length { inside: 39, .. }));
        assert!(matches!(with(7, 41), Malformed::Length { inside: 41, .. }));
        assert_eq!(with(11, 0), Malformed::Field("rights"));
        assert_eq!(with(11, 5), Malformed::Field("rights"));
        assert_eq!(with(8, 0x80), Malformed::Field("rights"));
        assert_eq!(with(29, 0), Malformed::Field("length"));
        assert_eq!(with(39, 1), Malformed::Field("reserved"));
        assert_eq!(Descriptor::parse(&BYTES[..7]), Err(Malformed::TooShort(7)));
        assert!(Descriptor::parse(&BYTES[..39]).is_err());
        let past_the_end = Descriptor {
            address: u64::MAX - 10,
            length: 11,
            ..DESCRIPTOR
        };
        assert_eq!(
            Descriptor::parse(&past_the_end.emit()),
            Err(Malformed::Field("length"))
        );
    }

    proptest! {
        #[test]
        fn every_descriptor_survives(
            rights in 1..4_u32, key: u32, address in 0..u64::MAX / 2, length in 1..u64::MAX / 2
        ) {
            let (read, write) = (rights & READ != 0, rights & WRITE != 0);
            let descriptor = Descriptor { read, write, key, address, length };
            prop_assert_eq!(Descriptor::parse(&descriptor.emit()), Ok(descriptor));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Descriptor::parse(&bytes);
            let mut with_head = BYTES.to_vec();
            with_head.truncate(8);
            with_head.extend(bytes);
            let _ = Descriptor::parse(&with_head);
        }
    }
}
