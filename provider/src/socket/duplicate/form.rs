//! What goes from the process that had a connection to the one that takes it up, as bytes.
//!
//! ```text
//!   0 magic "SANM" | 4 version u8 = 1 | 5 reserved 3 = 0
//!   8 length of the whole u32 | 12 messages u32
//!  16 source: pid u32 | 20 number u64 | 28 start time u64
//!  36 target: pid u32 | 40 start time u64
//!  48 options: flags u8 (1 reuse, 2 v6 only, 4 tos, 8 threshold) | 49 tos u8 | 50 reserved u16 = 0
//!  52 threshold u32
//!  56 local address (24) | 80 peer address (24): family u16 4 or 6 | port u16 | scope u32 | ip 16
//! 104 port, session id, secret: as in the answer (40, `wire/moving.rs`)
//! 144 messages: kind u8 | length u32 | bytes
//! ```
//! Network byte order. It comes from another process and is not trusted: everything is checked, and
//! no bytes make it panic. It holds a secret; whoever has it and is the named process can take the
//! connection.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use san_base::Process;

use super::super::settings::Options;
use crate::transfer::Carried;
use crate::wire::{Malformed, Resumption};

const MAGIC: [u8; 4] = *b"SANM";
const VERSION: u8 = 1;
const HEAD: usize = 144;

/// More messages than a window can have.
const MOST_MESSAGES: u32 = 0xffff;
/// Longer than any message.
const LONGEST: u32 = 1 << 20;

/// A connection on its way to another process: what `WSPDuplicateSocket` writes down. It is good
/// once, in the process that it names. How it gets there is the caller's affair; it should be seen by
/// nobody else.
#[doc(alias = "WSAPROTOCOL_INFO")]
#[derive(Clone)]
pub struct Duplicate {
    bytes: Vec<u8>,
    contents: Contents,
}

/// Why bytes are no duplicate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadDuplicate {
    /// They end too early.
    #[error("{0} bytes are too short for a duplicate")]
    TooShort(usize),
    /// They do not begin with the magic bytes.
    #[error("no magic bytes")]
    Magic,
    /// Another version.
    #[error("version {0}")]
    Version(u8),
    /// A field holds what it must not hold.
    #[error("field {0}")]
    Field(&'static str),
    /// How the connection is taken up is not readable.
    #[error("the way to take it up: {0}")]
    Resumption(#[from] Malformed),
}

/// What a duplicate says.
#[derive(Clone, PartialEq)]
pub(super) struct Contents {
    pub(super) source: Process,
    /// The socket's number there. With the source it makes the id that no other duplicate has: a
    /// socket is duplicated once, and numbers are given once.
    pub(super) number: u64,
    pub(super) target: Process,
    pub(super) options: Options,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) resumption: Resumption,
    pub(super) messages: Vec<Carried>,
}

impl Duplicate {
    /// The bytes to give to the other process.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads what another process has written.
    ///
    /// # Errors
    /// Why it is no duplicate.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadDuplicate> {
        Ok(Self {
            contents: Contents::parse(bytes)?,
            bytes: bytes.to_vec(),
        })
    }

    /// An id that no other duplicate of this system has or had: the process that made it, when that
    /// process started, and a number there (duty 117).
    #[must_use]
    pub fn id(&self) -> (u32, u64, u64) {
        let Contents { source, number, .. } = &self.contents;
        (source.pid, source.start, *number)
    }

    /// The process that can take the connection up.
    #[must_use]
    pub fn target(&self) -> u32 {
        self.contents.target.pid
    }

    pub(super) fn of(contents: Contents) -> Self {
        Self {
            bytes: contents.emit(),
            contents,
        }
    }

    pub(super) fn contents(&self) -> &Contents {
        &self.contents
    }
}

impl Contents {
    fn emit(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD);
        out.extend(MAGIC);
        out.extend([VERSION, 0, 0, 0]);
        out.extend([0; 4]);
        out.extend(length_of(self.messages.len()).to_be_bytes());
        out.extend(self.source.pid.to_be_bytes());
        out.extend(self.number.to_be_bytes());
        out.extend(self.source.start.to_be_bytes());
        out.extend(self.target.pid.to_be_bytes());
        out.extend(self.target.start.to_be_bytes());
        let options = &self.options;
        let flags = u8::from(options.reuse_addr)
            | u8::from(options.v6_only) << 1
            | u8::from(options.tos.is_some()) << 2
            | u8::from(options.rdma_threshold.is_some()) << 3;
        out.extend([flags, options.tos.unwrap_or(0), 0, 0]);
        out.extend(options.rdma_threshold.unwrap_or(0).to_be_bytes());
        out.extend(emit_address(&self.local));
        out.extend(emit_address(&self.peer));
        out.extend(self.resumption.emit());
        for message in &self.messages {
            out.push(message.kind);
            out.extend(length_of(message.bytes.len()).to_be_bytes());
            out.extend(&*message.bytes);
        }
        let length = length_of(out.len());
        out[8..12].copy_from_slice(&length.to_be_bytes());
        out
    }

    fn parse(bytes: &[u8]) -> Result<Self, BadDuplicate> {
        let mut rest = Rest(bytes);
        if rest.array()? != MAGIC {
            return Err(BadDuplicate::Magic);
        }
        let [version, reserved @ ..] = rest.array::<4>()?;
        if version != VERSION {
            return Err(BadDuplicate::Version(version));
        }
        let length = rest.u32()?;
        if reserved != [0; 3] {
            return Err(BadDuplicate::Field("reserved"));
        }
        if usize::try_from(length).ok() != Some(bytes.len()) {
            return Err(BadDuplicate::Field("length"));
        }
        let count = rest.u32()?;
        let (pid, number, start) = (rest.u32()?, rest.u64()?, rest.u64()?);
        let source = Process { pid, start };
        let (pid, start) = (rest.u32()?, rest.u64()?);
        let target = Process { pid, start };
        let options = parse_options(&mut rest)?;
        let local = parse_address(&mut rest)?;
        let peer = parse_address(&mut rest)?;
        if local.is_ipv4() != peer.is_ipv4() {
            return Err(BadDuplicate::Field("family"));
        }
        let resumption = Resumption::parse(rest.take(Resumption::LENGTH)?)?;
        if count > MOST_MESSAGES {
            return Err(BadDuplicate::Field("messages"));
        }
        let mut messages = Vec::new();
        for _ in 0..count {
            let [kind] = rest.array()?;
            let length = rest.u32()?;
            if length > LONGEST {
                return Err(BadDuplicate::Field("length of a message"));
            }
            let bytes = rest.take(usize::try_from(length).unwrap_or(usize::MAX))?;
            messages.push(Carried {
                kind,
                bytes: Box::from(bytes),
            });
        }
        if !rest.0.is_empty() {
            return Err(BadDuplicate::Field("length"));
        }
        Ok(Self {
            source,
            number,
            target,
            options,
            local,
            peer,
            resumption,
            messages,
        })
    }
}

/// What was not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], BadDuplicate> {
        let (taken, rest) = self
            .0
            .split_at_checked(n)
            .ok_or(BadDuplicate::TooShort(self.0.len()))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadDuplicate> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u16(&mut self) -> Result<u16, BadDuplicate> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, BadDuplicate> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, BadDuplicate> {
        self.array().map(u64::from_be_bytes)
    }
}

fn parse_options(rest: &mut Rest<'_>) -> Result<Options, BadDuplicate> {
    let [flags, tos, reserved @ ..] = rest.array::<4>()?;
    let threshold = rest.u32()?;
    let has = |bit: u8| flags & bit != 0;
    let options = Options {
        reuse_addr: has(1),
        v6_only: has(2),
        tos: has(4).then_some(tos),
        rdma_threshold: has(8).then_some(threshold),
    };
    let is_fine =
        flags < 16 && reserved == [0; 2] && (has(4) || tos == 0) && (has(8) || threshold == 0);
    is_fine
        .then_some(options)
        .ok_or(BadDuplicate::Field("options"))
}

fn emit_address(address: &SocketAddr) -> [u8; 24] {
    let mut out = [0; 24];
    out[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            out[1] = 4;
            out[8..12].copy_from_slice(&v4.ip().octets());
        }
        SocketAddr::V6(v6) => {
            out[1] = 6;
            out[4..8].copy_from_slice(&v6.scope_id().to_be_bytes());
            out[8..].copy_from_slice(&v6.ip().octets());
        }
    }
    out
}

fn parse_address(rest: &mut Rest<'_>) -> Result<SocketAddr, BadDuplicate> {
    let bad = BadDuplicate::Field("address");
    let (family, port, scope) = (rest.u16()?, rest.u16()?, rest.u32()?);
    let ip = rest.array::<16>()?;
    let address = match family {
        4 if scope == 0 && ip[4..] == [0; 12] => {
            let ip = Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]);
            SocketAddr::new(IpAddr::V4(ip), port)
        }
        6 => SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope).into(),
        _ => return Err(bad),
    };
    let is_one = !address.ip().is_unspecified() && !address.ip().is_multicast() && port != 0;
    is_one.then_some(address).ok_or(bad)
}

/// All lengths here are far below.
fn length_of(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

// The secret stays out of logs, and the bytes hold it too.
impl fmt::Debug for Duplicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let contents = &self.contents;
        f.debug_struct("Duplicate")
            .field("id", &self.id())
            .field("target", &contents.target.pid)
            .field("local", &contents.local)
            .field("peer", &contents.peer)
            .field("messages", &contents.messages.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "form_tests.rs"]
mod tests;
