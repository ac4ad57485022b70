//! A program's connection that begins on TCP and may move: whose its calls are.
//!
//! Most calls are the kernel's, on the program's own descriptor, and are only counted. When the
//! connection has carried enough, the library takes it ([`Upgrading::begin`]): from then on each call
//! goes through a [`MovingStream`], which listens or dials for a queue pair. When that comes to
//! nothing, or the stream has come back to TCP, the kernel gets it again.
//!
//! # Why no byte is lost between the two
//! [`Gate`] counts the calls that are under way. Hands change only while none is, or none but the one
//! that asks. The library takes the connection only if the kernel has moved as many bytes as were
//! counted: bytes that others have read or written, by ways that the hooks do not see, would put every
//! position wrong.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwapOption, Guard};
use parking_lot::Mutex;
use rustix::io::Errno;
use san_stream::{Passed, Role};
use socket2::Socket;
use verbs_shim::fork::ForkGuard;

use super::epolls::{Counts, Kernel};
use super::shared::Record;
use super::stays::{Stays, Why};
use super::{Program, is_nonblocking};
use crate::net::connection::Connection;
use crate::tcp;
use crate::upgrade::mover::{Past, Phase};
use crate::upgrade::request::BEGINNING;
use crate::upgrade::stream::{Follower, MovingStream};

/// So many times the usual bytes or turns a connection must have carried before the library takes it:
/// the connecting end for the first time, for the second, and the accepting end.
const CONNECTS: [u32; 2] = [1, 16];
const ACCEPTS: [u32; 3] = [2, 8, 64];
/// An invitation that nobody has taken is given up after this time and 256 messages.
const INVITATION: Duration = Duration::from_secs(10);
const INVITED_MESSAGES: u64 = 256;
/// How long a connection may take to come back to TCP when a call asks for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// The calls under way, and whose they are.
#[derive(Debug, Default)]
struct Gate(AtomicU32);

/// The library has the connection.
const OURS: u32 = 1 << 31;

impl Gate {
    /// A call begins. What held before it.
    #[inline]
    fn enter(&self) -> u32 {
        self.0.fetch_add(1, Ordering::AcqRel)
    }

    /// A call ends. What holds after it.
    #[inline]
    fn leave(&self) -> u32 {
        self.0.fetch_sub(1, Ordering::AcqRel) - 1
    }

    fn is_ours(&self) -> bool {
        self.0.load(Ordering::Acquire) & OURS != 0
    }

    fn change(&self, from: u32, to: u32) -> bool {
        self.0
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
}

/// Whose a call is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whose {
    Kernels,
    Ours,
}

/// What was counted while the kernel had the connection.
#[derive(Debug, Default)]
struct Counted {
    read: AtomicU64,
    written: AtomicU64,
    turns: AtomicU32,
    was_read: AtomicBool,
    /// The first bytes of each direction are known.
    has_beginnings: AtomicBool,
    beginnings: Mutex<Beginnings>,
    /// What the kernel had moved when the counting began.
    base: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Beginnings {
    written: Vec<u8>,
    read: Vec<u8>,
}

/// Whose stream it is.
pub(super) trait Host: Follower {
    /// A connection whose socket the kernel had is used from now on. `mode`: it is nonblocking.
    fn prepare(self: Arc<Self>, connection: &Connection, fd: BorrowedFd<'_>, mode: bool);
}

/// See the module.
pub(super) struct Upgrading {
    program: &'static Program,
    role: Role,
    since: Instant,
    gate: Gate,
    counted: Counted,
    /// It has carried enough.
    is_due: AtomicBool,
    /// Whether it stays on TCP for good.
    stays: Stays,
    attempts: AtomicU32,
    /// Its peer has been dialled in vain.
    was_dialled: AtomicBool,
    /// Not before: its peer's host is left alone. Milliseconds since it began.
    not_before: AtomicU64,
    /// How often it had moved when it was given back.
    ups: AtomicU64,
    /// Its peer has answered, and no move was finished.
    was_answered: AtomicBool,
    /// There is one while the library has it, and from the first excursion on.
    moving: ArcSwapOption<ForkGuard<Moving>>,
    taken: Mutex<Option<Instant>>,
    /// Held by who changes hands.
    changing: Mutex<()>,
    /// The number of the descriptor that the stream has of its own.
    aside: AtomicI32,
    /// It has had one. Who has the stream at that moment keeps the file open, if only for a moment longer.
    had_aside: AtomicBool,
    has_moved: AtomicBool,
    /// Its parent has it, and cannot be asked for it.
    is_lost: AtomicBool,
    record: OnceLock<&'static Record>,
}

/// A connection that is a [`MovingStream`].
pub(super) struct Moving {
    pub(super) connection: Connection,
    pub(super) stream: Arc<MovingStream>,
}

impl Upgrading {
    pub(super) fn new(program: &'static Program, role: Role) -> Self {
        let upgrading = Self {
            program,
            role,
            since: Instant::now(),
            gate: Gate::default(),
            counted: Counted::default(),
            is_due: AtomicBool::new(false),
            stays: Stays::default(),
            attempts: AtomicU32::new(0),
            was_dialled: AtomicBool::new(false),
            not_before: AtomicU64::new(0),
            ups: AtomicU64::new(0),
            was_answered: AtomicBool::new(false),
            moving: ArcSwapOption::empty(),
            taken: Mutex::new(None),
            changing: Mutex::new(()),
            aside: AtomicI32::new(-1),
            had_aside: AtomicBool::new(false),
            has_moved: AtomicBool::new(false),
            is_lost: AtomicBool::new(false),
            record: OnceLock::new(),
        };
        *upgrading.counted.base.lock() = upgrading.start();
        upgrading
    }

    /// What the kernel has counted of a new connection: the SYN of the end that connects.
    fn start(&self) -> Counts {
        Counts {
            written: u64::from(self.role == Role::Connector),
            read: 0,
        }
    }

    /// Whether the library has it.
    pub(super) fn is_ours(&self) -> bool {
        self.gate.is_ours()
    }

    /// The stream, if there is one. What it says counts only while [`Upgrading::is_ours`].
    pub(super) fn moving(&self) -> Guard<Option<Arc<ForkGuard<Moving>>>> {
        let moving = self.moving.load();
        if moving.is_some() || !self.is_ours() {
            return moving;
        }
        // It is being made.
        drop(self.changing.lock());
        self.moving.load()
    }

    fn phase(&self) -> Phase {
        let moving = self.moving.load();
        let phase = moving.as_ref().map(|moving| moving.stream.phase());
        phase.unwrap_or(Phase::Kernel)
    }

    /// What the kernel's descriptor is ready for says nothing.
    pub(super) fn is_away(&self) -> bool {
        self.is_ours() && self.phase() == Phase::Away
    }

    /// A call begins; [`Upgrading::end`] follows.
    ///
    /// # Errors
    /// ENOTCONN: another process has moved it, and does not give it back.
    #[inline]
    pub(super) fn begin(
        &self,
        fd: RawFd,
        host: impl FnOnce() -> Arc<dyn Host>,
    ) -> io::Result<Whose> {
        if let Some(record) = self.record.get() {
            record.touch()?;
        } else if self.is_lost.load(Ordering::Relaxed) {
            return Err(Errno::NOTCONN.into());
        }
        let before = self.gate.enter();
        if before & OURS != 0 {
            return Ok(Whose::Ours);
        }
        if before == 0 && self.is_due.load(Ordering::Relaxed) && self.take(&host(), fd) {
            return Ok(Whose::Ours);
        }
        Ok(Whose::Kernels)
    }

    /// A call ends.
    #[inline]
    pub(super) fn end(&self) {
        if self.gate.leave() == OURS {
            self.try_release();
        }
    }

    /// The kernel has read or written for the program.
    #[inline]
    pub(super) fn note<'a>(
        &self,
        is_read: bool,
        bytes: usize,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) {
        let counted = &self.counted;
        let (direction, turned) = match is_read {
            true => {
                counted.was_read.store(true, Ordering::Relaxed);
                (&counted.read, false)
            }
            false => (
                &counted.written,
                counted.was_read.load(Ordering::Relaxed)
                    && counted.was_read.swap(false, Ordering::Relaxed),
            ),
        };
        direction.fetch_add(bytes as u64, Ordering::Relaxed);
        if turned {
            counted.turns.fetch_add(1, Ordering::Relaxed);
        }
        if !counted.has_beginnings.load(Ordering::Relaxed) {
            self.note_beginning(is_read, bytes, pieces);
        }
        if !self.stays.is_set() && !self.is_due.load(Ordering::Relaxed) {
            self.look_whether_due();
        }
    }

    fn note_beginning<'a>(
        &self,
        is_read: bool,
        mut bytes: usize,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) {
        let mut beginnings = self.counted.beginnings.lock();
        let Beginnings { written, read } = &mut *beginnings;
        let ours = if is_read { &mut *read } else { &mut *written };
        for piece in pieces {
            let room = BEGINNING - ours.len().min(BEGINNING);
            let most = piece.len().min(bytes).min(room);
            ours.extend_from_slice(&piece[..most]);
            bytes -= piece.len().min(bytes);
            if bytes == 0 || room == 0 {
                break;
            }
        }
        let is_full = written.len() == BEGINNING && read.len() == BEGINNING;
        self.counted
            .has_beginnings
            .store(is_full, Ordering::Relaxed);
        let is_short = |known: &[u8], counted: &AtomicU64| {
            (known.len() as u64) < counted.load(Ordering::Relaxed).min(BEGINNING as u64)
        };
        let counted = &self.counted;
        if is_short(written, &counted.written) || is_short(read, &counted.read) {
            // Bytes that nobody can prove.
            self.stays.set(Why::Uncounted);
        }
    }

    fn look_whether_due(&self) {
        let factors = match self.role {
            Role::Connector => &CONNECTS[..],
            Role::Acceptor => &ACCEPTS[..],
        };
        let attempts = self.attempts.load(Ordering::Relaxed);
        let Some(factor) = factors.get(attempts as usize) else {
            return self.stays.set(self.why_unmoved());
        };
        let counted = &self.counted;
        let bytes = counted.read.load(Ordering::Relaxed) + counted.written.load(Ordering::Relaxed);
        let turns = counted.turns.load(Ordering::Relaxed);
        let wanted = self.program.thresholds();
        let is_enough = bytes >= wanted.bytes.saturating_mul(u64::from(*factor))
            || turns >= wanted.turns.saturating_mul(*factor)
            || attempts == 0 && turns >= wanted.old_turns && self.since.elapsed() >= wanted.age;
        if is_enough && self.age() >= self.not_before.load(Ordering::Relaxed) {
            self.is_due.store(true, Ordering::Relaxed);
        }
    }

    /// Milliseconds since it began.
    fn age(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Why none of its attempts has moved it.
    fn why_unmoved(&self) -> Why {
        match self.was_answered.load(Ordering::Relaxed) {
            true => Why::Unfinished,
            false => Why::Unanswered,
        }
    }

    /// What the last attempt says of the next ones.
    fn note_attempt(&self, stream: &MovingStream) {
        let ups = stream.carrying().ups;
        if self.ups.swap(ups, Ordering::Relaxed) < ups {
            // It may move again as if for the first time.
            self.attempts.store(0, Ordering::Relaxed);
            return;
        }
        if stream.was_dialled() {
            self.was_dialled.store(true, Ordering::Relaxed);
        }
        if let Some(pause) = stream.pause() {
            // Nobody was asked in the end.
            let before = self.attempts.load(Ordering::Relaxed);
            self.attempts
                .store(before.saturating_sub(1), Ordering::Relaxed);
            let pause = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            self.not_before
                .store(self.age().saturating_add(pause), Ordering::Relaxed);
        }
    }

    /// The library takes the connection, in the one call that is under way.
    #[cold]
    fn take(&self, host: &Arc<dyn Host>, fd: RawFd) -> bool {
        let Some(_changing) = self.changing.try_lock() else {
            return false;
        };
        if self.stays.is_set() || !self.gate.change(1, OURS | 1) {
            return false;
        }
        self.is_due.store(false, Ordering::Relaxed);
        self.attempts.fetch_add(1, Ordering::Relaxed);
        let taken = self.try_take(host, fd);
        if let Err((stays, why)) = &taken {
            if self.moving.load().is_none() {
                self.aside.store(-1, Ordering::Relaxed);
            }
            self.gate.0.fetch_and(!OURS, Ordering::AcqRel);
            self.stays.set(*stays);
            if let Some(record) = self.record.get() {
                record.disown();
            }
            tracing::debug!(fd, why, "a connection stays on TCP");
        }
        taken.is_ok()
    }

    fn try_take(&self, host: &Arc<dyn Host>, fd: RawFd) -> Result<(), (Why, &'static str)> {
        let switch = self
            .program
            .switch()
            .ok_or((Why::NoWay, "there is no SAN"))?;
        let fd = self
            .program
            .kernel
            .borrow(fd)
            .ok_or((Why::Uncounted, "it is closed"))?;
        if self.record.get().is_some_and(|record| !record.own()) {
            return Err((Why::Shared, "other processes use it"));
        }
        self.check_counts(fd).map_err(|why| (Why::Uncounted, why))?;
        let past = self.past();
        let moving = self.moving.load_full();
        let moving = match moving {
            Some(moving) => moving,
            None => {
                let system = |_| (Why::NoWay, "no descriptor is left");
                let copy = rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(system)?;
                let copy = tcp::aside(copy);
                self.aside.store(copy.as_raw_fd(), Ordering::Relaxed);
                self.had_aside.store(true, Ordering::Relaxed);
                let adopted = switch.adopt_stream(Socket::from(copy), self.role);
                let connection = adopted
                    .ok()
                    .flatten()
                    .ok_or((Why::NoWay, "the SAN has no way there"))?;
                let stream = Arc::clone(connection.moving().ok_or((Why::NoWay, "it cannot move"))?);
                let follower: Weak<dyn Follower> = Arc::downgrade(host) as Weak<dyn Follower>;
                stream.follow(Some(follower));
                Arc::new(ForkGuard::new(Moving { connection, stream }))
            }
        };
        Arc::clone(host).prepare(&moving.connection, fd, is_nonblocking(fd).unwrap_or(false));
        *self.taken.lock() = Some(Instant::now());
        self.moving.store(Some(Arc::clone(&moving)));
        moving.stream.passed(&past);
        Ok(())
    }

    /// The kernel has moved what was counted here, and nothing else.
    fn check_counts(&self, fd: BorrowedFd<'_>) -> Result<(), &'static str> {
        let base = *self.counted.base.lock();
        let expected = Counts {
            written: base.written + self.counted.written.load(Ordering::Relaxed),
            read: base.read + self.counted.read.load(Ordering::Relaxed),
        };
        // The kernel counts in two calls; an acknowledgement may come in between.
        let found = (0..4).any(|_| self.program.kernel.tcp_counts(fd) == Some(expected));
        found
            .then_some(())
            .ok_or("bytes went past the library, or the peer has ended")
    }

    /// What was counted; the counting begins anew.
    fn past(&self) -> Past {
        let counted = &self.counted;
        let mut beginnings = counted.beginnings.lock();
        let past = Past {
            passed: Passed {
                read: counted.read.swap(0, Ordering::Relaxed),
                written: counted.written.swap(0, Ordering::Relaxed),
                turns: counted.turns.swap(0, Ordering::Relaxed),
                is_old: self.since.elapsed() >= self.program.thresholds().age,
            },
            written: std::mem::take(&mut beginnings.written),
            read: std::mem::take(&mut beginnings.read),
        };
        counted.has_beginnings.store(true, Ordering::Relaxed);
        past
    }

    /// The kernel gets it again, if nothing of a change is under way and no call either.
    fn try_release(&self) {
        match self.phase() {
            Phase::Kernel => {}
            Phase::Connecting => return self.look_after_invitation(),
            Phase::Away => return,
        }
        let Some(_changing) = self.changing.try_lock() else {
            return;
        };
        let Some(moving) = self.moving.load_full() else {
            return;
        };
        let has_moved = moving.stream.carrying().ups > 0;
        let stays = moving.stream.is_for_good();
        let was_answered = !has_moved && moving.stream.was_answered();
        self.was_answered.store(was_answered, Ordering::Relaxed);
        let is_released = moving.stream.release(|came| {
            let counts = match has_moved {
                true => self
                    .program
                    .kernel
                    .tcp_counts(moving.connection.companion_fd()),
                false => Some(self.start()),
            };
            *self.counted.base.lock() = counts.unwrap_or_default();
            let has_beginnings = came.written.len() >= BEGINNING && came.read.len() >= BEGINNING;
            if !has_moved {
                let Passed { read, written, .. } = came.passed;
                self.counted.read.store(read, Ordering::Relaxed);
                self.counted.written.store(written, Ordering::Relaxed);
                let mut beginnings = self.counted.beginnings.lock();
                (beginnings.written, beginnings.read) = (came.written, came.read);
                self.counted.has_beginnings.store(false, Ordering::Relaxed);
            }
            // Of what went over the SAN not all beginnings are known.
            if stays || counts.is_none() || has_moved && !has_beginnings {
                self.stays.set(self.why_unmoved());
            }
            let is_released = self.gate.change(OURS, 0);
            if is_released && let Some(record) = self.record.get() {
                record.disown();
            }
            is_released
        });
        if is_released {
            self.note_attempt(&moving.stream);
        }
        if is_released && (!has_moved || stays) {
            self.aside.store(-1, Ordering::Relaxed);
            self.moving.store(None);
        }
    }

    /// Nobody has dialled for so long that nobody will.
    fn look_after_invitation(&self) {
        let is_late = (*self.taken.lock()).is_some_and(|since| since.elapsed() > INVITATION);
        if self.role != Role::Connector || !is_late {
            return;
        }
        let moving = self.moving.load_full();
        if let Some(moving) = moving
            && moving.stream.counters().snapshot().messages_sent > INVITED_MESSAGES
        {
            moving.connection.move_to_tcp(true);
        }
    }

    /// The kernel gets it for good: a call needs what it alone can do. `false`: not in time.
    pub(super) fn to_kernel(&self) -> bool {
        self.stays.set(Why::KernelCall);
        let until = Instant::now() + PATIENCE;
        while self.is_ours() {
            let Some(moving) = self.moving().as_ref().map(Arc::clone) else {
                continue;
            };
            moving.connection.move_to_tcp(true);
            // It does what is to be done.
            moving.connection.events();
            drop(moving);
            self.try_release();
            if Instant::now() > until {
                return !self.is_ours();
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        true
    }

    /// It has moved to the SAN, for the first time.
    fn count_move(&self) {
        let has_moved = self.moving.load().as_ref().is_some_and(|moving| {
            moving.stream.carrying().is_san && !self.has_moved.swap(true, Ordering::Relaxed)
        });
        if has_moved {
            self.program.tally.moved(self.role == Role::Acceptor);
        }
    }

    /// The stream's phase may be another one.
    pub(super) fn followed(&self) {
        self.count_move();
        if self.gate.0.load(Ordering::Acquire) == OURS {
            self.try_release();
        }
    }

    pub(super) fn is_shared(&self) -> bool {
        self.record.get().is_some()
    }

    pub(super) fn wants_tcp(&self) -> bool {
        self.record.get().is_some_and(|record| record.is_wanted())
    }

    /// The process is about to fork, for the time of this number.
    pub(super) fn before_fork(&self, fork: u32) {
        if let Some(record) = self.record.get() {
            if record.prepare(fork) {
                record.add_holder();
            }
            return;
        }
        let counted = &self.counted;
        let is_ours = self.is_ours();
        let is_used = is_ours
            || self.has_moved.load(Ordering::Relaxed)
            || counted.read.load(Ordering::Relaxed) + counted.written.load(Ordering::Relaxed) > 0;
        match Record::take(self.program.kernel.records(), is_used, is_ours) {
            Some(record) => {
                record.prepare(fork);
                let _ = self.record.set(record);
            }
            None => self.stays.set(Why::Shared),
        }
        if is_ours && let Some(moving) = self.moving.load().as_ref() {
            moving.stream.attend_soon();
        }
    }

    /// This process is a child: what its parent had is its parent's. Nothing is written that is right already: the
    /// first write to a page that its parent has, too, copies the page.
    pub(super) fn in_child(&self) {
        self.program.tally.tracks(self.role);
        let before = self.gate.0.load(Ordering::Acquire);
        if before != 0 {
            self.gate.0.store(0, Ordering::Release);
        }
        let was_ours = before & OURS != 0;
        let has_record = self.record.get().is_some();
        if was_ours && !has_record {
            self.is_lost.store(true, Ordering::Relaxed);
        }
        if !has_record || was_ours || self.moving.load().is_some() {
            self.stays.set(Why::Shared);
        }
        let aside = self.aside.load(Ordering::Relaxed);
        if aside >= 0 {
            self.aside.store(-1, Ordering::Relaxed);
            self.program.kernel.close(aside);
        }
    }

    /// When it was connected, or accepted.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// Bytes that the kernel has sent and received for the program.
    pub(super) fn carried(&self) -> (u64, u64) {
        let Counted { written, read, .. } = &self.counted;
        (
            written.load(Ordering::Relaxed),
            read.load(Ordering::Relaxed),
        )
    }

    /// Why it has not moved.
    pub(super) fn why_on_tcp(&self) -> Why {
        let is_tried =
            self.attempts.load(Ordering::Relaxed) > 0 || self.was_dialled.load(Ordering::Relaxed);
        let otherwise = match is_tried {
            true => Why::Unanswered,
            false => Why::Short,
        };
        self.stays.why().unwrap_or(otherwise)
    }

    pub(super) fn kernel(&self) -> &'static dyn Kernel {
        self.program.kernel
    }

    /// Whether the stream has, or has had, a descriptor of its own: the file may be open when the program has
    /// closed its number.
    pub(super) fn had_aside(&self) -> bool {
        self.had_aside.load(Ordering::Relaxed)
    }
}

impl Drop for Upgrading {
    /// The program's last number of it is closed.
    fn drop(&mut self) {
        if !self.has_moved.load(Ordering::Relaxed) {
            self.program.tally.stayed(self.why_on_tcp());
        }
        let Some(record) = self.record.get() else {
            return;
        };
        // A child that still has it has a whole TCP connection.
        self.to_kernel();
        record.close();
    }
}
