//! Why settings cannot be used.

use std::path::PathBuf;

use crate::policy::RulesError;

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A setting's value is not one of those it may have.
    #[error("{name} is '{value}', but must be {allowed}")]
    BadValue {
        /// The setting, by its name in the environment.
        name: &'static str,
        /// What was found.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// The file of rules cannot be used.
    #[error("SAN_RULES is '{}', but must be a file of rules: {source}", path.display())]
    Rules {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: RulesError,
    },
    /// The file with the key cannot be used.
    #[error(
        "SAN_KEY_FILE is '{}', but must be a file that its owner alone may read (chmod 600), \
         with a key of 1 to 4096 bytes: {source}",
        path.display()
    )]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// A line of the configuration file is no setting.
    #[error("line {line} of the configuration, '{text}', is not a setting (NAME = value)")]
    UnknownLine {
        /// Its number, from 1.
        line: usize,
        /// Its text.
        text: String,
    },
    /// A line of the configuration file cannot be used.
    #[error("{}:{line}: {source}", path.display())]
    InFile {
        /// The file that `SAN_CONFIG` names.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// What is wrong with it.
        source: Box<ConfigError>,
    },
    /// The configuration file cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Unreadable {
        /// The file that `SAN_CONFIG` names.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}
