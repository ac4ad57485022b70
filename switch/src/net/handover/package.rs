//! What goes from the one process to the other over a Unix socket.
//!
//! ```text
//!  0 magic "SANH" | 4 version u8 = 1 | 5 what u8 (0 package, 1 error) | 6 reserved u16 = 0
//!  8 length of the head u32 | 12 lengths of the four pieces, u32 each
//! 28 head: JSON | pieces: the provider's duplicate, bytes that have landed, staged, peeked
//! ```
//! Network byte order. Of an error the head is its errno. The descriptor comes with the first byte. Who
//! reads it does not trust it: lengths are bounded, and each field is checked by whoever uses it.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::carrier::san::moves::{KeptBytes, Record, RecordBytes};

const MAGIC: [u8; 4] = *b"SANH";
const VERSION: u8 = 1;
const FRONT: usize = 28;
/// More than a head can have, and more than the pieces can: a window of messages, and two rings.
const LONGEST_HEAD: usize = 1 << 16;
const LONGEST_PIECE: usize = 1 << 24;

/// What has left: it is on its way to the other process.
pub(crate) struct Gone {
    pub(super) package: Package,
}

/// What goes.
#[derive(Debug)]
pub(super) struct Package {
    pub(super) head: Head,
    pub(super) bytes: RecordBytes,
    pub(super) fd: OwnedFd,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    pub(super) local: SocketAddr,
    pub(super) what: What,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum What {
    /// The descriptor is its companion.
    San {
        peer: SocketAddr,
        provider: String,
        device: String,
        closes_in_background: bool,
        record: Box<Record>,
    },
    /// The descriptor is the connection.
    Tcp {
        peer: SocketAddr,
        has_ended: bool,
        /// What the kernel's socket does not know of how long calls wait.
        waits: Option<WaitTimes>,
    },
    /// The descriptor listens.
    Listener {
        backlog: u32,
        route: String,
        send_buffer: Option<usize>,
        receive_buffer: Option<usize>,
    },
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitTimes {
    pub(super) is_nonblocking: bool,
    pub(super) receive: Option<Duration>,
    pub(super) send: Option<Duration>,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        format!("a hand-over's {what} is wrong"),
    )
}

/// Writes a package.
pub(super) fn send(mut stream: &UnixStream, package: &Package) -> io::Result<()> {
    let head = serde_json::to_vec(&package.head)?;
    let RecordBytes {
        kept: KeptBytes { landed, staged },
        peeked,
        duplicate,
    } = &package.bytes;
    let pieces = [duplicate, landed, staged, peeked];
    let front = front(0, head.len(), pieces.map(Vec::len))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [package.fd.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(bad("descriptor"));
    }
    let first = [IoSlice::new(&front[..1])];
    if sendmsg(stream, &first, &mut control, SendFlags::NOSIGNAL)? != 1 {
        return Err(ErrorKind::WriteZero.into());
    }
    stream.write_all(&front[1..])?;
    stream.write_all(&head)?;
    for piece in pieces {
        stream.write_all(piece)?;
    }
    Ok(())
}

/// Says why there is none.
pub(super) fn refuse(mut stream: &UnixStream, errno: i32) -> io::Result<()> {
    let head = serde_json::to_vec(&errno)?;
    stream.write_all(&front(1, head.len(), [0; 4])?)?;
    stream.write_all(&head)
}

fn front(what: u8, head: usize, pieces: [usize; 4]) -> io::Result<[u8; FRONT]> {
    let mut front = [0; FRONT];
    front[..4].copy_from_slice(&MAGIC);
    front[4..6].copy_from_slice(&[VERSION, what]);
    let lengths = [head].into_iter().chain(pieces);
    for (place, length) in front[8..].chunks_exact_mut(4).zip(lengths) {
        let length = u32::try_from(length).map_err(|_| bad("length"))?;
        place.copy_from_slice(&length.to_be_bytes());
    }
    Ok(front)
}

/// Reads a package, or the error that came in its place.
pub(super) fn receive(mut stream: &UnixStream) -> io::Result<Package> {
    let mut front = [0; FRONT];
    let fd = receive_first(stream, &mut front[..1]).map_err(|error| match error.kind() {
        // Whoever had it is gone, or had gone when this was asked for.
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => Errno::NOTCONN.into(),
        _ => error,
    })?;
    stream.read_exact(&mut front[1..])?;
    let [a, b, c, d, version, what, 0, 0, ref lengths @ ..] = front else {
        return Err(bad("front"));
    };
    if [a, b, c, d] != MAGIC || version != VERSION {
        return Err(bad("version"));
    }
    let mut lengths = lengths.chunks_exact(4).map(|length| {
        let length = length.try_into().map_or(0, u32::from_be_bytes);
        usize::try_from(length).unwrap_or(usize::MAX)
    });
    let mut piece = |longest: usize| {
        let length = lengths.next().unwrap_or(0);
        if length > longest {
            return Err(bad("length"));
        }
        Ok(length)
    };
    let head = piece(LONGEST_HEAD)?;
    let pieces = [
        piece(LONGEST_PIECE)?,
        piece(LONGEST_PIECE)?,
        piece(LONGEST_PIECE)?,
        piece(LONGEST_PIECE)?,
    ];
    let head = read(stream, head)?;
    match what {
        1 => {
            let errno = serde_json::from_slice(&head).map_err(|_| bad("error"))?;
            return Err(io::Error::from_raw_os_error(errno));
        }
        0 => {}
        _ => return Err(bad("kind")),
    }
    let head: Head = serde_json::from_slice(&head)
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    let [duplicate, landed, staged, peeked] = pieces;
    let duplicate = read(stream, duplicate)?;
    let kept = KeptBytes {
        landed: read(stream, landed)?,
        staged: read(stream, staged)?,
    };
    let peeked = read(stream, peeked)?;
    Ok(Package {
        head,
        bytes: RecordBytes {
            kept,
            peeked,
            duplicate,
        },
        fd: fd.ok_or_else(|| bad("descriptor"))?,
    })
}

fn receive_first(stream: &UnixStream, byte: &mut [u8]) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(byte)];
    let came = recvmsg(stream, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if came.bytes != 1 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let fds = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok(fds.and_then(|mut fds| fds.next()))
}

fn read(mut stream: &UnixStream, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[path = "package_tests.rs"]
mod tests;
