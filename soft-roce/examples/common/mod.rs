//! What the examples share: a device with an event channel, connections that
//! are made by waiting for one event after another.
#![allow(dead_code, reason = "each example uses a part of it")]

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use soft_roce::endpoint::{
    CmEvent, CmEventKind, CmId, CompletionChannel, CompletionQueue, Config, ConnParams, Endpoint,
    EventChannel, QpInit, QueuePair,
};
use soft_roce::memory::HeapMemory;
use soft_roce::rc::{
    Access, Completion, MemoryRegion, Notify, Payload, Pd, RecvRequest, SendOp, SendRequest, Sge,
    Status,
};

/// Nothing is waited for longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A device.
pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    events: EventChannel,
    /// Events that came before they were asked for.
    early: Mutex<Vec<CmEvent>>,
    pd: Pd,
}

/// One side of a connection, with memory that both sides may use.
pub(crate) struct Side {
    pub(crate) qp: QueuePair,
    pub(crate) cq: CompletionQueue,
    pub(crate) channel: CompletionChannel,
    pub(crate) memory: Arc<HeapMemory>,
    pub(crate) mr: Arc<MemoryRegion>,
    pub(crate) id: Option<CmId>,
}

/// Whether to spin for completions, to work the sockets asleep, or to leave that
/// to the endpoint's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Spin,
    Wait,
    Descriptor,
}

impl Node {
    pub(crate) fn new(config: Config) -> Result<Self> {
        let endpoint = Endpoint::new(config)?;
        let events = endpoint.event_channel()?;
        let pd = endpoint.alloc_pd();
        Ok(Self {
            endpoint,
            events,
            early: Mutex::default(),
            pd,
        })
    }

    /// The first event of a kind; others wait for their turn.
    pub(crate) fn expect(&self, name: &str) -> Result<CmEvent> {
        let is = |event: &CmEvent| name_of(&event.kind) == name;
        let early = self.early().iter().position(is);
        if let Some(at) = early {
            return Ok(self.early().remove(at));
        }
        let end = Instant::now() + PATIENCE;
        loop {
            while let Some(event) = self.events.next() {
                match event.kind {
                    _ if is(&event) => return Ok(event),
                    CmEventKind::Rejected { .. } | CmEventKind::Unreachable(_) => {
                        return Err(format!("{event:?} instead of {name}").into());
                    }
                    _ => self.early().push(event),
                }
            }
            if Instant::now() > end {
                return Err(format!("no {name} in time").into());
            }
            self.events.wait(None, Duration::from_secs(1))?;
        }
    }

    fn early(&self) -> MutexGuard<'_, Vec<CmEvent>> {
        self.early.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn listen(&self, addr: SocketAddr) -> Result<CmId> {
        let id = self.endpoint.create_id(&self.events);
        id.bind(addr)?;
        id.listen(64)?;
        Ok(id)
    }

    /// A side with `size` bytes of memory, not connected.
    pub(crate) fn side(&self, size: usize) -> Result<Side> {
        let channel = self.endpoint.completion_channel()?;
        let cq = self.endpoint.create_cq(8192, Some(&channel));
        let access = Access::LOCAL_WRITE | Access::REMOTE_READ | Access::REMOTE_WRITE;
        let qp = self.endpoint.create_qp(&QpInit {
            pd: self.pd,
            send_cq: &cq,
            recv_cq: &cq,
            srq: None,
            send_wr: 1024,
            recv_wr: 2048,
            send_sge: 1,
            recv_sge: 1,
            inline: 256,
            access,
        })?;
        let memory = Arc::new(HeapMemory::new(size));
        let mr = self
            .endpoint
            .register(self.pd, 0x10_0000, memory.clone(), access)?;
        Ok(Side {
            qp,
            cq,
            channel,
            memory,
            mr,
            id: None,
        })
    }

    /// Connects; `prepare` posts what must be there before the peer sends.
    pub(crate) fn connect(
        &self,
        dst: SocketAddr,
        size: usize,
        prepare: impl FnOnce(&Side) -> Result<()>,
    ) -> Result<Side> {
        let id = self.endpoint.create_id(&self.events);
        id.resolve_addr(None, dst, PATIENCE)?;
        self.expect("AddrResolved")?;
        id.resolve_route(PATIENCE)?;
        self.expect("RouteResolved")?;
        let mut side = self.side(size)?;
        prepare(&side)?;
        id.connect(&side.qp, &ConnParams::default())?;
        self.expect("Established")?;
        side.id = Some(id);
        Ok(side)
    }

    /// Takes the next request; `prepare` as above.
    pub(crate) fn accept(
        &self,
        size: usize,
        prepare: impl FnOnce(&Side) -> Result<()>,
    ) -> Result<Side> {
        let CmEventKind::ConnectRequest { id, .. } = self.expect("ConnectRequest")?.kind else {
            return Err("no request".into());
        };
        let mut side = self.side(size)?;
        prepare(&side)?;
        id.accept(&side.qp, &ConnParams::default())?;
        self.expect("Established")?;
        side.id = Some(id);
        Ok(side)
    }
}

impl Side {
    pub(crate) fn sge(&self, offset: usize, len: usize) -> [Sge; 1] {
        [Sge {
            addr: self.mr.va() + offset as u64,
            len: len as u32,
            lkey: self.mr.lkey(),
        }]
    }

    pub(crate) fn receive(&self, wr_id: u64, offset: usize, len: usize) -> Result<()> {
        let sges = self.sge(offset, len);
        Ok(self.qp.post_receive(&RecvRequest { wr_id, sges: &sges })?)
    }

    pub(crate) fn send(
        &self,
        wr_id: u64,
        op: SendOp,
        (offset, len): (usize, usize),
        signaled: bool,
    ) -> Result<()> {
        let sges = self.sge(offset, len);
        let payload = Payload::Sges(&sges);
        let request = SendRequest {
            wr_id,
            op,
            payload,
            signaled,
            fence: false,
            solicited: false,
        };
        Ok(self.qp.post_send(&request)?)
    }

    /// What is there, all of it successful.
    pub(crate) fn poll(&self, out: &mut [Completion]) -> Result<usize> {
        let count = self.cq.poll(out)?;
        for done in &out[..count] {
            if done.status != Status::Success {
                return Err(format!("{done:?}").into());
            }
        }
        Ok(count)
    }

    /// One completion.
    pub(crate) fn next(&self, how: How) -> Result<Completion> {
        let mut out = [Completion::default()];
        let (mut end, mut spins) = (None, 0u32);
        if how == How::Wait {
            // Who is about to sleep need not look at the sockets before: the sleep ends at once if something is there.
            self.cq.request_notify(Notify::Next);
        }
        loop {
            if self.poll(&mut out)? == 1 {
                return Ok(out[0]);
            }
            spins = spins.wrapping_add(1);
            // The clock is not read for a completion that comes at once.
            if (how != How::Spin || spins.is_multiple_of(1024))
                && Instant::now() > *end.get_or_insert_with(|| Instant::now() + PATIENCE)
            {
                return Err("no completion in time".into());
            }
            if how == How::Spin {
                std::hint::spin_loop();
                continue;
            }
            self.cq.request_notify(Notify::Next);
            if self.poll(&mut out)? == 1 {
                return Ok(out[0]);
            }
            if how == How::Wait {
                self.channel.wait(None, Duration::from_secs(1))?;
            } else {
                readable(&self.channel)?;
                let _ = self.channel.consume();
            }
        }
    }
}

fn name_of(kind: &CmEventKind) -> &'static str {
    match kind {
        CmEventKind::AddrResolved => "AddrResolved",
        CmEventKind::RouteResolved => "RouteResolved",
        CmEventKind::ConnectRequest { .. } => "ConnectRequest",
        CmEventKind::Established { .. } => "Established",
        CmEventKind::ConnectError(_) => "ConnectError",
        CmEventKind::Unreachable(_) => "Unreachable",
        CmEventKind::Rejected { .. } => "Rejected",
        CmEventKind::Disconnected => "Disconnected",
        CmEventKind::TimewaitExit => "TimewaitExit",
    }
}

/// Waits a second at most.
fn readable(fd: &impl AsFd) -> io::Result<()> {
    let second = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&second)) {
        Err(rustix::io::Errno::INTR) | Ok(_) => Ok(()),
        Err(why) => Err(why.into()),
    }
}
