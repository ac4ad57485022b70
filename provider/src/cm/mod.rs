//! RDMA CM: the thread that reads its events.

pub(crate) mod thread;
