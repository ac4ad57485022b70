//! The form of a bundle: a datagram of many packets.
//!
//! ```text
//! fe 53 44 01 | length 2 | BTH to pad | length 2 | BTH to pad | ...
//! ```
//!
//! The first byte is no opcode of any transport that this crate speaks.
//!
//! What it does: takes one apart.
//! What it does not do: make one (`bundle`).

/// What a bundle begins with.
pub(super) const MARK: [u8; 4] = [0xfe, b'S', b'D', 1];
pub(super) const LENGTH: usize = 2;

/// The packets of a datagram, if it is a bundle. What is cut short ends it.
pub(super) fn packets(datagram: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    let mut rest = datagram.strip_prefix(&MARK)?;
    Some(std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<LENGTH>()?;
        let (packet, after) = after.split_at_checked(u16::from_be_bytes(*length).into())?;
        rest = after;
        Some(packet)
    }))
}
