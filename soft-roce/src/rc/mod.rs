//! The reliable connection: queue pairs and what they work on.
pub mod cq;
pub mod keys;
pub mod mr;
mod psn;
pub mod srq;
mod state;
mod wr;
pub use state::QpState;
pub use wr::*;
