//! A server and a client that talk over the loopback.
//!
//! Every test has an address of its own, so that tests do not meet at port 4791.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use soft_roce::endpoint::{
    CmEvent, CmEventKind, CmId, CompletionChannel, CompletionQueue, Config, ConnParams, Endpoint,
    EventChannel, QpInit, QueuePair,
};
use soft_roce::memory::{HeapMemory, Memory};
use soft_roce::rc::{Access, Completion, MemoryRegion, Pd, Sge, Status};

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An address on the loopback that no other test, and no other run, uses.
pub(crate) fn address() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let [_, a, b, _] = std::process::id().to_be_bytes();
    let [_, _, _, c] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    // 127.0.0.1 is for others.
    let low = std::process::id().to_be_bytes()[3];
    Ipv4Addr::new(127, 16 + (a ^ b), low, 10 + c).into()
}

/// A directory that is gone afterwards.
pub(crate) struct TempDir(pub(crate) PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("soft-roce-endpoint-{}-{n}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            rendezvous: Some(self.0.clone()),
            ..Config::default()
        }
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A device with what one needs to make connections.
pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    pub(crate) events: EventChannel,
    pub(crate) pd: Pd,
    /// Events are waited for by [`EventChannel::wait`], not on the descriptor.
    pub(crate) waits: bool,
}

impl Node {
    pub(crate) fn new(config: Config) -> Self {
        let endpoint = Endpoint::new(config).unwrap();
        let events = endpoint.event_channel().unwrap();
        let pd = endpoint.alloc_pd();
        Self {
            endpoint,
            events,
            pd,
            waits: false,
        }
    }

    /// The next event, if one comes in time.
    pub(crate) fn event_within(&self, time: Duration) -> Option<CmEvent> {
        let end = Instant::now() + time;
        loop {
            if let Some(event) = self.events.next() {
                return Some(event);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            if self.waits {
                self.events.wait(None, left).unwrap();
                continue;
            }
            let fd = rustix::event::PollFd::new(&self.events, rustix::event::PollFlags::IN);
            let left = rustix::event::Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            rustix::event::poll(&mut [fd], Some(&left)).unwrap();
        }
    }

    pub(crate) fn event(&self) -> CmEvent {
        self.event_within(PATIENCE).expect("an event in time")
    }

    pub(crate) fn listen(&self, addr: SocketAddr, backlog: usize) -> CmId {
        let id = self.endpoint.create_id(&self.events);
        id.bind(addr).unwrap();
        id.listen(backlog).unwrap();
        id
    }

    /// An id with a route to `dst`.
    pub(crate) fn resolved(&self, dst: SocketAddr) -> CmId {
        let id = self.endpoint.create_id(&self.events);
        id.resolve_addr(None, dst, PATIENCE).unwrap();
        assert!(matches!(self.event().kind, CmEventKind::AddrResolved));
        id.resolve_route(PATIENCE).unwrap();
        assert!(matches!(self.event().kind, CmEventKind::RouteResolved));
        id
    }

    /// The next event, which is a request.
    pub(crate) fn request(&self) -> (CmId, Vec<u8>) {
        match self.event().kind {
            CmEventKind::ConnectRequest {
                id, private_data, ..
            } => (id, private_data.to_vec()),
            other => panic!("{other:?}"),
        }
    }

    /// A queue pair with queues of its own.
    pub(crate) fn queue_pair(&self) -> Side {
        let channel = self.endpoint.completion_channel().unwrap();
        let cq = self.endpoint.create_cq(1024, Some(&channel));
        let qp = self
            .endpoint
            .create_qp(&QpInit {
                pd: self.pd,
                send_cq: &cq,
                recv_cq: &cq,
                srq: None,
                send_wr: 512,
                recv_wr: 512,
                send_sge: 2,
                recv_sge: 2,
                inline: 256,
                access: Access::LOCAL_WRITE | Access::REMOTE_READ | Access::REMOTE_WRITE,
            })
            .unwrap();
        Side { qp, cq, channel }
    }

    pub(crate) fn memory(&self, memory: HeapMemory) -> Region {
        let memory = Arc::new(memory);
        let access = Access::LOCAL_WRITE | Access::REMOTE_READ | Access::REMOTE_WRITE;
        let dynamic: Arc<dyn Memory> = memory.clone();
        let mr = self
            .endpoint
            .register(self.pd, 0x1000, dynamic, access)
            .unwrap();
        Region { memory, mr }
    }
}

/// One side of a connection.
pub(crate) struct Side {
    pub(crate) qp: QueuePair,
    pub(crate) cq: CompletionQueue,
    pub(crate) channel: CompletionChannel,
}

impl Side {
    /// The next completion, by polling.
    pub(crate) fn poll(&self) -> Completion {
        let end = Instant::now() + PATIENCE;
        let mut out = [Completion::default()];
        while self.cq.poll(&mut out).unwrap() == 0 {
            assert!(
                Instant::now() < end,
                "a completion in time; {:?}",
                self.qp.counters()
            );
        }
        out[0]
    }

    pub(crate) fn success(&self) -> Completion {
        let completion = self.poll();
        assert_eq!(completion.status, Status::Success, "{completion:?}");
        completion
    }
}

/// Memory and its key.
pub(crate) struct Region {
    pub(crate) memory: Arc<HeapMemory>,
    pub(crate) mr: Arc<MemoryRegion>,
}

impl Region {
    pub(crate) fn sge(&self, offset: u64, len: usize) -> [Sge; 1] {
        [Sge {
            addr: 0x1000 + offset,
            len: len as u32,
            lkey: self.mr.lkey(),
        }]
    }
}

/// A connection between two nodes.
pub(crate) struct Connection {
    pub(crate) client: Side,
    pub(crate) server: Side,
    pub(crate) client_id: CmId,
    pub(crate) server_id: CmId,
}

/// Connects `client` to a listener of `server`.
pub(crate) fn connect(client: &Node, server: &Node, dst: SocketAddr) -> Connection {
    let a = client.queue_pair();
    let client_id = client.resolved(dst);
    client_id
        .connect(
            &a.qp,
            &ConnParams {
                private_data: b"hello",
                ..ConnParams::default()
            },
        )
        .unwrap();
    let (server_id, data) = server.request();
    assert_eq!((data.len(), &data[..6]), (56, &b"hello\0"[..]));
    let b = server.queue_pair();
    server_id
        .accept(
            &b.qp,
            &ConnParams {
                private_data: b"welcome",
                ..ConnParams::default()
            },
        )
        .unwrap();
    match client.event().kind {
        CmEventKind::Established { private_data } => assert_eq!(&private_data[..8], b"welcome\0"),
        other => panic!("{other:?}"),
    }
    let event = server.event();
    assert_eq!(event.id, server_id.token());
    assert!(
        matches!(event.kind, CmEventKind::Established { .. }),
        "{event:?}"
    );
    Connection {
        client: a,
        server: b,
        client_id,
        server_id,
    }
}

/// Two nodes that meet in a directory of their own, and a connection.
pub(crate) struct Pair {
    pub(crate) connection: Connection,
    pub(crate) client: Node,
    pub(crate) server: Node,
    pub(crate) listener: CmId,
    pub(crate) dir: TempDir,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new();
        let (client, server) = (Node::new(dir.config()), Node::new(dir.config()));
        let dst = SocketAddr::new(address(), 7471);
        let listener = server.listen(dst, 16);
        let connection = connect(&client, &server, dst);
        Self {
            connection,
            client,
            server,
            listener,
            dir,
        }
    }
}
