//! One end: an engine, its shell, and an application that writes and reads.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::network::{Completed, Pipe, Qp, Sent};
use super::{Random, byte};
use crate::frame::tests::Weak;
use crate::pull::RING;
use crate::{
    Action, Config, Counts, DESCRIPTOR, Engine, Event, FIRST_CONTROL, FRAME, Keep, Message,
    Payloads, Post, Ring, Source, State, TcpIn, TcpOut, Write,
};

#[derive(Debug)]
pub(super) struct Plain;

impl Payloads for Plain {
    type Piece = Vec<u8>;
    type Key = Weak;
}

/// Whether a step did anything, or what is wrong with the run.
pub(super) type Stepped = Result<bool, String>;

/// What the application is like.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Habits {
    /// Bytes that it writes, all told, and at most at a time.
    pub(super) total: u64,
    pub(super) most: usize,
    /// It reads nothing until it has written everything.
    pub(super) writes_first: bool,
    /// It makes bytes urgent.
    pub(super) is_urgent: bool,
}

#[derive(Debug)]
pub(super) struct End {
    pub(super) index: usize,
    pub(super) engine: Engine<Plain>,
    pub(super) habits: Habits,
    /// Bytes written and read by the application, and whether it knows that all is read.
    pub(super) written: u64,
    pub(super) is_closed: bool,
    pub(super) read: u64,
    ring: Vec<u8>,
    has_qp: bool,
    is_draining: bool,
    /// What the world has to do.
    pub(super) dials: bool,
    pub(super) listens: bool,
    pub(super) was_reset: bool,
    /// Messages that the application has to read.
    inbox: VecDeque<Sent>,
    aside: Vec<u8>,
    landed: BTreeMap<u64, Vec<u8>>,
    /// Messages that the engine has given out and the queue pair did not take at once: control, and others.
    waiting_control: Option<Sent>,
    waiting: Option<Sent>,
    /// READs in the inbox's order of the places on the send queue.
    pub(super) places: u64,
    pub(super) now: Instant,
    pub(super) is_dead: bool,
    pub(super) log: Vec<State>,
    /// Prints events: `SAN_STREAM_TRACE`.
    traces: bool,
}

impl End {
    pub(super) fn new(index: usize, config: Config, habits: Habits, now: Instant) -> Self {
        Self {
            index,
            engine: Engine::new(config, now),
            habits,
            written: 0,
            is_closed: false,
            read: 0,
            ring: Vec::new(),
            has_qp: config.route == crate::Route::Direct,
            is_draining: false,
            dials: false,
            listens: false,
            was_reset: false,
            inbox: VecDeque::new(),
            aside: Vec::new(),
            landed: BTreeMap::new(),
            waiting_control: None,
            waiting: None,
            places: 8,
            now,
            is_dead: false,
            log: Vec::new(),
            traces: std::env::var_os("SAN_STREAM_TRACE").is_some(),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.engine.state(), State::Ended | State::Broken(_))
    }

    pub(super) fn has_qp(&self) -> bool {
        self.has_qp
    }

    pub(super) fn ring(&self) -> &[u8] {
        &self.ring
    }

    fn wrong(&self, what: &str) -> String {
        format!("end {}: {what}; {self:?}", self.index)
    }

    /// Tells the engine, and does what it asks for.
    pub(super) fn tell(&mut self, event: Event<'_, Weak>, tcp: &mut Pipe, qp: &mut Qp) -> Stepped {
        if self.traces {
            println!(
                "{} {event:?}, {:?}, {:?}",
                self.index,
                self.engine.state(),
                self.engine.received()
            );
        }
        self.engine.handle(event, self.now);
        self.act(tcp, qp)
    }

    fn act(&mut self, tcp: &mut Pipe, qp: &mut Qp) -> Stepped {
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Listen => self.listens = true,
                Action::Dial => self.dials = true,
                Action::StopConnecting => (self.listens, self.dials) = (false, false),
                Action::QpDisconnect => {
                    qp.is_broken = true;
                    self.is_draining = true;
                }
                Action::QpClose => {
                    qp.is_broken = true;
                    self.forget_qp();
                }
                Action::QpUnwanted => qp.is_broken = true,
                Action::TcpSkip(n) => drop(tcp.take(n)),
                Action::TakeAside => {
                    let bytes = std::mem::take(&mut self.aside);
                    self.deliver(&bytes)?;
                }
                Action::OpenRing => {
                    let mut descriptor = [0; DESCRIPTOR];
                    descriptor[24..32].copy_from_slice(&RING.to_be_bytes());
                    self.engine
                        .handle(Event::RingOpened(Ring(descriptor)), self.now);
                }
                Action::Reset => {
                    self.was_reset = true;
                    qp.is_broken |= self.has_qp;
                    self.forget_qp();
                }
                Action::Changed(state) => self.log.push(state),
                Action::Urgent(byte) => drop(self.deliver(&[byte])?),
                Action::PeerRing(_) | Action::CloseRing | Action::MayMove | Action::MayNotMove => {}
                Action::Mark {
                    position,
                    byte: marked,
                } => {
                    if marked != byte(1 - self.index, position) {
                        return Err(self.wrong("a mark with another byte"));
                    }
                }
                Action::Decline(reason) => {
                    self.send(
                        qp,
                        Message::No(reason).kind().number(),
                        vec![reason.number()],
                    );
                }
                Action::Declined(_) => {}
            }
        }
        Ok(true)
    }

    fn forget_qp(&mut self) {
        self.has_qp = false;
        self.is_draining = false;
        self.inbox.clear();
        self.landed.clear();
        (self.waiting_control, self.waiting) = (None, None);
    }

    pub(super) fn qp_up(&mut self, qp: &mut Qp, tcp: &mut Pipe, written: u64) -> Stepped {
        let generation = qp.generation;
        let key = Weak(u64::from(generation));
        self.engine.handle(
            Event::QpUp {
                key,
                generation,
                counts: Some(Counts {
                    written,
                    read: tcp.read,
                }),
            },
            self.now,
        );
        self.has_qp = matches!(self.engine.state(), State::Proving | State::Cutting);
        self.act(tcp, qp)
    }

    fn deliver(&mut self, bytes: &[u8]) -> Stepped {
        for got in bytes {
            let wanted = byte(1 - self.index, self.read);
            if *got != wanted {
                return Err(self.wrong(&format!("byte {} is {got}, not {wanted}", self.read)));
            }
            self.read += 1;
        }
        let (position, _) = self.engine.received();
        if self.read != position && self.aside.is_empty() && !self.is_over() {
            return Err(self.wrong(&format!("{} read, position {position}", self.read)));
        }
        Ok(true)
    }

    fn reads(&self) -> bool {
        !self.habits.writes_first
            || self.is_closed
            || self.engine.must_read_ahead()
            || self.is_over()
    }

    /// The application writes something, or closes.
    pub(super) fn app_write(
        &mut self,
        random: &mut Random,
        out: &mut Pipe,
        qp: &mut Qp,
    ) -> Stepped {
        if self.is_closed {
            return Ok(false);
        }
        let left = self.habits.total - self.written;
        if left == 0 || self.is_over() {
            self.is_closed = true;
            let mut unused = Pipe::default();
            return self.tell(Event::Close, &mut unused, qp);
        }
        let length = (1 + random.below(self.habits.most)).min(left as usize);
        match self.engine.write(length, self.has_place(qp)) {
            Write::Tcp => {
                if self.engine.tcp_out() != TcpOut::Application {
                    return Err(self.wrong("TCP is not for the application"));
                }
                let n = length.min(out.room());
                if n == 0 {
                    return Ok(false);
                }
                out.write(&self.bytes(n));
                self.written += n as u64;
                let mut unused = Pipe::default();
                self.tell(Event::TcpWritten(n), &mut unused, qp)
            }
            Write::Message(n) => {
                let bytes = self.bytes(n);
                self.written += n as u64;
                self.send(qp, 0, bytes.clone());
                self.engine.message_sent(n, bytes);
                Ok(true)
            }
            Write::Stage { position, length } => {
                if position != self.written {
                    return Err(self.wrong("staged at another position"));
                }
                self.ring.resize(RING as usize, 0);
                for (at, byte) in (position..).zip(self.bytes(length)) {
                    self.ring[(at % RING) as usize] = byte;
                }
                self.written += length as u64;
                self.engine.staged(length);
                if self.habits.is_urgent && random.per_mille(100) {
                    let mut unused = Pipe::default();
                    let last = byte(self.index, self.written - 1);
                    return self.tell(Event::Urgent(last), &mut unused, qp);
                }
                Ok(true)
            }
            Write::Full => Ok(false),
            Write::Closed if self.engine.is_reset() => Ok(false),
            Write::Closed => Err(self.wrong("closed too early")),
        }
    }

    fn bytes(&self, n: usize) -> Vec<u8> {
        (self.written..self.written + n as u64)
            .map(|at| byte(self.index, at))
            .collect()
    }

    fn staged(&self, position: u64, length: usize) -> Vec<u8> {
        let from = (position % RING) as usize;
        self.ring[from..from + length].to_vec()
    }

    fn has_place(&self, qp: &Qp) -> bool {
        let end = &qp.ends[self.index];
        let waits = self.waiting.is_some() || self.waiting_control.is_some();
        self.has_qp && !waits && end.posted - end.acknowledged < self.places
    }

    fn send(&self, qp: &mut Qp, kind: u8, bytes: Vec<u8>) {
        let end = &mut qp.ends[self.index];
        end.posted += 1;
        end.wire.push_back(Sent { kind, bytes });
    }

    /// What the engine has for TCP.
    pub(super) fn tcp_out(&mut self, random: &mut Random, out: &mut Pipe, qp: &mut Qp) -> Stepped {
        let bytes = match self.engine.tcp_out() {
            TcpOut::Nothing | TcpOut::Application => return Ok(false),
            TcpOut::Frame(bytes) | TcpOut::Again(bytes) => bytes.to_vec(),
            TcpOut::Staged { position, length } => self.staged(position, length as usize),
            TcpOut::Fin => {
                out.fin = true;
                let mut unused = Pipe::default();
                return self.tell(Event::TcpShutDown, &mut unused, qp);
            }
        };
        let n = bytes.len().min(out.room());
        if n == 0 {
            return Ok(false);
        }
        let n = 1 + random.below(n);
        out.write(&bytes[..n]);
        let mut unused = Pipe::default();
        self.tell(Event::TcpWritten(n), &mut unused, qp)
    }

    /// What TCP has for this end.
    pub(super) fn tcp_in(&mut self, random: &mut Random, tcp: &mut Pipe, qp: &mut Qp) -> Stepped {
        match self.engine.tcp_in() {
            TcpIn::Nothing => Ok(false),
            TcpIn::Discard => {
                let has_any = !tcp.arrived.is_empty();
                tcp.arrived.clear();
                Ok(has_any)
            }
            TcpIn::Raw { limit } => {
                if tcp.is_over() {
                    let (_, eof) = self.engine.received();
                    let before = self.engine.state();
                    self.tell(Event::TcpFin, tcp, qp)?;
                    return Ok(!eof || before != self.engine.state());
                }
                if !self.reads() || tcp.arrived.is_empty() {
                    return Ok(false);
                }
                let n = tcp
                    .arrived
                    .len()
                    .min(usize::try_from(limit).unwrap_or(usize::MAX));
                let n = 1 + random.below(n);
                let bytes = tcp.take(n);
                self.engine.handle(Event::TcpBytes(n), self.now);
                // What was put aside comes after these.
                for got in &bytes {
                    if *got != byte(1 - self.index, self.read) {
                        return Err(self.wrong(&format!("byte {} from TCP", self.read)));
                    }
                    self.read += 1;
                }
                self.act(tcp, qp)?;
                self.deliver(&[])
            }
            TcpIn::Peek => {
                let bytes: Vec<u8> = tcp.arrived.iter().copied().take(FRAME).collect();
                let is_end = tcp.fin_arrived && tcp.arrived.len() == bytes.len();
                let look = |end: &Self, tcp: &Pipe| {
                    let engine = &end.engine;
                    (
                        tcp.arrived.len(),
                        engine.state(),
                        engine.tcp_in(),
                        engine.source(),
                    )
                };
                let before = look(self, tcp);
                self.tell(
                    Event::TcpPeeked {
                        bytes: &bytes,
                        is_end,
                    },
                    tcp,
                    qp,
                )?;
                Ok(before != look(self, tcp))
            }
        }
    }

    /// Posts a message, or a READ. Now and then the queue pair does not take a message at once; control goes
    /// past what waits.
    pub(super) fn post(&mut self, random: &mut Random, tcp: &mut Pipe, qp: &mut Qp) -> Stepped {
        if self.is_draining || !self.has_qp {
            return Ok(false);
        }
        if let Some(read) = self.engine.next_read() {
            qp.ends[self.index].reads.push_back(read);
            return Ok(true);
        }
        let end = &qp.ends[self.index];
        if end.posted - end.acknowledged >= self.places {
            return Ok(false);
        }
        if let Some(sent) = self.waiting_control.take() {
            self.send(qp, sent.kind, sent.bytes);
            self.engine.posted_late(true);
            return Ok(true);
        }
        let control = self.engine.next_control();
        let is_control = control.is_some();
        if !is_control && let Some(sent) = self.waiting.take() {
            self.send(qp, sent.kind, sent.bytes);
            self.engine.posted_late(false);
            return Ok(true);
        }
        let Some(Post { kind, head, staged }) = control.or_else(|| self.engine.next_message())
        else {
            return Ok(false);
        };
        let kind = kind.number();
        let mut bytes = head.to_vec();
        if let Some(staged) = staged {
            bytes.extend(self.staged(staged.position, staged.length));
        }
        if random.per_mille(100) {
            self.engine.not_posted();
            let sent = Some(Sent { kind, bytes });
            match is_control {
                true => self.waiting_control = sent,
                false => self.waiting = sent,
            }
        } else {
            self.send(qp, kind, bytes);
        }
        self.act(tcp, qp)
    }

    /// Polls one completion.
    pub(super) fn poll(&mut self, tcp: &mut Pipe, qp: &mut Qp) -> Stepped {
        if !self.has_qp {
            return Ok(false);
        }
        match qp.ends[self.index].queue.pop_front() {
            None => Ok(false),
            Some(Completed::Read { read, bytes }) => {
                self.landed.insert(read.position, bytes);
                let (position, length) = (read.position, read.length);
                self.tell(Event::ReadDone { position, length }, tcp, qp)
            }
            Some(Completed::Message(sent)) if sent.kind < FIRST_CONTROL => {
                self.inbox.push_back(sent);
                Ok(true)
            }
            Some(Completed::Message(Sent { kind, bytes })) => {
                if let Ok(Message::Offer {
                    position, first, ..
                }) = Message::parse(kind, &bytes)
                {
                    self.landed.insert(position, first.to_vec());
                }
                self.tell(
                    Event::QpMessage {
                        kind,
                        bytes: &bytes,
                    },
                    tcp,
                    qp,
                )
            }
        }
    }

    pub(super) fn acknowledged(&mut self, tcp: &mut Pipe, qp: &mut Qp) -> Stepped {
        if !self.has_qp || self.is_draining {
            return Ok(false);
        }
        let end = &qp.ends[self.index];
        let count = (end.posted - end.acknowledged) as u32;
        self.tell(Event::QpUnacknowledged(count), tcp, qp)
    }

    /// The application reads what the queue pair brought.
    pub(super) fn app_read(&mut self, random: &mut Random, tcp: &mut Pipe, qp: &mut Qp) -> Stepped {
        if self.is_draining || !self.has_qp || !self.reads() {
            return Ok(false);
        }
        match self.engine.source() {
            Source::Message => self.take_message(tcp, qp),
            Source::Landed { length, .. } => {
                let most = 1 + random.below(length as usize);
                self.take_landed(most)
            }
            Source::Tcp | Source::Nothing => Ok(false),
        }
    }

    fn take_landed(&mut self, most: usize) -> Stepped {
        let Some((at, bytes)) = self.landed.pop_first() else {
            return Err(self.wrong("nothing has landed"));
        };
        if at != self.read {
            return Err(self.wrong(&format!("landed at {at}")));
        }
        let n = bytes.len().min(most);
        if n < bytes.len() {
            self.landed.insert(at + n as u64, bytes[n..].to_vec());
        }
        self.engine.landed_taken(n as u64);
        self.deliver(&bytes[..n])
    }

    fn take_message(&mut self, tcp: &mut Pipe, qp: &mut Qp) -> Stepped {
        let Some(Sent { kind, bytes }) = self.inbox.pop_front() else {
            return Ok(false);
        };
        if kind != 0 {
            return self.tell(
                Event::QpMessage {
                    kind,
                    bytes: &bytes,
                },
                tcp,
                qp,
            );
        }
        match self.engine.data(bytes.len()) {
            Keep::Deliver => self.deliver(&bytes)?,
            Keep::Aside => {
                self.aside.extend(bytes);
                true
            }
            Keep::Drop => true,
        };
        self.act(tcp, qp)
    }

    /// Sees that the queue pair broke.
    pub(super) fn notice(&mut self, tcp: &mut Pipe, qp: &mut Qp) -> Stepped {
        if !self.has_qp || !qp.is_broken || self.is_draining {
            return Ok(false);
        }
        self.tell(Event::QpBroken, tcp, qp)
    }

    /// Takes in everything that the queue pair had brought.
    pub(super) fn drain(&mut self, tcp: &mut Pipe, qp: &mut Qp) -> Stepped {
        if !self.is_draining {
            return Ok(false);
        }
        while self.poll(tcp, qp)? {}
        loop {
            while let Source::Landed { .. } = self.engine.source() {
                self.take_landed(usize::MAX)?;
            }
            if !self.take_message(tcp, qp)? {
                break;
            }
        }
        let end = &qp.ends[self.index];
        let count = (end.posted - end.acknowledged) as u32;
        self.engine.handle(Event::QpUnacknowledged(count), self.now);
        self.forget_qp();
        self.tell(Event::QpDrained, tcp, qp)
    }
}
