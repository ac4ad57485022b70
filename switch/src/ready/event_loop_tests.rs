//! What a program's wait gets beside what is meant for the loop itself.

use std::io::Write;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::Timespec;

use super::EventLoop;

/// A loop's own bell is not told, and does not take the only room that the program's event needs.
#[test]
fn a_bell_takes_no_room_from_the_programs_events() {
    let set = epoll::create(CreateFlags::CLOEXEC).unwrap();
    let looped = EventLoop::new(std::os::fd::AsFd::as_fd(&set)).unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    epoll::add(&set, &reader, EventData::new_u64(7), EventFlags::IN).unwrap();
    writer.write_all(b"x").unwrap();
    let mut kernel = |events: &mut [Event], timeout: Option<Duration>| {
        let timeout = timeout.map(|time| Timespec::try_from(time).unwrap());
        Ok(epoll::wait(&set, events, timeout.as_ref())?)
    };
    let nothing = Event {
        flags: EventFlags::empty(),
        data: EventData::new_u64(0),
    };
    for _ in 0..20 {
        looped.ring();
        let mut events = [nothing];
        let told = looped.wait(&mut events, Some(Duration::ZERO), &mut kernel);
        let [event] = events;
        assert_eq!((told.unwrap(), event.data.u64()), (1, 7));
    }
}
