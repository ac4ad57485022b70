//! A registration on its way between the kernel's set and the loop beside it: what its program hears.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::epoll::{self, Event, EventData};
use san_base::timespec;
use san_provider::LaneHandle;

use super::super::fdinfo::registered;
use super::super::hub::Hub;
use super::*;

const IN: EventFlags = EventFlags::IN;
const DATA: u64 = 77;

/// A connection: a socket while it is not away, this source while it is.
struct Connection {
    socket: UnixStream,
    peer: UnixStream,
    now: AtomicU32,
    hub: Hub,
}

impl Source for Connection {
    fn events(&self) -> EventFlags {
        EventFlags::from_bits_retain(self.now.load(Ordering::SeqCst))
    }

    fn hub(&self) -> &Hub {
        &self.hub
    }

    fn lane(&self) -> Option<LaneHandle> {
        None
    }
}

#[derive(Clone)]
struct Here {
    epoll: Arc<OwnedFd>,
    looped: Arc<EventLoop>,
    connection: Arc<Connection>,
}

impl PartialEq for Here {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.looped, &other.looped)
    }
}

impl Site for Here {
    fn add(&self, flags: EventFlags, data: u64) -> io::Result<()> {
        let data = EventData::new_u64(data);
        Ok(epoll::add(
            &*self.epoll,
            &self.connection.socket,
            data,
            flags,
        )?)
    }

    fn modify(&self, flags: EventFlags, data: u64) -> io::Result<()> {
        let data = EventData::new_u64(data);
        Ok(epoll::modify(
            &*self.epoll,
            &self.connection.socket,
            data,
            flags,
        )?)
    }

    fn delete(&self) -> io::Result<()> {
        Ok(epoll::delete(&*self.epoll, &self.connection.socket)?)
    }

    fn registered(&self) -> Option<EventFlags> {
        let (epoll, fd) = (self.epoll.as_raw_fd(), self.connection.socket.as_raw_fd());
        registered(epoll, fd).map(|(flags, _)| flags)
    }

    fn looped(&self) -> io::Result<Arc<EventLoop>> {
        Ok(Arc::clone(&self.looped))
    }

    fn key(&self) -> u64 {
        5
    }
}

struct Scene {
    here: Here,
    registrations: Registrations<Here>,
    is_away: AtomicBool,
}

impl Scene {
    fn new(flags: EventFlags) -> Self {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let looped = Arc::new(EventLoop::new(epoll.as_fd()).unwrap());
        let (socket, peer) = UnixStream::pair().unwrap();
        let connection = Arc::new(Connection {
            socket,
            peer,
            now: AtomicU32::new(0),
            hub: Hub::default(),
        });
        let here = Here {
            epoll,
            looped,
            connection,
        };
        let scene = Self {
            here,
            registrations: Registrations::default(),
            is_away: AtomicBool::new(false),
        };
        scene
            .registrations
            .add(&scene.source(), scene.here.clone(), (flags, DATA))
            .unwrap();
        scene
    }

    fn source(&self) -> Arc<dyn Source> {
        Arc::clone(&self.here.connection) as Arc<dyn Source>
    }

    fn go(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::SeqCst);
        let asked = || self.is_away.load(Ordering::SeqCst);
        assert!(self.registrations.follow(&self.source(), asked));
    }

    /// The source becomes ready for this.
    fn is_ready(&self, flags: EventFlags) {
        self.here
            .connection
            .now
            .store(flags.bits(), Ordering::SeqCst);
        self.here.connection.hub.tell();
    }

    fn peer_writes(&self) {
        (&self.here.connection.peer).write_all(b"x").unwrap();
    }

    /// What a wait tells that does not sleep.
    fn told(&self) -> Vec<EventFlags> {
        let nothing = Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        let mut events = [nothing; 4];
        let wait = &mut |events: &mut [Event], timeout: Option<Duration>| {
            let timeout = timeout.map(timespec);
            Ok(epoll::wait(&*self.here.epoll, events, timeout.as_ref())?)
        };
        let found = self
            .here
            .looped
            .wait(&mut events, Some(Duration::ZERO), wait)
            .unwrap();
        let told = events[..found].iter().map(|event| {
            assert_eq!({ event.data }.u64(), DATA);
            event.flags
        });
        told.collect()
    }

    fn modify(&self, flags: EventFlags) {
        self.registrations
            .modify(&self.here, (flags, DATA))
            .unwrap();
    }
}

#[test]
fn level_is_told_wherever_the_place_is() {
    let scene = Scene::new(IN);
    for _ in 0..3 {
        assert_eq!(scene.told(), []);
        scene.go(true);
        assert_eq!(scene.told(), []);
        scene.is_ready(IN);
        assert_eq!(scene.told(), [IN]);
        assert_eq!(scene.told(), [IN]);
        scene.is_ready(EventFlags::empty());
        scene.go(false);
    }
    scene.peer_writes();
    assert_eq!(scene.told(), [IN]);
    // What the kernel's descriptor says counts no more.
    scene.go(true);
    assert_eq!(scene.told(), []);
    scene.registrations.delete(&scene.here).unwrap();
    scene.is_ready(IN);
    assert_eq!(scene.told(), []);
    scene.go(false);
    assert_eq!(scene.told(), []);
}

#[test]
fn what_holds_already_is_an_edge_after_each_change() {
    let scene = Scene::new(IN | EventFlags::ET);
    scene.peer_writes();
    assert_eq!(scene.told(), [IN]);
    assert_eq!(scene.told(), []);
    scene.is_ready(IN);
    scene.go(true);
    assert_eq!(scene.told(), [IN]);
    assert_eq!(scene.told(), []);
    scene.go(false);
    assert_eq!(scene.told(), [IN]);
    assert_eq!(scene.told(), []);
}

#[test]
fn one_shot_is_fired_once_wherever_the_place_is() {
    let one_shot = IN | EventFlags::ONESHOT;
    // Fired on TCP; fired while it is away; and armed again on the one side or the other.
    for fired_away in [false, true] {
        for armed_away in [false, true] {
            let scene = Scene::new(one_shot);
            scene.go(fired_away);
            match fired_away {
                true => scene.is_ready(IN),
                false => scene.peer_writes(),
            }
            assert_eq!(scene.told(), [IN]);
            assert_eq!(scene.told(), []);
            // Not even a hang-up is told after it.
            scene.is_ready(IN | EventFlags::HUP);
            for away in [true, false, true, false] {
                scene.go(away);
                assert_eq!(scene.told(), []);
            }
            let _ = scene
                .here
                .connection
                .socket
                .shutdown(std::net::Shutdown::Both);
            assert_eq!(scene.told(), []);
            let again =
                scene
                    .registrations
                    .add(&scene.source(), scene.here.clone(), (one_shot, DATA));
            assert!(again.is_err(), "it is there already");
            scene.go(armed_away);
            scene.modify(one_shot);
            assert_eq!(scene.told(), [IN | EventFlags::HUP]);
            assert_eq!(scene.told(), []);
        }
    }
}

#[test]
fn one_shot_that_was_not_fired_moves_armed() {
    let scene = Scene::new(IN | EventFlags::ONESHOT);
    for away in [true, false, true, false] {
        scene.go(away);
        assert_eq!(scene.told(), []);
    }
    scene.peer_writes();
    scene.go(true);
    scene.is_ready(IN);
    assert_eq!(scene.told(), [IN]);
    assert_eq!(scene.told(), []);
    scene.go(false);
    assert_eq!(scene.told(), []);
    scene.registrations.delete(&scene.here).unwrap();
    assert!(scene.registrations.delete(&scene.here).is_err());
}
