//! Finding the facts: everything that asks the system, the fabric or the peer. Nothing is judged.
//!
//! Nothing here changes the machine, and nothing needs root: what cannot be read is a fact as well.
//! Each question to a peer has a deadline.

mod fabric;
mod peer;
mod system;

use super::facts::{Facts, SettingsFacts};
use crate::destination::Destination;
use crate::settings::{Settings, Source};
use san_switch::RouteChoice;

/// Finds out everything; `peer` is asked about too if there is one.
pub(super) fn gather(peer: Option<&(Destination, bool)>) -> Facts {
    let settings = Settings::read();
    let (fabric, switch) = fabric::gather(&settings.config);
    let mut facts = Facts {
        settings: of_settings(&settings),
        kernel: system::kernel(),
        interfaces: system::interfaces(&fabric),
        fabric,
        limits: system::limits(),
        userfaultfd: system::userfaultfd(),
        clock: system::clock(),
        meeting_places: system::meeting_places(settings.config.fabric),
        peer: None,
    };
    if let (Some((destination, has_port)), Some(switch)) = (peer, &switch) {
        facts.peer = Some(peer::gather(destination, *has_port, switch, &facts));
    }
    facts
}

fn of_settings(settings: &Settings) -> SettingsFacts {
    let given = settings.in_force.iter();
    let given = given.filter(|setting| setting.source != Source::Default);
    SettingsFacts {
        fabric: settings.config.fabric,
        says_tcp: settings.config.route == RouteChoice::Off,
        set: given
            .map(|setting| format!("{}={}", setting.name, setting.value))
            .collect(),
        bad: settings.bad.clone(),
        unknown: settings.unknown.clone(),
        bad_file: settings.bad_file.clone(),
    }
}
