//! From how many bytes on RDMA is better than messages.
//!
//! Both ends in turn move so many bytes from their memory into the peer's; half the time of such a
//! round is told. By messages: they are copied into registered buffers, and out of them. By RDMA:
//! the owner opens its memory and tells the peer where it is; the peer registers its own, reads,
//! and says that it is done, which is the owner's leave to close.

use std::time::{Duration, Instant};

use san_benches::Result;
use san_benches::record::{number, table};
use san_benches::stats::Samples;
use san_provider::wire::Descriptor;
use san_provider::{
    Fence, MemoryAccess, Notification, ProviderConfig, Segment, SharedMemory, Socket, TransferError,
};

use crate::ends::{Fabric, Site, WITHOUT_END, message};

const SIZES: [usize; 9] = [
    1 << 10,
    2 << 10,
    4 << 10,
    8 << 10,
    16 << 10,
    32 << 10,
    64 << 10,
    128 << 10,
    256 << 10,
];

/// Bytes of a message.
const MESSAGE: usize = 4096;

/// What the reader says when it has read.
const DONE: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Messages,
    /// Memory stays open and registered; only the descriptor and the word go across.
    Open,
    /// Memory is registered, opened and closed each time; registrations are kept.
    Kept,
    /// The same, and none is kept.
    NotKept,
}

const WAYS: [(Way, &str); 4] = [
    (Way::Messages, "messages"),
    (Way::Open, "left-open"),
    (Way::Kept, "kept"),
    (Way::NotKept, "not-kept"),
];

pub(crate) fn measure(site: Site) -> Result<()> {
    let mut rows = Vec::new();
    for size in SIZES {
        let mut row = vec![size.to_string()];
        for (way, name) in WAYS {
            let args = ["serve-threshold", name, &size.to_string()].map(String::from);
            let (_server, _provider, socket) = site.connect(&args, config(site, way))?;
            let mut end = End::new(&socket, way, size)?;
            let rounds = rounds(site, size);
            let mut samples = Samples::with_capacity(rounds);
            for n in 0..rounds / 5 + rounds {
                let began = Instant::now();
                end.send()?;
                end.receive()?;
                if n >= rounds / 5 {
                    samples.push(began.elapsed() / 2);
                }
            }
            let summary = samples.summary().ok_or("no samples")?;
            row.push(number(summary.median));
        }
        eprintln!("{}", row.join(" "));
        rows.push(row);
    }
    let heads = [
        "Bytes, us one way",
        "Messages",
        "RDMA READ, left open",
        "Registration kept",
        "Not kept",
    ];
    println!("{} fabric\n\n{}", site.name(), table(&heads, rows));
    Ok(())
}

pub(crate) fn serve(site: Site, way: &str, size: usize) -> Result<()> {
    let found = WAYS.iter().find(|(_, name)| *name == way);
    let (way, _) = *found.ok_or("no such way")?;
    let (_provider, socket) = site.accept(config(site, way))?;
    let mut end = End::new(&socket, way, size)?;
    // The peer ends it by going.
    loop {
        match end.receive().and_then(|()| end.send()) {
            Ok(()) => {}
            Err(error) if is_end(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn is_end(error: &san_benches::Error) -> bool {
    matches!(
        error.downcast_ref::<TransferError>(),
        Some(TransferError::Reset)
    )
}

/// Where time is a count of instructions, few rounds tell as much as many.
fn rounds(site: Site, size: usize) -> usize {
    match size {
        _ if site.fabric == Fabric::Rdma => 60,
        0..=16_384 => 500,
        _ => 200,
    }
}

/// On one processor a thread that polls only keeps the peer from its work.
fn config(site: Site, way: Way) -> ProviderConfig {
    let mut config = ProviderConfig::default();
    if site.fabric == Fabric::Rdma {
        config.spin = Duration::ZERO;
    }
    if way == Way::NotKept {
        config.memory_cache_entries = 0;
    }
    config
}

struct End<'a> {
    socket: &'a Socket,
    way: Way,
    /// What is sent, and where to.
    source: SharedMemory,
    target: SharedMemory,
    /// Both, when it goes by messages.
    plain: Vec<u8>,
    /// Of memory that stays open.
    open: Option<([u8; Descriptor::LENGTH], Segment)>,
}

impl<'a> End<'a> {
    fn new(socket: &'a Socket, way: Way, size: usize) -> Result<Self> {
        let (source, target) = (SharedMemory::new(size)?, SharedMemory::new(size)?);
        let mut descriptor = [0; Descriptor::LENGTH];
        let open = match way {
            Way::Open => {
                let memory = (&source).into();
                socket.register_rdma_memory(memory, MemoryAccess::Read, &mut descriptor)?;
                let handle = socket.register_memory((&target).into(), MemoryAccess::Write)?;
                let segment = Segment {
                    handle,
                    offset: 0,
                    length: size,
                };
                Some((descriptor, segment))
            }
            _ => None,
        };
        Ok(Self {
            socket,
            way,
            source,
            target,
            plain: vec![b'x'; size],
            open,
        })
    }

    fn send(&self) -> Result<()> {
        if self.way == Way::Messages {
            return self.send_messages();
        }
        if let Some((descriptor, _)) = self.open {
            self.message(&descriptor)?;
            return self.await_done();
        }
        let mut descriptor = [0; Descriptor::LENGTH];
        let memory = (&self.source).into();
        let access = MemoryAccess::Read;
        let (handle, _) = self
            .socket
            .register_rdma_memory(memory, access, &mut descriptor)?;
        self.message(&descriptor)?;
        self.await_done()?;
        self.socket.deregister_rdma_memory(handle)?;
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        if self.way == Way::Messages {
            return self.receive_messages();
        }
        let message = self.socket.receive_within(WITHOUT_END)?;
        if let Some((_, segment)) = self.open {
            self.read(segment, &message)?;
        } else {
            let memory = (&self.target).into();
            let handle = self.socket.register_memory(memory, MemoryAccess::Write)?;
            let segment = Segment {
                handle,
                offset: 0,
                length: self.target.len(),
            };
            self.read(segment, &message)?;
            self.socket.deregister_memory(handle)?;
        }
        self.message(&[DONE])
    }

    fn read(&self, segment: Segment, descriptor: &[u8]) -> Result<()> {
        let operation =
            self.socket
                .rdma_read(&[segment], descriptor, 0, Fence::None, Notification::Poll)?;
        let result = self
            .socket
            .get_overlapped_result(operation, Some(WITHOUT_END))?;
        match result.outcome?.bytes {
            n if n == segment.length => Ok(()),
            n => Err(format!("{n} bytes were read").into()),
        }
    }

    fn await_done(&self) -> Result<()> {
        let message = self.socket.receive_within(WITHOUT_END)?;
        match message[..] {
            [DONE] => Ok(()),
            _ => Err("something else than the word that it is read".into()),
        }
    }

    fn send_messages(&self) -> Result<()> {
        for piece in self.plain.chunks(MESSAGE) {
            self.message(piece)?;
        }
        Ok(())
    }

    fn receive_messages(&mut self) -> Result<()> {
        let mut left = &mut self.plain[..];
        while !left.is_empty() {
            let message = self.socket.receive_within(WITHOUT_END)?;
            let place = left.split_off_mut(..message.len());
            place
                .ok_or("more came than was sent")?
                .copy_from_slice(&message);
        }
        Ok(())
    }

    fn message(&self, bytes: &[u8]) -> Result<()> {
        message(self.socket, bytes)
    }
}
