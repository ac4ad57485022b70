//! The streams of one switch that may move, and what the thread `san-stream` (`thread.rs`) does for
//! them: it makes their queue pairs and looks after those that have one while their application
//! does not.
//!
//! An application whose connections stay on TCP never starts the thread.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::epoll;
use san_base::{Deadline, Signal};
use san_provider::Rejection;
use san_provider::wire::Session;
use san_stream::Refusal;

use super::key::DeploymentKey;
use super::request::Ends;
use crate::counters::SwitchCounters;
use crate::route::Routes;
use crate::san::providers::Providers;
use crate::san::socket::ProviderSocket;

/// The wake-up's token in the epoll set.
pub(super) const WAKE: u64 = u64::MAX;

/// Starts the thread that serves a service.
pub(crate) type Start = fn(Arc<Service>) -> io::Result<JoinHandle<()>>;

/// A stream as the thread sees it.
pub(crate) trait Member: Send + Sync {
    /// Something may have come: on TCP, on the queue pair, or a deadline.
    fn attend(&self);

    /// Something happened on TCP; [`Member::attend`] follows.
    fn tcp_stirred(&self);

    /// Whether it has a queue pair that does not carry yet.
    fn is_changing(&self) -> bool;

    /// Polls for that queue pair until it has told something, or this time is over.
    fn wait_for_change(&self, time: Duration);

    /// When it wants to be attended to, whatever comes.
    fn next_timeout(&self) -> Option<Instant>;

    /// The TCP socket.
    fn tcp(&self) -> BorrowedFd<'_>;

    /// The addresses of both ends.
    fn ends(&self) -> Ends;

    /// The session of the request that is to be sent now; `None`: nothing is to be dialled any more.
    fn request(&self) -> Option<Session>;

    /// The session of the reply to a request of the peer.
    ///
    /// # Errors
    /// Why the request is turned down.
    fn answer(&self, request: &Session) -> Result<Session, Rejection>;

    /// The queue pair that was dialled, with the peer's reply, or that was accepted.
    fn connected(&self, socket: ProviderSocket, reply: Option<&Session>);

    /// The dial has brought nothing.
    fn refused(&self, refusal: Refusal);

    /// The switch shuts down: back to TCP.
    fn leave(&self);

    /// Whether the kernel alone has what it still sends: it needs the thread no more.
    fn has_left(&self) -> bool;

    /// Whether nothing is left to be sent, or can be.
    fn is_through(&self) -> bool;
}

/// What a stream wants of the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Attend,
    Listen,
    Dial,
    StopConnecting,
    /// Its TCP socket is to be watched, or not any more.
    Watch(bool),
    /// The application has closed it, and bytes are left; the state keeps it.
    Closed,
    /// It is gone.
    Forget,
}

/// The streams of one switch. See the module.
pub(crate) struct Service {
    pub(super) state: Mutex<State>,
    pub(super) wake: Signal,
    pub(super) epoll: std::os::fd::OwnedFd,
    pub(super) providers: Arc<Providers>,
    pub(super) routes: Arc<Routes>,
    pub(super) counters: Arc<SwitchCounters>,
    pub(super) key: DeploymentKey,
    /// How long a stream may be idle on the SAN.
    pub(super) idle: Option<Duration>,
    start: Start,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
pub(super) struct State {
    next: u64,
    pub(super) members: HashMap<u64, Weak<dyn Member>>,
    pub(super) commands: VecDeque<(u64, Command)>,
    /// Closed by the application, with bytes left; and when each was closed.
    pub(super) closed: HashMap<u64, (Arc<dyn Member>, Instant)>,
    pub(super) is_over: bool,
}

impl Service {
    pub(crate) fn new(
        providers: Arc<Providers>,
        routes: Arc<Routes>,
        counters: Arc<SwitchCounters>,
        key: DeploymentKey,
        idle: Option<Duration>,
        start: Start,
    ) -> io::Result<Self> {
        let wake = Signal::new()?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&epoll, &wake, data, epoll::EventFlags::IN)?;
        Ok(Self {
            state: Mutex::default(),
            wake,
            epoll,
            providers,
            routes,
            counters,
            key,
            idle,
            start,
            thread: Mutex::new(None),
        })
    }

    /// The configured key.
    pub(crate) fn key(&self) -> &DeploymentKey {
        &self.key
    }

    /// Takes a stream in, which is made with its token.
    pub(super) fn add<M: Member + 'static>(&self, make: impl FnOnce(u64) -> Arc<M>) -> Arc<M> {
        let token = {
            let mut state = self.state.lock();
            state.next += 1;
            state.next
        };
        let member = make(token);
        let weak = Arc::downgrade(&member);
        self.state.lock().members.insert(token, weak);
        member
    }

    /// The stream of this token has something to do.
    pub(super) fn attend(&self, token: u64) {
        self.command(token, Command::Attend);
    }

    pub(super) fn command(&self, token: u64, command: Command) {
        let mut state = self.state.lock();
        if state.is_over {
            return;
        }
        if state.commands.back() == Some(&(token, command)) {
            return;
        }
        state.commands.push_back((token, command));
        drop(state);
        self.wake.set();
    }

    /// Keeps a stream that the application has closed until its bytes are out.
    pub(super) fn keep(&self, token: u64, member: Arc<dyn Member>) {
        self.counters.closes_continued.raise();
        let mut state = self.state.lock();
        if !state.is_over {
            state.closed.insert(token, (member, Instant::now()));
        }
        drop(state);
        self.command(token, Command::Closed);
    }

    /// Forgets a stream.
    pub(super) fn remove(&self, token: u64) {
        let is_served = self.thread.lock().is_some();
        self.state.lock().members.remove(&token);
        if is_served {
            self.command(token, Command::Forget);
        }
    }

    /// Starts the thread, if it does not run.
    pub(super) fn ensure_thread(self: &Arc<Self>) -> io::Result<()> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            *thread = Some((self.start)(Arc::clone(self))?);
        }
        Ok(())
    }

    /// Waits until no closed stream has bytes left; whether that is so.
    pub(crate) fn wait_for_closed(&self, deadline: Deadline) -> bool {
        loop {
            if self.state.lock().closed.is_empty() {
                return true;
            }
            if deadline.is_over() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// All streams go back to TCP and get `patience` to send what they have taken, closed ones too; then the
    /// thread ends.
    pub(crate) fn shut_down(&self, patience: Duration) {
        let Some(thread) = self.thread.lock().take() else {
            self.state.lock().is_over = true;
            return;
        };
        let members: Vec<_> = {
            let state = self.state.lock();
            state.members.values().filter_map(Weak::upgrade).collect()
        };
        for member in &members {
            member.leave();
        }
        // Afterwards nobody sends what a stream has taken from its application and not given to TCP yet.
        let deadline = Deadline::after(patience);
        let is_left = |member: &Arc<dyn Member>| {
            member.attend();
            member.has_left()
        };
        while !members.iter().all(is_left) && !deadline.is_over() {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(members);
        self.wait_for_closed(deadline);
        self.state.lock().is_over = true;
        self.wake.set();
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("the thread that moves streams panicked");
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("members", &self.state.lock().members.len())
            .finish_non_exhaustive()
    }
}
