//! RDMA READ and WRITE: one at a time, from the call to its completion, and many at a time. Provider
//! and raw verbs; perftest's part is in `tools.rs`.
//!
//! The end that is read and written sleeps all the time. The other sleeps until something completes.
//! The raw side reads and writes a region that its owner opened to everybody, the provider what was
//! opened to it alone: a memory window of type 2.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use san_benches::Result;
use san_benches::record::Record;
use san_benches::server::{Server, answer, commands, say_ready};
use san_benches::stats::Samples;
use san_provider::wire::Descriptor;
use san_provider::{Fence, MemoryAccess, Notification, Segment, SharedMemory, Socket};
use verbs_shim::{
    Access, CompletionBatch, ConnParams, Event, Fabric, MemoryRegion, RemoteMemory, SendRequest,
    Verb,
};

use crate::provider::{Client, WITHOUT_END};
use crate::raw::{self, Connection, Dialler, Shared};
use crate::{PATIENCE, Site, messages, provider, wait};

/// Sizes of the operations.
pub(crate) const SIZES: [usize; 4] = [64, 4096, 1 << 16, 1 << 20];

/// Both directions, and what they are called.
pub(crate) const VERBS: [(Direction, &str); 2] =
    [(Direction::Read, "READ"), (Direction::Write, "WRITE")];

/// The memory that is read and written.
const MEMORY: usize = 1 << 20;

/// Operations under way at a time when many are: what the send queue of a connection holds.
const DEPTH: usize = 15;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// How many operations are measured: one second's worth is enough.
pub(crate) fn rounds(size: usize) -> usize {
    match size {
        0..=4096 => 1000,
        4097..=65_536 => 200,
        _ => 40,
    }
}

/// Raw verbs through `verbs-shim`.
pub(crate) fn raw(site: &Site, record: &mut Record) -> Result<()> {
    let server = site.server.to_string();
    let (mut server, port) = Server::start(&["serve", "raw-memory", &server])?;
    let mut dialler = Dialler::new(64)?;
    let to = SocketAddr::new(site.server, port.parse()?);
    let connection = dialler.connect(to)?;
    let place = server.ask("memory")?;
    let (addr, rkey) = place.split_once(' ').ok_or("no place")?;
    let remote = RemoteMemory {
        addr: addr.parse()?,
        rkey: rkey.parse()?,
    };
    let shared = dialler.shared()?;
    let region = shared.pd.region(MEMORY, Access::LOCAL_WRITE)?;
    shared.send_cq.request_notify()?;
    for size in SIZES {
        for (verb, _) in VERBS {
            let mut end = RawEnd {
                connection: &connection,
                shared,
                region: &region,
                verb: match verb {
                    Direction::Read => Verb::Read(remote),
                    Direction::Write => Verb::Write(remote),
                },
                size,
                batch: CompletionBatch::new(),
                done: 0,
            };
            measure(record, "shim", "verbs-shim", verb, size, &mut end)?;
        }
    }
    connection.close()
}

/// The provider.
pub(crate) fn provider(site: &Site, record: &mut Record) -> Result<()> {
    let server = site.server.to_string();
    let (mut server, port) = Server::start(&["serve", "provider-memory", &server])?;
    let client = Client::new()?;
    let connection = client.connect(SocketAddr::new(site.server, port.parse()?))?;
    let descriptor = from_hex(&server.ask("memory")?)?;
    let memory = SharedMemory::new(MEMORY)?;
    let socket = connection.socket();
    let handle = socket.register_memory((&memory).into(), MemoryAccess::ReadWrite)?;
    for size in SIZES {
        for (verb, _) in VERBS {
            let mut end = ProviderEnd {
                socket,
                descriptor: &descriptor,
                segment: Segment {
                    handle,
                    offset: 0,
                    length: size,
                },
                verb,
                under_way: VecDeque::with_capacity(DEPTH),
            };
            measure(record, "provider", "provider", verb, size, &mut end)?;
        }
    }
    socket.deregister_memory(handle)?;
    Ok(())
}

/// An end that starts operations, and waits for the oldest.
trait Active {
    fn start(&mut self) -> Result<()>;
    fn finish(&mut self) -> Result<()>;
}

fn measure(
    record: &mut Record,
    key: &str,
    who: &str,
    verb: Direction,
    size: usize,
    end: &mut impl Active,
) -> Result<()> {
    let rounds = rounds(size);
    let mut samples = Samples::with_capacity(rounds);
    for n in 0..rounds / 10 + rounds {
        let began = Instant::now();
        end.start()?;
        end.finish()?;
        if n >= rounds / 10 {
            samples.push(began.elapsed());
        }
    }
    let verb = match verb {
        Direction::Read => "READ",
        Direction::Write => "WRITE",
    };
    let what = format!("RDMA {verb} {size} B, to its completion: {who}");
    record.samples(&format!("rdma.{verb}.{size}.{key}"), &what, &samples);
    let depth = DEPTH.min(rounds);
    let began = Instant::now();
    for n in 0..rounds {
        if n >= depth {
            end.finish()?;
        }
        end.start()?;
    }
    for _ in 0..depth {
        end.finish()?;
    }
    let rate = mebibytes(size * rounds, began.elapsed());
    let what = format!("RDMA {verb} {size} B, many: {who}");
    record.figure(
        &format!("rdma-rate.{verb}.{size}.{key}"),
        &what,
        "MiB/s",
        rate,
    );
    Ok(())
}

/// Mebibytes a second, which is what perftest means by MB/sec.
pub(crate) fn mebibytes(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

struct RawEnd<'a> {
    connection: &'a Connection,
    shared: &'a Shared,
    region: &'a Arc<MemoryRegion>,
    verb: Verb,
    size: usize,
    batch: CompletionBatch,
    /// Completions that were seen and not asked for yet.
    done: usize,
}

impl Active for RawEnd<'_> {
    fn start(&mut self) -> Result<()> {
        let slice = self.region.slice(0, self.size)?;
        let request = SendRequest::piece(0, self.verb, slice);
        self.connection.qp.post(request).map_err(|e| e.error)?;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let (cq, channel) = (&self.shared.send_cq, &self.shared.send_channel);
        while self.done == 0 {
            if cq.poll(&mut self.batch)? == 0 {
                cq.request_notify()?;
                if cq.poll(&mut self.batch)? == 0 {
                    wait::readable(channel, PATIENCE)?;
                    channel.consume()?;
                    continue;
                }
            }
            for completion in &self.batch {
                messages::check(completion)?;
                let claim = self.connection.qp.claim(completion);
                drop(claim.ok_or("an operation of nobody")?);
                self.done += 1;
            }
        }
        self.done -= 1;
        Ok(())
    }
}

struct ProviderEnd<'a> {
    socket: &'a Socket,
    descriptor: &'a [u8],
    segment: Segment,
    verb: Direction,
    under_way: VecDeque<san_provider::Operation>,
}

impl Active for ProviderEnd<'_> {
    fn start(&mut self) -> Result<()> {
        let pieces = [self.segment];
        let (fence, completion) = (Fence::None, Notification::Poll);
        let started = match self.verb {
            Direction::Read => {
                self.socket
                    .rdma_read(&pieces, self.descriptor, 0, fence, completion)
            }
            Direction::Write => {
                self.socket
                    .rdma_write(&pieces, self.descriptor, 0, fence, completion)
            }
        };
        self.under_way.push_back(started?);
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let operation = self.under_way.pop_front().ok_or("nothing is under way")?;
        let result = self
            .socket
            .get_overlapped_result(operation, Some(WITHOUT_END))?;
        match result.outcome?.bytes {
            n if n == self.segment.length => Ok(()),
            n => Err(format!("{n} bytes were transferred").into()),
        }
    }
}

/// A server that opens memory to everybody, and tells where it is when asked.
pub(crate) fn raw_server(address: IpAddr) -> Result<()> {
    let channel = Fabric::rdma()?.event_channel()?;
    let (_listener, port) = raw::listen(&channel, address)?;
    say_ready(&port.to_string())?;
    let Event::ConnectRequest(request) = messages::event(&channel)? else {
        return Err("something else than a request".into());
    };
    let device = request.id.device().ok_or("a request without a device")?;
    let shared = Shared::new(&device, 64)?;
    let qp = shared.queue_pair(&request.id)?;
    let access = Access::REMOTE_WRITE | Access::REMOTE_READ;
    let region = shared.pd.region(MEMORY, access)?;
    request.id.accept(&ConnParams::default())?;
    let Event::Established { .. } = messages::event(&channel)? else {
        return Err("it was not established".into());
    };
    let _qp = qp.established();
    for _ in commands() {
        let RemoteMemory { addr, rkey } = region.remote(0);
        answer(&format!("{addr} {rkey}"))?;
    }
    Ok(())
}

/// A server that opens memory to its client, and gives the descriptor when asked.
pub(crate) fn provider_server(address: IpAddr) -> Result<()> {
    let provider = provider::started()?;
    let accepted = provider::accept_one(&provider, address)?;
    let memory = SharedMemory::new(MEMORY)?;
    for _ in commands() {
        let mut descriptor = [0; Descriptor::LENGTH];
        let access = MemoryAccess::ReadWrite;
        accepted.register_rdma_memory((&memory).into(), access, &mut descriptor)?;
        let text: Vec<String> = descriptor
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        answer(&text.concat())?;
    }
    Ok(())
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|two| Ok(u8::from_str_radix(std::str::from_utf8(two)?, 16)?))
        .collect()
}
