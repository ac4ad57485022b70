//! Readiness: loops over the program's descriptors and over what has none (`docs/architecture.md`).
//!
//! [`event_loop`] is a loop over an epoll set, [`sleeper`] one wait of poll or select, [`poller`] the
//! face for Rust programs. All hear of a source by its [`hub`]. Of a connection that may move the kernel's
//! descriptor tells at times, and a loop at others: [`registrations`] has it where it belongs.

pub(crate) mod event_loop;
pub(crate) mod fdinfo;
pub(crate) mod hub;
pub(crate) mod interest;
mod lanes;
pub(crate) mod poller;
mod primitives;
pub(crate) mod registrations;
pub(crate) mod sleeper;
pub(crate) mod watched;
// Its tests load it a second time, with loom's primitives.
mod wakes;
#[cfg(test)]
mod wakes_tests;
