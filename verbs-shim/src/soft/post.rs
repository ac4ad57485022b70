//! What posting has in common on queue pairs and shared receive queues.

use soft_roce::rc::{PostError, Sge};

use crate::backend::{self, PostFailure};
use crate::error::VerbsError;

pub(super) fn sge(sge: backend::Sge) -> Sge {
    Sge {
        addr: sge.addr,
        len: sge.length,
        lkey: sge.lkey,
    }
}

/// With the errno that a verbs provider would give.
#[cold]
pub(super) fn post_failure(taken: usize, call: &'static str, error: PostError) -> Box<PostFailure> {
    let error = match error {
        PostError::QueueFull => VerbsError::from_errno(call, libc::ENOMEM),
        other => VerbsError::invalid(call, other.to_string()),
    };
    PostFailure::new(taken, error)
}
