//! The Sockets Direct switch: ordinary stream sockets, over the SAN where it fits and over TCP
//! everywhere else.
//!
//! A [`Switch`] makes all SAN providers and TCP look like one. A [`Listener`] always listens on TCP
//! first. Where its address is one of the SAN's, or the wildcard, it also has *companions*: listening
//! sockets on the SAN, at the same port. Its accept gives the connections of both sides in the order
//! of their arrival. A [connect](Switch::connect) takes the SAN where the SAN reaches the
//! destination's subnet. It goes back to TCP unless the SAN's answer is final. [`Connection::route`]
//! says which way the connection took, and why.
//!
//! A program that uses `std::net` needs less than this: [`net`] has the same names.
//!
//! # Quick start
//! ```
//! use san_switch::{ConnectOptions, ListenOptions, Switch, SwitchConfig};
//! use std::io::{Read, Write};
//!
//! let switch = Switch::new(SwitchConfig::from_env()?)?;
//! let listener = switch.listen("127.0.0.1:0".parse()?, ListenOptions::default())?;
//!
//! // A program may connect to itself before it accepts.
//! let mut client = switch.connect(listener.local_addr(), &ConnectOptions::default())?;
//! let mut server = listener.accept()?;
//! println!("client: {}, server: {}", client.route(), server.route());
//!
//! client.write_all(b"hello")?;
//! client.shutdown_write()?;
//! let mut text = String::new();
//! server.read_to_string(&mut text)?;
//! assert_eq!(text, "hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Threads
//! - `san-accept` accepts on the SAN. Each switch that has a provider has one; a switch that is plain TCP
//!   has none.
//! - `san-stat` sleeps until somebody asks for statistics ([`stat`]). With [`SwitchConfig::stat`] off
//!   there is none.
//! - `san-linger` runs while closed SAN connections still have bytes under way, or open ones hold memory for
//!   bulk.
//! - `san-stream` starts with the first connection that may move and has carried enough.
//!
//! The threads that send and receive move the data. Everything here is `Send` and `Sync`.
//!
//! # Clean-up
//! Dropping a [`Connection`] or [`Listener`] closes it. A switch ends with the last of its
//! handles, listeners and connections, or with [`Switch::shutdown`].
//!
//! # Descriptors
//! The application holds the TCP socket's descriptor ([`std::os::fd::AsFd`] of [`Listener`],
//! [`Connection::companion_fd`]). [`Listener::readiness`] tells whether an accept would find something.
//!
//! # Why a connection took TCP
//! [`Connection::route`] is [`Route::San`] or [`Route::Tcp`]. At the end that connected `Route::Tcp` has
//! the reason, a [`FallbackReason`]: what the SAN said, or why the switch did not ask it ([`NotTried`]). Its
//! [`remedy`](FallbackReason::remedy) says what an operator can do. The end that accepted has no reason, since
//! the other end had the choice. A connection that may move has a reason at both ends ([`NotMoved`]).
//! `docs/howto/fall-back.md` lists every reason.
//!
//! # Errors
//! Each operation has an enum of its own ([`OpenError`], [`ListenError`], [`AcceptError`], [`ConnectError`]).
//! Each answers `errno()`, keeps what the layer below said as its source, and turns into an
//! [`std::io::Error`] of the kind that TCP would give. Where the SAN gives no connection and TCP gives one,
//! the connect succeeds. Where a companion cannot be made, the listener works on TCP alone, and
//! [`Listener::san_status`] says why.
//!
//! The words that are the project's own are in `docs/glossary.md`.

#![forbid(unsafe_code)]

mod carrier;
mod companion;
mod config;
mod counters;
mod error;
pub mod net;
mod policy;
pub mod program;
mod readiness;
mod ready;
mod route;
mod san;
pub mod stat;
mod switch;
mod tcp;
mod upgrade;
mod wait;

pub use carrier::info::{StreamInfo, StreamState};
pub use companion::condition::{Condition, Decision, IncomingRequest, Side};
pub use companion::plan::{CompanionState, CompanionStatus};
pub use config::{
    ConfigError, ConfigLine, FabricChoice, NegativeCacheConfig, RouteChoice, SOMAXCONN, Setting,
    SwitchConfig, UnknownFabric,
};
pub use counters::{ListenerStats, SwitchStats};
pub use error::{AcceptError, ConnectError, ListenError, OpenError};
pub use net::connect::{ConnectOptions, PendingConnect};
pub use net::connection::Connection;
pub use net::handover::Duplicate;
pub use net::listener::{ListenOptions, Listener};
pub use policy::{Rules, RulesError};
pub use readiness::{Events, Watcher};
pub use ready::poller::{Interest, PolledEvent, Poller, StandBy, Waker};
pub use route::fallback::{FallbackReason, NotTried, Route};
pub use route::not_moved::NotMoved;
pub use route::table::{RouteQuery, SanEntry, SanTable};
pub use stat::{Report, StatError};
pub use switch::{Switch, SwitchBuilder};
pub use upgrade::key::DeploymentKey;
pub use wait::CancelToken;

/// What an event loop polls and sleeps on: [`Connection::lane`].
pub use san_provider::LaneHandle;

/// The examples of the project's README, so that they stay true.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
