//! The lanes of a loop, warm and cold.
//!
//! Most lanes of a loop with many connections have nothing for it most of the time. So a lane on which the
//! last looks have found nothing, and nobody else has either, is *cold*: no wait looks at it, and no sleep arms it.
//! It is *watched* instead ([`LaneHandle::watch`]), and announces itself: its descriptors are switched on in the
//! loop's epoll set for as long as it is cold. So cold lanes cost a wait nothing, however many there are.
//!
//! Any number of loops may watch a lane. What makes it readable makes it warm for each of them, and a lane that
//! others keep busy stays warm, so that its watchers are not woken by every message of others.
//!
//! The last warm lane stays warm: on a fabric in user space a poll or a sleep on one lane does the work of all.
//!
//! # Why nothing is lost
//! Watching begins with a poll, and goes on until the loop has taken what was announced; then the lane is polled.
//! What others take from its channel they poll for the loop (`provider/src/transfer/lane/poller.rs`). A lane that
//! becomes warm is armed by no thread of the loop that sleeps already, so one of those is woken, and arms it
//! (`event_loop.rs`). A lane that a thread has armed does not become cold meanwhile.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use san_provider::LaneHandle;

use super::lanes::SharedLane;
use super::tags::Ours;

/// Looks that find nothing before a lane is cold.
const WARM: u8 = 8;

/// The lanes of a loop, each once.
pub(super) struct Lanes {
    epoll: Arc<OwnedFd>,
    /// The warm ones first; the others are watched.
    lanes: Vec<LoopLane>,
    warm: usize,
}

struct LoopLane {
    shared: Arc<SharedLane>,
    /// Sources that need it.
    users: usize,
    /// Looks until it is cold.
    warmth: u8,
    /// Messages that had come at the last look.
    received: u64,
}

impl LoopLane {
    fn poll(&mut self) {
        let came = self.shared.poll();
        let received = self.shared.received();
        let is_quiet = came == 0 && received == self.received;
        self.received = received;
        self.warmth = match is_quiet {
            true => self.warmth.saturating_sub(1),
            false => WARM,
        };
    }
}

impl Lanes {
    /// None yet, for this epoll set.
    pub(super) fn new(epoll: &Arc<OwnedFd>) -> Self {
        Self {
            epoll: Arc::clone(epoll),
            lanes: Vec::new(),
            warm: 0,
        }
    }

    /// One source more needs this lane: its descriptors are in the set from now on.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM, ENOSPC.
    pub(super) fn add(&mut self, lane: LaneHandle) -> io::Result<()> {
        if let Some(number) = self.number(&lane) {
            self.lanes[number].users += 1;
            return Ok(());
        }
        let lane = SharedLane::of(lane)?;
        let off = EventFlags::empty();
        let data = EventData::new_u64(Ours::Armed.data());
        epoll::add(&*self.epoll, lane.fd(), data, off)?;
        if let Err(errno) = epoll::add(&*self.epoll, lane.watch_fd(), watched(&lane), off) {
            let _ = epoll::delete(&*self.epoll, lane.fd());
            return Err(errno.into());
        }
        self.lanes.push(LoopLane {
            received: lane.received(),
            shared: lane,
            users: 1,
            warmth: WARM,
        });
        let last = self.lanes.len() - 1;
        self.lanes.swap(last, self.warm);
        self.warm += 1;
        Ok(())
    }

    /// One source less needs it.
    pub(super) fn remove(&mut self, lane: &LaneHandle) {
        let Some(mut number) = self.number(lane) else {
            return;
        };
        self.lanes[number].users -= 1;
        if self.lanes[number].users > 0 {
            return;
        }
        let is_watched = number >= self.warm;
        if !is_watched {
            self.warm -= 1;
            self.lanes.swap(number, self.warm);
            number = self.warm;
        }
        let gone = self.lanes.swap_remove(number).shared;
        if is_watched {
            gone.unwatch();
        }
        let _ = epoll::delete(&*self.epoll, gone.watch_fd());
        gone.leave(&self.epoll);
    }

    /// Those that are polled and armed.
    pub(super) fn warm(&self) -> impl Iterator<Item = &Arc<SharedLane>> {
        self.lanes[..self.warm].iter().map(|own| &own.shared)
    }

    /// Polls those that are warm. If none is, one that is not: on a fabric in user space that brings for all of
    /// them what has come.
    pub(super) fn poll(&mut self) {
        if self.warm == 0
            && let Some(first) = self.lanes.first_mut()
        {
            first.shared.poll();
        }
        let mut number = 0;
        while number < self.warm {
            self.lanes[number].poll();
            if self.lanes[number].warmth > 0 || !self.cool(number) {
                number += 1;
            }
        }
    }

    /// The warm lane with this number becomes cold, if it can; then another one has its number.
    fn cool(&mut self, number: usize) -> bool {
        let own = &mut self.lanes[number];
        // A thread that sleeps on it may do so without its other descriptor only.
        if self.warm == 1 || own.shared.is_armed() {
            return false;
        }
        if !own.shared.watch() {
            own.warmth = WARM;
            return false;
        }
        let on = EventFlags::IN;
        let data = watched(&own.shared);
        if let Err(errno) = epoll::modify(&*self.epoll, own.shared.watch_fd(), data, on) {
            tracing::warn!(%errno, "a lane cannot be watched");
            own.shared.unwatch();
            return false;
        }
        own.shared.switch_off(&self.epoll);
        self.warm -= 1;
        self.lanes.swap(number, self.warm);
        true
    }

    /// Cold lanes with these marks have announced something: they become warm, and are polled. Whether there was
    /// one.
    pub(super) fn announced(&mut self, marks: &[u16]) -> bool {
        let before = self.warm;
        for number in before..self.lanes.len() {
            if marks.contains(&self.lanes[number].shared.mark()) {
                self.warm_up(number);
            }
        }
        self.warm > before
    }

    fn warm_up(&mut self, number: usize) {
        let own = &mut self.lanes[number];
        let (off, data) = (EventFlags::empty(), watched(&own.shared));
        let _ = epoll::modify(&*self.epoll, own.shared.watch_fd(), data, off);
        own.shared.unwatch();
        own.poll();
        own.warmth = WARM;
        self.lanes.swap(number, self.warm);
        self.warm += 1;
    }

    /// A lane that was armed has something.
    pub(super) fn warm_again(&mut self, lane: &Arc<SharedLane>) {
        let warm = self.lanes[..self.warm].iter_mut();
        for own in warm.filter(|own| Arc::ptr_eq(&own.shared, lane)) {
            own.warmth = WARM;
        }
    }

    fn number(&self, lane: &LaneHandle) -> Option<usize> {
        let mut lanes = self.lanes.iter();
        lanes.position(|own| own.shared.is(lane))
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        for own in &self.lanes[self.warm..] {
            own.shared.unwatch();
        }
    }
}

/// What the epoll set has for a lane while it is watched.
fn watched(lane: &SharedLane) -> EventData {
    EventData::new_u64(Ours::Watched(lane.mark()).data())
}
