//! The lanes of sources, as sleepers share them.
//!
//! A lane notifies one sleeper at a time: the one that has armed it. Others that need it *stand by*,
//! each on a bell of its own. Who was notified may have other things to do than to sleep again, and
//! then somebody who stands by has to take his place. So there is a *baton*: it goes to a sleeper that
//! disarms a lane, and to one that is rung because he stood by; who has it gives it back by arming the
//! lane again, or passes it on when he goes to work ([`Turn`]).
//!
//! Only the sleeper that has armed a lane is woken by the lane's descriptors. Those are in an epoll set
//! of the lane's own, which is in the epoll set of every loop that needs the lane, but switched on in one
//! of them: that of the loop that armed the lane last. A loop that is alone switches nothing. Lanes that are
//! only watched ([`super::loop_lanes`]) have no part in this.
//!
//! # Why nobody stands by in vain
//! Who stands by puts himself on the lane's list and then tries once more to arm it. Who had it armed
//! disarms it and then looks at the list. If he looks before the other is on it, then he had disarmed
//! before, too, and the other's attempt succeeds or finds a third one, who will look at the list later.
//! An attempt that finds something has the lane armed for a moment, so who made it looks at the list, too.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::event::epoll::{self, EventData, EventFlags};
use san_base::Signal;
use san_provider::LaneHandle;

use super::tags::Ours;
use crate::tcp;

/// The lanes that somebody sleeps for.
static SHARED: Mutex<Vec<Weak<SharedLane>>> = Mutex::new(Vec::new());

/// A lane, and who stands by.
pub(super) struct SharedLane {
    lane: LaneHandle,
    /// What tells it from most others ([`Ours::mark`]).
    mark: u16,
    /// The lane's descriptors in one.
    fd: OwnedFd,
    /// Those of them that tell while it is watched.
    watch_fd: OwnedFd,
    switched_on: Mutex<SwitchedOn>,
    standing_by: Mutex<VecDeque<Arc<Signal>>>,
}

/// What the descriptors do in epoll sets.
struct SwitchedOn {
    /// The set in which the one of all is switched on.
    set: Weak<OwnedFd>,
    /// The fabric's sockets are in it. Each packet wakes the sets that have them, so a lane that nobody sleeps
    /// on does not.
    has_sockets: bool,
}

impl SharedLane {
    /// The one of this lane.
    ///
    /// # Errors
    /// EMFILE, ENFILE or ENOMEM.
    pub(super) fn of(lane: LaneHandle) -> io::Result<Arc<Self>> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let mut all = SHARED.lock();
        all.retain(|one| one.strong_count() > 0);
        let known = all.iter().filter_map(Weak::upgrade);
        if let Some(known) = known.into_iter().find(|one| one.lane.same_as(&lane)) {
            return Ok(known);
        }
        let shared = Arc::new(Self {
            mark: Ours::mark(COUNT.fetch_add(1, Ordering::Relaxed)),
            fd: set_of(&lane.watch_fds())?,
            watch_fd: set_of(&lane.watch_fds())?,
            lane,
            switched_on: Mutex::new(SwitchedOn {
                set: Weak::new(),
                has_sockets: false,
            }),
            standing_by: Mutex::default(),
        });
        all.push(Arc::downgrade(&shared));
        Ok(shared)
    }

    pub(super) fn is(&self, lane: &LaneHandle) -> bool {
        self.lane.same_as(lane)
    }

    pub(super) fn mark(&self) -> u16 {
        self.mark
    }

    /// Readable when the lane wakes who has armed it.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Readable when the lane has something for those who watch it.
    pub(super) fn watch_fd(&self) -> BorrowedFd<'_> {
        self.watch_fd.as_fd()
    }

    /// As [`LaneHandle::watch`].
    pub(super) fn watch(&self) -> bool {
        self.lane.watch()
    }

    /// As [`LaneHandle::unwatch`].
    pub(super) fn unwatch(&self) {
        self.lane.unwatch();
    }

    /// Has the lane wake this epoll set, and no other; none: the caller has a way of its own.
    fn switch_to(&self, to: Option<&Arc<OwnedFd>>) {
        let mut on = self.switched_on.lock();
        let wanted = to.map_or_else(Weak::new, Arc::downgrade);
        if on.has_sockets && on.set.ptr_eq(&wanted) {
            return;
        }
        if !on.has_sockets {
            for socket in self.sockets() {
                if let Err(errno) = epoll::add(&self.fd, socket, EventData::new_u64(0), ON) {
                    tracing::warn!(%errno, "a lane cannot wake who sleeps");
                }
            }
            on.has_sockets = true;
        }
        if on.set.ptr_eq(&wanted) {
            return;
        }
        on.switch(&self.fd, EventFlags::empty());
        on.set = wanted;
        on.switch(&self.fd, ON);
    }

    /// Nobody sleeps on the lane in this epoll set until somebody arms it there again.
    pub(super) fn switch_off(&self, set: &OwnedFd) {
        let mut on = self.switched_on.lock();
        if !on.is_in(set) {
            return;
        }
        on.switch(&self.fd, EventFlags::empty());
        on.set = Weak::new();
        for socket in self.sockets() {
            let _ = epoll::delete(&self.fd, socket);
        }
        on.has_sockets = false;
    }

    /// Its descriptor leaves an epoll set.
    pub(super) fn leave(&self, set: &OwnedFd) {
        let _ = epoll::delete(set, &self.fd);
        let mut on = self.switched_on.lock();
        if on.is_in(set) {
            on.set = Weak::new();
        }
    }

    /// What a fabric in user space reads, if this is one.
    fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let own = self.lane.watch_fds().map(|fd| fd.as_raw_fd());
        let all = self.lane.fds().into_iter();
        all.filter(move |fd| !own.contains(&fd.as_raw_fd()))
    }

    /// Whether a thread sleeps on it.
    pub(super) fn is_armed(&self) -> bool {
        self.lane.is_armed()
    }

    /// How many messages have come.
    pub(super) fn received(&self) -> u64 {
        self.lane.received()
    }

    /// How much came.
    pub(super) fn poll(&self) -> usize {
        self.lane.poll()
    }

    /// The caller is about to sleep.
    fn arm(&self, bell: &Arc<Signal>) -> Sleep {
        if self.lane.arm() {
            return Sleep::Armed;
        }
        if !self.lane.is_armed() {
            return Sleep::No;
        }
        self.standing_by.lock().push_back(Arc::clone(bell));
        if self.lane.arm() {
            self.stand_down(bell);
            return Sleep::Armed;
        }
        if !self.lane.is_armed() {
            self.stand_down(bell);
            return Sleep::No;
        }
        Sleep::StandsBy
    }

    /// Takes a bell from the list; `false`: it is not there any more, since it was rung.
    fn stand_down(&self, bell: &Arc<Signal>) -> bool {
        let mut all = self.standing_by.lock();
        let place = all.iter().position(|one| Arc::ptr_eq(one, bell));
        place.is_some_and(|place| all.remove(place).is_some())
    }

    /// Rings for the one that has stood by longest.
    fn ring_next(&self) {
        let next = self.standing_by.lock().pop_front();
        if let Some(bell) = next {
            bell.set();
        }
    }
}

impl SwitchedOn {
    fn is_in(&self, set: &OwnedFd) -> bool {
        let on = self.set.upgrade();
        on.is_some_and(|on| std::ptr::eq(&raw const *on, set))
    }

    /// In the set where it is switched on.
    fn switch(&self, fd: &OwnedFd, flags: EventFlags) {
        let Some(set) = self.set.upgrade() else {
            return;
        };
        let data = EventData::new_u64(Ours::Armed.data());
        // It may have left that set.
        if let Err(errno) = epoll::modify(&*set, fd, data, flags)
            && flags == ON
        {
            tracing::warn!(%errno, "a lane cannot wake its loop");
        }
    }
}

const ON: EventFlags = EventFlags::IN;

/// Several descriptors as one.
fn set_of(fds: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
    let set = tcp::aside(epoll::create(epoll::CreateFlags::CLOEXEC)?);
    for fd in fds {
        epoll::add(&set, fd, EventData::new_u64(0), ON)?;
    }
    Ok(set)
}

/// How a thread may sleep on a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sleep {
    /// Something came.
    No,
    Armed,
    StandsBy,
}

/// Whether a thread may sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Armed {
    /// Nothing has come.
    MaySleep,
    /// It came on the lane with this number of those that were to be armed.
    SomethingCame { number: usize },
}

/// One wait of a thread: what it owes the others who sleep on its lanes.
pub(super) struct Turn<'a> {
    bell: &'a Arc<Signal>,
    /// The epoll set that the lanes wake; none: the caller sleeps on their descriptors.
    epoll: Option<&'a Arc<OwnedFd>>,
    lanes: Vec<Owed>,
}

struct Owed {
    lane: Arc<SharedLane>,
    sleep: Sleep,
    has_baton: bool,
}

impl<'a> Turn<'a> {
    pub(super) fn new(bell: &'a Arc<Signal>, epoll: Option<&'a Arc<OwnedFd>>) -> Self {
        Self {
            bell,
            epoll,
            lanes: Vec::new(),
        }
    }

    /// Asks for notification on all lanes, and says whether the caller may sleep. Where something has come,
    /// the lanes after that one are not asked.
    pub(super) fn arm<'l>(
        &mut self,
        lanes: impl IntoIterator<Item = &'l Arc<SharedLane>>,
    ) -> Armed {
        let (bell, epoll) = (self.bell, self.epoll);
        for (number, lane) in lanes.into_iter().enumerate() {
            let owed = self.owed(number, lane);
            owed.sleep = owed.lane.arm(bell);
            match owed.sleep {
                Sleep::No => {
                    owed.has_baton = true;
                    return Armed::SomethingCame { number };
                }
                Sleep::Armed => {
                    owed.has_baton = false;
                    owed.lane.switch_to(epoll);
                }
                // Another one has it armed, and sees to it.
                Sleep::StandsBy => owed.has_baton = false,
            }
        }
        Armed::MaySleep
    }

    /// What is owed for this lane, which is likely to have this number.
    fn owed(&mut self, number: usize, lane: &Arc<SharedLane>) -> &mut Owed {
        let is_it = |owed: &Owed| Arc::ptr_eq(&owed.lane, lane);
        let place = match self.lanes.get(number).is_some_and(is_it) {
            true => Some(number),
            // As long as each is new, it is none of those before it.
            false if number == self.lanes.len() => None,
            false => self.lanes.iter().position(is_it),
        };
        let place = place.unwrap_or_else(|| {
            self.lanes.push(Owed {
                lane: Arc::clone(lane),
                sleep: Sleep::No,
                has_baton: false,
            });
            self.lanes.len() - 1
        });
        &mut self.lanes[place]
    }

    /// The lanes that notify this thread.
    pub(super) fn armed(&self) -> impl Iterator<Item = &SharedLane> {
        let armed = self.lanes.iter().filter(|owed| owed.sleep == Sleep::Armed);
        armed.map(|owed| &*owed.lane)
    }

    /// The caller does not sleep any more. `announced` is told of the lanes that have something.
    pub(super) fn awake(&mut self, mut announced: impl FnMut(&Arc<SharedLane>)) {
        // On a fabric in user space the first is likely to be the one that works for the others: if it went
        // before them, it would have to wake one of them.
        for owed in self.lanes.iter_mut().rev() {
            let has_something = match std::mem::replace(&mut owed.sleep, Sleep::No) {
                Sleep::No => false,
                Sleep::Armed => {
                    owed.has_baton = true;
                    owed.lane.lane.disarm()
                }
                Sleep::StandsBy => {
                    let was_rung = !owed.lane.stand_down(self.bell);
                    owed.has_baton |= was_rung;
                    was_rung
                }
            };
            if has_something {
                announced(&owed.lane);
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.awake(|_| ());
        for owed in self.lanes.iter().filter(|owed| owed.has_baton) {
            owed.lane.ring_next();
        }
    }
}
