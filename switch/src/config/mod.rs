//! The switch's settings: a plain struct that is checked once, when the switch is made.
//!
//! [`settings!`] has each setting once: its field, what it does, its default, its name in the
//! environment and its [`Kind`], which reads, shows and checks the value. Files and environment are
//! read only here, by [`SwitchConfig::from_env`] and [`SwitchConfig::from_file`]; nothing else in the
//! crate looks at either. A value that cannot be used is an error that names the setting, what was
//! found and what is allowed. What this module does not do: open providers (see `switch.rs`) or decide
//! anything per connection.

mod choice;
mod error;
mod kind;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use san_stream::Thresholds;

pub use self::choice::{FabricChoice, NegativeCacheConfig, UnknownFabric};
pub use self::error::ConfigError;
pub use self::kind::SOMAXCONN;
use self::kind::{Kind, Shown, Wrong};
pub use crate::policy::RouteChoice;
use crate::policy::Rules;
use crate::upgrade::key::DeploymentKey;

/// Makes of one list the struct, its default, a setter for each field, and the table of names.
macro_rules! settings {
    ($(
        $(#[doc = $about:literal])+
        $field:ident: $kind:ty = $default:expr, { $( $name:literal: $value:ident ),+ }
    )*) => {
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
            $(
                $(#[doc = $about])+
                #[doc = ""]
                $(#[doc = concat!("In the environment: `", $name, "`.")])+
                pub $field: $kind,
            )*
        }

        impl Default for SwitchConfig {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

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

        const SETTINGS: &[Setting] = &[$($({
            const KIND: Kind<$kind> = kind::$value;
            Setting {
                name: $name,
                allowed: KIND.allowed,
                is_secret: KIND.is_secret,
                read: |config, text| (KIND.read)(&mut config.$field, text),
                show: |config| (KIND.show)(&config.$field),
            }
        }),+),*];
    };
}

settings! {
    /// Which fabric to open.
    fabric: FabricChoice = FabricChoice::Auto, { "SAN_FABRIC": FABRIC }

    /// Deadline of a whole connect, SAN and TCP together.
    connect_timeout: Duration = Duration::from_secs(30), { "SAN_CONNECT_TIMEOUT_MS": TIME }

    /// The part of it the SAN may use before TCP is tried.
    fabric_connect_timeout: Duration = Duration::from_secs(5), { "SAN_FABRIC_CONNECT_TIMEOUT_MS": TIME }

    /// Every host of these subnets is on the SAN: "nobody listens there" is then final.
    strict: bool = false, { "SAN_STRICT": TRUTH }

    /// Backlog of a listener that names none.
    backlog: u32 = 128, { "SAN_BACKLOG": BACKLOG }

    /// Failed SAN connects that are remembered.
    negative_cache: NegativeCacheConfig = NegativeCacheConfig::new(64, Duration::from_secs(30)), {
        "SAN_NEGATIVE_CACHE_ENTRIES": CACHE_ENTRIES,
        "SAN_NEGATIVE_CACHE_MS": CACHE_TIME
    }

    /// Loopback addresses count as SAN addresses where a provider lists them. On the soft fabric they
    /// always do.
    loopback: bool = false, { "SAN_LOOPBACK": TRUTH }

    /// The addresses of this host that the soft fabric serves; empty: all.
    soft_addresses: Vec<IpAddr> = Vec::new(), { "SAN_SOFT_ADDRESSES": ADDRESSES }

    /// How long send and receive wait; `None` (0) waits until the peer acts or goes.
    io_timeout: Option<Duration> = None, { "SAN_IO_TIMEOUT_MS": TIME_OR_NONE }

    /// How long shutting down waits for the switch's thread.
    shutdown_timeout: Duration = Duration::from_secs(5), { "SAN_SHUTDOWN_TIMEOUT_MS": TIME }

    /// Whether the process tells `san stat` what it does.
    stat: bool = true, { "SAN_STAT": ON_OR_OFF }

    /// Which way connections take.
    route: RouteChoice = RouteChoice::Direct, { "SAN_ROUTE": ROUTE }

    /// Other ways for some programs, addresses and ports (a file); the first that fits goes before
    /// [`SwitchConfig::route`]. What a connect or a listener names itself goes before both.
    rules: Rules = Rules::default(), { "SAN_RULES": RULES }

    /// Subnets that the SAN reaches by a router. A connect there takes the device whose address the
    /// kernel would take.
    subnets: Vec<IpNet> = Vec::new(), { "SAN_SUBNETS": SUBNETS }

    /// Bytes of both directions after which a connection that began on TCP is worth moving to the SAN.
    /// The end that accepted it waits for twice as many.
    upgrade_bytes: u64 = 32 * 1024, { "SAN_UPGRADE_BYTES": BYTES }

    /// How long a connection that moved to the SAN may carry nothing before it goes back to TCP, where it holds
    /// less memory; `None` (0): for ever. It moves again when it has carried enough.
    upgrade_idle: Option<Duration> = Some(Duration::from_secs(30)), { "SAN_UPGRADE_IDLE_MS": TIME_OR_NONE }

    /// The key that all hosts share; none by default. Only its holders can then give a connection of
    /// ours a second carrier.
    key: DeploymentKey = DeploymentKey::default(), { "SAN_KEY": KEY, "SAN_KEY_FILE": KEY_FILE }
}

/// One setting by its name in the environment: [`SwitchConfig::settings`].
pub struct Setting {
    name: &'static str,
    allowed: &'static str,
    is_secret: bool,
    read: fn(&mut SwitchConfig, &str) -> Result<(), Wrong>,
    show: fn(&SwitchConfig) -> Shown,
}

impl Setting {
    /// Its name, such as `SAN_BACKLOG`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it may be, in words.
    #[must_use]
    pub fn allowed(&self) -> &'static str {
        self.allowed
    }

    /// Whether nobody may see its value.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        self.is_secret
    }

    /// The value in `config` as it would be written, or words in brackets where there is none. `None`
    /// if only whoever gave it knows how: a file's name, a secret.
    #[must_use]
    pub fn shown(&self, config: &SwitchConfig) -> Option<String> {
        match (self.show)(config) {
            Shown::Value(text) => Some(text),
            Shown::Nothing(words) => Some(words.to_owned()),
            Shown::AsGiven => None,
        }
    }

    /// Sets it to what `text` says.
    ///
    /// # Errors
    /// [`ConfigError`] for a value that cannot be used; `config` is as it was.
    pub fn apply(&self, config: &mut SwitchConfig, text: &str) -> Result<(), ConfigError> {
        (self.read)(config, text).map_err(|wrong| match wrong {
            Wrong::Value => self.bad(text),
            Wrong::File(error) => error,
        })
    }

    fn bad(&self, text: &str) -> ConfigError {
        ConfigError::BadValue {
            name: self.name,
            // A key with one digit too many is a secret still.
            value: match self.is_secret {
                true => "(not shown)".to_owned(),
                false => text.to_owned(),
            },
            allowed: self.allowed,
        }
    }
}

impl std::fmt::Debug for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Setting").field(&self.name).finish()
    }
}

/// A line of a file of settings that is not empty: [`SwitchConfig::lines`].
#[derive(Debug)]
#[non_exhaustive]
pub struct ConfigLine<'a> {
    /// Its number, from 1.
    pub number: usize,
    /// The line.
    pub text: &'a str,
    /// What it sets to what; `None` for a line that is no setting.
    pub setting: Option<(&'static Setting, &'a str)>,
}

impl SwitchConfig {
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
                let text = value.to_str();
                let text = text.ok_or_else(|| setting.bad(&value.to_string_lossy()))?;
                setting.apply(&mut config, text)?;
            }
        }
        config.check()?;
        Ok(config)
    }

    /// Reads a file of `SAN_NAME = value` lines: [`SwitchConfig::lines`].
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

    /// The lines of such a file that are not empty. `#` starts a comment; a value may stand in double
    /// quotes. So a flat TOML file is one, and so is a file of variables for systemd or a container.
    pub fn lines(text: &str) -> impl Iterator<Item = ConfigLine<'_>> {
        let numbered = text.lines().zip(1..);
        let filled = numbered.map(|(line, number)| (line.trim(), number));
        let filled = filled.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
        filled.map(|(text, number)| ConfigLine {
            number,
            text,
            setting: read_line(text),
        })
    }

    /// Takes each line in; the first that cannot be used is an error, with its number from 1.
    fn apply_text(&mut self, text: &str) -> Result<(), (usize, ConfigError)> {
        for line in Self::lines(text) {
            let number = line.number;
            let unknown = || {
                let text = line.text.to_owned();
                (number, ConfigError::UnknownLine { line: number, text })
            };
            let (setting, value) = line.setting.ok_or_else(unknown)?;
            let applied = setting.apply(self, value);
            applied.map_err(|error| (number, error))?;
        }
        Ok(())
    }

    /// Checks what the fields' types leave open: each value, written out, must be one that can be
    /// read. The switch does so when it is made.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`] naming the first setting that is out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut copy = self.clone();
        for setting in SETTINGS {
            if let Shown::Value(text) = (setting.show)(self) {
                setting.apply(&mut copy, &text)?;
            }
        }
        Ok(())
    }

    /// Every setting.
    pub fn settings() -> impl Iterator<Item = &'static Setting> {
        SETTINGS.iter()
    }
}

/// `NAME = value # comment`, the value in double quotes or not.
fn read_line(line: &str) -> Option<(&'static Setting, &str)> {
    let (name, rest) = line.split_once('=')?;
    let setting = SETTINGS.iter().find(|known| known.name == name.trim())?;
    let rest = rest.trim();
    let Some(quoted) = rest.strip_prefix('"') else {
        let (value, _) = rest.split_once('#').unwrap_or((rest, ""));
        return Some((setting, value.trim()));
    };
    let (value, after) = quoted.split_once('"')?;
    let after = after.trim();
    (after.is_empty() || after.starts_with('#')).then_some((setting, value))
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
             SAN_ROUTE=upgrade\nSAN_UPGRADE_BYTES=4096\nSAN_UPGRADE_IDLE_MS=8\n\
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
            upgrade_idle: Some(Duration::from_millis(8)),
            key: DeploymentKey::new(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
        };
        assert_eq!(config, wanted);
    }

    #[test]
    fn a_bad_value_is_named_with_what_is_allowed() {
        for setting in SwitchConfig::settings() {
            let name = setting.name();
            for value in ["-1", "maybe", "999999999999999999999", ""] {
                let error = SwitchConfig::from_text(&format!("{name}={value}")).unwrap_err();
                let text = error.to_string();
                // Of rules it says what is wrong with the file.
                let allowed = match name {
                    "SAN_RULES" => "a file of rules",
                    _ => setting.allowed(),
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
        assert!(text.starts_with("SAN_CONNECT_TIMEOUT_MS is '0'"), "{text}");
        let config = SwitchConfig {
            backlog: 5000,
            ..SwitchConfig::default()
        };
        assert!(config.check().is_err());
        let config = SwitchConfig::default().io_timeout(Some(Duration::ZERO));
        assert!(config.check().is_err());
        let long = Duration::from_secs(86_401);
        let config = SwitchConfig::default().negative_cache(NegativeCacheConfig::new(1, long));
        assert!(config.check().is_err());
    }

    #[test]
    fn values_may_stand_in_quotes_as_toml_has_them() {
        let text = "SAN_FABRIC = \"off\" # none\nSAN_BACKLOG = 7\nSAN_STRICT = true\n\
                    SAN_SUBNETS=\"10.1.0.0/16\"\n";
        let config = SwitchConfig::from_text(text).unwrap();
        assert_eq!(config.fabric, FabricChoice::Off);
        assert!(config.strict && config.backlog == 7 && config.subnets.len() == 1);
        for text in [
            "SAN_FABRIC = \"off",
            "SAN_FABRIC = \"off\" or",
            "SAN_FABRIC",
        ] {
            let error = SwitchConfig::from_text(text).unwrap_err();
            assert!(matches!(error, ConfigError::UnknownLine { line: 1, .. }));
        }
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        let text = "SAN_FABRIC=off\nSAN_NEGATIVE_CACHE_MS=5\nSAN_SOFT_ADDRESSES=127.0.0.1, ::1\n\
                    SAN_IO_TIMEOUT_MS=6\nSAN_STAT=off\nSAN_LOOPBACK=true\nSAN_ROUTE=upgrade\n";
        let config = SwitchConfig::from_text(text).unwrap();
        let mut again = SwitchConfig::default();
        for setting in SwitchConfig::settings() {
            match setting.shown(&config) {
                Some(text) if !text.starts_with('(') => setting.apply(&mut again, &text).unwrap(),
                _ => {}
            }
        }
        assert_eq!(again, config);
        let key = SwitchConfig::default().key(DeploymentKey::new(b"secret"));
        assert!(
            SwitchConfig::settings()
                .all(|one| !format!("{:?}", one.shown(&key)).contains("secret"))
        );
    }
}
