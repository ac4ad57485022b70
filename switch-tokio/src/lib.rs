//! The Sockets Direct switch for [tokio]: streams with tokio's names and traits, over the SAN where
//! both ends have one, and over TCP everywhere else.
//!
//! [`TcpListener`] and [`TcpStream`] stand in for `tokio::net`'s. A stream is
//! [`AsyncRead`](tokio::io::AsyncRead) and [`AsyncWrite`](tokio::io::AsyncWrite). So code that is built on
//! these two runs on it: framed codecs, `tokio::io::copy`, hyper.
//!
//! # Quick start
//! ```
//! use san_switch_tokio::{TcpListener, TcpStream};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let address = listener.local_addr();
//! let server = tokio::spawn(async move {
//!     let (mut stream, _peer) = listener.accept().await?;
//!     let mut text = String::new();
//!     stream.read_to_string(&mut text).await?;
//!     std::io::Result::Ok(text)
//! });
//!
//! let mut client = TcpStream::connect(address).await?;
//! println!("{}", client.route());
//! client.write_all(b"hello").await?;
//! client.shutdown().await?;
//! assert_eq!(server.await??, "hello");
//! # std::io::Result::Ok(())
//! # })?;
//! # std::io::Result::Ok(())
//! ```
//!
//! # Tasks and threads
//! The first stream of a runtime over the SAN starts one task in that runtime, the *driver*. It polls
//! the lanes of the runtime's streams and wakes the tasks that wait for them. The runtime's reactor
//! watches one descriptor for all of these streams, not one for each. The driver also serves a stream that
//! may move to the SAN (`RouteChoice::Upgrade`), on either carrier. A stream that stays on TCP is
//! registered with the reactor by itself, as tokio's own are.
//!
//! The first call starts the switch of the process ([`san_switch::net::process_switch`]), on a thread
//! for blocking work, since opening a device takes milliseconds.
//!
//! # The runtime
//! The runtime needs I/O; [`TcpStream::connect`] needs time, too (`enable_all`). A stream stays with the
//! runtime in which it was made. It may be used in another one, but its own runtime has to run.
//!
//! # Clean-up
//! Dropping a stream closes it as TCP does. It does not wait: what is under way still arrives, as long
//! as the process lives. A program that ends right after its last byte calls [`TcpStream::finish`].
//!
//! # Errors
//! Those of [`std::io`], with the numbers that TCP gives.
//!
//! [tokio]: https://tokio.rs

#![forbid(unsafe_code)]

mod connecting;
mod driver;
mod listener;
mod source;
mod split;
mod stream;
mod waiters;
mod watched;

pub use listener::TcpListener;
pub use split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, WriteHalf};
pub use stream::TcpStream;

pub use san_switch::{ConnectOptions, ListenOptions, Route, Switch};

use std::io;

/// The switch of the process, started without holding up the runtime.
async fn process_switch() -> io::Result<Switch> {
    blocking(san_switch::net::process_switch).await
}

/// Does what may take milliseconds on a thread for such work.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome.unwrap_or_else(|error| Err(io::Error::other(error)))
}
