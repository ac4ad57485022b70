//! Memory of the application's, registered.
//!
//! `cache.rs` keeps registrations beyond their use.

pub mod cache;
