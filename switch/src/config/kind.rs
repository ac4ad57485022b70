//! What the values of settings are: how each is read, shown, and what it may be. A [`Kind`] knows its
//! value alone; which setting has it is the business of `mod.rs`.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use super::choice::{FabricChoice, NegativeCacheConfig};
use super::error::ConfigError;
use crate::policy::{RouteChoice, Rules, subnet};
use crate::upgrade::key::DeploymentKey;

/// The largest backlog a listener can have: `SOMAXCONN` of Linux.
pub const SOMAXCONN: u32 = 4096;

/// The longest time any setting may name.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
const MOST_ENTRIES: usize = 65_536;
const MOST_BYTES: u64 = 1 << 40;

/// Why a text is no value of its kind.
pub(super) enum Wrong {
    /// It is none of what is allowed.
    Value,
    /// It names a file, and this is wrong with it.
    File(ConfigError),
}

/// How a value is told.
pub(super) enum Shown {
    /// As a text that can be read again.
    Value(String),
    /// There is none, which these words say.
    Nothing(&'static str),
    /// As whoever gave it wrote it: the value itself does not know its file, or is secret.
    AsGiven,
}

/// One kind of values of type `T`.
pub(super) struct Kind<T> {
    pub(super) allowed: &'static str,
    pub(super) is_secret: bool,
    pub(super) read: fn(&mut T, &str) -> Result<(), Wrong>,
    pub(super) show: fn(&T) -> Shown,
}

pub(super) const FABRIC: Kind<FabricChoice> = Kind {
    allowed: "auto, rdma, soft or off",
    is_secret: false,
    read: |fabric, text| put(fabric, text.parse().ok()),
    show: |fabric| Shown::Value(fabric.to_string()),
};

pub(super) const TIME: Kind<Duration> = Kind {
    allowed: "a number of milliseconds from 1 to 86400000",
    is_secret: false,
    read: |time, text| put(time, milliseconds(text, 1)),
    show: |time| Shown::Value(time.as_millis().to_string()),
};

pub(super) const TIME_OR_NONE: Kind<Option<Duration>> = Kind {
    allowed: "a number of milliseconds from 0 (none) to 86400000",
    is_secret: false,
    read: |time, text| {
        let read = milliseconds(text, 0);
        put(time, read.map(|read| (!read.is_zero()).then_some(read)))
    },
    show: |time| {
        let told = |time: Duration| match time.as_millis() {
            // It is no value: 0 would mean none.
            0 => "less than 1".to_owned(),
            time => time.to_string(),
        };
        Shown::Value(time.map_or_else(|| "0".to_owned(), told))
    },
};

pub(super) const TRUTH: Kind<bool> = Kind {
    allowed: "1, 0, true or false",
    is_secret: false,
    read: |truth, text| {
        let read = match text {
            "1" | "true" => Some(true),
            "0" | "false" => Some(false),
            _ => None,
        };
        put(truth, read)
    },
    show: |truth| Shown::Value(if *truth { "1" } else { "0" }.to_owned()),
};

pub(super) const ON_OR_OFF: Kind<bool> = Kind {
    allowed: "on or off",
    is_secret: false,
    read: |on, text| {
        let read = match text {
            "on" => Some(true),
            "off" => Some(false),
            _ => None,
        };
        put(on, read)
    },
    show: |on| Shown::Value(if *on { "on" } else { "off" }.to_owned()),
};

pub(super) const BACKLOG: Kind<u32> = Kind {
    allowed: "a number from 1 to 4096",
    is_secret: false,
    read: |backlog, text| {
        let read = text.parse().ok();
        put(backlog, read.filter(|read| (1..=SOMAXCONN).contains(read)))
    },
    show: |backlog| Shown::Value(backlog.to_string()),
};

pub(super) const CACHE_ENTRIES: Kind<NegativeCacheConfig> = Kind {
    allowed: "a number from 0 to 65536",
    is_secret: false,
    read: |cache, text| {
        let read = text.parse().ok();
        put(
            &mut cache.entries,
            read.filter(|read| *read <= MOST_ENTRIES),
        )
    },
    show: |cache| Shown::Value(cache.entries.to_string()),
};

pub(super) const CACHE_TIME: Kind<NegativeCacheConfig> = Kind {
    allowed: "a number of milliseconds from 0 to 86400000",
    is_secret: false,
    read: |cache, text| put(&mut cache.lifetime, milliseconds(text, 0)),
    show: |cache| Shown::Value(cache.lifetime.as_millis().to_string()),
};

pub(super) const ADDRESSES: Kind<Vec<IpAddr>> = Kind {
    allowed: "IP addresses with commas between them",
    is_secret: false,
    read: |addresses, text| put(addresses, list(text, |one| one.parse().ok())),
    show: |addresses| show_list(addresses, "(all)"),
};

pub(super) const SUBNETS: Kind<Vec<IpNet>> = Kind {
    allowed: "subnets with commas between them, such as 10.1.0.0/16",
    is_secret: false,
    read: |subnets, text| put(subnets, list(text, subnet)),
    show: |subnets| show_list(subnets, "(none)"),
};

pub(super) const ROUTE: Kind<RouteChoice> = Kind {
    allowed: "direct, upgrade or off",
    is_secret: false,
    read: |route, text| put(route, RouteChoice::named(text)),
    show: |route| Shown::Value(route.to_string()),
};

pub(super) const RULES: Kind<Rules> = Kind {
    allowed: "a file of rules: use ROUTE ROLE PROGRAM ADDRESS:PORT",
    is_secret: false,
    read: |rules, text| {
        let path = Path::new(text);
        *rules = Rules::from_file(path).map_err(|source| {
            let path = path.to_owned();
            Wrong::File(ConfigError::Rules { path, source })
        })?;
        Ok(())
    },
    show: |rules| match rules.is_empty() {
        true => Shown::Nothing("(none)"),
        false => Shown::AsGiven,
    },
};

pub(super) const BYTES: Kind<u64> = Kind {
    allowed: "a number of bytes from 1 to 1099511627776",
    is_secret: false,
    read: |bytes, text| {
        let read = text.parse().ok();
        put(bytes, read.filter(|read| (1..=MOST_BYTES).contains(read)))
    },
    show: |bytes| Shown::Value(bytes.to_string()),
};

pub(super) const KEY: Kind<DeploymentKey> = Kind {
    allowed: "32 to 512 hexadecimal digits (openssl rand -hex 32)",
    is_secret: true,
    read: |key, text| put(key, DeploymentKey::from_hex(text)),
    show: |_| Shown::AsGiven,
};

pub(super) const KEY_FILE: Kind<DeploymentKey> = Kind {
    allowed: "a file that its owner alone may read (chmod 600), with a key of 1 to 4096 bytes",
    is_secret: false,
    read: |key, text| {
        let path = Path::new(text);
        *key = DeploymentKey::from_file(path).map_err(|source| {
            let path = path.to_owned();
            Wrong::File(ConfigError::Key { path, source })
        })?;
        Ok(())
    },
    show: |_| Shown::AsGiven,
};

fn put<T>(field: &mut T, read: Option<T>) -> Result<(), Wrong> {
    *field = read.ok_or(Wrong::Value)?;
    Ok(())
}

fn milliseconds(text: &str, least: u64) -> Option<Duration> {
    let number = text.parse().ok().filter(|number| *number >= least)?;
    let time = Duration::from_millis(number);
    (time <= LONGEST).then_some(time)
}

fn list<T>(text: &str, one: fn(&str) -> Option<T>) -> Option<Vec<T>> {
    text.split(',').map(|text| one(text.trim())).collect()
}

fn show_list<T: ToString>(list: &[T], none: &'static str) -> Shown {
    if list.is_empty() {
        return Shown::Nothing(none);
    }
    let all: Vec<String> = list.iter().map(ToString::to_string).collect();
    Shown::Value(all.join(","))
}
