//! What a server's process holds, as it tells its client.

use san_benches::Result;
use san_benches::process::Holdings;
use serde::{Deserialize, Serialize};
use verbs_shim::live_objects;

/// What the server's process holds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) process: Holdings,
    pub(crate) cm_ids: usize,
    pub(crate) queue_pairs: usize,
    pub(crate) regions: usize,
}

/// What this process holds, as a line.
pub(crate) fn holdings() -> Result<String> {
    let live = live_objects();
    let held = Held {
        process: Holdings::now()?,
        cm_ids: live.ids,
        queue_pairs: live.qps,
        regions: live.mrs,
    };
    Ok(serde_json::to_string(&held)?)
}
