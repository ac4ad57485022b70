//! Safe verbs and RDMA CM, opened at run time.
//!
//! This crate has what a program needs of RDMA to serve and to connect: devices, protection
//! domains, registered buffers, completion queues, reliable connected queue pairs, and the
//! connection manager. It has no policy: no backlog, no credits, no deadlines, no threads.
//!
//! # Quick start
//!
//! ```no_run
//! use std::time::Duration;
//! use verbs_shim::{
//!     Access, BufferPool, CmId, CompletionBatch, ConnParams, Event, EventChannel, Fabric,
//!     Verb, QpCaps, SendRequest,
//! };
//!
//! fn wait(channel: &EventChannel) -> Result<Event, verbs_shim::VerbsError> {
//!     loop {
//!         // A program of its own polls `channel.as_fd()`, with a deadline.
//!         match channel.next()? {
//!             Some(event) => return Ok(event),
//!             None => std::thread::sleep(Duration::from_millis(1)),
//!         }
//!     }
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let fabric = Fabric::rdma()?;
//!     let channel = fabric.event_channel()?;
//!     let id = CmId::new(&channel)?;
//!     id.resolve_addr(None, "10.0.7.2:7471".parse()?, Duration::from_secs(2))?;
//!     let Event::AddrResolved { .. } = wait(&channel)? else { return Err("no such host".into()) };
//!     id.resolve_route(Duration::from_secs(2))?;
//!     let Event::RouteResolved { .. } = wait(&channel)? else { return Err("no route".into()) };
//!
//!     let device = id.device().ok_or("no device")?;
//!     let pd = device.alloc_pd()?;
//!     let cq = device.create_cq(64, None)?;
//!     let pool = BufferPool::new(&pd, 4096, 32, Access::LOCAL_WRITE)?;
//!     let qp = id.create_qp(&pd, QpCaps::default(), &cq, &cq, None)?;
//!     qp.post_recv(1, pool.take().ok_or("pool empty")?)?;
//!
//!     id.connect(&ConnParams { private_data: b"hello", ..ConnParams::default() })?;
//!     let Event::Established { .. } = wait(&channel)? else { return Err("refused".into()) };
//!     let qp = qp.established();
//!
//!     let mut buffer = pool.take().ok_or("pool empty")?;
//!     buffer.fill(b"a message");
//!     if qp.post(SendRequest::piece(2, Verb::Send, buffer)).is_err() {
//!         return Err("the send queue is full".into());
//!     }
//!     let mut batch = CompletionBatch::new();
//!     while cq.poll(&mut batch)? == 0 {}
//!     for completion in &batch {
//!         let claim = qp.claim(completion).ok_or("not ours")?;
//!         println!("{}: {}", completion.token(), completion.status());
//!         drop(claim.into_buffer()); // back to the pool
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # Threads
//!
//! Several threads may use every type at once, except [`CompletionBatch`] and [`Completion`]. These two
//! may be moved to another thread. The crate starts no threads. Each object has its own locks, and a
//! lock is held for the length of one call. Calls that post, poll or claim on different queue pairs
//! share no lock.
//!
//! # Clean-up
//!
//! Objects keep alive what they need. A queue pair keeps its CM id, its protection domain and its
//! queues; an id keeps its event channel; a buffer keeps its pool. So they may be dropped in any
//! order, and the last one takes the rest along. A posted buffer belongs to the queue pair (or the
//! shared receive queue) until its completion is claimed. If nobody claims it, the buffer is freed
//! after that queue is destroyed. Destructors do not panic and do not wait for the peer. Where the
//! kernel refuses to destroy an object, the refusal is logged, and the object's memory is never used
//! again. [`live_objects`] counts the objects that are there.
//!
//! # Errors
//!
//! [`OpenError`] says why there is no fabric. Every other call fails with a [`VerbsError`]. It names
//! the call of librdmacm or libibverbs, and keeps the system's error. A failed work request comes as a
//! completion with a [`WcStatus`], a failed connection as an [`Event`]. Numbers that this crate does
//! not know are kept as `Unknown(n)`.
//!
//! # Backends
//!
//! [`Fabric::rdma`] runs on the kernel's RDMA through librdmacm and libibverbs, which are opened at
//! run time: a program that uses this crate starts on machines without them. [`Fabric::soft`] is
//! RoCEv2 in user space over UDP, by the crate soft-roce: no library, no privileges, and it speaks
//! with the kernel's RDMA CM and verbs on other hosts.
//!
//! The words that are the project's own are in `docs/glossary.md`.

#![deny(unsafe_code)]

pub mod address;
mod backend;
mod cm;
mod completion;
mod device;
mod error;
mod fabric;
pub mod fork;
mod live;
mod memory;
mod qp;
mod rdma;
mod soft;
mod srq;
#[cfg(test)]
mod testing;
mod types;
mod work;

#[cfg(feature = "witness")]
#[doc(hidden)]
pub mod ffi_layout {
    pub use crate::rdma::ffi::layout::*;
}

pub use address::{AddressWatch, InterfaceAddress};
pub use cm::{
    ACCEPT_PRIVATE_DATA, CONNECT_PRIVATE_DATA, CmId, Event, EventChannel, REJECT_PRIVATE_DATA,
    Request,
};
pub use completion::{CompletionChannel, CompletionQueue, Sleeper};
pub use device::Device;
pub use error::{OpenError, Result, VerbsError};
pub use fabric::Fabric;
pub use live::{LiveObjects, live_objects};
pub use memory::{
    AppMemory, AtRim, BufferPool, MappingChange, MappingWatch, MemoryRegion, ProtectionDomain,
    RegionSlice, RegisteredBuffer, SharedMemory, WatchError,
};
pub use qp::{Binding, Claim, MemoryWindow, PreparedQp, QueuePair};
pub use soft::SoftConfig;
pub use srq::SharedReceiveQueue;
pub use types::{
    Access, BATCH, Completion, CompletionBatch, ConnParams, ConnectionDetails, DeviceLimits,
    FabricKind, Gid, LinkLayer, MAX_PIECES, PortAttr, PortState, PrivateData, QpCaps, RejectReason,
    RemoteMemory, SendFlags, Transport, Verb, WcStatus, Woken,
};
pub use work::{BufferPostError, Payload, Piece, Pieces, PostError, ReadInPlace, SendRequest};
