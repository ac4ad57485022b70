//! Judging the facts: what is well, what is not, and what to type. Pure: no question to the system,
//! no clock, so that a test can have every line with facts of its own.

mod devices;
mod host;
mod peer;
#[cfg(test)]
mod tests;

use super::facts::Facts;
use super::line::Line;
use san_switch::FabricChoice;

/// All lines, in the order in which one would look.
pub(super) fn judge(facts: &Facts) -> Vec<Line> {
    let mut lines = host::settings(facts);
    match facts.settings.fabric {
        FabricChoice::Off => {}
        FabricChoice::Soft => {
            lines.extend(devices::opened(facts));
            lines.extend(devices::soft_ports(facts));
            lines.extend(devices::devices(facts));
        }
        FabricChoice::Auto | FabricChoice::Rdma => {
            lines.extend(host::kernel(facts));
            lines.extend(devices::opened(facts));
            lines.extend(devices::devices(facts));
            lines.push(host::memlock(facts));
        }
    }
    lines.push(host::descriptors(facts));
    if facts.settings.fabric != FabricChoice::Off {
        lines.push(host::userfaultfd(facts));
    }
    lines.push(host::clock(facts));
    lines.extend(host::meeting_places(facts));
    lines.extend(peer::peer(facts));
    lines
}
