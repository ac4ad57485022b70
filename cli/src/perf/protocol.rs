//! The measuring protocol: what the two ends of `san perf` and `san ping` say to each other.
//!
//! One connection is one measurement. The client sends a request of 32 bytes, the server answers with
//! 16, and then bytes move as the request says:
//!
//! - *round trips*: the server sends back each message of `size` bytes, until the client's stream ends;
//! - *up*: the client sends until its stream ends; the server answers with a receipt of 16 bytes;
//! - *down*: the server sends messages of `size` bytes for `duration_ms`, and ends its stream.
//!
//! ```text
//! request   0 magic "SANPRF"   6 version u16   8 kind u8   9 zero [3]   12 size u32
//!          16 duration_ms u32   20 zero [8]   28 CR LF CR LF
//! answer    0 magic "SANPRF"   6 version u16   8 status u8   9 zero [7]
//! receipt   0 bytes u64   8 nanoseconds u64
//! ```
//!
//! Numbers are in network byte order. The request ends as a request of HTTP does, so that a web server
//! at the other end answers at once, with something that is no answer of ours. This file only turns
//! bytes into values and back; what a peer sends is bounded here and trusted nowhere.

use std::time::Duration;

/// The port of `san perf --serve` where none is named.
pub(crate) const PORT: u16 = 7474;
/// The version that is spoken.
pub(super) const VERSION: u16 = 1;
/// Bytes of a message, at most.
pub(super) const LARGEST: usize = 1 << 20;
/// How long one measurement may last.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

const MAGIC: [u8; 6] = *b"SANPRF";
const END: [u8; 4] = *b"\r\n\r\n";
pub(super) const REQUEST_LEN: usize = 32;
pub(super) const ANSWER_LEN: usize = 16;
pub(super) const RECEIPT_LEN: usize = 16;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    RoundTrips,
    Up,
    Down,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: Kind,
    /// Bytes of a message.
    pub(super) size: usize,
    /// How long the server sends.
    pub(super) duration: Duration,
}

/// What the server says to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ready,
    /// It speaks another version.
    OtherVersion,
    /// Something in the request is out of bounds.
    OutOfBounds,
    /// It serves as many as it can.
    Busy,
    Unknown(u8),
}

/// Why bytes are no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadRequest {
    /// They come from a program of another kind.
    Foreign,
    /// Another version of this protocol.
    Version(u16),
    OutOfBounds,
}

/// Why bytes are no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Foreign;

impl Request {
    pub(super) fn emit(&self) -> [u8; REQUEST_LEN] {
        let mut bytes = [0; REQUEST_LEN];
        bytes[..6].copy_from_slice(&MAGIC);
        bytes[6..8].copy_from_slice(&VERSION.to_be_bytes());
        bytes[8] = match self.kind {
            Kind::RoundTrips => 1,
            Kind::Up => 2,
            Kind::Down => 3,
        };
        let size = u32::try_from(self.size).unwrap_or(u32::MAX);
        bytes[12..16].copy_from_slice(&size.to_be_bytes());
        let duration = u32::try_from(self.duration.as_millis()).unwrap_or(u32::MAX);
        bytes[16..20].copy_from_slice(&duration.to_be_bytes());
        bytes[28..].copy_from_slice(&END);
        bytes
    }

    pub(super) fn parse(bytes: &[u8; REQUEST_LEN]) -> Result<Self, BadRequest> {
        if bytes[..6] != MAGIC || bytes[28..] != END {
            return Err(BadRequest::Foreign);
        }
        match u16_at(bytes, 6) {
            VERSION => {}
            other => return Err(BadRequest::Version(other)),
        }
        let kind = match bytes[8] {
            1 => Kind::RoundTrips,
            2 => Kind::Up,
            3 => Kind::Down,
            _ => return Err(BadRequest::OutOfBounds),
        };
        let size = usize::try_from(u32_at(bytes, 12)).unwrap_or(usize::MAX);
        let duration = Duration::from_millis(u32_at(bytes, 16).into());
        if size == 0 || size > LARGEST || duration > LONGEST {
            return Err(BadRequest::OutOfBounds);
        }
        Ok(Self {
            kind,
            size,
            duration,
        })
    }
}

/// The server's answer, and the version that it speaks.
pub(super) fn emit_answer(status: Status) -> [u8; ANSWER_LEN] {
    let mut bytes = [0; ANSWER_LEN];
    bytes[..6].copy_from_slice(&MAGIC);
    bytes[6..8].copy_from_slice(&VERSION.to_be_bytes());
    bytes[8] = match status {
        Status::Ready => 0,
        Status::OtherVersion => 1,
        Status::OutOfBounds => 2,
        Status::Busy => 3,
        Status::Unknown(n) => n,
    };
    bytes
}

/// The status, and the version that the server speaks.
pub(super) fn parse_answer(bytes: &[u8; ANSWER_LEN]) -> Result<(Status, u16), Foreign> {
    if bytes[..6] != MAGIC {
        return Err(Foreign);
    }
    let status = match bytes[8] {
        0 => Status::Ready,
        1 => Status::OtherVersion,
        2 => Status::OutOfBounds,
        3 => Status::Busy,
        n => Status::Unknown(n),
    };
    Ok((status, u16_at(bytes, 6)))
}

/// What the server has received, and how long it took from the first byte to the last.
pub(super) fn emit_receipt(bytes: u64, took: Duration) -> [u8; RECEIPT_LEN] {
    let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    let mut receipt = [0; RECEIPT_LEN];
    receipt[..8].copy_from_slice(&bytes.to_be_bytes());
    receipt[8..].copy_from_slice(&nanoseconds.to_be_bytes());
    receipt
}

pub(super) fn parse_receipt(receipt: &[u8; RECEIPT_LEN]) -> (u64, Duration) {
    let nanoseconds = u64_at(receipt, 8);
    (u64_at(receipt, 0), Duration::from_nanos(nanoseconds))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) << 16 | u32::from(u16_at(bytes, at + 2))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Request = Request {
        kind: Kind::Down,
        size: 65_536,
        duration: Duration::from_millis(500),
    };

    #[test]
    fn a_request_is_these_bytes() {
        let bytes = REQUEST.emit();
        assert_eq!(&bytes[..12], b"SANPRF\x00\x01\x03\x00\x00\x00");
        assert_eq!(bytes[12..20], [0, 1, 0, 0, 0, 0, 1, 0xf4]);
        assert_eq!(bytes[20..], *b"\0\0\0\0\0\0\0\0\r\n\r\n");
        assert_eq!(Request::parse(&bytes), Ok(REQUEST));
    }

    #[test]
    fn requests_out_of_bounds_are_refused() {
        let with = |at: usize, value: &[u8]| {
            let mut bytes = REQUEST.emit();
            bytes[at..at + value.len()].copy_from_slice(value);
            Request::parse(&bytes)
        };
        assert_eq!(with(0, b"GET / "), Err(BadRequest::Foreign));
        assert_eq!(with(28, b"abcd"), Err(BadRequest::Foreign));
        assert_eq!(with(6, &[0, 2]), Err(BadRequest::Version(2)));
        assert_eq!(with(8, &[0]), Err(BadRequest::OutOfBounds));
        assert_eq!(with(8, &[4]), Err(BadRequest::OutOfBounds));
        assert_eq!(with(12, &[0; 4]), Err(BadRequest::OutOfBounds));
        assert_eq!(with(12, &[0, 0x10, 0, 1]), Err(BadRequest::OutOfBounds));
        assert_eq!(with(12, &[0xff; 4]), Err(BadRequest::OutOfBounds));
        assert_eq!(with(16, &[0, 0, 0xea, 0x61]), Err(BadRequest::OutOfBounds));
        let largest = with(12, &[0, 0x10, 0, 0]).unwrap();
        assert_eq!(largest.size, LARGEST);
    }

    #[test]
    fn any_byte_may_be_anything() {
        // Every byte of a good request, changed to each value.
        for at in 0..REQUEST_LEN {
            for value in 0..=255 {
                let mut bytes = REQUEST.emit();
                bytes[at] = value;
                if let Ok(request) = Request::parse(&bytes) {
                    assert!((1..=LARGEST).contains(&request.size));
                    assert!(request.duration <= LONGEST);
                }
            }
        }
    }

    #[test]
    fn answers_and_receipts_are_read_as_they_are_written() {
        for status in [
            Status::Ready,
            Status::OtherVersion,
            Status::OutOfBounds,
            Status::Busy,
            Status::Unknown(77),
        ] {
            assert_eq!(parse_answer(&emit_answer(status)), Ok((status, VERSION)));
        }
        assert_eq!(parse_answer(b"HTTP/1.1 400 Bad"), Err(Foreign));
        let took = Duration::from_nanos(1 << 33);
        let receipt = emit_receipt(1 << 40, took);
        assert_eq!(parse_receipt(&receipt), (1 << 40, took));
    }
}
