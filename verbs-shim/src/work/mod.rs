//! Work requests, and the tables that own their buffers from post to completion.

mod request;
mod table;
#[cfg(test)]
mod tests;

pub use self::request::{
    MAX_PIECES, Operation, Payload, Piece, Pieces, PostError, RecvPostError, RemoteMemory,
    SendRequest,
};
pub(crate) use self::table::{RecvTable, SendTable};
