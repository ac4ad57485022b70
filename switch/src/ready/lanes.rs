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

    pub(super) fn poll(&self) {
        self.lane.poll();
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

    /// Asks for notification on all lanes. `true`: nothing has come, and the caller may sleep.
    pub(super) fn arm(&mut self, lanes: &[Arc<SharedLane>]) -> bool {
        let mut may_sleep = true;
        for lane in lanes {
            let place = self
                .lanes
                .iter()
                .position(|owed| Arc::ptr_eq(&owed.lane, lane))
                .unwrap_or_else(|| {
                    self.lanes.push(Owed {
                        lane: Arc::clone(lane),
                        sleep: Sleep::No,
                        has_baton: false,
                    });
                    self.lanes.len() - 1
                });
            let owed = &mut self.lanes[place];
            owed.sleep = owed.lane.arm(self.bell);
            match owed.sleep {
                Sleep::No => may_sleep = false,
                Sleep::Armed => {
                    owed.has_baton = false;
                    let (epoll, tag) = self.epoll.unzip();
                    owed.lane.switch_to(epoll, tag.unwrap_or(0));
                }
                // Another one has it armed, and sees to it.
                Sleep::StandsBy => owed.has_baton = false,
            }
        }
        may_sleep
    }

    /// The lanes that notify this thread.
    pub(super) fn armed(&self) -> impl Iterator<Item = &SharedLane> {
        let armed = self.lanes.iter().filter(|owed| owed.sleep == Sleep::Armed);
        armed.map(|owed| &*owed.lane)
    }

    /// The caller does not sleep any more.
    pub(super) fn awake(&mut self) {
        for owed in &mut self.lanes {
            match std::mem::replace(&mut owed.sleep, Sleep::No) {
                Sleep::No => {}
                Sleep::Armed => {
                    owed.lane.lane.disarm();
                    owed.has_baton = true;
                }
                Sleep::StandsBy => owed.has_baton |= !owed.lane.stand_down(self.bell),
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.awake();
        for owed in self.lanes.iter().filter(|owed| owed.has_baton) {
            owed.lane.ring_next();
        }
    }
}

/// The lanes of a loop.
#[derive(Default)]
pub(super) struct Lanes {
    /// Each once, with the number of sources that need it beside it.
    lanes: Vec<Arc<SharedLane>>,
    users: Vec<usize>,
}

impl Lanes {
    /// One source more needs this lane: its descriptors are in the set from now on.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM, ENOSPC.
    pub(super) fn add(&mut self, lane: LaneHandle, epoll: &OwnedFd, tag: u64) -> io::Result<()> {
        if let Some(place) = self.place(&lane) {
            self.users[place] += 1;
            return Ok(());
        }
        let lane = SharedLane::of(lane)?;
        let data = EventData::new_u64(tag);
        epoll::add(epoll, lane.fd(), data, EventFlags::empty())?;
        self.lanes.push(lane);
        self.users.push(1);
        Ok(())
    }

    /// One source less needs it.
    pub(super) fn remove(&mut self, lane: &LaneHandle, epoll: &OwnedFd) {
        let Some(place) = self.place(lane) else {
            return;
        };
        self.users[place] -= 1;
        if self.users[place] > 0 {
            return;
        }
        self.users.swap_remove(place);
        let gone = self.lanes.swap_remove(place);
        let _ = epoll::delete(epoll, gone.fd());
        let mut on = gone.switched_on.lock();
        if on
            .upgrade()
            .is_some_and(|on| std::ptr::eq(&raw const *on, epoll))
        {
            *on = Weak::new();
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> &[Arc<SharedLane>] {
        &self.lanes
    }

    fn place(&self, lane: &LaneHandle) -> Option<usize> {
        self.lanes.iter().position(|one| one.lane.same_as(lane))
    }
}
