//! What several of these tests need.

use std::sync::atomic::{AtomicU8, Ordering};

/// A loopback address that no other test uses, of this process or another: so nobody else has its UDP
/// port 4791, which one endpoint of the soft fabric in a host can have.
#[allow(dead_code, reason = "not every test program needs one")]
pub(crate) fn own_address() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let n = 100 + NEXT.fetch_add(1, Ordering::Relaxed) % 100;
    let pid = std::process::id();
    // Neither the network's first address nor its last.
    let (high, low) = (pid / 250 % 250, 1 + pid % 250);
    format!("127.{n}.{high}.{low}")
}
