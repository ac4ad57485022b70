//! The lanes of sources, as sleepers share them.
//!
//! A lane notifies one sleeper at a time: the one that has armed it. Others that need it *stand by*,
//! each on a bell of its own. Who was notified may have other things to do than to sleep again, and
//! then somebody who stands by has to take his place. So there is a *baton*: it goes to a sleeper that
//! disarms a lane, and to one that is rung because he stood by; who has it gives it back by arming the
//! lane again, or passes it on when he goes to work ([`Turn`]).
//!
//! # Why nobody stands by in vain
//! Who stands by puts himself on the lane's list and then tries once more to arm it. Who had it armed
//! disarms it and then looks at the list. If he looks before the other is on it, then he had disarmed
//! before, too, and the other's attempt succeeds or finds a third one, who will look at the list later.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::event::epoll;
use rustix::io::Errno;
use san_base::Signal;
use san_provider::LaneHandle;

/// The lanes that somebody sleeps for.
static SHARED: Mutex<Vec<Weak<SharedLane>>> = Mutex::new(Vec::new());

/// A lane, and who stands by.
pub(super) struct SharedLane {
    lane: LaneHandle,
    standing_by: Mutex<VecDeque<Arc<Signal>>>,
}

impl SharedLane {
    /// The one of this lane.
    pub(super) fn of(lane: LaneHandle) -> Arc<Self> {
        let mut all = SHARED.lock();
        all.retain(|one| one.strong_count() > 0);
        let known = all.iter().filter_map(Weak::upgrade);
        if let Some(known) = known.into_iter().find(|one| one.lane.same_as(&lane)) {
            return known;
        }
        let shared = Arc::new(Self {
            lane,
            standing_by: Mutex::default(),
        });
        all.push(Arc::downgrade(&shared));
        shared
    }

    pub(super) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.lane.fds()
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
    lanes: Vec<Owed>,
}

struct Owed {
    lane: Arc<SharedLane>,
    sleep: Sleep,
    has_baton: bool,
}

impl<'a> Turn<'a> {
    pub(super) fn new(bell: &'a Arc<Signal>) -> Self {
        Self {
            bell,
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
                // Another one has it armed, or this one: either way somebody sees to it.
                Sleep::Armed | Sleep::StandsBy => owed.has_baton = false,
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
    pub(super) fn add(&mut self, lane: LaneHandle, epoll: &OwnedFd, tag: u64) {
        if let Some(place) = self.place(&lane) {
            self.users[place] += 1;
            return;
        }
        let lane = SharedLane::of(lane);
        for fd in lane.fds() {
            let data = epoll::EventData::new_u64(tag);
            let added = epoll::add(epoll, fd, data, epoll::EventFlags::IN);
            // Lanes of one device may share some.
            if let Err(errno) = added
                && errno != Errno::EXIST
            {
                tracing::warn!(%errno, "a lane cannot wake its loop");
            }
        }
        self.lanes.push(lane);
        self.users.push(1);
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
        for fd in gone.fds() {
            let kept = self.lanes.iter().flat_map(|lane| lane.fds());
            if !kept
                .into_iter()
                .any(|one| one.as_raw_fd() == fd.as_raw_fd())
            {
                let _ = epoll::delete(epoll, fd);
            }
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
