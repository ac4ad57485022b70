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
//! of them: that of the loop that armed the lane last. A loop that is alone switches nothing.
//!
//! # Why nobody stands by in vain
//! Who stands by puts himself on the lane's list and then tries once more to arm it. Who had it armed
//! disarms it and then looks at the list. If he looks before the other is on it, then he had disarmed
//! before, too, and the other's attempt succeeds or finds a third one, who will look at the list later.
//! An attempt that finds something has the lane armed for a moment, so who made it looks at the list, too.
//!
//! # Warm and cold
//! Most lanes of a loop with many connections have nothing for it most of the time. So a lane on which
//! the last looks have found nothing is *cold*, and a wait that finds enough elsewhere passes it over
//! ([`Lanes::poll_warm`]). It is looked at when the kernel has its turn, before a wait says that there is
//! nothing, and by arming it before a sleep. What was announced during the sleep makes it warm.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::event::epoll::{self, EventData, EventFlags};
use san_base::Signal;
use san_provider::LaneHandle;

use crate::tcp;

/// The lanes that somebody sleeps for.
static SHARED: Mutex<Vec<Weak<SharedLane>>> = Mutex::new(Vec::new());

/// A lane, and who stands by.
pub(super) struct SharedLane {
    lane: LaneHandle,
    /// The lane's descriptors in one.
    fd: OwnedFd,
    /// The epoll set in which that one is switched on.
    switched_on: Mutex<Weak<OwnedFd>>,
    standing_by: Mutex<VecDeque<Arc<Signal>>>,
}

impl SharedLane {
    /// The one of this lane.
    ///
    /// # Errors
    /// EMFILE, ENFILE or ENOMEM.
    pub(super) fn of(lane: LaneHandle) -> io::Result<Arc<Self>> {
        let mut all = SHARED.lock();
        all.retain(|one| one.strong_count() > 0);
        let known = all.iter().filter_map(Weak::upgrade);
        if let Some(known) = known.into_iter().find(|one| one.lane.same_as(&lane)) {
            return Ok(known);
        }
        let fd = tcp::aside(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        for one in lane.fds() {
            epoll::add(&fd, one, EventData::new_u64(0), EventFlags::IN)?;
        }
        let shared = Arc::new(Self {
            lane,
            fd,
            switched_on: Mutex::new(Weak::new()),
            standing_by: Mutex::default(),
        });
        all.push(Arc::downgrade(&shared));
        Ok(shared)
    }

    /// Readable when the lane wakes who has armed it.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Has the lane wake this epoll set, and no other; none: the caller has a way of its own.
    fn switch_to(&self, to: Option<&Arc<OwnedFd>>, tag: u64) {
        let mut on = self.switched_on.lock();
        let wanted = to.map_or_else(Weak::new, Arc::downgrade);
        if on.ptr_eq(&wanted) {
            return;
        }
        let data = EventData::new_u64(tag);
        if let Some(before) = on.upgrade() {
            // It may have left that set.
            let _ = epoll::modify(&*before, &self.fd, data, EventFlags::empty());
        }
        if let Some(to) = to
            && let Err(errno) = epoll::modify(&**to, &self.fd, data, EventFlags::IN)
        {
            tracing::warn!(%errno, "a lane cannot wake its loop");
        }
        *on = wanted;
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
    epoll: Option<(&'a Arc<OwnedFd>, u64)>,
    lanes: Vec<Owed>,
}

struct Owed {
    lane: Arc<SharedLane>,
    sleep: Sleep,
    has_baton: bool,
}

impl<'a> Turn<'a> {
    pub(super) fn new(bell: &'a Arc<Signal>, epoll: Option<(&'a Arc<OwnedFd>, u64)>) -> Self {
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
        let (bell, (epoll, tag)) = (self.bell, self.epoll.unzip());
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
                    owed.lane.switch_to(epoll, tag.unwrap_or(0));
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

    /// The caller does not sleep any more. `announced` is told the numbers of the lanes that have something.
    pub(super) fn awake(&mut self, mut announced: impl FnMut(usize)) {
        // On a fabric in user space the first is likely to be the one that works for the others: if it went
        // before them, it would have to wake one of them.
        for (number, owed) in self.lanes.iter_mut().enumerate().rev() {
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
                announced(number);
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

/// Looks that find nothing before a lane is cold.
const WARM: u8 = 8;

/// The lanes of a loop, each once.
#[derive(Default)]
pub(super) struct Lanes(Vec<LoopLane>);

/// A lane of one loop.
struct LoopLane {
    lane: Arc<SharedLane>,
    /// Sources that need it.
    users: usize,
    /// Looks until it is cold; 0: it is.
    warmth: u8,
}

impl LoopLane {
    fn poll(&mut self) {
        self.warmth = match self.lane.poll() {
            0 => self.warmth.saturating_sub(1),
            _ => WARM,
        };
    }
}

impl Lanes {
    /// One source more needs this lane: its descriptors are in the set from now on.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM, ENOSPC.
    pub(super) fn add(&mut self, lane: LaneHandle, epoll: &OwnedFd, tag: u64) -> io::Result<()> {
        if let Some(number) = self.number_of(&lane) {
            self.0[number].users += 1;
            return Ok(());
        }
        let lane = SharedLane::of(lane)?;
        let data = EventData::new_u64(tag);
        epoll::add(epoll, lane.fd(), data, EventFlags::empty())?;
        self.0.push(LoopLane {
            lane,
            users: 1,
            warmth: WARM,
        });
        Ok(())
    }

    /// One source less needs it.
    pub(super) fn remove(&mut self, lane: &LaneHandle, epoll: &OwnedFd) {
        let Some(number) = self.number_of(lane) else {
            return;
        };
        self.0[number].users -= 1;
        if self.0[number].users > 0 {
            return;
        }
        let gone = self.0.swap_remove(number).lane;
        let _ = epoll::delete(epoll, gone.fd());
        let mut on = gone.switched_on.lock();
        if on
            .upgrade()
            .is_some_and(|on| std::ptr::eq(&raw const *on, epoll))
        {
            *on = Weak::new();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<SharedLane>> {
        self.0.iter().map(|one| &one.lane)
    }

    /// Polls those that are warm.
    pub(super) fn poll_warm(&mut self) {
        for one in self.0.iter_mut().filter(|one| one.warmth > 0) {
            one.poll();
        }
    }

    /// Polls those that are warm, or one that is not: on a fabric in user space that brings for all of them
    /// what has come.
    pub(super) fn poll_some(&mut self) {
        match self.0.iter().any(|one| one.warmth > 0) {
            true => self.poll_warm(),
            false => self.0.first_mut().into_iter().for_each(LoopLane::poll),
        }
    }

    /// Polls those that are not.
    pub(super) fn poll_cold(&mut self) {
        for one in self.0.iter_mut().filter(|one| one.warmth == 0) {
            one.poll();
        }
    }

    /// The lane with this number of [`Lanes::all`] has something.
    pub(super) fn warm(&mut self, number: usize) {
        if let Some(one) = self.0.get_mut(number) {
            one.warmth = WARM;
        }
    }

    fn number_of(&self, lane: &LaneHandle) -> Option<usize> {
        let mut lanes = self.0.iter();
        lanes.position(|one| one.lane.lane.same_as(lane))
    }
}
