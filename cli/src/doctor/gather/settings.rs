//! The settings, each looked at alone, so that every bad one is found and not the first only.

use crate::doctor::facts::{BadSetting, SettingsFacts};
use san_switch::{ConfigError, SwitchConfig};
use std::path::Path;

/// Variables of San Direct that are no settings of the switch.
const OTHERS: [&str; 2] = ["SAN_CONFIG", "SAN_LOG"];
/// What the project's own scripts set.
const OF_SCRIPTS: [&str; 4] = ["SAN_TEST_", "SAN_RXE_", "SAN_SOFT_NS", "SAN_BENCH_"];

/// What is set, and a configuration made of what of it can be used.
pub(super) fn gather() -> (SettingsFacts, SwitchConfig) {
    let mut good = String::new();
    let mut facts = SettingsFacts {
        fabric: SwitchConfig::default().fabric,
        set: Vec::new(),
        bad: Vec::new(),
        unknown: unknown(),
        bad_file: None,
    };
    if let Some(path) = std::env::var_os("SAN_CONFIG") {
        match SwitchConfig::from_file(Path::new(&path)) {
            Ok(_) => good = std::fs::read_to_string(&path).unwrap_or_default() + "\n",
            Err(error) => {
                let path = Path::new(&path).display();
                facts.bad_file = Some(format!("{path}: {error}"));
            }
        }
    }
    for (name, allowed) in SwitchConfig::settings() {
        let Some(value) = std::env::var_os(name) else {
            continue;
        };
        let value = value.to_string_lossy().into_owned();
        let line = format!("{name} = {value}\n");
        // No setting's value has either; both mean something in a file.
        let is_plain = !value.contains(['#', '\n']) && value.trim() == value;
        match SwitchConfig::from_text(&line) {
            Ok(_) if is_plain => {
                good.push_str(&line);
                facts.set.push(format!("{name}={value}"));
            }
            Ok(_) | Err(ConfigError::BadValue { .. } | _) => facts.bad.push(BadSetting {
                name: name.to_owned(),
                value,
                allowed: allowed.to_owned(),
            }),
        }
    }
    let config = SwitchConfig::from_text(&good).unwrap_or_default();
    facts.fabric = config.fabric;
    (facts, config)
}

fn unknown() -> Vec<String> {
    let is_known = |name: &str| {
        OTHERS.contains(&name)
            || OF_SCRIPTS.iter().any(|start| name.starts_with(start))
            || SwitchConfig::settings().any(|(known, _)| known == name)
    };
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut unknown: Vec<String> = names
        .filter(|name| name.starts_with("SAN_") && !is_known(name))
        .collect();
    unknown.sort();
    unknown
}
