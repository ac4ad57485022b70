//! Work requests, and the tables that own their buffers from post to completion.

mod receives;
mod request;
mod sends;
#[cfg(test)]
mod tests;

pub use self::receives::ReadInPlace;
pub(crate) use self::receives::ReceiveQueue;
#[cfg(test)]
use self::receives::RecvTable;
pub use self::request::{BufferPostError, Payload, Piece, Pieces, PostError, SendRequest};
pub(crate) use self::sends::SendTable;
