//! The switch's settings: a plain struct that is checked once, when the switch is made.
//!
//! Files and environment are read only here, by [`SwitchConfig::from_env`] and
//! [`SwitchConfig::from_file`]; nothing else in the crate looks at either. A value that cannot be
//! used is an error that names the setting, what was found and what is allowed. What this module
//! does not do: open providers (see `switch.rs`) or decide anything per connection.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use san_stream::Thresholds;

pub use crate::policy::RouteChoice;
use crate::policy::{Rules, RulesError, subnet};
use crate::upgrade::key::DeploymentKey;

/// The largest backlog a listener can have: `SOMAXCONN` of Linux.
pub const SOMAXCONN: u32 = 4096;

/// Which fabric the switch puts its companions on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FabricChoice {
    /// The rdma fabric if this machine has one, else TCP alone.
    #[default]
    Auto,
    /// The rdma fabric; its absence is an error.
    Rdma,
    /// The soft fabric (user-space RoCEv2); its absence is an error.
    Soft,
    /// No fabric: the switch is plain TCP.
    Off,
}

/// How long, and for how many destinations, a failed SAN connect is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct NegativeCacheConfig {
    /// Destinations remembered at once; 0 turns the memory off.
    pub entries: usize,
    /// How long a failure counts.
    pub lifetime: Duration,
}

/// Everything that can be set on a switch.
///
/// ```
/// use san_switch::{FabricChoice, SwitchConfig};
/// let config = SwitchConfig::default().fabric(FabricChoice::Off).backlog(16);
/// assert_eq!(config.backlog, 16);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SwitchConfig {
    /// Which fabric to open (`SAN_FABRIC`: `auto`, `rdma`, `soft`, `off`).
    pub fabric: FabricChoice,
    /// Deadline of a whole connect, SAN and TCP together (`SAN_CONNECT_TIMEOUT_MS`).
    pub connect_timeout: Duration,
    /// The part of it the SAN may use before TCP is tried (`SAN_FABRIC_CONNECT_TIMEOUT_MS`).
    pub fabric_connect_timeout: Duration,
    /// Every host of these subnets is on the SAN: "nobody listens there" is then final
    /// (`SAN_STRICT`).
    pub strict: bool,
    /// Backlog of a listener that names none (`SAN_BACKLOG`).
    pub backlog: u32,
    /// Failed SAN connects that are remembered (`SAN_NEGATIVE_CACHE_ENTRIES`,
    /// `SAN_NEGATIVE_CACHE_MS`).
    pub negative_cache: NegativeCacheConfig,
    /// Loopback addresses count as SAN addresses where a provider lists them (`SAN_LOOPBACK`). On
    /// the soft fabric they always do.
    pub loopback: bool,
    /// The addresses of this host that the soft fabric serves (`SAN_SOFT_ADDRESSES`); empty: all.
    pub soft_addresses: Vec<IpAddr>,
    /// How long send and receive wait; `None` waits until the peer acts or goes
    /// (`SAN_IO_TIMEOUT_MS`, 0 = none).
    pub io_timeout: Option<Duration>,
    /// How long shutting down waits for the switch's thread (`SAN_SHUTDOWN_TIMEOUT_MS`).
    pub shutdown_timeout: Duration,
    /// Whether the process tells `san stat` what it does (`SAN_STAT`: `on`, `off`).
    pub stat: bool,
    /// Which way connections take (`SAN_ROUTE`: `direct`, `upgrade`, `off`).
    pub route: RouteChoice,
    /// Other ways for some programs, addresses and ports (`SAN_RULES`, a file); the first that fits goes
    /// before [`SwitchConfig::route`]. What a connect or a listener names itself goes before both.
    pub rules: Rules,
    /// Subnets that the SAN reaches by a router (`SAN_SUBNETS`). A connect there takes the device whose
    /// address the kernel would take.
    pub subnets: Vec<IpNet>,
    /// Bytes of both directions after which a connection that began on TCP is worth moving to the SAN
    /// (`SAN_UPGRADE_BYTES`). The end that accepted it waits for twice as many.
    pub upgrade_bytes: u64,
    /// The key that all hosts share (`SAN_KEY`, `SAN_KEY_FILE`); none by default. Only its holders can
    /// then give a connection of ours a second carrier.
    pub key: DeploymentKey,
}

impl Default for SwitchConfig {
    fn default() -> Self {
        SwitchConfig {
            fabric: FabricChoice::Auto,
            connect_timeout: Duration::from_secs(30),
            fabric_connect_timeout: Duration::from_secs(5),
            strict: false,
            backlog: 128,
            negative_cache: NegativeCacheConfig {
                entries: 64,
                lifetime: Duration::from_secs(30),
            },
            loopback: false,
            soft_addresses: Vec::new(),
            io_timeout: None,
            shutdown_timeout: Duration::from_secs(5),
            stat: true,
            route: RouteChoice::Direct,
            rules: Rules::default(),
            subnets: Vec::new(),
            upgrade_bytes: 32 * 1024,
            key: DeploymentKey::default(),
        }
    }
}

macro_rules! setters {
    ($( $field:ident: $kind:ty, )*) => {
        /// One setting each; ranges are checked when the switch is made.
        impl SwitchConfig {
            $(
                #[doc = concat!("Sets [`SwitchConfig::", stringify!($field), "`](#structfield.", stringify!($field), ").")]
                #[must_use]
                pub fn $field(mut self, $field: $kind) -> Self {
                    self.$field = $field;
                    self
                }
            )*
        }
    };
}

setters! {
    fabric: FabricChoice,
    connect_timeout: Duration,
    fabric_connect_timeout: Duration,
    strict: bool,
    backlog: u32,
    loopback: bool,
    soft_addresses: Vec<IpAddr>,
    io_timeout: Option<Duration>,
    shutdown_timeout: Duration,
    stat: bool,
    route: RouteChoice,
    rules: Rules,
    subnets: Vec<IpNet>,
    upgrade_bytes: u64,
    key: DeploymentKey,
}

impl SwitchConfig {
    /// Sets how many failed SAN connects are remembered (0 = none), and for how long.
    #[must_use]
    pub fn negative_cache(mut self, entries: usize, lifetime: Duration) -> Self {
        self.negative_cache = NegativeCacheConfig { entries, lifetime };
        self
    }

    /// When a connection that began on TCP is worth moving.
    pub(crate) fn thresholds(&self) -> Thresholds {
        Thresholds {
            bytes: self.upgrade_bytes,
            ..Thresholds::default()
        }
    }

    /// Reads `SAN_*` from the environment, over what the file named by `SAN_CONFIG` says, over
    /// the defaults.
    ///
    /// # Errors
    /// [`ConfigError`] for a file that cannot be read or a value that cannot be used.
    pub fn from_env() -> Result<Self, ConfigError> {
        let mut config = match std::env::var_os("SAN_CONFIG") {
            Some(path) => Self::from_file(Path::new(&path))?,
            None => Self::default(),
        };
        for setting in SETTINGS {
            if let Some(value) = std::env::var_os(setting.name) {
                let value = value.to_str().ok_or_else(|| ConfigError::BadValue {
                    name: setting.name,
                    value: value.to_string_lossy().into_owned(),
                    allowed: setting.allowed,
                })?;
                setting.apply(&mut config, value)?;
            }
        }
        config.check()?;
        Ok(config)
    }

    /// Reads a file of `SAN_NAME = value` lines; `#` starts a comment.
    ///
    /// # Errors
    /// [`ConfigError`] for a file that cannot be read, a line that is no setting, or a value that
    /// cannot be used.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let mut config = Self::default();
        config
            .apply_text(&text)
            .map_err(|(line, source)| ConfigError::InFile {
                path: path.to_owned(),
                line,
                source: Box::new(source),
            })?;
        config.check()?;
        Ok(config)
    }

    /// Reads the text of such a file.
    ///
    /// # Errors
    /// As [`SwitchConfig::from_file`], apart from reading.
    pub fn from_text(text: &str) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        config.apply_text(text).map_err(|(_, error)| error)?;
        config.check()?;
        Ok(config)
    }

    /// Takes each line in; the first that cannot be used is an error, with its number from 1.
    fn apply_text(&mut self, text: &str) -> Result<(), (usize, ConfigError)> {
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let number = index + 1;
            let unknown = || {
                let text = line.to_owned();
                (number, ConfigError::UnknownLine { line: number, text })
            };
            let (name, value) = line.split_once('=').ok_or_else(unknown)?;
            let setting = SETTINGS
                .iter()
                .find(|setting| setting.name == name.trim())
                .ok_or_else(unknown)?;
            let applied = setting.apply(self, value.trim());
            applied.map_err(|error| (number, error))?;
        }
        Ok(())
    }

    /// Checks what the fields' types leave open. The switch does so when it is made.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`] naming the first setting that is out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let bad = |name: &'static str, value: String| {
            let allowed = SETTINGS
                .iter()
                .find(|setting| setting.name == name)
                .map_or("", |setting| setting.allowed);
            Err(ConfigError::BadValue {
                name,
                value,
                allowed,
            })
        };
        for (name, value) in [
            ("SAN_CONNECT_TIMEOUT_MS", self.connect_timeout),
            ("SAN_FABRIC_CONNECT_TIMEOUT_MS", self.fabric_connect_timeout),
            ("SAN_SHUTDOWN_TIMEOUT_MS", self.shutdown_timeout),
            (
                "SAN_IO_TIMEOUT_MS",
                self.io_timeout.unwrap_or(Duration::from_millis(1)),
            ),
        ] {
            if value < Duration::from_millis(1) || value > LONGEST {
                return bad(name, format!("{} ms", value.as_millis()));
            }
        }
        if self.negative_cache.lifetime > LONGEST {
            let value = format!("{} ms", self.negative_cache.lifetime.as_millis());
            return bad("SAN_NEGATIVE_CACHE_MS", value);
        }
        if self.negative_cache.entries > MOST_ENTRIES {
            return bad(
                "SAN_NEGATIVE_CACHE_ENTRIES",
                self.negative_cache.entries.to_string(),
            );
        }
        if self.backlog == 0 || self.backlog > SOMAXCONN {
            return bad("SAN_BACKLOG", self.backlog.to_string());
        }
        Ok(())
    }

    /// Every setting with its name in the environment and what it may be.
    pub fn settings() -> impl Iterator<Item = (&'static str, &'static str)> {
        SETTINGS
            .iter()
            .map(|setting| (setting.name, setting.allowed))
    }
}

impl fmt::Display for FabricChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FabricChoice::Auto => "auto",
            FabricChoice::Rdma => "rdma",
            FabricChoice::Soft => "soft",
            FabricChoice::Off => "off",
        })
    }
}

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

/// The longest time any setting may name.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
const MOST_ENTRIES: usize = 65_536;

struct Setting {
    name: &'static str,
    allowed: &'static str,
    set: fn(&mut SwitchConfig, &str) -> Option<()>,
}

impl Setting {
    fn apply(&self, config: &mut SwitchConfig, value: &str) -> Result<(), ConfigError> {
        if self.name == RULES {
            let path = Path::new(value);
            let read = Rules::from_file(path);
            config.rules = read.map_err(|source| ConfigError::Rules {
                path: path.to_owned(),
                source,
            })?;
            return Ok(());
        }
        (self.set)(config, value).ok_or_else(|| ConfigError::BadValue {
            name: self.name,
            // A key with one digit too many is a secret still.
            value: match self.name {
                "SAN_KEY" => "(not shown)".to_owned(),
                _ => value.to_owned(),
            },
            allowed: self.allowed,
        })
    }
}

const RULES: &str = "SAN_RULES";
const MILLISECONDS: &str = "a number of milliseconds from 1 to 86400000";

const SETTINGS: &[Setting] = &[
    Setting {
        name: "SAN_FABRIC",
        allowed: "auto, rdma, soft or off",
        set: |config, value| {
            config.fabric = match value {
                "auto" => FabricChoice::Auto,
                "rdma" => FabricChoice::Rdma,
                "soft" => FabricChoice::Soft,
                "off" => FabricChoice::Off,
                _ => return None,
            };
            Some(())
        },
    },
    Setting {
        name: "SAN_CONNECT_TIMEOUT_MS",
        allowed: MILLISECONDS,
        set: |config, value| milliseconds(value, 1).map(|time| config.connect_timeout = time),
    },
    Setting {
        name: "SAN_FABRIC_CONNECT_TIMEOUT_MS",
        allowed: MILLISECONDS,
        set: |config, value| {
            milliseconds(value, 1).map(|time| config.fabric_connect_timeout = time)
        },
    },
    Setting {
        name: "SAN_STRICT",
        allowed: "1, 0, true or false",
        set: |config, value| switch(value).map(|on| config.strict = on),
    },
    Setting {
        name: "SAN_BACKLOG",
        allowed: "a number from 1 to 4096",
        set: |config, value| {
            let backlog = value.parse().ok()?;
            (1..=SOMAXCONN).contains(&backlog).then(|| {
                config.backlog = backlog;
            })
        },
    },
    Setting {
        name: "SAN_NEGATIVE_CACHE_ENTRIES",
        allowed: "a number from 0 to 65536",
        set: |config, value| {
            let entries = value.parse().ok()?;
            (entries <= MOST_ENTRIES).then(|| config.negative_cache.entries = entries)
        },
    },
    Setting {
        name: "SAN_NEGATIVE_CACHE_MS",
        allowed: "a number of milliseconds from 0 to 86400000",
        set: |config, value| {
            milliseconds(value, 0).map(|time| config.negative_cache.lifetime = time)
        },
    },
    Setting {
        name: "SAN_LOOPBACK",
        allowed: "1, 0, true or false",
        set: |config, value| switch(value).map(|on| config.loopback = on),
    },
    Setting {
        name: "SAN_SOFT_ADDRESSES",
        allowed: "IP addresses with commas between them",
        set: |config, value| {
            let addresses = value.split(',').map(|ip| ip.trim().parse().ok());
            config.soft_addresses = addresses.collect::<Option<_>>()?;
            Some(())
        },
    },
    Setting {
        name: "SAN_IO_TIMEOUT_MS",
        allowed: "a number of milliseconds from 0 (none) to 86400000",
        set: |config, value| {
            let time = milliseconds(value, 0)?;
            config.io_timeout = (!time.is_zero()).then_some(time);
            Some(())
        },
    },
    Setting {
        name: "SAN_SHUTDOWN_TIMEOUT_MS",
        allowed: MILLISECONDS,
        set: |config, value| milliseconds(value, 1).map(|time| config.shutdown_timeout = time),
    },
    Setting {
        name: "SAN_STAT",
        allowed: "on or off",
        set: |config, value| {
            config.stat = match value {
                "on" => true,
                "off" => false,
                _ => return None,
            };
            Some(())
        },
    },
    Setting {
        name: "SAN_ROUTE",
        allowed: "direct, upgrade or off",
        set: |config, value| {
            config.route = RouteChoice::named(value)?;
            Some(())
        },
    },
    Setting {
        name: RULES,
        allowed: "a file of rules: use ROUTE ROLE PROGRAM ADDRESS:PORT",
        // Its errors name the line: see `Setting::apply`.
        set: |_, _| None,
    },
    Setting {
        name: "SAN_SUBNETS",
        allowed: "subnets with commas between them, such as 10.1.0.0/16",
        set: |config, value| {
            let subnets = value.split(',').map(|text| subnet(text.trim()));
            config.subnets = subnets.collect::<Option<_>>()?;
            Some(())
        },
    },
    Setting {
        name: "SAN_UPGRADE_BYTES",
        allowed: "a number of bytes from 1 to 1099511627776",
        set: |config, value| {
            let bytes = value.parse().ok()?;
            (1..=1 << 40)
                .contains(&bytes)
                .then(|| config.upgrade_bytes = bytes)
        },
    },
    Setting {
        name: "SAN_KEY",
        allowed: "32 to 512 hexadecimal digits (openssl rand -hex 32)",
        set: |config, value| {
            config.key = DeploymentKey::from_hex(value)?;
            Some(())
        },
    },
    Setting {
        name: "SAN_KEY_FILE",
        allowed: "a file that its owner alone may read (chmod 600), with a key of 1 to 4096 bytes",
        set: |config, value| {
            config.key = DeploymentKey::from_file(Path::new(value)).ok()?;
            Some(())
        },
    },
];

fn milliseconds(value: &str, least: u64) -> Option<Duration> {
    let number = value.parse().ok().filter(|number| *number >= least)?;
    let time = Duration::from_millis(number);
    (time <= LONGEST).then_some(time)
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    #[test]
    fn an_empty_text_is_the_default() {
        assert_eq!(
            SwitchConfig::from_text("").unwrap(),
            SwitchConfig::default()
        );
        SwitchConfig::default().check().unwrap();
    }

    #[test]
    fn every_setting_reaches_its_field() {
        let config = SwitchConfig::from_text(
            "SAN_FABRIC = rdma # real NICs only\n\nSAN_CONNECT_TIMEOUT_MS=1500\n\
             SAN_FABRIC_CONNECT_TIMEOUT_MS=250\nSAN_STRICT=1\nSAN_BACKLOG=7\n\
             SAN_NEGATIVE_CACHE_ENTRIES=0\nSAN_NEGATIVE_CACHE_MS=0\nSAN_LOOPBACK=true\n\
             SAN_SOFT_ADDRESSES=127.0.0.1, ::1\n\
             SAN_IO_TIMEOUT_MS=9\nSAN_SHUTDOWN_TIMEOUT_MS=11\nSAN_STAT=off\n\
             SAN_ROUTE=upgrade\nSAN_UPGRADE_BYTES=4096\n\
             SAN_SUBNETS=10.1.0.0/16, fd01::/32\n\
             SAN_KEY=000102030405060708090a0b0c0d0e0f\n",
        )
        .unwrap();
        let wanted = SwitchConfig {
            fabric: FabricChoice::Rdma,
            connect_timeout: Duration::from_millis(1500),
            fabric_connect_timeout: Duration::from_millis(250),
            strict: true,
            backlog: 7,
            negative_cache: NegativeCacheConfig {
                entries: 0,
                lifetime: Duration::ZERO,
            },
            loopback: true,
            soft_addresses: vec![[127, 0, 0, 1].into(), Ipv6Addr::LOCALHOST.into()],
            io_timeout: Some(Duration::from_millis(9)),
            shutdown_timeout: Duration::from_millis(11),
            stat: false,
            route: RouteChoice::Upgrade,
            // A file's: see `policy.rs`.
            rules: Rules::default(),
            subnets: vec!["10.1.0.0/16".parse().unwrap(), "fd01::/32".parse().unwrap()],
            upgrade_bytes: 4096,
            key: DeploymentKey::new(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
        };
        assert_eq!(config, wanted);
    }

    #[test]
    fn a_bad_value_is_named_with_what_is_allowed() {
        for (name, allowed) in SwitchConfig::settings() {
            for value in ["", "-1", "maybe", "999999999999999999999"] {
                let error = SwitchConfig::from_text(&format!("{name}={value}")).unwrap_err();
                let text = error.to_string();
                // Of rules it says what is wrong with the file.
                let allowed = if name == RULES {
                    "a file of rules"
                } else {
                    allowed
                };
                assert!(text.contains(name) && text.contains(allowed), "{text}");
            }
        }
        let error = SwitchConfig::from_text("SAN_BACKLOG=0").unwrap_err();
        assert_eq!(
            error.to_string(),
            "SAN_BACKLOG is '0', but must be a number from 1 to 4096"
        );
    }

    #[test]
    fn a_line_that_is_no_setting_is_named() {
        let error = SwitchConfig::from_text("# fine\nSAN_BAKLOG = 3\n").unwrap_err();
        assert!(error.to_string().starts_with("line 2 of the configuration"));
    }

    #[test]
    fn a_bad_line_of_a_file_is_named_with_the_file_and_its_number() {
        let path = std::env::temp_dir().join(format!("san-switch-config-{}", std::process::id()));
        let said = |text: &str| {
            std::fs::write(&path, text).unwrap();
            SwitchConfig::from_file(&path).unwrap_err().to_string()
        };
        let place = path.display();
        let bad = said("# ours\nSAN_BACKLOG = 0\n");
        let unknown = said("SAN_BAKLOG = 3\n");
        let key = said("SAN_KEY = 0123456789abcdefgh\n");
        std::fs::remove_file(&path).unwrap();
        let wanted = "SAN_BACKLOG is '0', but must be a number from 1 to 4096";
        assert_eq!(bad, format!("{place}:2: {wanted}"));
        assert!(unknown.starts_with(&format!("{place}:1: ")), "{unknown}");
        assert!(!key.contains("0123"), "{key}");
    }

    #[test]
    fn fields_set_by_hand_are_checked_too() {
        let config = SwitchConfig {
            connect_timeout: Duration::ZERO,
            ..SwitchConfig::default()
        };
        let text = config.check().unwrap_err().to_string();
        assert!(
            text.starts_with("SAN_CONNECT_TIMEOUT_MS is '0 ms'"),
            "{text}"
        );
        let config = SwitchConfig {
            backlog: 5000,
            ..SwitchConfig::default()
        };
        assert!(config.check().is_err());
    }
}
