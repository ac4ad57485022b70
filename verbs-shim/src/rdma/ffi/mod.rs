//! librdmacm and libibverbs as Rust sees them: structures, numbers, functions. Nothing is called
//! here but the dynamic linker.

// Declarations follow the C headers: fields and all are public, how far is this module's matter.
#![allow(unreachable_pub)]

mod api;
pub(crate) mod constants;
#[cfg(any(test, feature = "witness"))]
pub mod layout;
pub(crate) mod types;

pub(crate) use self::api::{Api, api};
