//! The settings in force, each with where it came from; and everything that is wrong with them, not
//! the first thing only.
//!
//! What a value means, and whether it can be used, is `SwitchConfig`'s business. Here each setting is
//! shown to it alone. Keys are secrets: their values are never kept, so that nothing can print them.

use crate::output::tell;
use san_switch::{ConfigError, SwitchConfig};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// Variables of San Direct that are no settings of the switch.
const OTHERS: [&str; 3] = ["SAN_CONFIG", "SAN_LOG", "SAN_REPORT"];
/// What the project's own scripts and tests set.
const OF_SCRIPTS: [&str; 12] = [
    "SAN_TEST_",
    "SAN_RXE_",
    "SAN_SOFT_NS",
    "SAN_BENCH_",
    "SAN_PRELOAD",
    "SAN_FUZZ_",
    "SAN_STREAM_",
    "SAN_PROGRAM",
    "SAN_PROFILE",
    "SAN_SUITES_",
    "SAN_INTEROP",
    "SAN_COST_",
];
/// Letters that may be wrong, missing or too many in a name that is told to be meant.
const LETTERS: usize = 2;
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
        for known in SwitchConfig::settings() {
            let found = environment.iter().find(|(name, _)| name == known.name());
            if let Some((_, value)) = found {
                settings.take(known, value, Source::Environment, &mut given);
            }
        }
        for known in SwitchConfig::settings() {
            let last = given.iter().rfind(|(name, ..)| *name == known.name());
            let as_given = || last.map(|(_, value, _)| value.clone());
            let shown = known.shown(&settings.config).or_else(as_given);
            settings.in_force.push(Setting {
                name: known.name(),
                value: shown.unwrap_or_else(|| "(none)".to_owned()),
                source: last.map_or(Source::Default, |(_, _, source)| source.clone()),
                allowed: known.allowed(),
            });
        }
        settings
    }

    /// Takes each line of the file.
    fn read_file(
        &mut self,
        path: &Path,
        text: &str,
        given: &mut Vec<(&'static str, String, Source)>,
    ) {
        for line in SwitchConfig::lines(text) {
            let source = Source::File {
                path: path.to_owned(),
                line: line.number,
            };
            match line.setting {
                Some((known, value)) => self.take(known, value, source, given),
                None => self.bad.push(BadSetting {
                    name: String::new(),
                    value: line.text.to_owned(),
                    allowed: "NAME = value; see the names: san config".to_owned(),
                    source,
                }),
            }
        }
    }

    /// Takes one value that `source` gave: good or bad.
    fn take(
        &mut self,
        known: &san_switch::Setting,
        value: &str,
        source: Source,
        given: &mut Vec<(&'static str, String, Source)>,
    ) {
        let name = known.name();
        let kept = match known.is_secret() {
            true => HIDDEN,
            false => value,
        };
        let allowed = match known.apply(&mut self.config, value) {
            Ok(()) => return given.push((name, kept.to_owned(), source)),
            // It knows the line.
            Err(ConfigError::Rules { source, .. }) => format!("a file of rules: {source}"),
            Err(ConfigError::Key { source, .. }) => format!("{}: {source}", known.allowed()),
            Err(_) => known.allowed().to_owned(),
        };
        self.bad.push(BadSetting {
            name: name.to_owned(),
            value: kept.to_owned(),
            allowed,
            source,
        });
    }

    /// Nothing is wrong that keeps a program from starting.
    pub(crate) fn is_good(&self) -> bool {
        self.bad.is_empty() && self.bad_file.is_none()
    }
}

/// What is said of a variable that nothing reads: with the setting that was meant, where one is like it.
pub(crate) fn of_unknown(name: &str) -> String {
    let known = SwitchConfig::settings().map(san_switch::Setting::name);
    let near = known
        .chain(OTHERS)
        .map(|known| (letters_between(name, known), known))
        .min();
    match near {
        Some((letters, known)) if letters <= LETTERS => {
            format!("{name} is not a setting, and nothing reads it; did you mean {known}?")
        }
        _ => format!("{name} is not a setting, and nothing reads it; see the names: san config"),
    }
}

/// Says on standard error which variables nothing reads.
pub(crate) fn tell_unknown() {
    for name in Settings::read().unknown {
        tell!("san: {}", of_unknown(&name));
    }
}

/// How many letters must be put in, left out or changed to make one name of the other (Levenshtein's distance).
fn letters_between(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, b) in other.bytes().enumerate() {
            let changed = before + usize::from(a != b);
            before = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(before + 1);
        }
    }
    row[other.len()]
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

fn unknown(environment: &[(String, String)]) -> Vec<String> {
    let is_known = |name: &str| {
        OTHERS.contains(&name)
            || OF_SCRIPTS.iter().any(|start| name.starts_with(start))
            || SwitchConfig::settings().any(|known| known.name() == name)
    };
    let mut unknown: Vec<String> = environment
        .iter()
        .map(|(name, _)| name.clone())
        .filter(|name| name.starts_with("SAN_") && !is_known(name))
        .collect();
    unknown.sort();
    unknown
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
    fn a_name_that_nothing_reads_is_told_with_the_one_that_was_meant() {
        for (name, meant) in [
            ("SAN_FABRIK", "did you mean SAN_FABRIC?"),
            ("SAN_FABRICS", "did you mean SAN_FABRIC?"),
            ("SAN_LOGS", "did you mean SAN_LOG?"),
            ("SAN_BACKLOGG", "did you mean SAN_BACKLOG?"),
            ("SAN_SOMETHING_ELSE", "see the names: san config"),
        ] {
            let told = of_unknown(name);
            assert!(told.starts_with(name) && told.ends_with(meant), "{told}");
        }
        assert_eq!(letters_between("", "abc"), 3);
        assert_eq!(letters_between("kitten", "sitting"), 3);
        assert!(unknown(&[("SAN_REPORT".to_owned(), "-".to_owned())]).is_empty());
    }

    #[test]
    fn keys_are_hidden_and_their_files_are_not() {
        let key = "000102030405060708090a0b0c0d0e0f";
        let environment = [("SAN_KEY", key), ("SAN_KEY_FILE", "/no/such/file")];
        let settings = of(&environment, Some("SAN_KEY = \"0102\"\n"));
        assert_eq!(one(&settings, "SAN_KEY").0, HIDDEN);
        assert!(!format!("{settings:?}").contains("0102"));
        assert_eq!(settings.bad.len(), 2);
        assert!(settings.bad[1].to_string().contains("/no/such/file"));
    }
}
