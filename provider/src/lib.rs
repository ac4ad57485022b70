//! A SAN service provider: sockets on RDMA, as the Windows Sockets Direct SPI asks for them.
#![forbid(unsafe_code)]

mod accept;
mod address_list;
/// Not an interface: the benches measure it.
#[doc(hidden)]
pub mod backlog;
mod close;
mod cm_thread;
mod config;
mod connect;
mod core;
mod counters;
mod data_path;
mod device_context;
mod duplicate;
mod error;
mod event;
mod listen;
mod memlock;
/// Not an interface: the benches measure the cache.
#[doc(hidden)]
pub mod memory;
mod network_events;
mod options;
mod progress;
mod provider;
mod rdma;
mod socket;
mod state;
mod statistics;
mod sync;
mod time;
mod transfer;
mod transfers;
mod upcalls;
pub mod wire;

pub use accept::{AcceptOptions, Accepted, ConnectionRequest, Decision, Rejection};
pub use address_list::SanAddress;
pub use backlog::SOMAXCONN;
pub use config::{ConfigError, ProviderConfig};
pub use connect::ConnectOptions;
pub use counters::Counters;
pub use data_path::DataPath;
pub use duplicate::{BadDuplicate, Duplicate};
pub use error::{
    AcceptError, BindError, CloseError, ConnectError, ConnectFailure, DuplicateError, ListenError,
    OptionError, QueryError, RegisterError, ResultError, SelectError, SocketError, StartupError,
    SystemError, TakeUpError, TransferError, WsaCode,
};
pub use event::EventObject;
pub use memory::{MemoryAccess, MemoryHandle, Segment};
pub use network_events::{NetworkEventRecord, NetworkEvents};
pub use options::SocketOption;
pub use provider::{Provider, ProviderData, SpiVersion};
pub use socket::{AddressFamily, Protocol, Socket, SocketType};
pub use statistics::{ConnectionStats, ListenStats, SocketStats};
pub use transfer::{
    Completion, Fence, MAX_SEGMENTS, Message, Operation, OverlappedResult, Readiness, ReadySink,
    Received, Transferred,
};
pub use upcalls::{NoUpcalls, SwitchHandle, SwitchUpcalls};
pub use verbs_shim::{AppMemory, Fabric, RegisteredBuffer, SharedMemory, SoftConfig};
