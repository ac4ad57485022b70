//! Registered memory for tests: filled, opened to the peer, read and written by it.

use san_provider::wire::Descriptor;
use san_provider::{
    AppMemory, Fence, MemoryAccess, MemoryHandle, Notification, Operation, Segment, SharedMemory,
    Socket, TransferError,
};

use crate::san;

/// Memory that is open to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The owner's.
    pub handle: MemoryHandle,
    /// The peer's.
    pub descriptor: Vec<u8>,
}

/// Memory of `len` bytes, each of them `byte`.
///
/// # Panics
/// When there is no memory.
#[must_use]
pub fn filled(len: usize, byte: u8) -> SharedMemory {
    let memory = SharedMemory::new(len).expect("memory");
    memory.write_at(0, &vec![byte; len]).expect("inside");
    memory
}

/// Memory with bytes that tell where they are.
///
/// # Panics
/// When there is no memory.
#[must_use]
pub fn patterned(len: usize, seed: usize) -> SharedMemory {
    let memory = SharedMemory::new(len).expect("memory");
    let bytes: Vec<u8> = (0..len)
        .map(|n| ((n + seed) * 7 + (n + seed) / 251) as u8)
        .collect();
    memory.write_at(0, &bytes).expect("inside");
    memory
}

/// All bytes of it.
///
/// # Panics
/// Never.
#[must_use]
pub fn all(memory: &SharedMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.len()];
    memory.read_at(0, &mut bytes).expect("inside");
    bytes
}

/// Opens memory to the peer of `owner`.
///
/// # Panics
/// When that fails.
#[must_use]
pub fn open(owner: &Socket, memory: AppMemory, access: MemoryAccess) -> Opened {
    let mut descriptor = vec![0; Descriptor::LENGTH];
    let (handle, length) = owner
        .register_rdma_memory(memory, access, &mut descriptor)
        .unwrap_or_else(|error| panic!("memory is not opened: {error}"));
    assert_eq!(length, descriptor.len());
    Opened { handle, descriptor }
}

impl Opened {
    /// The descriptor with something changed in it, as a dishonest peer would.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn forged(&self, change: impl FnOnce(&mut Descriptor)) -> Self {
        let mut descriptor = Descriptor::parse(&self.descriptor).expect("a descriptor");
        change(&mut descriptor);
        Self {
            descriptor: descriptor.emit().to_vec(),
            ..self.clone()
        }
    }
}

/// Registers memory for local use.
///
/// # Panics
/// When that fails.
#[must_use]
pub fn register(socket: &Socket, memory: &SharedMemory, access: MemoryAccess) -> MemoryHandle {
    socket
        .register_memory(memory.into(), access)
        .unwrap_or_else(|error| panic!("memory is not registered: {error}"))
}

/// The whole of a registration, or a part.
#[must_use]
pub fn segment(handle: MemoryHandle, offset: usize, length: usize) -> Segment {
    Segment {
        handle,
        offset,
        length,
    }
}

/// Waits for the end of an operation that was started, or was not.
///
/// # Errors
/// How it was not started, or how it ended.
pub fn finished(
    socket: &Socket,
    started: Result<Operation, TransferError>,
) -> Result<usize, TransferError> {
    san::wait(socket, started?)
        .outcome
        .map(|transferred| transferred.bytes)
}

/// Writes `bytes` to `offset` of what is opened to `from`; how it ended.
///
/// # Errors
/// Those of the operation.
///
/// # Panics
/// When the memory of its own cannot be registered.
pub fn write(
    from: &Socket,
    opened: &Opened,
    offset: u64,
    bytes: &[u8],
) -> Result<usize, TransferError> {
    let memory = SharedMemory::new(bytes.len()).expect("memory");
    memory.write_at(0, bytes).expect("inside");
    let handle = register(from, &memory, MemoryAccess::Read);
    let segments = [segment(handle, 0, bytes.len())];
    let place = &opened.descriptor;
    let started = from.rdma_write(&segments, place, offset, Fence::None, Notification::Poll);
    let outcome = finished(from, started);
    from.deregister_memory(handle).expect("not busy any more");
    outcome
}

/// Reads `len` bytes at `offset` of what is opened to `from`.
///
/// # Errors
/// Those of the operation.
///
/// # Panics
/// When the memory of its own cannot be registered.
pub fn read(
    from: &Socket,
    opened: &Opened,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>, TransferError> {
    let memory = filled(len, 0);
    let handle = register(from, &memory, MemoryAccess::Write);
    let segments = [segment(handle, 0, len)];
    let place = &opened.descriptor;
    let started = from.rdma_read(&segments, place, offset, Fence::None, Notification::Poll);
    let outcome = finished(from, started);
    from.deregister_memory(handle).expect("not busy any more");
    outcome.map(|_| all(&memory))
}
