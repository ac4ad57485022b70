//! What several crates of San Direct need and none of them is about: locks without poison,
//! deadlines, an eventfd as a flag, counters, tables by number, names of processes, and the directory of a user's own.
//!
//! Each is written here once. The crate knows nothing of sockets, fabrics or protocols, starts no
//! thread, and depends on no other crate of the workspace. What one crate alone needs stays there.
//!
//! # Quick start
//!
//! ```
//! use san_base::{Deadline, Signal};
//! use std::time::Duration;
//!
//! let deadline = Deadline::after(Duration::from_secs(5));
//! assert!(!deadline.is_over());
//! // A flag that poll(2) sees.
//! let signal = Signal::new()?;
//! signal.set();
//! signal.reset();
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Threads
//!
//! Every type here may be used by any thread. [`lock`] takes a mutex that a thread has panicked with as it is.
//!
//! # Clean-up
//!
//! A [`Signal`] closes its descriptor when it is dropped. Nothing else here holds any.
//!
//! # Errors
//!
//! What the system says is passed on as [`std::io::Error`].
//!
//! The words that are the project's own are in `docs/glossary.md`.

#![forbid(unsafe_code)]

mod aside;
mod counters;
mod numbers;
mod process;
pub mod runtime_dir;
mod signal;
mod sync;
mod time;

pub use aside::{aside, keep_aside};
pub use counters::Counter;
pub use numbers::{ByNumber, NumberHasher};
pub use process::Process;
pub use signal::Signal;
pub use sync::{lock, try_lock};
pub use time::{Deadline, timespec};
