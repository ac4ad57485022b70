//! RDMA CM without a provider: programs of other makes, and peers that break the rules.
//!
//! Their queue pairs are the smallest there are, and no message goes over them.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use verbs_shim::{
    CmId, CompletionQueue, ConnParams, Event, EventChannel, PreparedQp, PrivateData,
    ProtectionDomain, QpCaps, RejectReason, Request,
};

use crate::net;
use crate::time::STEP;

/// The next event of a channel.
///
/// # Panics
/// When none comes in time.
#[must_use]
pub fn next_event(channel: &EventChannel, limit: Duration) -> Event {
    let deadline = Instant::now() + limit;
    loop {
        match channel.next().expect("the channel") {
            Some(event) => return event,
            None => assert!(Instant::now() < deadline, "no CM event in {limit:?}"),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// How a request of a stranger was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Accepted, with this private data.
    Accepted(PrivateData),
    /// Rejected by the listener or its kernel.
    Rejected(RejectReason, PrivateData),
    /// Not answered, or not with sense.
    Failed(i32),
}

/// A connect request with any private data.
#[derive(Debug)]
pub struct Stranger {
    channel: EventChannel,
    // Held until the end.
    _qp: PreparedQp,
    /// Its id.
    pub id: CmId,
}

impl Stranger {
    /// Sends it.
    ///
    /// # Panics
    /// When it cannot be sent.
    #[must_use]
    pub fn request(to: SocketAddr, private_data: &[u8]) -> Self {
        let stranger = Self::resolved(to);
        let params = ConnParams {
            private_data,
            ..ConnParams::default()
        };
        stranger.id.connect(&params).expect("the connect request");
        stranger
    }

    /// Finds the way to `to`, and sends nothing yet.
    ///
    /// # Panics
    /// When there is no way.
    #[must_use]
    pub fn resolved(to: SocketAddr) -> Self {
        let channel = net::fabric().event_channel().expect("an event channel");
        let id = CmId::new(&channel).expect("a CM id");
        id.resolve_addr(None, to, STEP).expect("address resolution");
        let event = next_event(&channel, STEP);
        assert!(matches!(event, Event::AddrResolved { .. }), "{event:?}");
        id.resolve_route(STEP).expect("route resolution");
        let event = next_event(&channel, STEP);
        assert!(matches!(event, Event::RouteResolved { .. }), "{event:?}");
        let qp = Ground::of(&id).queue_pair(&id);
        Self {
            channel,
            _qp: qp,
            id,
        }
    }

    /// Waits for the answer.
    ///
    /// # Panics
    /// When none comes, or an event that is no answer.
    #[must_use]
    pub fn answer(&self) -> Answer {
        answer_of(&next_event(&self.channel, STEP)).expect("an answer")
    }
}

/// Many requests at once, over one channel.
#[derive(Debug)]
pub struct Flood {
    /// How each request ended that did.
    pub answers: Vec<Answer>,
    // They end when this is dropped.
    ids: Vec<CmId>,
    _qps: Vec<PreparedQp>,
}

impl Flood {
    /// Sends `count` requests and gathers answers until `enough` are there.
    ///
    /// # Panics
    /// When they do not come in time.
    #[must_use]
    pub fn send(
        to: SocketAddr,
        count: usize,
        private_data: &[u8],
        enough: usize,
        limit: Duration,
    ) -> Self {
        let channel = net::fabric().event_channel().expect("an event channel");
        let ids: Vec<CmId> = (0..count)
            .map(|_| CmId::new(&channel).expect("a CM id"))
            .collect();
        let by_token: std::collections::HashMap<u64, &CmId> =
            ids.iter().map(|id| (id.token(), id)).collect();
        for id in &ids {
            id.resolve_addr(None, to, limit)
                .expect("address resolution");
        }
        let deadline = Instant::now() + limit;
        let mut answers = Vec::with_capacity(count);
        let mut ground = None;
        let mut qps = Vec::with_capacity(count);
        while answers.len() < enough {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = match channel.next().expect("the channel") {
                Some(event) => event,
                None if left.is_zero() => {
                    panic!("{} answers of {enough} in {limit:?}", answers.len())
                }
                None => {
                    thread::sleep(Duration::from_millis(1));
                    continue;
                }
            };
            let id = by_token[&event.id()];
            match event {
                Event::AddrResolved { .. } => id.resolve_route(limit).expect("route resolution"),
                Event::RouteResolved { .. } => {
                    qps.push(ground.get_or_insert_with(|| Ground::of(id)).queue_pair(id));
                    let params = ConnParams {
                        private_data,
                        ..ConnParams::default()
                    };
                    id.connect(&params).expect("the connect request");
                }
                event => answers.push(answer_of(&event).unwrap_or_else(|| panic!("{event:?}"))),
            }
        }
        Self {
            answers,
            ids,
            _qps: qps,
        }
    }

    /// How many requests were sent.
    #[must_use]
    pub fn sent(&self) -> usize {
        self.ids.len()
    }
}

/// A listener that is no provider.
#[derive(Debug)]
pub struct StrangeListener {
    channel: EventChannel,
    // Listens until it is dropped.
    _id: CmId,
    addr: SocketAddr,
}

impl StrangeListener {
    /// Listens.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn listen(addr: SocketAddr) -> Self {
        let channel = net::fabric().event_channel().expect("an event channel");
        let id = CmId::new(&channel).expect("a CM id");
        id.bind(addr).expect("bind");
        id.listen(16).expect("listen");
        Self {
            channel,
            _id: id,
            addr,
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Waits for a request; its answer is the caller's.
    ///
    /// # Panics
    /// When none comes.
    #[must_use]
    pub fn request(&self) -> Request {
        match next_event(&self.channel, STEP) {
            Event::ConnectRequest(request) => request,
            event => panic!("{event:?} instead of a request"),
        }
    }
}

/// What queue pairs of one device stand on.
struct Ground {
    pd: ProtectionDomain,
    cq: CompletionQueue,
}

impl Ground {
    fn of(id: &CmId) -> Self {
        let device = id.device().expect("a resolved id has a device");
        let pd = device.alloc_pd().expect("a protection domain");
        Self {
            pd,
            cq: device.create_cq(16, None).expect("a completion queue"),
        }
    }

    fn queue_pair(&self, id: &CmId) -> PreparedQp {
        let caps = QpCaps {
            send_wr: 1,
            recv_wr: 1,
            sge: 1,
            inline: 0,
        };
        id.create_qp(&self.pd, caps, &self.cq, &self.cq, None)
            .expect("a queue pair")
    }
}

fn answer_of(event: &Event) -> Option<Answer> {
    match event {
        Event::Established { private_data, .. } => Some(Answer::Accepted(*private_data)),
        Event::Rejected {
            reason,
            private_data,
            ..
        } => Some(Answer::Rejected(*reason, *private_data)),
        Event::Unreachable { errno, .. } | Event::ConnectError { errno, .. } => {
            Some(Answer::Failed(*errno))
        }
        _ => None,
    }
}
