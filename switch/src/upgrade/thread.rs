//! The thread `san-stream`: listens and dials for streams that have earned a queue pair, and attends
//! to those that have one.
//!
//! It holds no lock of its own while it calls a stream or the provider.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::io::Errno;
use san_base::timespec;
use san_provider::{
    AcceptOptions, ConnectError, ConnectFailure, Decision, EventObject, NetworkEvents, Rejection,
    SocketOption, WsaCode,
};
use san_stream::Refusal;

use super::dials::Dials;
use super::peers::{Failed, Peers, Turn};
use super::service::{Command, Member, Service, WAKE};
use crate::route::table::RouteQuery;
use crate::san::provider::StartedProvider;
use crate::san::socket::ProviderSocket;

/// The thread's name, as `ps -L` shows it.
pub(crate) const THREAD_NAME: &str = "san-stream";

/// Which of a stream's descriptors it was; with the stream's number it makes a token.
const TCP: u64 = 0;
const EVENT: u64 = 1;

/// How long a dial may take: as long as the engine waits for it.
const DIAL: Duration = Duration::from_secs(1);
/// Milliseconds after which a peer is asked again where nobody listens: it has carried as much, and may be about to
/// listen. A port that does not belong to this protocol is asked six times in a quarter of a second.
const AGAIN: [u64; 5] = [2, 6, 18, 54, 162];
/// A peer that knows the protocol and cannot have the queue pair now is asked again after this.
const NOT_NOW: Duration = Duration::from_millis(100);
/// Requests that may wait at one of them: the peer's own, and a stranger's who comes at the same time.
const ROOM: u32 = 4;
/// Streams that listen at a time; the oldest gives way.
const MOST_INVITATIONS: usize = 1024;
/// How long a closed stream may take to send what is left.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a queue pair is waited for that does not carry yet, before the others have their turn.
const CHANGE: Duration = Duration::from_millis(1);
/// The longest sleep.
const IDLE: Duration = Duration::from_secs(1);

/// What is done for one stream.
#[derive(Default)]
struct Served {
    /// Listens or dials.
    connecting: Option<Connecting>,
    is_watched: bool,
    timeout: Option<Instant>,
    dialling: Option<Dialling>,
}

/// A stream that wants to dial, or dials.
struct Dialling {
    host: IpAddr,
    /// It is in the queue.
    is_queued: bool,
    /// When it comes into the queue again.
    again: Option<Instant>,
    /// How often nobody has listened there.
    tries: usize,
}

struct Connecting {
    socket: ProviderSocket,
    event: EventObject,
    is_dial: bool,
    since: Instant,
}

/// Starts it.
pub(crate) fn start(service: Arc<Service>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(THREAD_NAME.to_owned())
        .spawn(move || Worker::new(service).run())
}

struct Worker {
    service: Arc<Service>,
    served: HashMap<u64, Served>,
    /// Those that have a queue pair which does not carry yet.
    changing: HashSet<u64>,
    dials: Dials,
    /// Those whose dial waits for its turn, in the order in which they asked.
    queue: VecDeque<u64>,
    peers: Peers,
}

impl Worker {
    fn new(service: Arc<Service>) -> Self {
        Self {
            service,
            served: HashMap::new(),
            changing: HashSet::new(),
            dials: Dials::new(Instant::now()),
            queue: VecDeque::new(),
            peers: Peers::default(),
        }
    }

    fn run(mut self) {
        let mut events = Vec::with_capacity(64);
        loop {
            if let Err(error) = self.wait(&mut events) {
                tracing::error!(%error, "the thread that moves streams cannot wait");
                return;
            }
            for event in &events {
                match event.data.u64() {
                    WAKE => {
                        self.service.wake.reset();
                    }
                    token => self.event(token >> 1, token & 1),
                }
            }
            loop {
                let mut state = self.service.state.lock();
                if state.is_over {
                    return;
                }
                let Some((token, command)) = state.commands.pop_front() else {
                    break;
                };
                drop(state);
                self.command(token, command);
            }
            self.timers();
            self.start_dials();
            self.help_changes();
        }
    }

    /// Polls for the queue pairs that do not carry yet: their applications may be asleep on TCP. One wait
    /// polls for all that share the lane.
    fn help_changes(&mut self) {
        let Some(token) = self.changing.iter().next().copied() else {
            return;
        };
        match self.member(token) {
            Some(member) => member.wait_for_change(CHANGE),
            None => drop(self.changing.remove(&token)),
        }
        let changing: Vec<u64> = self.changing.iter().copied().collect();
        for token in changing {
            self.command(token, Command::Attend);
        }
    }

    fn wait(&self, events: &mut Vec<epoll::Event>) -> Result<(), Errno> {
        let now = Instant::now();
        let again = |served: &Served| served.dialling.as_ref().and_then(|dialling| dialling.again);
        let until = |served: &Served| [served.timeout, again(served)].into_iter().flatten().min();
        let next = self.served.values().filter_map(until).min();
        let next = next.map(|at| at.saturating_duration_since(now));
        let turn = match self.queue.is_empty() {
            true => None,
            false => self.dials.wait(now),
        };
        let time = match self.changing.is_empty() {
            true => [next, turn]
                .into_iter()
                .flatten()
                .min()
                .map_or(IDLE, |time| time.min(IDLE)),
            false => Duration::ZERO,
        };
        events.clear();
        match epoll::wait(
            &self.service.epoll,
            rustix::buffer::spare_capacity(events),
            Some(&timespec(time)),
        ) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn member(&self, token: u64) -> Option<Arc<dyn Member>> {
        let state = self.service.state.lock();
        state.members.get(&token).and_then(Weak::upgrade)
    }

    fn event(&mut self, token: u64, which: u64) {
        let Some(member) = self.member(token) else {
            return;
        };
        if which == TCP {
            member.tcp_stirred();
            member.attend();
        } else if let Some(connecting) = self.served.get(&token).and_then(|s| s.connecting.as_ref())
        {
            if connecting.is_dial {
                self.dial_event(token, &*member);
            } else {
                self.accept(token, &*member);
            }
        }
        self.after(token, &*member);
    }

    fn command(&mut self, token: u64, command: Command) {
        if command == Command::Forget {
            self.forget(token);
            return;
        }
        let Some(member) = self.member(token) else {
            return;
        };
        match command {
            Command::Attend | Command::Closed => member.attend(),
            Command::Listen => self.listen(token, &*member),
            Command::Dial => self.want_dial(token, &*member),
            Command::StopConnecting => self.stop_connecting(token),
            Command::Watch(on) => self.watch(token, &*member, on),
            Command::Forget => {}
        }
        self.after(token, &*member);
    }

    /// Notes the next deadline, and lets a closed stream go that is through.
    fn after(&mut self, token: u64, member: &dyn Member) {
        let timeout = member.next_timeout();
        if member.is_changing() {
            self.changing.insert(token);
        } else {
            self.changing.remove(&token);
        }
        match self.served.get_mut(&token) {
            Some(served) => served.timeout = timeout,
            None if timeout.is_some() => {
                let served = Served {
                    timeout,
                    ..Served::default()
                };
                self.served.insert(token, served);
            }
            None => {}
        }
        if member.is_through() {
            let closed = self.service.state.lock().closed.remove(&token);
            drop(closed);
        }
    }

    fn timers(&mut self) {
        let now = Instant::now();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let mut due = Vec::new();
        for (token, served) in &mut self.served {
            if let Some(dialling) = &mut served.dialling
                && is_due(dialling.again)
            {
                dialling.again = None;
                dialling.is_queued = true;
                self.queue.push_front(*token);
            }
            if is_due(served.timeout) {
                due.push(*token);
            }
        }
        for token in due {
            self.command(token, Command::Attend);
        }
        let mut state = self.service.state.lock();
        let counters = &self.service.counters;
        let mut given_up = Vec::new();
        state.closed.retain(|_, (member, since)| {
            let is_over = now.saturating_duration_since(*since) > PATIENCE;
            if is_over {
                counters.closes_lost.raise();
                given_up.push(Arc::clone(member));
            }
            !is_over
        });
        drop(state);
        for member in given_up {
            let peer = member.ends();
            tracing::warn!(
                ?peer,
                "a closed stream is given up: its peer takes nothing in"
            );
        }
    }

    /// Watches the TCP socket of a stream whose bytes go over the queue pair.
    fn watch(&mut self, token: u64, member: &dyn Member, on: bool) {
        let served = self.served.entry(token).or_default();
        if served.is_watched == on {
            return;
        }
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(token << 1 | TCP);
        let outcome = match on {
            true => epoll::add(&self.service.epoll, member.tcp(), data, flags),
            false => epoll::delete(&self.service.epoll, member.tcp()),
        };
        match outcome {
            Ok(()) => served.is_watched = on,
            Err(error) => tracing::error!(%error, "cannot watch the TCP socket of a stream"),
        }
    }

    /// The provider that serves our end, if the SAN has a way to the peer.
    fn provider(&self, local: SocketAddr, peer: SocketAddr) -> Option<Arc<StartedProvider>> {
        let table = self.service.routes.table();
        let entry = table.route(&RouteQuery {
            destination: peer,
            bound: Some(local.ip()),
            preferred: None,
        })?;
        self.service.providers.nth(entry.provider)
    }

    /// The connecting end: listens at its own address and port of the TCP connection.
    fn listen(&mut self, token: u64, member: &dyn Member) {
        let ends = member.ends();
        let Some(provider) = self.provider(ends.connector, ends.acceptor) else {
            return;
        };
        let made = provider.socket(ends.connector).and_then(|socket| {
            socket.set_option(SocketOption::ReuseAddr, 1)?;
            socket.bind(ends.connector)?;
            let event = provider.event_object()?;
            socket.event_select(&event, NetworkEvents::ACCEPT)?;
            socket.listen(ROOM)?;
            Ok((socket, event))
        });
        match made {
            Ok((socket, event)) => {
                self.hear(token, socket, event, false);
                self.limit_invitations();
            }
            Err(failure) => {
                self.service.counters.moves_failed.raise();
                tracing::debug!(at = %ends.connector, reason = %failure.source, "a stream stays on TCP: cannot listen");
            }
        }
    }

    /// Watches a socket that listens or dials.
    fn hear(&mut self, token: u64, socket: ProviderSocket, event: EventObject, is_dial: bool) {
        let data = epoll::EventData::new_u64(token << 1 | EVENT);
        if let Err(error) = epoll::add(&self.service.epoll, &event, data, epoll::EventFlags::IN) {
            tracing::error!(%error, "cannot watch a socket of the SAN");
            if is_dial {
                self.dials.ended();
            }
            return;
        }
        self.served.entry(token).or_default().connecting = Some(Connecting {
            socket,
            event,
            is_dial,
            since: Instant::now(),
        });
    }

    fn limit_invitations(&mut self) {
        let invitations = self.served.iter().filter_map(|(token, served)| {
            let connecting = served.connecting.as_ref().filter(|c| !c.is_dial)?;
            Some((connecting.since, *token))
        });
        let all: Vec<_> = invitations.collect();
        if all.len() > MOST_INVITATIONS
            && let Some((_, oldest)) = all.into_iter().min()
        {
            self.stop_connecting(oldest);
        }
    }

    /// A peer has dialled.
    fn accept(&mut self, token: u64, member: &dyn Member) {
        let Some(connecting) = self.served.get(&token).and_then(|s| s.connecting.as_ref()) else {
            return;
        };
        let _ = connecting.socket.network_events(&connecting.event);
        let peer = member.ends().acceptor;
        let mut answered = None;
        let outcome = connecting.socket.accept(|request| {
            if request.peer.map(|from| from.ip().to_canonical()) != Some(peer.ip()) {
                return Decision::Reject(Rejection::NoSuchConnection);
            }
            match member.answer(&request.session) {
                Ok(session) => {
                    answered = Some(request.session);
                    Decision::AcceptWith(AcceptOptions::default().session(session))
                }
                Err(rejection) => Decision::Reject(rejection),
            }
        });
        match outcome {
            Ok(accepted) => {
                self.stop_connecting(token);
                member.connected(accepted.socket, None);
            }
            Err(error) => {
                if error.code() != WsaCode::WouldBlock {
                    self.service.counters.moves_failed.raise();
                    tracing::debug!(%peer, %error, "a request for a second carrier came to nothing");
                }
            }
        }
    }

    /// The accepting end: its dial waits for its turn.
    fn want_dial(&mut self, token: u64, member: &dyn Member) {
        self.end_dialling(token);
        let dialling = Dialling {
            host: member.ends().connector.ip(),
            is_queued: true,
            again: None,
            tries: 0,
        };
        self.served.entry(token).or_default().dialling = Some(dialling);
        self.queue.push_back(token);
    }

    /// Starts the dials that may start now.
    fn start_dials(&mut self) {
        let now = Instant::now();
        while let Some(token) = self.queue.front().copied() {
            let member = self.member(token);
            let served = self.served.get_mut(&token);
            let dialling = served.and_then(|served| served.dialling.as_mut());
            let (Some(dialling), Some(member)) = (dialling.filter(|one| one.is_queued), member)
            else {
                self.queue.pop_front();
                continue;
            };
            let turn = self.peers.turn(dialling.host, token, now);
            if turn == Turn::Now && !self.dials.start(now) {
                return;
            }
            dialling.is_queued = false;
            self.queue.pop_front();
            match turn {
                Turn::Now => self.dial(token, &*member),
                Turn::Behind => {}
                Turn::Silent(pause) => {
                    self.refused(token, &*member, Refusal::After(pause));
                }
            }
            self.after(token, &*member);
        }
    }

    /// Those that waited for another stream's dial get into the queue.
    fn release(&mut self, released: VecDeque<u64>) {
        for token in released.into_iter().rev() {
            let served = self.served.get_mut(&token);
            if let Some(dialling) = served.and_then(|served| served.dialling.as_mut()) {
                dialling.is_queued = true;
                self.queue.push_front(token);
            }
        }
    }

    /// The stream does not dial any more.
    fn end_dialling(&mut self, token: u64) {
        let served = self.served.get_mut(&token);
        if let Some(dialling) = served.and_then(|served| served.dialling.take()) {
            let released = self.peers.gave_up(dialling.host, token);
            self.release(released);
        }
    }

    fn refused(&mut self, token: u64, member: &dyn Member, refusal: Refusal) {
        self.end_dialling(token);
        member.refused(refusal);
    }

    /// Dials the connecting end's address and port.
    fn dial(&mut self, token: u64, member: &dyn Member) {
        let ends = member.ends();
        // One that is under way is given up for it.
        drop(self.take_connecting(token));
        let Some(provider) = self.provider(ends.acceptor, ends.connector) else {
            self.dials.ended();
            return self.refused(token, member, Refusal::Never);
        };
        let Some(session) = member.request() else {
            self.dials.ended();
            return self.end_dialling(token);
        };
        let made = provider.socket(ends.connector).and_then(|socket| {
            socket.bind(SocketAddr::new(ends.acceptor.ip(), 0))?;
            let event = provider.event_object()?;
            socket.event_select(&event, NetworkEvents::CONNECT)?;
            Ok((socket, event))
        });
        let (socket, event) = match made {
            Ok(made) => made,
            Err(failure) => {
                self.dials.ended();
                tracing::debug!(to = %ends.connector, reason = %failure.source, "cannot dial");
                return self.refused(token, member, Refusal::NotNow);
            }
        };
        match socket.connect_with(ends.connector, DIAL, session) {
            Err(error) if !error.is_in_progress() => {
                self.dials.ended();
                self.dial_failed(token, member, &error);
            }
            _ => self.hear(token, socket, event, true),
        }
    }

    fn dial_event(&mut self, token: u64, member: &dyn Member) {
        let Some(connecting) = self.served.get(&token).and_then(|s| s.connecting.as_ref()) else {
            return;
        };
        let outcome = match connecting.socket.network_events(&connecting.event) {
            Ok(record) => record.connect,
            Err(_) => Some(Err(ConnectFailure::NetDown.into())),
        };
        match outcome {
            None => {}
            Some(Ok(())) => {
                let Some(connecting) = self.take_connecting(token) else {
                    return;
                };
                self.answered(token, member);
                self.end_dialling(token);
                let reply = connecting.socket.data().peer_session().ok().flatten();
                member.connected(connecting.socket, reply.as_ref());
            }
            Some(Err(error)) => {
                drop(self.take_connecting(token));
                self.dial_failed(token, member, &error);
            }
        }
    }

    /// The host speaks this: the others dial it, too.
    fn answered(&mut self, token: u64, member: &dyn Member) {
        let released = self.peers.answered(member.ends().connector.ip(), token);
        self.release(released);
    }

    fn dial_failed(&mut self, token: u64, member: &dyn Member, error: &ConnectError) {
        let host = member.ends().connector.ip();
        tracing::debug!(%host, %error, "a dial brought no second carrier");
        let now = Instant::now();
        let served = self.served.get_mut(&token);
        let Some(dialling) = served.and_then(|served| served.dialling.as_mut()) else {
            return;
        };
        let (why, refusal) = match error.failure() {
            // The peer may just be about to listen.
            ConnectFailure::NobodyListens { .. } if dialling.tries < AGAIN.len() => {
                let wait = AGAIN.get(dialling.tries).copied().unwrap_or(0);
                dialling.tries += 1;
                dialling.again = Some(now + Duration::from_millis(wait));
                return;
            }
            // It knows the protocol: it is asked again for as long as the engine waits.
            ConnectFailure::NotNow
            | ConnectFailure::BacklogFull { .. }
            | ConnectFailure::NoSuchConnection
            | ConnectFailure::PeerOutOfResources
            | ConnectFailure::ListenerClosing => {
                dialling.again = Some(now + NOT_NOW);
                return self.answered(token, member);
            }
            ConnectFailure::NobodyListens { .. } | ConnectFailure::ForeignReject { .. } => {
                (Some(Failed::NobodyListens), Refusal::NotNow)
            }
            ConnectFailure::TimedOut | ConnectFailure::Unreachable | ConnectFailure::NoRoute => {
                (Some(Failed::NoAnswer), Refusal::NotNow)
            }
            _ => (None, Refusal::Never),
        };
        if let Some(why) = why {
            let (pause, released) = self.peers.failed(host, token, why, now);
            if !pause.is_zero() {
                tracing::debug!(%host, ?pause, "the host is left alone");
            }
            self.release(released);
        }
        self.service.counters.moves_failed.raise();
        self.refused(token, member, refusal);
    }

    fn take_connecting(&mut self, token: u64) -> Option<Connecting> {
        let connecting = self.served.get_mut(&token)?.connecting.take()?;
        let _ = epoll::delete(&self.service.epoll, connecting.event.as_fd());
        if connecting.is_dial {
            self.dials.ended();
        }
        Some(connecting)
    }

    fn stop_connecting(&mut self, token: u64) {
        self.end_dialling(token);
        drop(self.take_connecting(token));
    }

    fn forget(&mut self, token: u64) {
        self.stop_connecting(token);
        self.served.remove(&token);
        self.changing.remove(&token);
    }
}
