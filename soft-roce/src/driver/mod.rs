//! Sockets, and what the engines need of the operating system.
//!
//! What it does: UDP sockets with segmentation and receive offload
//! ([`port`], [`batch`], [`bundle`], [`receive`]), the host's routes ([`route`]), wake-ups
//! ([`wake`]), and the directory in which endpoints of one host find each other
//! ([`rendezvous`]).
//! What it does not do: protocol. It sees datagrams, destination queue pairs and
//! the ICRC.

pub(crate) mod batch;
pub(crate) mod bundle;
mod bundled;
pub(crate) mod counters;
pub(crate) mod port;
pub(crate) mod receive;
pub(crate) mod rendezvous;
pub(crate) mod route;
mod sockopt;
pub(crate) mod wake;

#[cfg(test)]
mod tests;
