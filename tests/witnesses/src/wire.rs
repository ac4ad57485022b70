//! The private data and the immediate data of San Direct, built and read by hand.
//!
//! What it does: follows the text of `docs/protocol.md`, offset by offset, in network byte order. What
//! it does not do: share a constant or a function with the provider, which it is a witness of.

/// Length of a request and of a reply.
pub const HELLO_LEN: usize = 56;
/// Length of a refusal.
pub const REFUSAL_LEN: usize = 24;

/// A connect request: version 1, this many receives posted, messages up to so many bytes.
#[must_use]
pub fn request(credits: u16, max_message: u32) -> [u8; HELLO_LEN] {
    let mut bytes = [0; HELLO_LEN];
    bytes[0..4].copy_from_slice(b"SAND");
    bytes[4] = 1;
    bytes[5] = 1;
    bytes[6..8].copy_from_slice(&56u16.to_be_bytes());
    bytes[12..14].copy_from_slice(&credits.to_be_bytes());
    bytes[16..20].copy_from_slice(&max_message.to_be_bytes());
    bytes
}

/// What an acceptor answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Bits of the features; bit 0 RDMA READ, bit 1 SEND with invalidate.
    pub features: u32,
    /// Receives that the acceptor guarantees.
    pub credits: u16,
    /// Bytes per receive.
    pub max_message: u32,
    /// Bytes per RDMA transfer.
    pub max_rdma: u32,
}

/// Reads a reply; librdmacm pads it with zeros behind.
///
/// # Errors
/// A sentence that says which field is not as the protocol has it.
pub fn reply(data: &[u8]) -> Result<Reply, String> {
    let body = head(data, 2, HELLO_LEN)?;
    if body[14..16] != [0; 2] || body[48..56] != [0; 8] {
        return Err(format!("reserved bytes are not zero: {body:02x?}"));
    }
    Ok(Reply {
        features: u32_at(body, 8),
        credits: u16_at(body, 12),
        max_message: u32_at(body, 16),
        max_rdma: u32_at(body, 20),
    })
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// 1 backlog full, 2 condition function, 3 not our protocol, 4 version, 5 closing, 6 resources,
    /// 7 backlog of the switch full.
    pub reason: u16,
    /// Lowest version that the refusing side speaks.
    pub lowest: u8,
    /// Highest version that it speaks.
    pub highest: u8,
    /// The listener's backlog, 0 where it does not apply.
    pub backlog: u32,
}

/// Reads a refusal.
///
/// # Errors
/// A sentence that says which field is not as the protocol has it.
pub fn refusal(data: &[u8]) -> Result<Refusal, String> {
    let body = head(data, 3, REFUSAL_LEN)?;
    if body[16..24] != [0; 8] {
        return Err(format!("reserved bytes are not zero: {body:02x?}"));
    }
    Ok(Refusal {
        reason: u16_at(body, 8),
        lowest: body[10],
        highest: body[11],
        backlog: u32_at(body, 12),
    })
}

/// Immediate data: type (1 data, 2 credits only), credits given back, kind of the message.
#[must_use]
pub fn immediate(kind_of_packet: u32, credits: u32, kind: u32) -> u32 {
    kind_of_packet << 28 | credits << 16 | kind << 8
}

/// Takes immediate data apart: type, credits given back, kind, the bits that must be zero.
#[must_use]
pub fn take_apart(immediate: u32) -> (u32, u32, u32, u32) {
    (
        immediate >> 28,
        immediate >> 16 & 0xfff,
        immediate >> 8 & 0xff,
        immediate & 0xff,
    )
}

fn head(data: &[u8], kind: u8, len: usize) -> Result<&[u8], String> {
    if data.len() < len {
        return Err(format!("{} bytes, {len} expected", data.len()));
    }
    if data[0..4] != *b"SAND" {
        return Err(format!("magic {:02x?}", &data[0..4]));
    }
    if data[4] != 1 || data[5] != kind {
        return Err(format!(
            "version {}, kind {}, expected 1 and {kind}",
            data[4], data[5]
        ));
    }
    if usize::from(u16_at(data, 6)) != len {
        return Err(format!("length field {}, expected {len}", u16_at(data, 6)));
    }
    if data[len..].iter().any(|&byte| byte != 0) {
        return Err(format!("bytes behind the end: {:02x?}", &data[len..]));
    }
    Ok(&data[..len])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
