//! Helpers of the tests that need an RDMA fabric: two devices, whose addresses are in
//! `SAN_TEST_ADDR_A` and `SAN_TEST_ADDR_B`. Every wait has a deadline and panics past it.

#![allow(dead_code, unreachable_pub)] // each test program uses a part

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use verbs_shim::{
    Access, BufferPool, CmId, Completion, CompletionBatch, CompletionChannel, CompletionQueue,
    ConnParams, Event, EventChannel, Fabric, LiveObjects, PreparedQp, ProtectionDomain, QpCaps,
    QueuePair, RegisteredBuffer, Request, SharedReceiveQueue, SoftConfig, live_objects,
};

/// For what should take milliseconds, on a guest that may be slow.
pub const SOON: Duration = Duration::from_secs(20);

pub fn addr_a() -> IpAddr {
    env_addr("SAN_TEST_ADDR_A")
}

pub fn addr_b() -> IpAddr {
    env_addr("SAN_TEST_ADDR_B")
}

pub fn env_addr(name: &str) -> IpAddr {
    let text = std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    text.parse()
        .unwrap_or_else(|e| panic!("{name}={text}: {e}"))
}

pub fn any_port(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, 0)
}

/// The fabric that `SAN_FABRIC` names: `soft`, on the addresses of the tests, or else rdma. One for
/// the whole program, since devices of two soft fabrics are two devices.
pub fn fabric() -> Fabric {
    static FABRIC: OnceLock<Fabric> = OnceLock::new();
    let open = || match is_soft() {
        true => soft_fabric(),
        false => Fabric::rdma().unwrap_or_else(|e| panic!("{e}")),
    };
    FABRIC.get_or_init(open).clone()
}

/// A soft fabric of its own: its device is another one than that of [`fabric`].
pub fn soft_fabric() -> Fabric {
    let v6 = ["SAN_TEST_ADDR6_A", "SAN_TEST_ADDR6_B"];
    let v6 = v6.into_iter().filter(|name| std::env::var(name).is_ok());
    let config = SoftConfig {
        addresses: [addr_a(), addr_b()]
            .into_iter()
            .chain(v6.map(env_addr))
            .collect(),
        ..SoftConfig::default()
    };
    Fabric::soft(&config).unwrap_or_else(|e| panic!("{e}"))
}

/// Whether the fabric is the one in user space: one device, which has both addresses.
pub fn is_soft() -> bool {
    std::env::var("SAN_FABRIC").is_ok_and(|fabric| fabric == "soft")
}

/// Waits until the descriptor is readable.
pub fn readable(fd: &impl AsFd, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = rustix::time::Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(n) => return n > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("poll: {e}"),
        }
    }
}

/// The next event within `limit`.
pub fn event_within(channel: &EventChannel, limit: Duration) -> Option<Event> {
    let until = Instant::now() + limit;
    loop {
        if let Some(event) = channel.next().expect("rdma_get_cm_event") {
            return Some(event);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || !readable(channel, left) {
            return channel.next().expect("rdma_get_cm_event");
        }
    }
}

pub fn next_event(channel: &EventChannel) -> Event {
    event_within(channel, SOON).expect("an event in time")
}

/// The next event, which has to be `$pattern`.
#[macro_export]
macro_rules! expect {
    ($channel:expr, $pattern:pat => $value:expr) => {
        match $crate::support::next_event($channel) {
            $pattern => $value,
            other => panic!("{} instead of {}", format!("{other:?}"), stringify!($pattern)),
        }
    };
    ($channel:expr, $pattern:pat) => {
        $crate::expect!($channel, $pattern => ())
    };
}

/// A listener on its own channel.
pub struct Listener {
    pub channel: EventChannel,
    pub id: CmId,
    pub addr: SocketAddr,
}

pub fn listen(addr: SocketAddr, backlog: u32) -> Listener {
    let channel = fabric().event_channel().unwrap();
    let id = CmId::new(&channel).unwrap();
    id.bind(addr).unwrap();
    id.listen(backlog).unwrap();
    let addr = id.local_addr().expect("a bound id has an address");
    assert_ne!(addr.port(), 0);
    Listener { channel, id, addr }
}

impl Listener {
    pub fn request(&self) -> Request {
        expect!(&self.channel, Event::ConnectRequest(request) => request)
    }
}

/// An id with a route to `to`.
pub fn resolved(channel: &EventChannel, from: IpAddr, to: SocketAddr) -> CmId {
    let id = CmId::new(channel).unwrap();
    id.resolve_addr(Some(any_port(from)), to, SOON).unwrap();
    expect!(channel, Event::AddrResolved { .. });
    id.resolve_route(SOON).unwrap();
    expect!(channel, Event::RouteResolved { .. });
    id
}

/// What a queue pair needs.
pub struct Parts {
    pub pd: ProtectionDomain,
    pub cq_channel: CompletionChannel,
    pub cq: CompletionQueue,
    pub pool: BufferPool,
    /// Polled and not asked for yet.
    early: Mutex<VecDeque<Completion>>,
}

pub const SLOT: usize = 8192;

impl Parts {
    pub fn of(id: &CmId) -> Self {
        let device = id.device().expect("a device");
        let pd = device.alloc_pd().unwrap();
        let cq_channel = device.completion_channel().unwrap();
        let cq = device.create_cq(256, Some(&cq_channel)).unwrap();
        let pool = BufferPool::new(&pd, SLOT as u32, 64, Access::LOCAL_WRITE).unwrap();
        Self {
            pd,
            cq_channel,
            cq,
            pool,
            early: Mutex::default(),
        }
    }

    pub fn buffer(&self) -> RegisteredBuffer {
        self.pool.take().expect("a free buffer")
    }

    pub fn filled(&self, bytes: &[u8]) -> RegisteredBuffer {
        let mut buffer = self.buffer();
        buffer.fill(bytes);
        buffer
    }

    pub fn prepared(
        &self,
        id: &CmId,
        caps: QpCaps,
        srq: Option<&SharedReceiveQueue>,
    ) -> PreparedQp {
        id.create_qp(&self.pd, caps, &self.cq, &self.cq, srq)
            .unwrap()
    }

    /// The next completion.
    pub fn completion(&self) -> Completion {
        self.completions(1).pop().unwrap()
    }

    /// The next `count` completions.
    pub fn completions(&self, count: usize) -> Vec<Completion> {
        let until = Instant::now() + SOON;
        let mut batch = CompletionBatch::new();
        let mut early = self.early.lock().unwrap();
        while early.len() < count {
            if self.cq.poll(&mut batch).unwrap() == 0 {
                std::thread::yield_now();
            }
            early.extend(batch.drain());
            assert!(
                Instant::now() < until,
                "{} of {count} completions",
                early.len()
            );
        }
        early.drain(..count).collect()
    }

    /// Nothing completes for a while.
    pub fn quiet(&self) {
        std::thread::sleep(Duration::from_millis(200));
        let mut batch = CompletionBatch::new();
        assert_eq!(self.cq.poll(&mut batch).unwrap(), 0, "{batch:?}");
        assert!(self.early.lock().unwrap().is_empty());
    }
}

/// One end of a connection.
pub struct End {
    pub qp: QueuePair,
    pub id: CmId,
    pub channel: EventChannel,
    pub parts: Parts,
}

#[derive(Clone, Copy)]
pub struct Shape {
    pub caps: QpCaps,
    /// Receives posted on each end before connecting, or on the accepting end's shared queue.
    pub receives: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            caps: QpCaps {
                send_wr: 16,
                recv_wr: 16,
                sge: 4,
                inline: 128,
            },
            receives: 8,
        }
    }
}

/// A connection from A to B: (the connecting end on A, the accepting end on B).
pub fn pair(shape: Shape) -> (End, End) {
    let (client, server, _) = pair_with(shape, false, addr_a(), addr_b());
    (client, server)
}

/// The same; with `srq` the accepting end receives from a shared queue.
pub fn pair_with(
    shape: Shape,
    srq: bool,
    from: IpAddr,
    to: IpAddr,
) -> (End, End, Option<SharedReceiveQueue>) {
    let listener = listen(any_port(to), 8);
    let channel = fabric().event_channel().unwrap();
    let id = resolved(&channel, from, listener.addr);
    let parts = Parts::of(&id);
    let client_qp = parts.prepared(&id, shape.caps, None);
    for n in 0..shape.receives {
        client_qp.post_recv(1000 + n, parts.buffer()).unwrap();
    }
    let params = ConnParams {
        private_data: b"from the client",
        ..ConnParams::default()
    };
    id.connect(&params).unwrap();

    let request = listener.request();
    assert_eq!(request.listener, listener.id.token());
    assert!(request.private_data.starts_with(b"from the client"));
    let server_parts = Parts::of(&request.id);
    let shared = srq.then(|| server_parts.pd.create_srq(16).unwrap());
    let caps = QpCaps {
        recv_wr: if srq { 0 } else { shape.caps.recv_wr },
        ..shape.caps
    };
    let server_qp = server_parts.prepared(&request.id, caps, shared.as_ref());
    for n in 0..shape.receives {
        match &shared {
            Some(srq) => srq.post(2000 + n, server_parts.buffer()).unwrap(),
            None => server_qp
                .post_recv(2000 + n, server_parts.buffer())
                .unwrap(),
        }
    }
    let params = ConnParams {
        private_data: b"from the server",
        ..ConnParams::default()
    };
    request.id.accept(&params).unwrap();
    expect!(&channel, Event::Established { id: token, private_data, .. } => {
        assert_eq!(token, id.token());
        assert!(private_data.starts_with(b"from the server"));
    });
    expect!(&listener.channel, Event::Established { id, .. } => assert_eq!(id, request.id.token()));
    let client = End {
        qp: client_qp.established(),
        id,
        channel,
        parts,
    };
    let server = End {
        qp: server_qp.established(),
        id: request.id,
        channel: listener.channel,
        parts: server_parts,
    };
    (client, server, shared)
}

/// What is open now. Held by tests that count, since all tests of a program share the counts.
pub struct Census {
    before: LiveObjects,
    fds: Vec<String>,
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

pub fn census() -> Census {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // The libraries keep descriptors of their own from the first use on.
    for device in fabric().devices().unwrap() {
        device.limits().unwrap();
    }
    if is_soft() {
        // And the soft fabric its sockets, one or two an address.
        let _listeners = [addr_a(), addr_b()].map(|ip| listen(any_port(ip), 1));
        drop(pair(Shape::default()));
    }
    Census {
        before: live_objects(),
        fds: descriptors(),
        _alone: alone,
    }
}

impl Census {
    /// Everything is as it was.
    pub fn check(&self, what: &str) {
        assert_eq!(live_objects(), self.before, "{what}");
        // A thread of the fabric may be about to close one.
        let until = Instant::now() + Duration::from_secs(2);
        while descriptors() != self.fds && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(descriptors(), self.fds, "descriptors: {what}");
    }
}

/// What the open descriptors are, sockets and the like without their numbers.
fn descriptors() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let kind = |link: std::path::PathBuf| {
        let link = link.to_string_lossy().into_owned();
        link.split(":[").next().unwrap_or_default().to_owned()
    };
    let mut found: Vec<String> = links.map(kind).collect();
    found.sort_unstable();
    found
}
