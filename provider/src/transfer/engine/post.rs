//! What the engine has its shell post.

use super::Payloads;
use crate::wire::Resumption;

/// How a message is to be posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MessagePlan {
    /// Its immediate data, in host order.
    pub(crate) immediate: u32,
    /// It makes a completion also if it succeeds.
    pub(crate) signaled: bool,
    /// Credits that it gives.
    pub(super) credits: u16,
}

/// What is to be posted next.
pub(crate) enum Post<P: Payloads> {
    /// A message that waited.
    Message {
        token: u32,
        buffer: P::Buffer,
        fence: bool,
        plan: MessagePlan,
    },
    /// An RDMA operation that waited.
    Rdma { token: u32, job: Box<P::Rdma> },
    /// Credits by themselves.
    Credits(MessagePlan),
    /// A question or an answer about moving.
    Handover {
        plan: MessagePlan,
        fence: bool,
        answer: Option<Answer<P::Buffer>>,
    },
}

/// The answer that the peer may move: what it is told, and the buffer that this lies in if it does
/// not travel inline.
pub(crate) struct Answer<B> {
    pub(crate) resumption: Resumption,
    pub(crate) buffer: Option<B>,
}
