//! The providers as the switch has them: started, with sockets that close themselves and errors
//! that say which step failed.
//!
//! The one room that calls the provider's control path. No policy.

pub(crate) mod failure;
pub(crate) mod provider;
pub(crate) mod providers;
pub(crate) mod signals;
pub(crate) mod socket;
mod upcalls;
