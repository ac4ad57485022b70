//! A SAN service provider: sockets on RDMA, as the Windows Sockets Direct SPI asks for them.
//!
//! A [`Provider`] makes [`Socket`]s that listen, connect, accept and transfer messages over reliable
//! connected queue pairs, on the kernel's RDMA or on RoCEv2 in user space ([`Fabric`]). The layer above
//! is a *switch*. It makes a byte stream of the messages, chooses between the SAN and TCP, and goes back
//! to TCP. None of this is here. The crate reads no file and no environment variable.
//!
//! # Quick start
//!
//! Both ends in one process, on the fabric in user space, which needs no device and no privileges:
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use san_provider::{
//!     AddressFamily, ConnectOptions, Decision, EventObject, Fabric, NetworkEvents, NoUpcalls,
//!     Protocol, Provider, ProviderConfig, SocketType, SoftConfig, SpiVersion,
//! };
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let fabric = Fabric::soft(&SoftConfig::default())?;
//!     let provider = Provider::with_fabric(fabric, ProviderConfig::default())?;
//!     provider.startup(SpiVersion::CURRENT, false, Arc::new(NoUpcalls))?;
//!     let socket = || provider.socket(AddressFamily::V4, SocketType::Stream, Protocol::Tcp);
//!     let patience = Duration::from_secs(5);
//!
//!     let listener = socket()?;
//!     listener.bind("127.0.0.1:7471".parse()?)?;
//!     let requests = EventObject::new()?;
//!     listener.event_select(&requests, NetworkEvents::ACCEPT)?;
//!     listener.listen(16)?;
//!
//!     let client = socket()?;
//!     let connected = EventObject::new()?;
//!     client.event_select(&connected, NetworkEvents::CONNECT)?;
//!     match client.connect("127.0.0.1:7471".parse()?, ConnectOptions::default()) {
//!         Err(error) if !error.is_in_progress() => return Err(error.into()),
//!         _ => {}
//!     }
//!
//!     if !requests.wait(patience) {
//!         return Err("no request came".into());
//!     }
//!     let server = listener.accept(|request| {
//!         println!("{:?} asks", request.peer);
//!         Decision::Accept
//!     })?;
//!     if !connected.wait(patience) {
//!         return Err("no answer came".into());
//!     }
//!     client.enum_network_events(Some(&connected))?.connect.ok_or("no end of the connect")??;
//!
//!     client.try_send(b"a message", 0)?;
//!     let message = server.socket.receive_within(patience)?;
//!     println!("{}", String::from_utf8_lossy(&message));
//!     provider.cleanup()?;
//!     Ok(())
//! }
//! ```
//!
//! # How calls end
//!
//! Only calls with a time in their arguments wait for a peer. A connect ends with FD_CONNECT, and
//! FD_ACCEPT announces a request ([`Socket::event_select`]). An [`EventObject`] is a descriptor that
//! can stand in any poll set. Transfers are *overlapped*: [`Socket::send`] and [`Socket::receive`]
//! start an [`Operation`]. A program asks for its end ([`Socket::get_overlapped_result`]), or an upcall
//! tells it ([`SwitchUpcalls`]). [`Socket::try_send`] and [`Socket::receive_within`] start no
//! operation and cost least. A [`DataPath`] has these two without a look-up for each call. Memory of
//! the application's is registered where it lies, opened to one peer, and read and written by RDMA
//! ([`Socket::register_rdma_memory`], [`Socket::rdma_read`]).
//!
//! # Threads
//!
//! Any thread may use every type. From the first startup to the last cleanup a provider has two
//! threads. `san-cm` reads the events of RDMA CM. `san-progress` serves transfers that no thread waits
//! for, and makes upcalls. A third one, `san-memory`, starts with the first registration that is kept.
//! A thread that waits for a message polls the device itself; no other thread hands it over. No lock
//! is held while an upcall or a condition function runs.
//!
//! # Clean-up
//!
//! Clones of a [`Socket`] are one socket. [`Socket::close`] closes it, or the drop of its last clone
//! does. The peer is told. Messages that the peer has not received by then may be lost. The last
//! [`Provider::cleanup`] closes every socket and ends the threads; so does dropping the last clone of a
//! provider. A received [`Message`] may outlive both.
//!
//! In a child made by `fork` all handles are inert: dropping them does nothing, and calls fail with
//! `WSAENOTSOCK`. The parent keeps what it has. See [`Provider::abandon`].
//!
//! # Errors
//!
//! Each call has an error enum of its own, which holds only what that call may report. Every error
//! has `code()`, a [`WsaCode`] of Winsock, and `errno()`, the number that stands for it on Linux. It
//! keeps the system's error as its source. [`ConnectError::may_try_tcp`] says whether TCP may
//! be tried after a failed connect. `docs/errors.md` has the whole table.
//!
//! What goes over the wire is in [`wire`] and `docs/protocol.md`; the project's own words are in
//! `docs/glossary.md`.
#![forbid(unsafe_code)]

mod address_list;
mod cm;
mod config;
mod control;
mod counters;
mod data_path;
mod device_context;
mod error;
mod event;
mod handles;
mod memlock;
/// Not an interface: the benches measure the cache.
#[doc(hidden)]
pub mod memory;
mod owners;
mod probes;
mod progress;
mod provider;
mod rdma;
mod runtime;
mod socket;
mod statistics;
mod sync;
mod time;
mod transfer;
mod transfers;
mod upcalls;
mod version;
pub mod wire;

/// Not an interface: the fuzz targets come in here.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing {
    /// Two engines, and what the bytes make of them. Panics if a promise is broken.
    pub fn engine_calls(data: &[u8]) {
        crate::transfer::engine_calls(data);
    }
}

/// Not an interface: the benches measure it.
#[doc(hidden)]
pub use socket::backlog;

pub use address_list::SanAddress;
pub use config::{ConfigError, ProviderConfig};
pub use counters::Counters;
pub use data_path::{DataPath, LaneHandle};
pub use error::{
    AcceptError, BindError, CloseError, ConnectError, ConnectFailure, DuplicateError, ListenError,
    OptionError, QueryError, RegisterError, ResultError, SelectError, SocketError, StartupError,
    SystemError, TakeUpError, TransferError, WsaCode,
};
pub use event::EventObject;
pub use handles::SwitchHandle;
pub use memory::{MemoryAccess, MemoryHandle, Segment};
pub use provider::{Provider, ProviderData};
pub use socket::accept::{AcceptOptions, Accepted, ConnectionRequest, Decision, Rejection};
pub use socket::backlog::SOMAXCONN;
pub use socket::connect::ConnectOptions;
pub use socket::duplicate::{BadDuplicate, Duplicate};
pub use socket::network_events::{NetworkEventRecord, NetworkEvents};
pub use socket::options::SocketOption;
pub use socket::{AddressFamily, Protocol, Socket, SocketType};
pub use statistics::{ConnectionStats, ListenStats, SocketStats};
pub use transfer::{
    Fence, Inbox, MAX_SEGMENTS, Message, Notification, Operation, OverlappedResult, PeerFeatures,
    Readiness, ReadySink, Receipt, Received, Transferred,
};
pub use upcalls::{NoUpcalls, SwitchUpcalls};
pub use verbs_shim::{AppMemory, Fabric, RegisteredBuffer, SharedMemory, SoftConfig};
pub use version::SpiVersion;
