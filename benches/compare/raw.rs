//! Raw RDMA CM and verbs: what `verbs-shim` gives, with nothing above it. Queue pairs are made as
//! the provider makes them: 15 sends, 64 bytes inline, receives from a shared queue.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use san_benches::Result;
use san_benches::server::{commands, say_ready};
use verbs_shim::{
    Access, BufferPool, CmId, CompletionChannel, CompletionQueue, ConnParams, Device, Event,
    EventChannel, Fabric, PreparedQp, ProtectionDomain, QpCaps, QueuePair, RejectReason,
    SharedReceiveQueue,
};

use crate::{FOR_EVER, PATIENCE, wait};

/// How long the kernel may take for an address or a route.
const RESOLVE: Duration = Duration::from_secs(5);

/// Requests that the kernel keeps for a listener.
const KERNEL_BACKLOG: u32 = 1024;

/// What the connections of one device share.
pub(crate) struct Shared {
    pub(crate) pd: ProtectionDomain,
    pub(crate) send_channel: CompletionChannel,
    pub(crate) recv_channel: CompletionChannel,
    pub(crate) send_cq: CompletionQueue,
    pub(crate) recv_cq: CompletionQueue,
    pub(crate) srq: SharedReceiveQueue,
    pub(crate) pool: BufferPool,
}

impl Shared {
    /// On `device`, with buffers of `size` bytes.
    pub(crate) fn new(device: &Device, size: usize) -> Result<Self> {
        let pd = device.alloc_pd()?;
        let send_channel = device.completion_channel()?;
        let recv_channel = device.completion_channel()?;
        Ok(Self {
            send_cq: device.create_cq(1024, Some(&send_channel))?,
            recv_cq: device.create_cq(1024, Some(&recv_channel))?,
            srq: SharedReceiveQueue::new(&pd, 512)?,
            pool: BufferPool::new(&pd, u32::try_from(size)?, 64, Access::LOCAL_WRITE)?,
            pd,
            send_channel,
            recv_channel,
        })
    }

    /// A queue pair on `id`, as the provider makes them.
    pub(crate) fn queue_pair(&self, id: &CmId) -> Result<PreparedQp> {
        let caps = QpCaps {
            send_wr: 15,
            recv_wr: 0,
            sge: 1,
            inline: 64,
        };
        Ok(id.create_qp(
            &self.pd,
            caps,
            &self.send_cq,
            &self.recv_cq,
            Some(&self.srq),
        )?)
    }
}

/// The connecting side.
pub(crate) struct Dialler {
    pub(crate) channel: EventChannel,
    shared: Option<Shared>,
    buffer_size: usize,
}

/// How a connect ended.
pub(crate) enum Dialled {
    Established(Box<Connection>),
    Rejected(RejectReason),
}

/// An established connection.
pub(crate) struct Connection {
    pub(crate) id: CmId,
    pub(crate) qp: QueuePair,
    /// From `rdma_connect` to ESTABLISHED.
    pub(crate) handshake: Duration,
}

impl Dialler {
    pub(crate) fn new(buffer_size: usize) -> Result<Self> {
        let channel = Fabric::rdma()?.event_channel()?;
        Ok(Self {
            channel,
            shared: None,
            buffer_size,
        })
    }

    /// What its connections share, once there was one.
    pub(crate) fn shared(&self) -> Result<&Shared> {
        Ok(self.shared.as_ref().ok_or("no connection was made yet")?)
    }

    /// Resolves, makes a queue pair, connects, and waits for the end.
    pub(crate) fn dial(&mut self, to: SocketAddr, private_data: &[u8]) -> Result<Dialled> {
        let id = CmId::new(&self.channel)?;
        id.resolve_addr(None, to, RESOLVE)?;
        match self.event_of(&id)? {
            Event::AddrResolved { .. } => {}
            other => return Err(unexpected(&other)),
        }
        id.resolve_route(RESOLVE)?;
        match self.event_of(&id)? {
            Event::RouteResolved { .. } => {}
            other => return Err(unexpected(&other)),
        }
        if self.shared.is_none() {
            let device = id.device().ok_or("an address without a device")?;
            self.shared = Some(Shared::new(&device, self.buffer_size)?);
        }
        let qp = self.shared()?.queue_pair(&id)?;
        let start = Instant::now();
        id.connect(&ConnParams {
            private_data,
            ..ConnParams::default()
        })?;
        match self.event_of(&id)? {
            Event::Established { .. } => Ok(Dialled::Established(Box::new(Connection {
                handshake: start.elapsed(),
                qp: qp.established(),
                id,
            }))),
            Event::Rejected { reason, .. } => Ok(Dialled::Rejected(reason)),
            other => Err(unexpected(&other)),
        }
    }

    /// As `dial`, where nothing but a connection will do.
    pub(crate) fn connect(&mut self, to: SocketAddr) -> Result<Connection> {
        match self.dial(to, &[])? {
            Dialled::Established(connection) => Ok(*connection),
            Dialled::Rejected(reason) => Err(format!("{to}: {reason}").into()),
        }
    }

    /// The next event of `id`; those of ids that are gone are passed over.
    fn event_of(&self, id: &CmId) -> Result<Event> {
        loop {
            wait::readable(&self.channel, PATIENCE)?;
            while let Some(event) = self.channel.next()? {
                if event.id() == id.token() {
                    return Ok(event);
                }
            }
        }
    }
}

impl Connection {
    /// Ends it, and lets everything go.
    pub(crate) fn close(self) -> Result<()> {
        self.id.disconnect()?;
        Ok(())
    }
}

/// A listening id on a free port of `address`, and the port.
pub(crate) fn listen(channel: &EventChannel, address: IpAddr) -> Result<(CmId, u16)> {
    let id = CmId::new(channel)?;
    id.bind(SocketAddr::new(address, 0))?;
    id.listen(KERNEL_BACKLOG)?;
    let port = id.local_addr().ok_or("no address after bind")?.port();
    Ok((id, port))
}

/// A server that accepts everything, and lets a connection go when its peer does.
pub(crate) fn server(address: IpAddr) -> Result<()> {
    let channel = Fabric::rdma()?.event_channel()?;
    let (listener, port) = listen(&channel, address)?;
    std::thread::spawn(move || {
        let _listener = listener;
        if let Err(error) = serve(&channel) {
            eprintln!("compare: raw server: {error}");
            std::process::exit(1);
        }
    });
    say_ready(&port.to_string())?;
    commands().for_each(drop);
    Ok(())
}

fn serve(channel: &EventChannel) -> Result<()> {
    let mut shared = None;
    let mut connections: HashMap<u64, (CmId, PreparedQp)> = HashMap::new();
    loop {
        wait::readable_within(channel, FOR_EVER)?;
        while let Some(event) = channel.next()? {
            match event {
                Event::ConnectRequest(request) => {
                    let shared = match &mut shared {
                        Some(shared) => shared,
                        none => {
                            let device = request.id.device().ok_or("a request without a device")?;
                            none.insert(Shared::new(&device, 64)?)
                        }
                    };
                    let qp = shared.queue_pair(&request.id)?;
                    request.id.accept(&ConnParams::default())?;
                    connections.insert(request.id.token(), (request.id, qp));
                }
                Event::Disconnected { id } => {
                    if let Some((id, _qp)) = connections.remove(&id) {
                        id.disconnect()?;
                    }
                }
                _ => {}
            }
        }
    }
}

pub(crate) fn unexpected(event: &Event) -> san_benches::Error {
    format!("unexpected: {event:?}").into()
}
