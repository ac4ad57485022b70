//! Communication management: how two queue pairs find each other and part
//! (IBTA chapter 12, annex A11 for IP).
//!
//! What it does: the active and the passive side of REQ, REP, RTU, REJ, MRA,
//! DREQ and DREP; repetition of what gets lost, duplicates, stale connections,
//! timewait; listeners of `RDMA_PS_TCP` on addresses and wildcards. It is told
//! what happened and when, and is asked what to send, what to tell the user and
//! when to wake. Memory is bounded: by the backlog of each listener, by
//! [`Config::max_connections`] in all; beyond that requests are refused without
//! anything being kept.
//!
//! What it does not do: sockets and clocks (the driver's), queue pairs (the
//! endpoint moves them when an [`Event`] says so), alternate paths, SIDR.
//!
//! Two endpoints of this crate know each other by a mark in reserved bytes.
//! Towards anyone else answers go to UDP port 4791, as the specification wants;
//! among themselves to the port a message came from.

mod conn;
mod engine;
mod gone;
mod listen;
mod receive;
mod recent;
mod timer;
mod types;

#[cfg(test)]
mod tests;

pub use engine::Engine;
pub use types::{
    Accept, CmError, Config, ConnKey, Connect, Counters, Event, Extension, ListenKey, Path, Peer,
    Request, Transmit,
};
