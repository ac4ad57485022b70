//! Memory of the application's, registered for RDMA (duties 100 to 105, 107 to 110, 112).
//!
//! Local memory is registered to be the source or the target of a transfer; memory for the peer is
//! registered too, and opened by a memory window that only this connection's queue pair knows
//! (duty 104). Deregistering withdraws the window first, at once, whatever the peer is doing
//! (duty 105); closing the socket withdraws everything.
//!
//! `cache.rs` keeps registrations beyond their use, `watch.rs` hears of mappings that change, and
//! `store.rs` joins the two; `rims.rs` bounds what the watching costs the program.
//!
//! The bytes are the application's all the time: nothing here reads or writes them.

pub mod cache;
mod calls;
mod handle;
mod registration;
mod rims;
pub mod store;
mod watch;

use std::sync::Arc;

use verbs_shim::MemoryRegion;

pub use handle::{MemoryAccess, MemoryHandle, Segment};

pub(crate) use registration::Registrations;

/// Regions of every device of a provider.
pub(crate) type MemoryStore = store::RegistrationStore<Arc<MemoryRegion>>;
