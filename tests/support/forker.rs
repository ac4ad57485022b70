//! A process with a provider that forks: what its child does with what it has inherited.
//!
//! `san-test-forker WAY`: the child drops everything (`drop`), returns from `main` (`main`), calls what
//! there is (`call`), or was made without `fork` and says so (`abandon`). The parent then uses all it
//! has, and says `fine`. Nobody else says anything.
#![allow(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use san_provider::{
    AddressFamily, ConnectOptions, DataPath, Decision, EventObject, Message, NetworkEvents,
    NoUpcalls, Notification, Protocol, Provider, SocketOption, SocketType, SpiVersion, WsaCode,
};
use san_tests::san::{self, Listener, San};
use san_tests::time::STEP;

/// All that a program has of a provider.
struct Stage {
    san: San,
    listener: Listener,
    ends: (san_provider::Socket, san_provider::Socket),
    data_path: DataPath,
    held: Message,
}

fn main() -> ExitCode {
    let way = std::env::args().nth(1).expect("a way");
    let stage = Stage::set();
    let busy = Busy::start(&stage.san);
    let child = match way.as_str() {
        "abandon" => cloned(),
        _ => forked(),
    };
    match child {
        0 => in_child(&way, stage, busy),
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        child => {
            ends_well(child);
            busy.stop();
            stage.goes_on();
            println!("fine");
            ExitCode::SUCCESS
        }
    }
}

fn forked() -> libc::pid_t {
    // SAFETY: what the child does is to need no thread of the parent's: that is to be shown here.
    unsafe { libc::fork() }
}

/// A child that no handler of `fork` hears of.
fn cloned() -> libc::pid_t {
    // SAFETY: as above; without flags this is what fork does itself.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    libc::pid_t::try_from(child).expect("a process id")
}

fn in_child(way: &str, stage: Stage, busy: Busy) -> ExitCode {
    match way {
        "main" => {
            // As a program does that has these in its main function.
            let _kept = (stage, busy);
            ExitCode::SUCCESS
        }
        "drop" => {
            drop((stage, busy));
            std::process::exit(0)
        }
        "call" => {
            stage.is_inert();
            std::process::exit(0)
        }
        "abandon" => {
            Provider::abandon();
            stage.is_inert();
            drop((stage, busy));
            std::process::exit(0)
        }
        _ => panic!("unknown way {way}"),
    }
}

impl Stage {
    fn set() -> Self {
        let san = San::start();
        let listener = san.listen_a(4);
        let ends = san.pair();
        san::send(&ends.0, b"held");
        let held = ends.1.receive_within(STEP).expect("a message");
        let data_path = ends.1.data_path().expect("a data path");
        Self {
            san,
            listener,
            ends,
            data_path,
            held,
        }
    }

    /// The parent has all it had.
    fn goes_on(self) {
        let (here, there) = &self.ends;
        for text in [&b"one"[..], b"two", b"three"] {
            san::send(here, text);
            assert_eq!(san::receive(there), text);
            san::send(there, text);
            assert_eq!(san::receive(here), text);
        }
        assert_eq!(*self.held, *b"held");
        drop(self.held);
        let connector = self.san.connect(self.listener.addr);
        let accepted = self.listener.accept().socket;
        connector.result().expect("the listener goes on");
        san::send(&accepted, b"new");
        assert_eq!(san::receive(&connector.socket), b"new");
    }

    /// Every call fails at once.
    fn is_inert(&self) {
        let (socket, peer) = &self.ends;
        let not_socket = |code: WsaCode| assert_eq!(code, WsaCode::NotSocket);
        not_socket(socket.try_send(b"x", 0).expect_err("send").code());
        not_socket(socket.try_receive().expect_err("receive").code());
        not_socket(socket.receive_within(STEP).expect_err("wait").code());
        let started = socket.send(b"x", 0, Notification::Poll);
        not_socket(started.expect_err("send").code());
        not_socket(self.data_path.try_send(b"x", 0).expect_err("send").code());
        let waited = self.data_path.receive_within(STEP);
        not_socket(waited.expect_err("wait").code());
        assert_eq!(self.data_path.unacknowledged(), 0);
        let never = AtomicBool::new(false);
        let receipt = self.data_path.receive_unless(&mut [], STEP, &never);
        not_socket(self.data_path.explain(receipt).expect_err("wait").code());
        let lane = self.data_path.lane();
        assert_eq!(
            (lane.poll(), lane.arm(), lane.is_armed()),
            (0, false, false)
        );
        lane.disarm();
        self.data_path.set_sink(None);
        self.data_path.set_polled_sink(None);
        not_socket(socket.disconnect().expect_err("disconnect").code());
        not_socket(peer.close().expect_err("close").code());
        not_socket(peer.local_addr().expect_err("name").code());
        not_socket(peer.stats().expect_err("statistics").code());
        let option = SocketOption::MaxMessageSize;
        not_socket(peer.option(option).expect_err("option").code());
        not_socket(peer.duplicate(1).expect_err("duplicate").code());
        let listener = &self.listener;
        let accepted = listener.socket.accept(|_| Decision::Accept);
        not_socket(accepted.expect_err("accept").code());
        let again = socket.connect(listener.addr, ConnectOptions::default());
        not_socket(again.expect_err("connect").code());
        not_socket(listener.socket.listen(4).expect_err("listen").code());
        let bound = listener.socket.bind(listener.addr);
        not_socket(bound.expect_err("bind").code());
        let event = EventObject::new().expect("an event object");
        let selected = peer.event_select(&event, NetworkEvents::ACCEPT);
        not_socket(selected.expect_err("select").code());
        assert!(!format!("{peer:?} {:?}", self.san.provider).is_empty());
        // The provider is not started in this process, and cannot be.
        let provider = &self.san.provider;
        let family = AddressFamily::V4;
        let made = provider.socket(family, SocketType::Stream, Protocol::Tcp);
        assert_eq!(made.expect_err("socket").code(), WsaCode::NotInitialised);
        assert!(provider.socket_stats().is_empty());
        let again = provider.startup(SpiVersion::CURRENT, false, Arc::new(NoUpcalls));
        assert_eq!(again.expect_err("startup").code(), WsaCode::NotReady);
        let cleaned = provider.cleanup();
        assert_eq!(
            cleaned.expect_err("cleanup").code(),
            WsaCode::NotInitialised
        );
    }
}

/// Messages go to and fro in threads of the parent's, so that locks are taken at every moment.
struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Busy {
    fn start(san: &San) -> Self {
        let (here, there) = san.pair();
        let stop = Arc::new(AtomicBool::new(false));
        let provider = san.provider.clone();
        let send = {
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = here.try_send(b"busy", 0);
                    let _ = provider.socket_stats();
                }
            }
        };
        let receive = {
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = there.receive_within(Duration::from_millis(1));
                }
            }
        };
        Self {
            stop,
            threads: vec![thread::spawn(send), thread::spawn(receive)],
        }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("it goes on");
        }
    }
}

/// Waits for the child, which has nothing to wait for itself.
fn ends_well(child: libc::pid_t) {
    let deadline = Instant::now() + STEP;
    let mut status = 0;
    loop {
        // SAFETY: the child is ours, and the status is a local variable.
        match unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } {
            0 if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
            0 => {
                // SAFETY: the child is ours, and has not been waited for.
                unsafe { libc::kill(child, libc::SIGKILL) };
                panic!("the child is not done after {STEP:?}");
            }
            _ => break,
        }
    }
    assert_eq!(status, 0, "the child's end");
}
