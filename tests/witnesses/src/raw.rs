//! RDMA CM and verbs through `rdma-sys`, as much as a client needs.
//!
//! What it does: event channels, ids, one queue pair per id with posted receives, sends that are waited
//! for. What it does not do: flow control, listening, anything clever. All waits end at a deadline that
//! the caller gives.

use std::io;
use std::net::SocketAddr;
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rdma_sys::{
    ibv_access_flags, ibv_alloc_pd, ibv_cq, ibv_create_cq, ibv_dealloc_pd, ibv_dereg_mr,
    ibv_destroy_cq, ibv_mr, ibv_pd, ibv_poll_cq, ibv_post_recv, ibv_post_send, ibv_qp_init_attr,
    ibv_qp_type, ibv_recv_wr, ibv_reg_mr, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wc,
    ibv_wc_opcode, ibv_wc_status, ibv_wr_opcode, rdma_ack_cm_event, rdma_cm_event,
    rdma_cm_event_type, rdma_cm_id, rdma_conn_param, rdma_connect, rdma_create_event_channel,
    rdma_create_id, rdma_create_qp, rdma_destroy_event_channel, rdma_destroy_id, rdma_destroy_qp,
    rdma_disconnect, rdma_event_channel, rdma_get_cm_event, rdma_port_space, rdma_resolve_addr,
    rdma_resolve_route,
};
use socket2::SockAddr;

/// Bytes of one receive, and of the one send buffer.
pub const SLOT: usize = 4096;
/// Receives posted before the request goes out.
pub const RECEIVES: usize = 32;

/// A CM event, copied out and acknowledged.
#[derive(Debug, Clone)]
pub struct Event {
    /// The id it is for, as `Id::key` gives it.
    pub key: usize,
    /// `rdma_cm_event_type`.
    pub kind: u32,
    /// A negative errno, or a reason for a rejection.
    pub status: i32,
    /// What came with it.
    pub private_data: Vec<u8>,
}

/// An event channel of librdmacm.
#[derive(Debug)]
pub struct Channel(*mut rdma_event_channel);

impl Channel {
    /// Opens one; its descriptor does not block.
    ///
    /// # Errors
    /// What librdmacm says: ENODEV without kernel support.
    pub fn open() -> io::Result<Rc<Self>> {
        // SAFETY: takes nothing; NULL is checked below.
        let raw = unsafe { rdma_create_event_channel() };
        if raw.is_null() {
            return Err(io::Error::last_os_error());
        }
        let channel = Self(raw);
        let fd = channel.fd();
        // SAFETY: fd is the open descriptor of the channel made above.
        let done = unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
        if done == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(Rc::new(channel))
        }
    }

    /// The next event, or None when the deadline passes first.
    ///
    /// # Errors
    /// What poll or librdmacm says.
    pub fn next(&self, deadline: Instant) -> io::Result<Option<Event>> {
        loop {
            let mut raw: *mut rdma_cm_event = ptr::null_mut();
            // SAFETY: the channel is open; `raw` receives an event that is acknowledged below.
            if unsafe { rdma_get_cm_event(self.0, &raw mut raw) } == 0 {
                let event = copy_out(raw);
                // SAFETY: `raw` is the event just got and nothing points into it any more.
                unsafe { rdma_ack_cm_event(raw) };
                return Ok(Some(event));
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(error);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.wait_readable(left)?;
        }
    }

    fn fd(&self) -> i32 {
        // SAFETY: the channel is open until drop.
        unsafe { (*self.0).fd }
    }

    fn wait_readable(&self, left: Duration) -> io::Result<()> {
        let mut entry = libc::pollfd {
            fd: self.fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1);
        // SAFETY: one entry, which outlives the call.
        let done = unsafe { libc::poll(&raw mut entry, 1, millis) };
        if done == -1 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: ids hold the channel by Rc, so none is left.
        unsafe { rdma_destroy_event_channel(self.0) };
    }
}

/// A CM id of the connecting side.
#[derive(Debug)]
pub struct Id {
    raw: *mut rdma_cm_id,
    // Declared after `raw`: it is destroyed after the id.
    channel: Rc<Channel>,
}

impl Id {
    /// A new one on `channel`.
    ///
    /// # Errors
    /// What librdmacm says.
    pub fn new(channel: &Rc<Channel>) -> io::Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: the channel is open, `raw` receives the id.
        check(unsafe {
            rdma_create_id(
                channel.0,
                &raw mut raw,
                ptr::null_mut(),
                rdma_port_space::RDMA_PS_TCP,
            )
        })?;
        Ok(Self {
            raw,
            channel: Rc::clone(channel),
        })
    }

    /// What `Event::key` is for this id's events.
    #[must_use]
    pub fn key(&self) -> usize {
        self.raw as usize
    }

    /// Starts address resolution: `AddrResolved` follows.
    ///
    /// # Errors
    /// What librdmacm says.
    pub fn resolve_addr(&self, target: SocketAddr) -> io::Result<()> {
        let target = SockAddr::from(target);
        // SAFETY: the id lives; the address is only read during the call.
        check(unsafe {
            rdma_resolve_addr(
                self.raw,
                ptr::null_mut(),
                target.as_ptr().cast_mut().cast(),
                2000,
            )
        })
    }

    /// Starts route resolution: `RouteResolved` follows.
    ///
    /// # Errors
    /// What librdmacm says.
    pub fn resolve_route(&self) -> io::Result<()> {
        // SAFETY: the id lives.
        check(unsafe { rdma_resolve_route(self.raw, 2000) })
    }

    /// Sends the connect request. Without a queue pair the number of one that is not there is sent.
    ///
    /// # Errors
    /// What librdmacm says: EINVAL for private data past 56 bytes.
    pub fn connect(&self, private_data: &[u8]) -> io::Result<()> {
        let mut param = rdma_conn_param {
            private_data: private_data.as_ptr().cast(),
            private_data_len: u8::try_from(private_data.len())
                .map_err(|_| io::ErrorKind::InvalidInput)?,
            responder_resources: 1,
            initiator_depth: 1,
            flow_control: 0,
            retry_count: 6,
            rnr_retry_count: 6,
            srq: 0,
            qp_num: strange_queue_pair(),
        };
        // SAFETY: the id lives; the parameters are only read during the call.
        check(unsafe { rdma_connect(self.raw, &raw mut param) })
    }

    /// Takes the id as far as a resolved route.
    ///
    /// # Errors
    /// The status of the event that says no, or TimedOut.
    pub fn resolve(&self, target: SocketAddr, deadline: Instant) -> io::Result<()> {
        self.resolve_addr(target)?;
        self.expect(rdma_cm_event_type::RDMA_CM_EVENT_ADDR_RESOLVED, deadline)?;
        self.resolve_route()?;
        self.expect(rdma_cm_event_type::RDMA_CM_EVENT_ROUTE_RESOLVED, deadline)?;
        Ok(())
    }

    /// The next event of this id, which must be alone on its channel.
    ///
    /// # Errors
    /// TimedOut, or what the channel says.
    pub fn next(&self, deadline: Instant) -> io::Result<Event> {
        let event = self
            .channel
            .next(deadline)?
            .ok_or(io::ErrorKind::TimedOut)?;
        assert_eq!(event.key, self.key(), "an event of another id: {event:?}");
        Ok(event)
    }

    fn expect(&self, kind: u32, deadline: Instant) -> io::Result<Event> {
        let event = self.next(deadline)?;
        if event.kind == kind {
            Ok(event)
        } else {
            Err(io::Error::other(format!(
                "event {kind} expected, got {event:?}"
            )))
        }
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: the id lives; every event got was acknowledged; a client destroys its queue pair first.
        unsafe { rdma_destroy_id(self.raw) };
    }
}

/// How a connect ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectEnd {
    /// The acceptor's private data.
    Established(Vec<u8>),
    /// The CM's reason and the refusing side's private data.
    Rejected(i32, Vec<u8>),
    /// Nobody answered: a negative errno.
    Unreachable(i32),
}

impl ConnectEnd {
    /// Of an event that ends a connect; None for any other.
    #[must_use]
    pub fn of(event: &Event) -> Option<Self> {
        match event.kind {
            // Without a queue pair librdmacm leaves the last step to its user.
            rdma_cm_event_type::RDMA_CM_EVENT_ESTABLISHED
            | rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_RESPONSE => {
                Some(Self::Established(event.private_data.clone()))
            }
            rdma_cm_event_type::RDMA_CM_EVENT_REJECTED => {
                Some(Self::Rejected(event.status, event.private_data.clone()))
            }
            rdma_cm_event_type::RDMA_CM_EVENT_UNREACHABLE => Some(Self::Unreachable(event.status)),
            _ => None,
        }
    }
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its bytes.
    pub data: Vec<u8>,
    /// Immediate data in host order, if it had any.
    pub immediate: Option<u32>,
}

/// An id with a queue pair, [`RECEIVES`] posted receives of [`SLOT`] bytes and one send buffer.
#[derive(Debug)]
pub struct Client {
    id: Id,
    pd: *mut ibv_pd,
    cq: *mut ibv_cq,
    mr: *mut ibv_mr,
    // Registered with `mr`: RECEIVES receive slots, then one for sending. Freed after `mr`.
    memory: Box<[u8]>,
    // Receives that were polled while a send was waited for.
    early: std::collections::VecDeque<Message>,
}

impl Client {
    /// Resolves the way to `target` and makes a queue pair with posted receives.
    ///
    /// # Errors
    /// What the libraries say.
    pub fn prepare(target: SocketAddr, deadline: Instant) -> io::Result<Self> {
        let id = Id::new(&Channel::open()?)?;
        id.resolve(target, deadline)?;
        // SAFETY: address resolution bound the id to a device, so `verbs` is set.
        let verbs = unsafe { (*id.raw).verbs };
        // SAFETY: `verbs` is the open context of the id.
        let pd = not_null(unsafe { ibv_alloc_pd(verbs) })?;
        let mut client = Self {
            id,
            pd,
            cq: ptr::null_mut(),
            mr: ptr::null_mut(),
            memory: Box::default(),
            early: Default::default(),
        };
        // SAFETY: the context is open; no completion channel.
        client.cq =
            not_null(unsafe { ibv_create_cq(verbs, 128, ptr::null_mut(), ptr::null_mut(), 0) })?;
        client.memory = vec![0; SLOT * (RECEIVES + 1)].into_boxed_slice();
        let access = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0;
        let (start, len) = (client.memory.as_mut_ptr(), client.memory.len());
        // SAFETY: `memory` is never moved or freed before `mr` is deregistered in drop.
        client.mr = not_null(unsafe { ibv_reg_mr(pd, start.cast(), len, access as i32) })?;
        client.create_qp()?;
        for slot in 0..RECEIVES {
            client.post_receive(slot)?;
        }
        Ok(client)
    }

    /// Sends the connect request.
    ///
    /// # Errors
    /// What librdmacm says.
    pub fn request(&self, private_data: &[u8]) -> io::Result<()> {
        self.id.connect(private_data)
    }

    /// Waits for the end of the connect.
    ///
    /// # Errors
    /// TimedOut, or what librdmacm says.
    pub fn outcome(&self, deadline: Instant) -> io::Result<ConnectEnd> {
        let event = self.id.next(deadline)?;
        ConnectEnd::of(&event).ok_or_else(|| io::Error::other(format!("{event:?}")))
    }

    /// Sends a message with immediate data and waits until the peer's queue pair has it.
    ///
    /// # Errors
    /// TimedOut, or the status of the failed completion.
    pub fn send(&mut self, data: &[u8], immediate: u32, deadline: Instant) -> io::Result<()> {
        let start = SLOT * RECEIVES;
        self.memory[start..start + data.len()].copy_from_slice(data);
        let mut entry = self.sge(start, data.len());
        // SAFETY: all-zero bytes are a valid ibv_send_wr: null pointers, zero numbers.
        let mut wr: ibv_send_wr = unsafe { std::mem::zeroed() };
        wr.wr_id = u64::MAX;
        wr.sg_list = &raw mut entry;
        wr.num_sge = 1;
        wr.opcode = ibv_wr_opcode::IBV_WR_SEND_WITH_IMM;
        wr.send_flags = ibv_send_flags::IBV_SEND_SIGNALED.0;
        wr.imm_data_invalidated_rkey_union.imm_data = immediate.to_be();
        let mut bad = ptr::null_mut();
        let qp = self.qp();
        // SAFETY: the queue pair lives; the buffer is left alone until the completion below.
        let code = unsafe { ibv_post_send(qp, &raw mut wr, &raw mut bad) };
        if code != 0 {
            return Err(io::Error::from_raw_os_error(code));
        }
        while let Some(message) = self.poll(deadline)? {
            self.early.push_back(message);
        }
        Ok(())
    }

    /// The next message.
    ///
    /// # Errors
    /// TimedOut, or the status of the failed completion.
    pub fn receive(&mut self, deadline: Instant) -> io::Result<Message> {
        if let Some(message) = self.early.pop_front() {
            return Ok(message);
        }
        self.poll(deadline)?
            .ok_or_else(|| io::Error::other("a send completion that nobody waits for"))
    }

    /// Waits for the peer to disconnect.
    ///
    /// # Errors
    /// TimedOut, or another event.
    pub fn wait_disconnected(&self, deadline: Instant) -> io::Result<()> {
        self.id
            .expect(rdma_cm_event_type::RDMA_CM_EVENT_DISCONNECTED, deadline)
            .map(drop)
    }

    /// Disconnects.
    ///
    /// # Errors
    /// What librdmacm says.
    pub fn disconnect(&self) -> io::Result<()> {
        // SAFETY: the id lives.
        check(unsafe { rdma_disconnect(self.id.raw) })
    }

    // One completion: a message, or None for the send's.
    fn poll(&mut self, deadline: Instant) -> io::Result<Option<Message>> {
        loop {
            // SAFETY: all-zero bytes are a valid ibv_wc.
            let mut wc: ibv_wc = unsafe { std::mem::zeroed() };
            // SAFETY: room for the one completion asked for.
            match unsafe { ibv_poll_cq(self.cq, 1, &raw mut wc) } {
                0 if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
                0 => std::thread::sleep(Duration::from_micros(200)),
                1 if wc.status != ibv_wc_status::IBV_WC_SUCCESS => {
                    return Err(io::Error::other(format!("completion status {}", wc.status)));
                }
                1 if wc.wr_id == u64::MAX => return Ok(None),
                1 => return self.take(&wc).map(Some),
                code => return Err(io::Error::from_raw_os_error(-code)),
            }
        }
    }

    fn take(&mut self, wc: &ibv_wc) -> io::Result<Message> {
        assert_eq!(wc.opcode, ibv_wc_opcode::IBV_WC_RECV);
        let slot = usize::try_from(wc.wr_id).expect("the slot's number");
        let start = slot * SLOT;
        let data = self.memory[start..start + wc.byte_len as usize].to_vec();
        // SAFETY: both variants are plain 32-bit numbers.
        let imm_data = unsafe { wc.imm_data_invalidated_rkey_union.imm_data };
        // IBV_WC_WITH_IMM is bit 1 of the flags.
        let immediate = (wc.wc_flags & 2 != 0).then_some(u32::from_be(imm_data));
        self.post_receive(slot)?;
        Ok(Message { data, immediate })
    }

    fn create_qp(&mut self) -> io::Result<()> {
        // SAFETY: all-zero bytes are a valid ibv_qp_init_attr.
        let mut attr: ibv_qp_init_attr = unsafe { std::mem::zeroed() };
        attr.send_cq = self.cq;
        attr.recv_cq = self.cq;
        attr.cap.max_send_wr = 16;
        attr.cap.max_recv_wr = u32::try_from(RECEIVES).expect("small");
        attr.cap.max_send_sge = 1;
        attr.cap.max_recv_sge = 1;
        attr.qp_type = ibv_qp_type::IBV_QPT_RC;
        // SAFETY: id, protection domain and completion queue live and share one context.
        check(unsafe { rdma_create_qp(self.id.raw, self.pd, &raw mut attr) })
    }

    fn post_receive(&self, slot: usize) -> io::Result<()> {
        let mut entry = self.sge(slot * SLOT, SLOT);
        let mut wr = ibv_recv_wr {
            wr_id: slot as u64,
            next: ptr::null_mut(),
            sg_list: &raw mut entry,
            num_sge: 1,
        };
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair lives; the slot is not touched until its completion.
        let code = unsafe { ibv_post_recv(self.qp(), &raw mut wr, &raw mut bad) };
        if code == 0 {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(code))
        }
    }

    fn sge(&self, start: usize, len: usize) -> ibv_sge {
        // SAFETY: the region is registered until drop.
        let lkey = unsafe { (*self.mr).lkey };
        ibv_sge {
            addr: self.memory[start..].as_ptr() as u64,
            length: u32::try_from(len).expect("a slot"),
            lkey,
        }
    }

    fn qp(&self) -> *mut rdma_sys::ibv_qp {
        // SAFETY: the id lives until drop.
        unsafe { (*self.id.raw).qp }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.qp().is_null() {
            // SAFETY: the id has a queue pair.
            unsafe { rdma_destroy_qp(self.id.raw) };
        }
        if !self.mr.is_null() {
            // SAFETY: no queue pair uses the region any more.
            unsafe { ibv_dereg_mr(self.mr) };
        }
        if !self.cq.is_null() {
            // SAFETY: no queue pair uses the completion queue any more.
            unsafe { ibv_destroy_cq(self.cq) };
        }
        // SAFETY: everything on the domain is gone.
        unsafe { ibv_dealloc_pd(self.pd) };
    }
}

fn copy_out(raw: *mut rdma_cm_event) -> Event {
    // SAFETY: an event got and not yet acknowledged.
    let event = unsafe { &*raw };
    let with_data = matches!(
        event.event,
        rdma_cm_event_type::RDMA_CM_EVENT_ESTABLISHED
            | rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_RESPONSE
            | rdma_cm_event_type::RDMA_CM_EVENT_REJECTED
    );
    let mut private_data = Vec::new();
    if with_data {
        // SAFETY: events of connected ids carry the `conn` variant.
        let conn = unsafe { event.param.conn };
        if !conn.private_data.is_null() {
            // SAFETY: librdmacm gives a pointer to that many bytes, valid until the event is acknowledged.
            let bytes = unsafe {
                std::slice::from_raw_parts(
                    conn.private_data.cast::<u8>(),
                    conn.private_data_len.into(),
                )
            };
            private_data.extend_from_slice(bytes);
        }
    }
    Event {
        key: event.id as usize,
        kind: event.event,
        status: event.status,
        private_data,
    }
}

/// The number of a queue pair that is not there, another one each time: a listener's kernel takes a
/// request with a number that it knows for a leftover.
fn strange_queue_pair() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    0x0040_0000 + NEXT.fetch_add(1, Ordering::Relaxed) % 0x0020_0000
}

fn check(code: i32) -> io::Result<()> {
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn not_null<T>(pointer: *mut T) -> io::Result<*mut T> {
    if pointer.is_null() {
        Err(io::Error::last_os_error())
    } else {
        Ok(pointer)
    }
}
