//! Providers, listeners and connectors, as the tests use them.
//!
//! They do what a switch does: select events, wait for the event object, read the record, accept. All
//! waits are bounded by [`STEP`] and fail the test when nothing comes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use san_base::lock;
use san_provider::{
    AcceptError, Accepted, AddressFamily, ConnectError, ConnectOptions, Counters, Decision,
    EventObject, NetworkEvents, Notification, Operation, OverlappedResult, Protocol, Provider,
    ProviderConfig, Socket, SocketType, SpiVersion, SwitchHandle, SwitchUpcalls, WsaCode,
};
use verbs_shim::LiveObjects;

use crate::net;
use crate::time::{self, STEP};

/// A started provider, cleaned up when dropped.
#[derive(Debug)]
pub struct San {
    /// The provider.
    pub provider: Provider,
    /// What it told its switch.
    pub upcalls: Arc<Recorder>,
}

impl San {
    /// A provider with the usual configuration.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(ProviderConfig::default())
    }

    /// A provider whose windows do not grow: each end may send one message, and without receives no
    /// credits come.
    #[must_use]
    pub fn start_with_one_credit() -> Self {
        Self::start_with(ProviderConfig {
            initial_window: 1,
            max_window: 1,
            ..ProviderConfig::default()
        })
    }

    /// A provider with this configuration.
    ///
    /// # Panics
    /// When it does not start: there is no RDMA here, and these tests belong where it is.
    #[must_use]
    pub fn start_with(config: ProviderConfig) -> Self {
        let provider = Self::stopped(config);
        let upcalls = Arc::new(Recorder::default());
        let table: Arc<dyn SwitchUpcalls> = Arc::clone(&upcalls) as _;
        if let Err(error) = provider.startup(SpiVersion::CURRENT, true, table) {
            panic!("the provider does not start ({error}): run these tests with ci/rxe or ci/test");
        }
        Self { provider, upcalls }
    }

    /// A provider that was not started.
    ///
    /// # Panics
    /// When the configuration cannot be.
    #[must_use]
    pub fn stopped(config: ProviderConfig) -> Provider {
        // Otherwise the provider opens the fabric itself, as a switch has it do.
        match net::is_soft() {
            true => Provider::with_fabric(net::fabric(), config),
            false => Provider::new(config),
        }
        .expect("a configuration that can be")
    }

    /// A socket of the family of `ip`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn socket(&self, ip: IpAddr) -> Socket {
        let family = AddressFamily::of(&SocketAddr::new(ip, 0));
        self.provider
            .socket(family, SocketType::Stream, Protocol::Tcp)
            .expect("a socket")
    }

    /// A socket bound to `addr`.
    ///
    /// # Panics
    /// When it cannot be bound.
    #[must_use]
    pub fn bound(&self, addr: SocketAddr) -> Socket {
        let socket = self.socket(addr.ip());
        socket
            .bind(addr)
            .unwrap_or_else(|error| panic!("bind to {addr}: {error}"));
        socket
    }

    /// A listener at a fresh port of the first NIC.
    #[must_use]
    pub fn listen_a(&self, backlog: u32) -> Listener {
        self.listen(net::at_a(), backlog)
    }

    /// A listener with FD_ACCEPT selected.
    ///
    /// # Panics
    /// When it cannot listen.
    #[must_use]
    pub fn listen(&self, addr: SocketAddr, backlog: u32) -> Listener {
        let socket = self.bound(addr);
        let event = EventObject::new().expect("an event object");
        socket
            .event_select(&event, NetworkEvents::ACCEPT)
            .expect("FD_ACCEPT");
        socket
            .listen(backlog)
            .unwrap_or_else(|error| panic!("listen at {addr}: {error}"));
        Listener {
            socket,
            event,
            addr,
        }
    }

    /// Starts to connect to `to`, from whichever NIC the route takes.
    #[must_use]
    pub fn connect(&self, to: SocketAddr) -> Connector {
        // Longer than any wait here: what times out is a failure of the test's, not of a deadline.
        self.connect_within(to, Duration::from_secs(120))
    }

    /// The same with a deadline.
    ///
    /// # Panics
    /// When it fails at once.
    #[must_use]
    pub fn connect_within(&self, to: SocketAddr, deadline: Duration) -> Connector {
        let connector = Connector::new(self.socket(to.ip()));
        let started = connector.start(to, deadline);
        assert!(started.is_in_progress(), "connect to {to}: {started}");
        connector
    }

    /// A connection over the wire: its connecting and its accepted end.
    ///
    /// # Panics
    /// When it does not come to be.
    #[must_use]
    pub fn pair(&self) -> (Socket, Socket) {
        self.pair_with(self)
    }

    /// A connection to another provider: its end here, and the accepted one there.
    ///
    /// # Panics
    /// When it does not come to be.
    #[must_use]
    pub fn pair_with(&self, there: &Self) -> (Socket, Socket) {
        let listener = there.listen_a(1);
        let connector = self.connect(listener.addr);
        let accepted = listener.accept();
        connector.result().expect("an accepted connect");
        (connector.socket, accepted.socket)
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.provider.counters()
    }

    /// Waits until `what` of the counters is at least `value`.
    ///
    /// # Panics
    /// When that does not come.
    pub fn wait_for(&self, name: &str, value: u64, what: impl Fn(&Counters) -> u64) {
        let reached = time::holds_within(STEP, || what(&self.counters()) >= value);
        assert!(
            reached,
            "{name} is {}, not {value}: {:?}",
            what(&self.counters()),
            self.counters()
        );
    }

    /// Waits until so many requests have been refused since startup because a backlog was full. The peer may have its answer
    /// before that is counted.
    pub fn wait_refused(&self, value: u64) {
        self.wait_for("refused_backlog", value, |counters| {
            counters.refused_backlog
        });
    }

    /// Waits until so many requests have arrived since startup, whatever became of them.
    pub fn wait_requests(&self, value: u64) {
        self.wait_for("requests", value, |counters| counters.requests);
    }
}

impl Drop for San {
    fn drop(&mut self) {
        // A test may have cleaned up by itself.
        let _ = self.provider.cleanup();
    }
}

/// A listening socket with its event object.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: Socket,
    /// Set for FD_ACCEPT.
    pub event: EventObject,
    /// Where it listens.
    pub addr: SocketAddr,
}

impl Listener {
    /// Accepts the next request.
    ///
    /// # Panics
    /// When none comes, or accept fails.
    #[must_use]
    pub fn accept(&self) -> Accepted {
        self.answer(Decision::Accept)
            .unwrap_or_else(|error| panic!("accept: {error}"))
    }

    /// Waits for a request and answers it so.
    ///
    /// # Errors
    /// What accept says, but for 'no request waits'.
    ///
    /// # Panics
    /// When no request comes.
    pub fn answer(&self, decision: Decision) -> Result<Accepted, AcceptError> {
        self.wait_event();
        let answer = self.socket.accept(|_| decision);
        if matches!(answer, Err(AcceptError::WouldBlock)) {
            panic!("the event is set, but no request waits");
        }
        answer
    }

    /// Waits until the event is set.
    ///
    /// # Panics
    /// When it is not.
    pub fn wait_event(&self) {
        assert!(self.event.wait(STEP), "no FD_ACCEPT in {STEP:?}");
    }
}

/// A connecting socket with its event object.
#[derive(Debug)]
pub struct Connector {
    /// The socket.
    pub socket: Socket,
    /// Set for FD_CONNECT.
    pub event: EventObject,
}

impl Connector {
    /// Selects FD_CONNECT.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn new(socket: Socket) -> Self {
        let event = EventObject::new().expect("an event object");
        socket
            .event_select(&event, NetworkEvents::CONNECT)
            .expect("FD_CONNECT");
        Self { socket, event }
    }

    /// Calls connect; it always answers with an error, be it that the connect goes on.
    ///
    /// # Panics
    /// When it says that it is done.
    #[must_use]
    pub fn start(&self, to: SocketAddr, deadline: Duration) -> ConnectError {
        let options = ConnectOptions {
            deadline: Some(deadline),
            ..ConnectOptions::default()
        };
        self.socket
            .connect(to, options)
            .expect_err("connect never ends at once")
    }

    /// Waits for the end of the connect.
    ///
    /// # Errors
    /// How it failed.
    ///
    /// # Panics
    /// When it does not end.
    pub fn result(&self) -> Result<(), ConnectError> {
        assert!(
            self.event.wait(STEP),
            "the connect has not ended in {STEP:?}"
        );
        self.ended()
            .expect("the event is set, but the record is empty")
    }

    /// How the connect ended, if it has.
    ///
    /// # Panics
    /// When the socket does not answer.
    #[must_use]
    pub fn ended(&self) -> Option<Result<(), ConnectError>> {
        self.socket
            .enum_network_events(Some(&self.event))
            .expect("the record")
            .connect
    }

    /// Waits for the end of the connect, which must be a failure.
    ///
    /// # Panics
    /// When it succeeds or does not end.
    #[must_use]
    pub fn failure(&self) -> ConnectError {
        self.result().expect_err("this connect cannot succeed")
    }
}

/// Sends one message and waits until it is out.
///
/// # Panics
/// When that fails.
pub fn send(socket: &Socket, bytes: &[u8]) {
    let sent = socket
        .send(bytes, 0, Notification::Poll)
        .unwrap_or_else(|error| panic!("send: {error}"));
    let outcome = wait(socket, sent)
        .outcome
        .unwrap_or_else(|error| panic!("send: {error}"));
    assert_eq!(outcome.bytes, bytes.len());
}

/// Receives one message.
///
/// # Panics
/// When none comes.
#[must_use]
pub fn receive(socket: &Socket) -> Vec<u8> {
    let started = socket
        .receive(Notification::Poll)
        .unwrap_or_else(|error| panic!("receive: {error}"));
    let transferred = wait(socket, started)
        .outcome
        .unwrap_or_else(|error| panic!("receive: {error}"));
    let message = transferred
        .message
        .expect("a receive that succeeds has a message");
    assert_eq!(transferred.bytes, message.len());
    message.to_vec()
}

/// Waits for the end of an operation.
///
/// # Panics
/// When it does not end.
#[must_use]
pub fn wait(socket: &Socket, operation: Operation) -> OverlappedResult {
    socket
        .get_overlapped_result(operation, Some(STEP))
        .unwrap_or_else(|error| panic!("no result of the operation: {error}"))
}

/// One upcall.
#[derive(Debug, Clone, PartialEq)]
pub enum Upcall {
    /// A handle was asked for; it is the socket's number.
    Created(SwitchHandle),
    /// An operation ended.
    Completed {
        /// Whose.
        handle: SwitchHandle,
        /// Which.
        operation: Operation,
        /// Bytes, or how it failed.
        outcome: Result<usize, WsaCode>,
        /// The message of a receive.
        message: Option<Vec<u8>>,
        /// The process's verbs objects at that moment.
        live: LiveObjects,
    },
    /// The socket is closed.
    Closed(SwitchHandle),
    /// The address list changed.
    AddressesChanged,
}

/// A switch's upcall table that remembers what it was told.
#[derive(Debug, Default)]
pub struct Recorder {
    told: Mutex<Vec<Upcall>>,
    /// Handles are refused while it is set.
    pub gives_no_handles: AtomicBool,
}

impl Recorder {
    /// All upcalls, in order.
    #[must_use]
    pub fn told(&self) -> Vec<Upcall> {
        lock(&self.told).clone()
    }

    /// The upcalls about one handle, in order.
    #[must_use]
    pub fn about(&self, wanted: SwitchHandle) -> Vec<Upcall> {
        let is_about = |upcall: &Upcall| match upcall {
            Upcall::Created(handle) | Upcall::Completed { handle, .. } | Upcall::Closed(handle) => {
                *handle == wanted
            }
            Upcall::AddressesChanged => false,
        };
        self.told().into_iter().filter(is_about).collect()
    }

    fn tell(&self, upcall: Upcall) {
        lock(&self.told).push(upcall);
    }
}

impl SwitchUpcalls for Recorder {
    fn create_socket_handle(&self, number: u64) -> io::Result<SwitchHandle> {
        if self.gives_no_handles.load(Ordering::SeqCst) {
            return Err(io::Error::other("the test gives no handles"));
        }
        // Any number will do that a provider would not think of by itself.
        let handle = SwitchHandle(number + 1_000_000);
        self.tell(Upcall::Created(handle));
        Ok(handle)
    }

    fn complete_overlapped(&self, handle: SwitchHandle, result: OverlappedResult) {
        let live = verbs_shim::live_objects();
        let OverlappedResult { operation, outcome } = result;
        let (outcome, message) = match outcome {
            Ok(transferred) => (
                Ok(transferred.bytes),
                transferred.message.map(|message| message.to_vec()),
            ),
            Err(error) => (Err(error.code()), None),
        };
        self.tell(Upcall::Completed {
            handle,
            operation,
            outcome,
            message,
            live,
        });
    }

    fn close_socket_handle(&self, handle: SwitchHandle) {
        self.tell(Upcall::Closed(handle));
    }

    fn address_list_changed(&self) {
        self.tell(Upcall::AddressesChanged);
    }
}
