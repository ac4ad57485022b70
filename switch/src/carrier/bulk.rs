//! The memory of bulk: the ring that a sender stages bytes in, and the ring that a receiver reads
//! into. The byte at a position of the stream lies at the remainder of position and length.
//!
//! Who may use which bytes of them is the engine's account.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};

use parking_lot::Mutex;
use rustix::io::Errno;
use san_provider::{MemoryAccess, MemoryHandle, Segment, SharedMemory, Socket, WsaCode};
use san_stream::{DESCRIPTOR, RING, Ring};

/// Bytes of either ring.
const LENGTH: usize = RING as usize;

/// Where bytes of a stream lie in a ring: one piece, or two where they cross its end.
fn pieces(position: u64, length: usize) -> [(usize, usize); 2] {
    let place = usize::try_from(position % RING).unwrap_or(0);
    let first = length.min(LENGTH - place);
    [(place, first), (0, length - first)]
}

/// Bytes that are to be sent.
#[derive(Debug)]
pub(super) struct Staging {
    memory: Memory,
    /// While it is open to the peer.
    pub(super) opened: Option<MemoryHandle>,
}

/// Memory that is not needed for now.
#[derive(Debug)]
pub(super) struct Rings {
    pub(super) staging: Option<Staging>,
    pub(super) landing: Option<Landing>,
}

impl Rings {
    /// Nobody else has them any more: the peer reads one of them no longer when this returns.
    pub(super) fn let_go(self, socket: &Socket) {
        // A socket that is closed has let them go already.
        if let Some(handle) = self.staging.as_ref().and_then(|staging| staging.opened)
            && let Err(error) = socket.deregister_rdma_memory(handle)
            && !matches!(error.code(), WsaCode::NotSocket | WsaCode::NotConnected)
        {
            tracing::debug!(%error, "the peer keeps reading a ring that is not used");
            return;
        }
        if let Some(landing) = &self.landing {
            let _ = socket.deregister_memory(landing.handle);
        }
        let mut spare = SPARE.lock();
        let staging = self.staging.map(|staging| staging.memory);
        let landing = self.landing.map(|landing| landing.memory);
        for memory in staging.into_iter().chain(landing) {
            if spare.len() < MOST_SPARE {
                spare.push(memory);
            }
        }
    }
}

/// A ring's memory.
#[derive(Debug)]
struct Memory {
    shared: SharedMemory,
    /// All behind it is zero.
    used: usize,
}

/// Rings that nobody uses now. The provider keeps what was registered a while, so they cost little to
/// use again, and others would be kept beside them.
static SPARE: Mutex<Vec<Memory>> = Mutex::new(Vec::new());
const MOST_SPARE: usize = 64;

impl Memory {
    /// A ring of zeros: another peer may have been told what was in it.
    fn new() -> io::Result<Self> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let spare = SPARE.lock().pop();
        let Some(Self { shared, used }) = spare else {
            let shared = SharedMemory::new(LENGTH).map_err(|error| system(error.errno()))?;
            return Ok(Self { shared, used: 0 });
        };
        for place in (0..used).step_by(ZEROS.len()) {
            let most = ZEROS.len().min(LENGTH - place);
            shared
                .write_at(place, &ZEROS[..most])
                .map_err(|error| system(error.errno()))?;
        }
        Ok(Self { shared, used: 0 })
    }

    /// Bytes of the stream come here: where they lie.
    fn places(&mut self, position: u64, length: usize) -> [(usize, usize); 2] {
        let pieces = pieces(position, length);
        let [(place, first), _] = pieces;
        self.used = self.used.max(place + first);
        pieces
    }
}

impl Staging {
    /// # Errors
    /// ENOBUFS: there is no memory (duty 38).
    pub(super) fn new() -> io::Result<Self> {
        let memory = Memory::new().map_err(|error| {
            tracing::debug!(%error, "no memory to stage bytes in");
            io::Error::from(Errno::NOBUFS)
        })?;
        Ok(Self {
            memory,
            opened: None,
        })
    }

    /// What is opened to the peer.
    pub(super) fn memory(&self) -> SharedMemory {
        self.memory.shared.clone()
    }

    pub(super) fn put(&mut self, position: u64, bytes: &[u8]) {
        let [(place, first), (start, _)] = self.memory.places(position, bytes.len());
        let (before, behind) = bytes.split_at(first);
        // Inside, by the way the places are made.
        let _ = self.memory.shared.write_at(place, before);
        let _ = self.memory.shared.write_at(start, behind);
    }

    /// Copies bytes out, also where they cross the ring's end.
    pub(super) fn take_all(&self, position: u64, into: &mut [u8]) {
        let [(_, first), _] = pieces(position, into.len());
        let (before, behind) = into.split_at_mut(first);
        self.take(position, before);
        self.take(position + before.len() as u64, behind);
    }

    /// Copies bytes out; they do not cross the ring's end.
    pub(super) fn take(&self, position: u64, into: &mut [u8]) {
        let [(place, _), _] = pieces(position, into.len());
        let _ = self.memory.shared.read_at(place, into);
    }
}

/// Opens a ring to the peer of a socket for reading. It may wait for the transport.
pub(super) fn open_to_peer(
    socket: &Socket,
    memory: &SharedMemory,
) -> io::Result<(Ring, MemoryHandle)> {
    let mut descriptor = [0; DESCRIPTOR];
    let all = memory
        .part(0, LENGTH)
        .map_err(|error| system(error.errno()))?;
    let (handle, _) = socket
        .register_rdma_memory(all, MemoryAccess::Read, &mut descriptor)
        .map_err(|error| system(error.errno()))?;
    Ok((Ring(descriptor), handle))
}

/// Bytes that were read from the peer's ring, and those that came with its offers.
#[derive(Debug)]
pub(super) struct Landing {
    memory: Memory,
    handle: MemoryHandle,
}

/// The first bytes of an offer, or bytes that had landed in another process; and their position.
#[derive(Debug, Clone)]
pub(super) struct First {
    pub(super) position: u64,
    /// The message; the bytes begin behind its head.
    pub(super) message: Box<[u8]>,
    pub(super) head: usize,
}

impl First {
    fn bytes(&self) -> &[u8] {
        self.message.get(self.head..).unwrap_or_default()
    }

    fn end(&self) -> u64 {
        self.position + self.bytes().len() as u64
    }
}

impl Landing {
    pub(super) fn new(socket: &Socket) -> io::Result<Self> {
        let memory = Memory::new()?;
        let all = memory
            .shared
            .part(0, LENGTH)
            .map_err(|error| system(error.errno()))?;
        let handle = socket
            .register_memory(all, MemoryAccess::Write)
            .map_err(|error| system(error.errno()))?;
        Ok(Self { memory, handle })
    }

    /// Where a READ of these bytes goes.
    pub(super) fn segments(&mut self, position: u64, length: usize) -> ([Segment; 2], usize) {
        let pieces = self.memory.places(position, length);
        let segments = pieces.map(|(offset, length)| Segment {
            handle: self.handle,
            offset,
            length,
        });
        (segments, if pieces[1].1 == 0 { 1 } else { 2 })
    }

    fn take(&self, position: u64, into: &mut [u8]) {
        let [(place, first), (start, _)] = pieces(position, into.len());
        let (before, behind) = into.split_at_mut(first);
        let _ = self.memory.shared.read_at(place, before);
        let _ = self.memory.shared.read_at(start, behind);
    }
}

/// Copies bytes that are here, from `position` on, into the buffers: how many.
pub(super) fn deliver(
    landing: Option<&Landing>,
    firsts: &mut VecDeque<First>,
    (mut position, mut available): (u64, u64),
    buffers: &mut [IoSliceMut<'_>],
) -> usize {
    let mut total = 0;
    for buffer in buffers {
        let mut into: &mut [u8] = buffer;
        while !into.is_empty() && available > 0 {
            while firsts.front().is_some_and(|first| first.end() <= position) {
                firsts.pop_front();
            }
            let most = usize::try_from(available)
                .unwrap_or(usize::MAX)
                .min(into.len());
            let first = firsts.front().filter(|first| first.position <= position);
            let taken = if let Some(first) = first {
                let skip = usize::try_from(position - first.position).unwrap_or(usize::MAX);
                let bytes = first.bytes().get(skip..).unwrap_or_default();
                let taken = most.min(bytes.len());
                into[..taken].copy_from_slice(&bytes[..taken]);
                taken
            } else {
                let until = firsts.front().map_or(u64::MAX, |first| first.position);
                let taken = most.min(usize::try_from(until - position).unwrap_or(usize::MAX));
                if let Some(landing) = landing {
                    landing.take(position, &mut into[..taken]);
                }
                taken
            };
            into = &mut into[taken..];
            position += taken as u64;
            available -= taken as u64;
            total += taken;
        }
    }
    total
}

fn system(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
