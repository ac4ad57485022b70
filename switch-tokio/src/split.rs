//! The two halves of a stream. No lock is between them: reading and writing share nothing here.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::stream::TcpStream;

/// The half that reads, borrowed from a stream.
#[derive(Debug)]
pub struct ReadHalf<'a>(pub(crate) &'a TcpStream);

/// The half that writes, borrowed from a stream.
#[derive(Debug)]
pub struct WriteHalf<'a>(pub(crate) &'a TcpStream);

/// The half that reads, for a task of its own.
#[derive(Debug)]
pub struct OwnedReadHalf(Arc<TcpStream>);

/// The half that writes, for a task of its own. Dropping it ends our stream, unless
/// [`OwnedWriteHalf::forget`] is called.
#[derive(Debug)]
pub struct OwnedWriteHalf {
    stream: Arc<TcpStream>,
    ends: bool,
}

impl TcpStream {
    /// A half that reads and a half that writes, for two tasks. Dropping the one that writes ends our
    /// stream.
    #[must_use]
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        let stream = Arc::new(self);
        let writes = OwnedWriteHalf {
            stream: Arc::clone(&stream),
            ends: true,
        };
        (OwnedReadHalf(stream), writes)
    }

    /// A half that reads and a half that writes, for two futures of one task.
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        (ReadHalf(self), WriteHalf(self))
    }
}

impl OwnedReadHalf {
    /// The stream again, from its two halves.
    ///
    /// # Errors
    /// The halves, if they are of two streams.
    pub fn reunite(self, other: OwnedWriteHalf) -> Result<TcpStream, (Self, OwnedWriteHalf)> {
        if !Arc::ptr_eq(&self.0, &other.stream) {
            return Err((self, other));
        }
        other.forget();
        let Self(stream) = self;
        Arc::try_unwrap(stream).map_err(|_| unreachable!("a stream has two halves"))
    }

    /// The whole stream, for its addresses and options.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.0
    }
}

impl OwnedWriteHalf {
    /// Drops it without ending our stream.
    pub fn forget(mut self) {
        self.ends = false;
    }

    /// The whole stream, for its addresses and options.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

impl Drop for OwnedWriteHalf {
    fn drop(&mut self) {
        if self.ends {
            // A peer that is gone needs no end.
            let _ = self.stream.end();
        }
    }
}

/// Reads by the stream that `$stream` gives.
macro_rules! reads {
    ($half:ty, $stream:ident => $way:expr) => {
        impl AsyncRead for $half {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                let $stream = &*self;
                $way.poll_receive(context, buffer)
            }
        }
    };
}

/// Writes by the stream that `$stream` gives.
macro_rules! writes {
    ($half:ty, $stream:ident => $way:expr) => {
        impl AsyncWrite for $half {
            fn poll_write(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                let $stream = &*self;
                $way.poll_send(context, bytes)
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                pieces: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                let $stream = &*self;
                $way.poll_send_vectored(context, pieces)
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $stream = &*self;
                $way.end()
            }
        }
    };
}

reads!(ReadHalf<'_>, half => half.0);
reads!(OwnedReadHalf, half => half.0);
writes!(WriteHalf<'_>, half => half.0);
writes!(OwnedWriteHalf, half => half.stream);
