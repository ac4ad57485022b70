//! The memory of bulk: the ring that a sender stages bytes in, and the ring that a receiver reads
//! into. The byte at a position of the stream lies at the remainder of position and length.
//!
//! Who may use which bytes of them is the engine's account. Streams that live on a queue pair (`san/`) and
//! those that move (`upgrade/`) have the same.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;
use san_provider::{
    Fence, MemoryAccess, MemoryHandle, Notification, Operation, Segment, SharedMemory, Socket,
    WsaCode,
};
use san_stream::{DESCRIPTOR, Engine, OFFER_HEAD, Payloads, RING, Read, Ring};

/// Bytes of either ring.
const LENGTH: usize = RING as usize;

/// Where bytes of a stream lie in a ring: one piece, or two where they cross its end.
fn pieces(position: u64, length: usize) -> [(usize, usize); 2] {
    let place = usize::try_from(position % RING).unwrap_or(0);
    let first = length.min(LENGTH - place);
    [(place, first), (0, length - first)]
}

/// The bulk of one stream: its rings, and what is under way to the one that it reads into.
#[derive(Debug, Default)]
pub(crate) struct Bulk {
    staging: Option<Staging>,
    landing: Option<Landing>,
    firsts: VecDeque<First>,
    peer_ring: Option<Ring>,
    reads: VecDeque<(Operation, Read)>,
    waiting_read: Option<Read>,
    /// The memory was used since it was last looked at; how often it was not; and whether somebody looks.
    was_used: bool,
    idle_looks: u32,
    is_looked_after: bool,
}

/// Memory that was not used for so many seconds is let go.
const IDLE_LOOKS: u32 = 5;

impl Bulk {
    /// The memory is in use. `true`: from now on somebody has to look after it.
    pub(crate) fn note_use(&mut self) -> bool {
        self.was_used = true;
        !std::mem::replace(&mut self.is_looked_after, true)
    }

    /// A look, one a second, at a stream whose memory is kept for another reason.
    pub(crate) fn is_kept(&mut self) {
        self.idle_looks = 0;
    }

    /// A look, one a second: whether the memory was not used for so long that it may go.
    pub(crate) fn is_idle(&mut self) -> bool {
        if std::mem::take(&mut self.was_used) {
            self.idle_looks = 0;
            return false;
        }
        self.idle_looks += 1;
        self.idle_looks >= IDLE_LOOKS && !self.is_reading()
    }

    /// Keeps bytes that are to be sent, at their position.
    ///
    /// # Errors
    /// ENOBUFS.
    pub(crate) fn put(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let staging = match &mut self.staging {
            Some(staging) => staging,
            empty => empty.insert(Staging::new()?),
        };
        staging.put(position, bytes);
        Ok(())
    }

    /// Copies bytes out that are to be sent. They do not cross the ring's end.
    pub(crate) fn take(&self, position: u64, into: &mut [u8]) {
        if let Some(staging) = &self.staging {
            staging.take(position, into);
        }
    }

    /// Copies bytes out that are to be sent, also where they cross the ring's end.
    pub(crate) fn take_all(&self, position: u64, into: &mut [u8]) {
        let [(_, first), _] = pieces(position, into.len());
        let (before, behind) = into.split_at_mut(first);
        self.take(position, before);
        self.take(position + before.len() as u64, behind);
    }

    /// What is to be opened to the peer.
    pub(crate) fn memory(&self) -> Option<SharedMemory> {
        let staging = self.staging.as_ref()?;
        Some(staging.memory.shared.clone())
    }

    /// It is open.
    pub(crate) fn opened(&mut self, handle: MemoryHandle) {
        if let Some(staging) = &mut self.staging {
            staging.opened = Some(handle);
        }
    }

    /// The peer is to read it no longer: what is to be taken away from the peer.
    pub(crate) fn take_opened(&mut self) -> Option<MemoryHandle> {
        self.staging.as_mut()?.opened.take()
    }

    /// The peer has opened its ring.
    pub(crate) fn peer_opened(&mut self, ring: Ring) {
        self.peer_ring = Some(ring);
    }

    /// The peer has offered bytes; the engine has taken the message.
    pub(crate) fn offered(&mut self, message: Box<[u8]>) {
        let position = message
            .first_chunk()
            .map(|bytes| u64::from_be_bytes(*bytes));
        let position = position.unwrap_or(0);
        // Those of an offer that was taken back.
        while self
            .firsts
            .back()
            .is_some_and(|one| one.position >= position)
        {
            self.firsts.pop_back();
        }
        self.firsts.push_back(First {
            position,
            message,
            head: OFFER_HEAD,
        });
    }

    /// Bytes that had landed in another process.
    pub(crate) fn landed_elsewhere(&mut self, position: u64, bytes: &[u8]) {
        self.firsts.push_back(First {
            position,
            message: Box::from(bytes),
            head: 0,
        });
    }

    /// Starts the READs that the engine wants. Whether it has started any.
    ///
    /// # Errors
    /// The connection cannot go on.
    pub(crate) fn post_reads<P: Payloads>(
        &mut self,
        engine: &mut Engine<P>,
        socket: &Socket,
    ) -> io::Result<bool> {
        let mut any = false;
        loop {
            let waiting = self.waiting_read.take();
            let Some(read) = waiting.or_else(|| engine.next_read()) else {
                return Ok(any);
            };
            match self.post_read(socket, &read) {
                Ok(operation) => self.reads.push_back((operation, read)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.waiting_read = Some(read);
                    return Ok(any);
                }
                Err(error) => return Err(error),
            }
            any = true;
        }
    }

    fn post_read(&mut self, socket: &Socket, read: &Read) -> io::Result<Operation> {
        let Some(ring) = &self.peer_ring else {
            return Err(Errno::CONNRESET.into());
        };
        let landing = match &mut self.landing {
            Some(landing) => landing,
            empty => empty.insert(Landing::new(socket)?),
        };
        let (segments, count) = landing.segments(read.position, read.length as usize);
        let segments = segments.get(..count).unwrap_or_default();
        socket
            .rdma_read(
                segments,
                &ring.0,
                read.place,
                Fence::None,
                Notification::Sink,
            )
            .map_err(|error| system(error.errno()))
    }

    /// Which READ this operation was, if it was one.
    pub(crate) fn read_ended(&mut self, operation: Operation) -> Option<Read> {
        let place = self.reads.iter().position(|(one, _)| *one == operation)?;
        self.reads.remove(place).map(|(_, read)| read)
    }

    /// Whether a READ is under way, or waits for a place.
    pub(crate) fn is_reading(&self) -> bool {
        !self.reads.is_empty() || self.waiting_read.is_some()
    }

    /// Whether one waits for a place.
    pub(crate) fn has_waiting_read(&self) -> bool {
        self.waiting_read.is_some()
    }

    /// Copies bytes that are here, from a position on, into the buffers: how many.
    pub(crate) fn deliver(&mut self, at: (u64, u64), buffers: &mut [IoSliceMut<'_>]) -> usize {
        deliver(self.landing.as_ref(), &mut self.firsts, at, buffers)
    }

    /// Copies bytes that are here, and keeps them.
    pub(crate) fn copy_landed(&self, at: (u64, u64), into: &mut [u8]) {
        let buffers = &mut [IoSliceMut::new(into)];
        deliver(self.landing.as_ref(), &mut self.firsts.clone(), at, buffers);
    }

    /// Whether there is any.
    pub(crate) fn has_rings(&self) -> bool {
        self.staging.is_some() || self.landing.is_some()
    }

    /// Nobody looks after it from now on, until [`Bulk::note_use`] asks for it.
    pub(crate) fn leave_alone(&mut self) {
        self.is_looked_after = false;
    }

    /// The rings, which are not used.
    pub(crate) fn take_rings(&mut self) -> Rings {
        Rings {
            staging: self.staging.take(),
            landing: self.landing.take(),
        }
    }

    /// The queue pair is gone: what was to be read is not, and the peer reads nothing. Bytes that were to
    /// be sent stay. What is given back is let go when the device has let it go.
    pub(crate) fn queue_pair_gone(&mut self) -> Rings {
        if let Some(staging) = &mut self.staging {
            staging.opened = None;
        }
        self.firsts.clear();
        self.peer_ring = None;
        self.reads.clear();
        self.waiting_read = None;
        Rings {
            staging: None,
            landing: self.landing.take(),
        }
    }
}

/// Bytes that are to be sent.
#[derive(Debug)]
struct Staging {
    memory: Memory,
    /// While it is open to the peer.
    opened: Option<MemoryHandle>,
}

/// Memory that is not needed for now.
#[derive(Debug)]
pub(crate) struct Rings {
    staging: Option<Staging>,
    landing: Option<Landing>,
}

impl Rings {
    /// Nobody else has them any more: the peer reads one of them no longer when this returns.
    /// `socket`: that of the queue pair; none, if that is gone.
    pub(crate) fn let_go(self, socket: Option<&Socket>) {
        // A socket that is closed has let them go already.
        if let Some(handle) = self.staging.as_ref().and_then(|staging| staging.opened)
            && let Some(socket) = socket
            && let Err(error) = socket.deregister_rdma_memory(handle)
            && !matches!(error.code(), WsaCode::NotSocket | WsaCode::NotConnected)
        {
            tracing::debug!(%error, "the peer keeps reading a ring that is not used");
            return;
        }
        if let (Some(landing), Some(socket)) = (&self.landing, socket) {
            let _ = socket.deregister_memory(landing.handle);
        }
        let since = Instant::now();
        let mut spare = SPARE.lock();
        let staging = self.staging.map(|staging| staging.memory);
        let landing = self.landing.map(|landing| landing.memory);
        for memory in staging.into_iter().chain(landing) {
            if spare.len() < MOST_SPARE {
                spare.push_back(Spare { memory, since });
            }
        }
    }
}

/// Whether there are rings that nobody uses now.
pub(crate) fn has_spare() -> bool {
    !SPARE.lock().is_empty()
}

/// Gives those of them back that nobody has wanted for a while. Their pages go when the provider has let
/// their registrations go, too.
pub(crate) fn let_spare_go(now: Instant) {
    let mut spare = SPARE.lock();
    let is_old = |spare: &Spare| now.saturating_duration_since(spare.since) >= SPARE_TIME;
    let old = spare.iter().take_while(|spare| is_old(spare)).count();
    let old: Vec<_> = spare.drain(..old).collect();
    if spare.is_empty() {
        spare.shrink_to_fit();
    }
    drop(spare);
    // Unmapping takes a call of the system each.
    drop(old);
}

/// A ring's memory.
#[derive(Debug)]
struct Memory {
    shared: SharedMemory,
    /// All behind it is zero.
    used: usize,
}

/// A ring that nobody uses now.
#[derive(Debug)]
struct Spare {
    memory: Memory,
    since: Instant,
}

/// All of them, the oldest first. The provider keeps what was registered a while, so they cost little to
/// use again, and others would be kept beside them.
static SPARE: Mutex<VecDeque<Spare>> = Mutex::new(VecDeque::new());
const MOST_SPARE: usize = 64;
/// How long they are kept.
const SPARE_TIME: Duration = Duration::from_secs(5);

impl Memory {
    /// A ring of zeros: another peer may have been told what was in it.
    fn new() -> io::Result<Self> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let spare = SPARE.lock().pop_back().map(|spare| spare.memory);
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
    fn new() -> io::Result<Self> {
        let memory = Memory::new().map_err(|error| {
            tracing::debug!(%error, "no memory to stage bytes in");
            io::Error::from(Errno::NOBUFS)
        })?;
        Ok(Self {
            memory,
            opened: None,
        })
    }

    fn put(&mut self, position: u64, bytes: &[u8]) {
        let [(place, first), (start, _)] = self.memory.places(position, bytes.len());
        let (before, behind) = bytes.split_at(first);
        // Inside, by the way the places are made.
        let _ = self.memory.shared.write_at(place, before);
        let _ = self.memory.shared.write_at(start, behind);
    }

    fn take(&self, position: u64, into: &mut [u8]) {
        let [(place, _), _] = pieces(position, into.len());
        let _ = self.memory.shared.read_at(place, into);
    }
}

/// Opens a ring to the peer of a socket for reading. It may wait for the transport.
pub(crate) fn open_to_peer(
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
struct Landing {
    memory: Memory,
    handle: MemoryHandle,
}

/// The first bytes of an offer, or bytes that had landed in another process; and their position.
#[derive(Debug, Clone)]
struct First {
    position: u64,
    /// The message; the bytes begin behind its head.
    message: Box<[u8]>,
    head: usize,
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
    fn new(socket: &Socket) -> io::Result<Self> {
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
    fn segments(&mut self, position: u64, length: usize) -> ([Segment; 2], usize) {
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

fn deliver(
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
