//! The sockets of a program that knows nothing of the switch: what the preload library asks.
//!
//! The program holds descriptor numbers, and calls libc. Beside a number whose socket the SAN has to
//! do with, the library keeps a [`Held`], and asks it first. What the library does with the answers, and
//! every export, is its own affair (`preload/`); what is decided is decided here.
//!
//! # The direct route
//! [`Route::Direct`] is the Windows Sockets Direct way: a connect tries the SAN first, a listener gets
//! companions. Nothing is started before the first connect or accept that the SAN could serve.
//!
//! # The upgrade route
//! [`Route::Upgrade`]: connections begin on TCP, and are the kernel's (`upgrading.rs`). What has carried
//! enough moves to the SAN, and comes back when another process or a call needs the kernel's socket.
//!
//! # Processes
//! The companions of a listener are made by the process that first accepts from it or waits for it,
//! not by the one that calls `listen`: a process that listens and then forks others to accept keeps
//! no client waiting. In a child that is forked later everything that was the SAN's is inert: streams
//! say ENOTCONN, listeners and new sockets are TCP's, until it executes another program.

mod blocking;
mod bytes;
mod epolls;
mod inherited;
mod listening;
mod moving;
mod opening;
mod options;
mod shared;
mod sites;
mod stays;
mod stream;
mod take_over;
mod tally;
mod telling;
mod timeouts;
mod upgrading;
mod waiting;

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::event::epoll::Event;
use san_stream::Thresholds;
use verbs_shim::fork::Generation;

use crate::config::SwitchConfig;
use crate::ready::event_loop::EventLoop;
use crate::stat::OfProgram;
use crate::switch::Switch;

pub use bytes::{Receiving, Sending};
pub use epolls::{Counts, Epoll, EpollOp, Kernel, Sleep};
pub use listening::{Accepted, Listening};
pub use opening::Opened;
pub use options::{SetOption, TcpInfo};
pub use shared::Record;
pub use stream::Stream;
pub use tally::ProgramStats;

/// Which end of a connection a program has.
pub use san_stream::Role;
pub use waiting::{Poll, poll};

use tally::{Sink, Tally};
use upgrading::Upgrading;

/// What is under a descriptor number of the program's.
pub enum Held {
    /// A stream that the SAN carries, or that is being connected.
    Stream(Stream),
    /// A listening socket.
    Listening(Listening),
    /// An epoll set with sockets of ours in it.
    Epoll(Epoll),
}

impl Held {
    /// Whether it is a listening socket whose companions another process has, which this one was forked
    /// from: then the number is the kernel's.
    pub fn is_inherited(&self) -> bool {
        match self {
            Held::Stream(_) | Held::Epoll(_) => false,
            Held::Listening(listening) => listening.is_inherited(),
        }
    }
}

/// Which way a program's connections go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// TCP, all of them.
    Off,
    /// The SAN first.
    Direct,
    /// TCP first, then the SAN for what has carried enough.
    Upgrade,
}

/// The program of this process.
pub struct Program {
    kernel: &'static dyn Kernel,
    route: Route,
    thresholds: Thresholds,
    settings: Result<SwitchConfig, String>,
    /// Where the report goes at the end.
    report: Option<Sink>,
    tally: Tally,
    /// The process whose thread has begun to make the switch.
    began: OnceLock<Generation>,
    /// With the process that made it.
    switch: OnceLock<(Option<Switch>, Generation)>,
}

static PROGRAM: OnceLock<Option<Program>> = OnceLock::new();

/// What the library alone can do; `None`: nothing has begun.
fn kernel() -> Option<&'static dyn Kernel> {
    Some(PROGRAM.get()?.as_ref()?.kernel)
}

/// A program that may have fewer descriptors has no switch, which needs about twenty.
const LEAST_DESCRIPTORS: u64 = 64;

fn may_have_descriptors() -> bool {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.is_none_or(|most| most >= LEAST_DESCRIPTORS)
}

/// How long a program that ends waits for what is under way.
const AT_EXIT: Duration = Duration::from_secs(2);

impl Program {
    /// The program, if its route is not [`Route::Off`]. `kernel` is what only the library can do. The
    /// first call reads the environment, and should come before the program changes it.
    pub fn of_this_process(kernel: &'static dyn Kernel) -> Option<&'static Program> {
        let program = PROGRAM.get_or_init(|| {
            let route = route();
            (route != Route::Off).then(|| {
                san_base::runtime_dir::remember();
                san_base::keep_aside();
                crate::stat::add_program(OfProgram {
                    numbers: telling::why_on_tcp,
                    connections: telling::on_tcp,
                    left: telling::left_to_tcp,
                });
                let settings = SwitchConfig::from_env().map_err(|error| error.to_string());
                let thresholds = settings.as_ref().map(SwitchConfig::thresholds);
                Program {
                    kernel,
                    route,
                    thresholds: thresholds.unwrap_or_default(),
                    settings,
                    report: std::env::var_os("SAN_REPORT").map(Sink::named),
                    tally: Tally::default(),
                    began: OnceLock::new(),
                    switch: OnceLock::new(),
                }
            })
        });
        let program = program.as_ref()?;
        // A child that is forked before anything was started may start for itself.
        let started = program.switch.get();
        started
            .is_none_or(|(_, made)| !made.is_past())
            .then_some(program)
    }

    /// Whether its connections begin on TCP, and may move.
    pub fn is_upgrading(&self) -> bool {
        self.route == Route::Upgrade
    }

    /// A TCP connection that the program has just accepted, or connected.
    pub fn track(&'static self, role: Role) -> Stream {
        self.tally.tracks(role);
        Stream::upgrading(Upgrading::new(self, role))
    }

    fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// The switch, made on first use. `None`: the settings are wrong or the fabric is not there, which
    /// was said once; or it is another process's.
    fn switch(&self) -> Option<&Switch> {
        let began = self.began.get_or_init(Generation::now);
        if began.is_past() && self.switch.get().is_none() {
            // Another thread was at it when this process was forked, and is not here to go on.
            return None;
        }
        let (switch, made) = self.switch.get_or_init(|| {
            if !may_have_descriptors() {
                tracing::warn!("the program goes over TCP: it may have too few descriptors");
                return (None, Generation::now());
            }
            let settings = self.settings.clone();
            let made =
                settings.and_then(|config| Switch::new(config).map_err(|error| error.to_string()));
            let switch = made.inspect_err(|error| {
                say(&format!("the program goes over TCP: {error}"));
            });
            (switch.ok(), Generation::now())
        });
        if made.is_past() {
            return None;
        }
        let has_san = |switch: &&Switch| !switch.table().entries().is_empty();
        switch.as_ref().filter(has_san)
    }

    /// What became of its connections so far.
    pub fn stats(&self) -> ProgramStats {
        self.tally.counters.snapshot()
    }

    /// The program ends: closes what is left, and waits for bytes that are under way, two seconds at
    /// most. Then the report goes where `SAN_REPORT` says: to a file, or to standard error (`-`).
    pub fn end() {
        let Some(Some(program)) = PROGRAM.get() else {
            return;
        };
        let switch = match program.switch.get() {
            Some((_, made)) if made.is_past() => return,
            Some((Some(switch), _)) => Some(switch),
            // What began on TCP is told of, though nothing has moved.
            _ if program.is_upgrading() && program.tally.has_any() => None,
            _ => return,
        };
        if let Some(switch) = switch {
            switch.wait_for_closing(AT_EXIT);
        }
        if let Some(sink) = &program.report
            && let Err(error) = program.tally.report(switch, sink)
        {
            say(&format!("cannot write the report {sink}: {error}"));
        }
    }
}

/// The process is about to fork: a number for [`Stream::before_fork`] of all that its child inherits.
pub fn next_fork() -> u32 {
    shared::next_fork()
}

/// This process was forked. [`Stream::in_child`] of all that it has inherited follows.
pub fn is_new_process() {
    shared::is_new_process();
    if let Some(Some(program)) = PROGRAM.get() {
        program.tally.in_child();
    }
}

/// What a wait of the kernel's has told, without what was meant for a loop that has come to the epoll set
/// meanwhile; how many events are left.
pub fn without_ours(events: &mut [Event], came: usize) -> usize {
    crate::ready::event_loop::without_ours(events, came)
}

/// One line for the program's user.
fn say(what: &str) {
    let line = format!("libsan.so: {what}\n");
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}

fn route() -> Route {
    match std::env::var_os("SAN_ROUTE")
        .as_deref()
        .map(|value| value.to_str())
    {
        None | Some(Some("off")) => Route::Off,
        Some(Some("direct")) => Route::Direct,
        Some(Some("upgrade")) => Route::Upgrade,
        Some(value) => {
            let value = value.unwrap_or("not text");
            say(&format!(
                "SAN_ROUTE is '{value}', but must be direct, upgrade or off; the program goes over TCP"
            ));
            Route::Off
        }
    }
}

/// An address of this process's loopback or another one: whether the SAN has a way there is the
/// switch's to say. What is no IP address is not for the SAN.
fn is_worth_asking(address: SocketAddr) -> bool {
    address.port() != 0 && !address.ip().is_multicast()
}

/// The kernel's socket is in nonblocking mode.
fn is_nonblocking(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(flags.contains(rustix::fs::OFlags::NONBLOCK))
}

/// A key of a descriptor number in a loop.
fn key(fd: i32) -> u64 {
    u64::from(fd.cast_unsigned())
}

/// Takes a number out of a loop if it is there.
fn leave(looped: &EventLoop, fd: i32) {
    // It may have left already.
    let _ = looped.remove(key(fd));
}
