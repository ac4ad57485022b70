//! A SAN service provider: sockets on RDMA, as the Windows Sockets Direct SPI asks for them.
//!
//! The words that are the project's own are in `docs/glossary.md`.
#![forbid(unsafe_code)]

mod address_list;
mod cm;
mod config;
mod control;
mod core;
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
mod progress;
mod provider;
mod rdma;
mod socket;
mod statistics;
mod sync;
mod time;
mod transfer;
mod transfers;
mod upcalls;
pub mod wire;

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
pub use provider::{Provider, ProviderData, SpiVersion};
pub use socket::accept::{AcceptOptions, Accepted, ConnectionRequest, Decision, Rejection};
pub use socket::backlog::SOMAXCONN;
pub use socket::connect::ConnectOptions;
pub use socket::duplicate::{BadDuplicate, Duplicate};
pub use socket::network_events::{NetworkEventRecord, NetworkEvents};
pub use socket::options::SocketOption;
pub use socket::{AddressFamily, Protocol, Socket, SocketType};
pub use statistics::{ConnectionStats, ListenStats, SocketStats};
pub use transfer::{
    Completion, Fence, MAX_SEGMENTS, Message, Operation, OverlappedResult, Readiness, ReadySink,
    Received, Transferred,
};
pub use upcalls::{NoUpcalls, SwitchUpcalls};
pub use verbs_shim::{AppMemory, Fabric, RegisteredBuffer, SharedMemory, SoftConfig};
