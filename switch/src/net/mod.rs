//! What an application holds: listeners, connects under way, connections; and the standard
//! library's names for them.
//!
//! [`TcpStream`] and [`TcpListener`] have the names, signatures and errors of `std::net`, so that a
//! program changes its `use` lines and nothing else. They use one switch for the whole process, made
//! on first use with the settings of the environment ([`SwitchConfig::from_env`](crate::SwitchConfig::from_env)); [`process_switch`]
//! gives it. A program that wants its own options uses [`Switch`](crate::Switch) and its [`Connection`](crate::Connection).
//!
//! ```
//! use san_switch::net::{TcpListener, TcpStream};
//! use std::io::{Read, Write};
//!
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let mut client = TcpStream::connect(listener.local_addr()?)?;
//! let (mut server, _) = listener.accept()?;
//! client.write_all(b"hello")?;
//! client.shutdown(std::net::Shutdown::Write)?;
//! let mut text = String::new();
//! server.read_to_string(&mut text)?;
//! assert_eq!(text, "hello");
//! # std::io::Result::Ok(())
//! ```
//!
//! # What differs from `std::net`
//! - There is no `AsFd`: over the SAN no descriptor tells when a stream is ready.
//! - Over the SAN bytes travel at once: `set_nodelay` changes nothing.
//! - A process that ends loses what is under way over the SAN. Closing its last stream or listener
//!   waits for that, two seconds at most; `std::process::exit` does not.

mod attempt;
pub(crate) mod closing;
pub(crate) mod connect;
pub(crate) mod connection;
mod first;
pub(crate) mod handover;
pub(crate) mod listener;
mod process;
pub(crate) mod registry;
pub(crate) mod rooms;
mod std_listener;
mod std_stream;

pub use handover::Duplicate;
pub use process::process_switch;
pub use std_listener::{Incoming, TcpListener};
pub use std_stream::TcpStream;
