//! A peer that moves to another process, and is awaited.

use std::time::Instant;

use verbs_shim::CmId;

use crate::runtime::Runtime;
use crate::wire::Resumption;

/// A peer that is awaited. Whoever drops it lets it go first.
#[derive(Debug)]
pub(crate) struct Awaited {
    pub(super) id: CmId,
    pub(super) resumption: Resumption,
    pub(super) deadline: Option<Instant>,
}

/// Nobody is awaited any more.
pub(crate) fn await_no_longer(runtime: &Runtime, awaited: Option<Box<Awaited>>) {
    let Some(awaited) = awaited else {
        return;
    };
    let token = awaited.id.token();
    runtime.owners.remove(token);
    if let Some(when) = awaited.deadline {
        runtime.control.cancel_deadline(when, token);
    }
}
