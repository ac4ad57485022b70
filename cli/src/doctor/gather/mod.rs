//! Finding the facts: everything that asks the system, the fabric or the peer. Nothing is judged.
//!
//! Nothing here changes the machine, and nothing needs root: what cannot be read is a fact as well.
//! Each question to a peer has a deadline.

mod fabric;
mod peer;
mod settings;
mod system;

use super::facts::Facts;
use crate::destination::Destination;

/// Finds out everything; `peer` is asked about too if there is one.
pub(super) fn gather(peer: Option<&(Destination, bool)>) -> Facts {
    let (settings, config) = settings::gather();
    let (fabric, switch) = fabric::gather(&config);
    let mut facts = Facts {
        settings,
        kernel: system::kernel(),
        interfaces: system::interfaces(&fabric),
        fabric,
        limits: system::limits(),
        userfaultfd: system::userfaultfd(),
        clock: system::clock(),
        peer: None,
    };
    if let (Some((destination, has_port)), Some(switch)) = (peer, &switch) {
        facts.peer = Some(peer::gather(destination, *has_port, switch, &facts));
    }
    facts
}
