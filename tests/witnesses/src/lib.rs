//! A client on `rdma-sys` alone, the witness of our provider's behaviour on the wire.
//!
//! What it does: opens connections, sends and receives messages through librdmacm and libibverbs as
//! `rdma-sys` declares them, and reads and writes San Direct's private data by hand. What it does not
//! do: use any code of San Direct. The other witnesses (layouts, device list) are in `tests/`.

pub mod flood;
pub mod raw;
pub mod wire;
