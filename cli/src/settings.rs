//! The settings in force, each with where it came from; and everything that is wrong with them, not
//! the first thing only.
//!
//! What a value means, and whether it can be used, is `SwitchConfig`'s business. Here each setting is
//! shown to it alone. Keys are secrets: their values are never kept, so that nothing can print them.

use san_switch::{ConfigError, SwitchConfig};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// Variables of San Direct that are no settings of the switch.
const OTHERS: [&str; 2] = ["SAN_CONFIG", "SAN_LOG"];
/// What the project's own scripts and tests set.
const OF_SCRIPTS: [&str; 5] = [
    "SAN_TEST_",
    "SAN_RXE_",
    "SAN_SOFT_NS",
    "SAN_BENCH_",
    "SAN_PRELOAD",
];
/// In place of a secret.
const HIDDEN: &str = "(set, not shown)";

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    Default,
    /// A line of the file that `SAN_CONFIG` names, from 1.
    File {
        path: PathBuf,
        line: usize,
    },
    Environment,
}

/// One setting in force.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    pub(crate) value: String,
    pub(crate) source: Source,
    pub(crate) allowed: &'static str,
}

/// A value that cannot be used, or a line or a name that is no setting.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BadSetting {
    /// Empty for a line that is no setting.
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) allowed: String,
    pub(crate) source: Source,
}

/// All of it.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// In the order of `SwitchConfig::settings`.
    pub(crate) in_force: Vec<Setting>,
    pub(crate) bad: Vec<BadSetting>,
    /// Variables that begin with `SAN_` and that nothing of San Direct reads.
    pub(crate) unknown: Vec<String>,
    /// Why the file that `SAN_CONFIG` names cannot be read.
    pub(crate) bad_file: Option<String>,
    /// What all the good ones make.
    pub(crate) config: SwitchConfig,
}

/// The text of the file that `SAN_CONFIG` names, or why there is none.
type File = (PathBuf, std::io::Result<String>);

impl Settings {
    /// Those of this process's environment.
    pub(crate) fn read() -> Self {
        let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        let environment: Vec<(String, String)> = std::env::vars_os()
            .map(|(name, value)| (lossy(name), lossy(value)))
            .filter(|(name, _)| name.starts_with("SAN_"))
            .collect();
        let file = std::env::var_os("SAN_CONFIG").map(|path| {
            let text = std::fs::read_to_string(&path);
            (PathBuf::from(path), text)
        });
        Self::of(&environment, file)
    }

    /// Those of an environment and a file.
    fn of(environment: &[(String, String)], file: Option<File>) -> Self {
        let mut settings = Settings {
            in_force: Vec::new(),
            bad: Vec::new(),
            unknown: unknown(environment),
            bad_file: None,
            config: SwitchConfig::default(),
        };
        // Later ones count: the file first, then the environment over it.
        let mut given: Vec<(&'static str, String, Source)> = Vec::new();
        match file {
            Some((path, Ok(text))) => settings.read_file(&path, &text, &mut given),
            Some((path, Err(error))) => {
                settings.bad_file = Some(format!("{}: {error}", path.display()));
            }
            None => {}
        }
        for (name, allowed) in SwitchConfig::settings() {
            let found = environment.iter().find(|(given, _)| given == name);
            if let Some((_, value)) = found {
                settings.take(name, allowed, value, Source::Environment, &mut given);
            }
        }
        let text: String = given
            .iter()
            .map(|(name, value, _)| format!("{name} = {value}\n"))
            .collect();
        // Each was good alone, and none depends on another.
        settings.config = SwitchConfig::from_text(&text).unwrap_or_default();
        for (name, allowed) in SwitchConfig::settings() {
            let last = given.iter().rfind(|(given, ..)| *given == name);
            let value = match (is_secret(name), last) {
                (true, Some(_)) => HIDDEN.to_owned(),
                (true, None) => "(none)".to_owned(),
                (false, last) => value_of(&settings.config, name)
                    .or_else(|| last.map(|(_, value, _)| value.clone()))
                    .unwrap_or_else(|| "(none)".to_owned()),
            };
            settings.in_force.push(Setting {
                name,
                value,
                source: last.map_or(Source::Default, |(_, _, source)| source.clone()),
                allowed,
            });
        }
        settings
    }

    /// A file of `NAME = value` lines; `#` starts a comment.
    fn read_file(
        &mut self,
        path: &Path,
        text: &str,
        given: &mut Vec<(&'static str, String, Source)>,
    ) {
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let source = Source::File {
                path: path.to_owned(),
                line: index + 1,
            };
            let known = line.split_once('=').and_then(|(name, value)| {
                let (name, allowed) = SwitchConfig::settings().find(|(n, _)| *n == name.trim())?;
                Some((name, allowed, value.trim()))
            });
            match known {
                Some((name, allowed, value)) => self.take(name, allowed, value, source, given),
                None => self.bad.push(BadSetting {
                    name: String::new(),
                    value: line.to_owned(),
                    allowed: "NAME = value; see the names: san config".to_owned(),
                    source,
                }),
            }
        }
    }

    fn take(
        &mut self,
        name: &'static str,
        allowed: &'static str,
        value: &str,
        source: Source,
        given: &mut Vec<(&'static str, String, Source)>,
    ) {
        // No setting's value has either; both mean something in a file.
        let is_plain = !value.contains(['#', '\n']) && value.trim() == value;
        let mut allowed = allowed.to_owned();
        if is_plain {
            match SwitchConfig::from_text(&format!("{name} = {value}")) {
                Ok(_) => {
                    given.push((name, value.to_owned(), source));
                    return;
                }
                // It knows the line.
                Err(ConfigError::Rules { source, .. }) => {
                    allowed = format!("a file of rules: {source}");
                }
                Err(_) => {}
            }
        }
        self.bad.push(BadSetting {
            name: name.to_owned(),
            value: match is_secret(name) {
                true => HIDDEN.to_owned(),
                false => value.to_owned(),
            },
            allowed,
            source,
        });
    }

    /// Nothing is wrong that keeps a program from starting.
    pub(crate) fn is_good(&self) -> bool {
        self.bad.is_empty() && self.bad_file.is_none()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::Environment => f.write_str("environment"),
            Source::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

impl fmt::Display for BadSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BadSetting {
            name,
            value,
            allowed,
            source,
        } = self;
        match name.is_empty() {
            true => write!(f, "'{value}' ({source}) is not a setting: {allowed}"),
            false => write!(f, "{name} is '{value}' ({source}), but must be {allowed}"),
        }
    }
}

/// Whether nobody may see the value.
fn is_secret(name: &str) -> bool {
    ["_KEY", "_SECRET", "_TOKEN", "_PASSWORD"]
        .iter()
        .any(|end| name.ends_with(end))
}

fn unknown(environment: &[(String, String)]) -> Vec<String> {
    let is_known = |name: &str| {
        OTHERS.contains(&name)
            || OF_SCRIPTS.iter().any(|start| name.starts_with(start))
            || SwitchConfig::settings().any(|(known, _)| known == name)
    };
    let mut unknown: Vec<String> = environment
        .iter()
        .map(|(name, _)| name.clone())
        .filter(|name| name.starts_with("SAN_") && !is_known(name))
        .collect();
    unknown.sort();
    unknown
}

/// A setting's value as it would be written; `None` for one that is not known here.
fn value_of(config: &SwitchConfig, name: &str) -> Option<String> {
    let truth = |on: bool| if on { "1" } else { "0" }.to_owned();
    Some(match name {
        "SAN_FABRIC" => config.fabric.to_string(),
        "SAN_CONNECT_TIMEOUT_MS" => config.connect_timeout.as_millis().to_string(),
        "SAN_FABRIC_CONNECT_TIMEOUT_MS" => config.fabric_connect_timeout.as_millis().to_string(),
        "SAN_STRICT" => truth(config.strict),
        "SAN_BACKLOG" => config.backlog.to_string(),
        "SAN_NEGATIVE_CACHE_ENTRIES" => config.negative_cache.entries.to_string(),
        "SAN_NEGATIVE_CACHE_MS" => config.negative_cache.lifetime.as_millis().to_string(),
        "SAN_LOOPBACK" => truth(config.loopback),
        "SAN_SOFT_ADDRESSES" => match config.soft_addresses.is_empty() {
            true => "(all)".to_owned(),
            false => {
                let all = config.soft_addresses.iter().map(ToString::to_string);
                all.collect::<Vec<_>>().join(",")
            }
        },
        "SAN_IO_TIMEOUT_MS" => {
            let timeout = config.io_timeout.map_or(0, |timeout| timeout.as_millis());
            timeout.to_string()
        }
        "SAN_SHUTDOWN_TIMEOUT_MS" => config.shutdown_timeout.as_millis().to_string(),
        "SAN_ROUTE" => config.route.to_string(),
        "SAN_RULES" => match config.rules.is_empty() {
            true => "(none)".to_owned(),
            // The file's name is what was given.
            false => return None,
        },
        "SAN_SUBNETS" => match config.subnets.is_empty() {
            true => "(none)".to_owned(),
            false => {
                let all = config.subnets.iter().map(ToString::to_string);
                all.collect::<Vec<_>>().join(",")
            }
        },
        "SAN_UPGRADE_BYTES" => config.upgrade_bytes.to_string(),
        "SAN_STAT" => if config.stat { "on" } else { "off" }.to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use san_switch::FabricChoice;

    const FILE: &str = "# our hosts\nSAN_BACKLOG = 16\nSAN_STRICT=1 # all speak it\n";

    fn of(environment: &[(&str, &str)], file: Option<&str>) -> Settings {
        let environment: Vec<_> = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let file = file.map(|text| (PathBuf::from("/etc/san.conf"), Ok(text.to_owned())));
        Settings::of(&environment, file)
    }

    fn one<'a>(settings: &'a Settings, name: &str) -> (&'a str, String) {
        let mut all = settings.in_force.iter();
        let found = all.find(|setting| setting.name == name).unwrap();
        (&found.value, found.source.to_string())
    }

    #[test]
    fn each_value_comes_from_the_last_who_gave_one() {
        let settings = of(&[("SAN_BACKLOG", "99"), ("SAN_FABRIC", "soft")], Some(FILE));
        assert!(settings.is_good());
        let is = |name, value: &str, source: &str| {
            assert_eq!(one(&settings, name), (value, source.to_owned()), "{name}");
        };
        is("SAN_BACKLOG", "99", "environment");
        is("SAN_STRICT", "1", "/etc/san.conf:3");
        is("SAN_FABRIC", "soft", "environment");
        is("SAN_STAT", "on", "default");
        assert_eq!(settings.config.backlog, 99);
        assert!(settings.config.strict);
        assert_eq!(settings.config.fabric, FabricChoice::Soft);
    }

    #[test]
    fn everything_that_is_wrong_is_told_with_its_place() {
        let file = "SAN_BACKLOG = 0\nnonsense\nSAN_STRICT = 1\n";
        let environment = [
            ("SAN_FABRIC", "rmda"),
            ("SAN_FABRC", "soft"),
            ("SAN_LOG", "x"),
        ];
        let settings = of(&environment, Some(file));
        let told: Vec<String> = settings.bad.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "SAN_BACKLOG is '0' (/etc/san.conf:1), but must be a number from 1 to 4096",
                "'nonsense' (/etc/san.conf:2) is not a setting: NAME = value; see the names: san config",
                "SAN_FABRIC is 'rmda' (environment), but must be auto, rdma, soft or off",
            ]
        );
        assert_eq!(settings.unknown, ["SAN_FABRC"]);
        // The good ones count all the same.
        assert!(settings.config.strict && !settings.is_good());
        let odd = of(
            &[
                ("SAN_BACKLOG", "5 # five"),
                ("SAN_STRICT", "1\nSAN_BACKLOG=7"),
            ],
            None,
        );
        assert_eq!(odd.bad.len(), 2, "{:?}", odd.bad);
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        let settings = Settings::of(&[], Some(("/no".into(), Err(missing))));
        assert!(!settings.is_good() && settings.bad_file.is_some());
    }

    #[test]
    fn what_is_shown_can_be_written_and_means_the_same() {
        let all = "SAN_FABRIC=off\nSAN_CONNECT_TIMEOUT_MS=1\nSAN_FABRIC_CONNECT_TIMEOUT_MS=2\n\
                   SAN_STRICT=1\nSAN_BACKLOG=3\nSAN_NEGATIVE_CACHE_ENTRIES=4\n\
                   SAN_NEGATIVE_CACHE_MS=5\nSAN_LOOPBACK=true\nSAN_SOFT_ADDRESSES=127.0.0.1, ::1\n\
                   SAN_IO_TIMEOUT_MS=6\nSAN_SHUTDOWN_TIMEOUT_MS=7\nSAN_STAT=off\n\
                   SAN_ROUTE=upgrade\nSAN_UPGRADE_BYTES=8\n";
        let settings = of(&[], Some(all));
        let known = settings.in_force.iter();
        let known = known.filter(|setting| setting.source != Source::Default);
        let text: String = known
            .map(|setting| format!("{}={}\n", setting.name, setting.value))
            .collect();
        assert_eq!(text.lines().count(), 14);
        assert_eq!(SwitchConfig::from_text(&text).unwrap(), settings.config);
        assert_ne!(settings.config, SwitchConfig::default());
    }

    /// A new setting needs a line in `value_of`, or `san config` cannot show its default.
    #[test]
    fn every_setting_has_a_value_to_show() {
        for (name, _) in SwitchConfig::settings() {
            let shown = value_of(&SwitchConfig::default(), name);
            // What is in a key's file is not kept either.
            let is_hidden = is_secret(name) || name == "SAN_KEY_FILE";
            assert!(shown.is_some() || is_hidden, "{name}");
        }
    }

    #[test]
    fn keys_are_secrets_and_their_files_are_not() {
        assert!(is_secret("SAN_KEY") && is_secret("SAN_PEER_TOKEN"));
        assert!(!is_secret("SAN_KEY_FILE") && !is_secret("SAN_BACKLOG"));
    }
}
