//! What the options of a socket are set to.

/// What can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) reuse_addr: bool,
    pub(crate) v6_only: bool,
    pub(crate) tos: Option<u8>,
    pub(crate) rdma_threshold: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            reuse_addr: false,
            v6_only: true,
            tos: None,
            rdma_threshold: None,
        }
    }
}
