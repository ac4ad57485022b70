//! The Sockets Direct switch.

#![forbid(unsafe_code)]

pub mod config;
mod negative_cache;
pub mod ready_queue;
pub mod session;
pub mod table;
mod tcp;
mod wait;
pub use wait::CancelToken;
