//! Shared helpers of the tests.
//!
//! What it does: finds the fabric and its two addresses ([`net`]), bounds tests in time ([`time`]),
//! counts what a process holds ([`census`]), registers and opens memory
//! ([`memory`]), runs other programs ([`program`]) and processes with a provider
//! of their own ([`puppet`]), starts
//! providers and connects them ([`san`]), speaks RDMA CM without a provider ([`stranger`]), has the wire
//! lose packets ([`wire`]). What it
//! does not do: judge anything; the tests do, one file a subject, each test named after the duty it is
//! about.
#![forbid(unsafe_code)]

pub mod census;
pub mod memory;
pub mod net;
pub mod program;
pub mod puppet;
pub mod san;
pub mod stranger;
pub mod time;
pub mod wire;
