//! A user-space RoCEv2 endpoint with RDMA CM that needs no privileges.
//!
//! What it does: it speaks the RoCEv2 wire protocol (reliable connections and the
//! CM) over ordinary UDP sockets, with the kernel's `rdma_rxe`, RoCE adapters and
//! itself.
//!
//! What it does not do: datagram queue pairs for applications, atomics, memory
//! windows that a work request on the send queue binds (a call binds them), path
//! migration, congestion control by CNP.
//!
//! Layers, each of which knows only those before it:
//!
//! - [`wire`]: headers and messages, parse and emit;
//! - [`memory`] and [`sink`]: the two traits at the engines' edges, [`time`]: the
//!   moments handed to them;
//! - `rc`, `cm`: protocol engines without I/O and without a clock;
//! - `endpoint`, `driver`: the engines joined to sockets, timers and a user.
//!
//! # Quick start
//!
//! Both ends are in one process. The client's request reaches the listener. The listener refuses it, since a
//! refusal needs no queue pair. `examples/perf` and `tests/endpoint` go on from here with queue pairs.
//!
//! ```
//! use soft_roce::endpoint::{CmEvent, CmEventKind, Config, Endpoint, EventChannel};
//! use soft_roce::endpoint::{ConnParams, QpInit};
//! use soft_roce::rc::Access;
//! use std::time::{Duration, Instant};
//!
//! fn wait(events: &EventChannel) -> CmEvent {
//!     let end = Instant::now() + Duration::from_secs(5);
//!     loop {
//!         match events.next() {
//!             Some(event) => return event,
//!             // A program would sleep on the channel's descriptor.
//!             None => std::thread::sleep(Duration::from_millis(1)),
//!         }
//!         assert!(Instant::now() < end, "nothing came");
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let endpoint = Endpoint::new(Config {
//!     addresses: vec!["127.0.0.3".parse()?],
//!     ..Config::default()
//! })?;
//! let (arrivals, events) = (endpoint.event_channel()?, endpoint.event_channel()?);
//! let listener = endpoint.create_id(&arrivals);
//! listener.bind("127.0.0.3:0".parse()?)?;
//! listener.listen(8)?;
//! let there = listener.local_addr().ok_or("not bound")?;
//!
//! let client = endpoint.create_id(&events);
//! client.resolve_addr(None, there, Duration::from_secs(1))?;
//! assert!(matches!(wait(&events).kind, CmEventKind::AddrResolved));
//! client.resolve_route(Duration::from_secs(1))?;
//! assert!(matches!(wait(&events).kind, CmEventKind::RouteResolved));
//! let cq = endpoint.create_cq(16, None);
//! let qp = endpoint.create_qp(&QpInit {
//!     pd: endpoint.alloc_pd(),
//!     send_cq: &cq,
//!     recv_cq: &cq,
//!     srq: None,
//!     send_wr: 4,
//!     recv_wr: 4,
//!     send_sge: 1,
//!     recv_sge: 1,
//!     inline: 64,
//!     access: Access::LOCAL_WRITE,
//! })?;
//! client.connect(&qp, &ConnParams::default())?;
//!
//! let CmEventKind::ConnectRequest { id, .. } = wait(&arrivals).kind else {
//!     return Err("no request".into());
//! };
//! id.reject(b"not today")?;
//! assert!(matches!(wait(&events).kind, CmEventKind::Rejected { .. }));
//! # Ok(())
//! # }
//! ```
//!
//! # Threads
//!
//! Any thread may use every type. Each [`endpoint::Endpoint`] has one thread, `soft-roce`. It reads the sockets
//! for threads that sleep on descriptors, and keeps the timers. While a thread polls a completion queue, that
//! thread does the work itself. Only [`endpoint::CompletionChannel::wait`] waits, until its deadline.
//!
//! # Clean-up
//!
//! Clones of an endpoint are one device. It lives as long as any object made from it, and its thread ends with
//! the last of them. Dropping the id of a request refuses the request. Dropping a queue pair destroys it. If the
//! queue pair was not disconnected before, the peer finds out by its own time-outs.
//!
//! # Errors
//!
//! Calls of the CM give [`std::io::Error`] with the errno that `rdma_cm` would give. A failure that comes later is
//! an event ([`endpoint::CmEventKind`]). Calls of verbs have an enum each ([`endpoint::QpError`],
//! [`rc::PostError`], [`rc::RegisterError`]). A work request that fails later has a completion whose status says so.
//! Peers are not trusted: a packet that breaks the rules costs its connection and nothing else.
//!
//! The words that are the project's own are in `docs/glossary.md`.

// Denied and not forbidden for a few socket options: `driver::sockopt`.
#![deny(unsafe_code)]

pub mod cm;
mod driver;
pub mod endpoint;
pub mod memory;
pub mod rc;
pub mod sink;
pub mod time;
pub mod wire;
