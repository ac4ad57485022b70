//! What an operator wants of connections: the route, and rules by program, address and port.
//!
//! A file of rules has a line for each:
//!
//! ```text
//! # route   role     program  address:port
//! use off     listen   sshd     *:22
//! use upgrade connect  *        10.0.0.0/8:5432
//! use direct  any      redis-server *:6379-6389
//! ```
//!
//! The first rule that fits decides; where none fits the setting `SAN_ROUTE` does. The address is the
//! listener's own, or that which is connected to.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;

/// Which way the connections of a program take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RouteChoice {
    /// The SAN first, and TCP where the SAN gives no connection. A connection stays where it began.
    #[default]
    Direct,
    /// TCP first. A connection that carries enough moves to the SAN, and back to TCP when the SAN
    /// breaks, without losing a byte.
    Upgrade,
    /// TCP alone. A switch with this setting, and no rule for anything else, opens no fabric.
    Off,
}

impl RouteChoice {
    /// The one of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "direct" => RouteChoice::Direct,
            "upgrade" => RouteChoice::Upgrade,
            "off" => RouteChoice::Off,
            _ => return None,
        })
    }
}

impl fmt::Display for RouteChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RouteChoice::Direct => "direct",
            RouteChoice::Upgrade => "upgrade",
            RouteChoice::Off => "off",
        })
    }
}

/// What a socket does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SocketRole {
    Listen,
    Connect,
}

/// Rules by program, address and port. The default has none.
///
/// ```
/// use san_switch::Rules;
/// let rules: Rules = "use off connect * 10.0.0.0/8:22".parse()?;
/// assert_eq!(rules.len(), 1);
/// let error = "use off connect * 10.0.0.0/33:22".parse::<Rules>().unwrap_err();
/// assert!(error.to_string().starts_with("line 1"), "{error}");
/// # Ok::<(), san_switch::RulesError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules(Arc<[Rule]>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    route: RouteChoice,
    /// `None`: either.
    role: Option<SocketRole>,
    /// `None`: every one.
    program: Option<String>,
    /// `None`: every one.
    network: Option<IpNet>,
    ports: RangeInclusive<u16>,
}

/// Why a file of rules cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RulesError {
    /// The file cannot be read.
    #[error("the file cannot be read: {0}")]
    Unreadable(#[source] io::Error),
    /// A line is no rule.
    #[error("line {line}, '{text}': {why}")]
    BadLine {
        /// Its number, from 1.
        line: usize,
        /// Its text.
        text: String,
        /// What is wrong with it, and what is right.
        why: &'static str,
    },
}

const SHAPE: &str = "a rule is: use ROUTE ROLE PROGRAM ADDRESS:PORT";
const ROUTE: &str = "the route is direct, upgrade or off";
const ROLE: &str = "the role is listen, connect or any";
const PROGRAM: &str = "the program is * or a name without a directory";
const WHERE: &str = "the last word is ADDRESS:PORT, such as *:22, 10.0.0.0/8:*, [fd00::/8]:80-89";

impl Rules {
    /// Reads a file of rules.
    ///
    /// # Errors
    /// [`RulesError`], for the first line that is wrong.
    pub fn from_file(path: &Path) -> Result<Self, RulesError> {
        let text = std::fs::read_to_string(path).map_err(RulesError::Unreadable)?;
        text.parse()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether some socket may have another route than TCP.
    pub(crate) fn want_a_fabric(&self) -> bool {
        self.0.iter().any(|rule| rule.route != RouteChoice::Off)
    }

    /// What the first rule that fits this process says.
    pub(crate) fn choose(&self, role: SocketRole, address: SocketAddr) -> Option<RouteChoice> {
        if self.is_empty() {
            return None;
        }
        let names = program_names();
        self.choose_for(role, names, address)
    }

    fn choose_for(
        &self,
        role: SocketRole,
        names: &[String],
        address: SocketAddr,
    ) -> Option<RouteChoice> {
        let ip = address.ip().to_canonical();
        let fits = |rule: &&Rule| {
            rule.role.is_none_or(|wanted| wanted == role)
                && rule.ports.contains(&address.port())
                && rule.network.is_none_or(|network| network.contains(&ip))
                && rule
                    .program
                    .as_ref()
                    .is_none_or(|program| names.contains(program))
        };
        self.0.iter().find(fits).map(|rule| rule.route)
    }
}

impl std::str::FromStr for Rules {
    type Err = RulesError;

    fn from_str(text: &str) -> Result<Self, RulesError> {
        let mut rules = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            rules.push(rule(line).map_err(|why| RulesError::BadLine {
                line: index + 1,
                text: line.to_owned(),
                why,
            })?);
        }
        Ok(Self(rules.into()))
    }
}

fn rule(line: &str) -> Result<Rule, &'static str> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["use", route, role, program, place] = words[..] else {
        return Err(SHAPE);
    };
    let route = RouteChoice::named(route).ok_or(ROUTE)?;
    let role = match role {
        "listen" => Some(SocketRole::Listen),
        "connect" => Some(SocketRole::Connect),
        "any" => None,
        _ => return Err(ROLE),
    };
    if program.contains('/') {
        return Err(PROGRAM);
    }
    let (address, port) = place.rsplit_once(':').ok_or(WHERE)?;
    Ok(Rule {
        route,
        role,
        program: (program != "*").then(|| program.to_owned()),
        network: network(address).ok_or(WHERE)?,
        ports: ports(port).ok_or(WHERE)?,
    })
}

/// `*`, an address or a subnet; IPv6 in brackets.
fn network(text: &str) -> Option<Option<IpNet>> {
    if text == "*" {
        return Some(None);
    }
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let network = subnet(inner.unwrap_or(text))?;
    let is_v6 = matches!(network, IpNet::V6(_));
    (is_v6 == inner.is_some()).then_some(Some(network))
}

/// A subnet, or an address alone.
pub(crate) fn subnet(text: &str) -> Option<IpNet> {
    text.parse()
        .ok()
        .or_else(|| Some(IpNet::from(text.parse::<IpAddr>().ok()?)))
}

/// `*`, a port, or the first and the last one.
fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    if text == "*" {
        return Some(0..=u16::MAX);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = first.parse().ok()?..=last.parse().ok()?;
    (!range.is_empty()).then_some(range)
}

/// The names of this program: of its file, and as it was called.
fn program_names() -> &'static [String] {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let file = std::env::current_exe().ok();
        let called = std::fs::read("/proc/self/cmdline").unwrap_or_default();
        let called = called.split(|byte| *byte == 0).next().unwrap_or_default();
        let called = Path::new(std::str::from_utf8(called).unwrap_or_default());
        [file.as_deref(), Some(called)]
            .into_iter()
            .flatten()
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
        # sshd gains nothing
        use off     listen   sshd     *:22
        use off     any      *        192.0.2.7:*   # a tester
        use upgrade connect  *        10.0.0.0/8:5432
        use direct  any      redis    [fd00::/8]:6379-6389
    ";

    fn choose(role: SocketRole, program: &str, address: &str) -> Option<RouteChoice> {
        let rules: Rules = FILE.parse().unwrap();
        rules.choose_for(role, &[program.to_owned()], address.parse().unwrap())
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        use RouteChoice::{Direct, Off, Upgrade};
        use SocketRole::{Connect, Listen};
        for (role, program, address, wanted) in [
            (Listen, "sshd", "0.0.0.0:22", Some(Off)),
            (Listen, "sshd", "[::]:22", Some(Off)),
            (Connect, "sshd", "10.0.0.1:22", None),
            (Listen, "dropbear", "0.0.0.0:22", None),
            (Connect, "psql", "10.9.9.9:5432", Some(Upgrade)),
            (Connect, "psql", "[::ffff:10.9.9.9]:5432", Some(Upgrade)),
            (Connect, "psql", "11.9.9.9:5432", None),
            (Listen, "postgres", "10.9.9.9:5432", None),
            (Connect, "any", "192.0.2.7:1", Some(Off)),
            (Connect, "redis", "[fd00::1]:6389", Some(Direct)),
            (Connect, "redis", "[fd00::1]:6390", None),
        ] {
            assert_eq!(
                choose(role, program, address),
                wanted,
                "{program} {address}"
            );
        }
    }

    #[test]
    fn a_line_that_is_no_rule_says_what_is_wrong_with_it() {
        for (line, why) in [
            ("use off listen sshd", SHAPE),
            ("take off listen sshd *:22", SHAPE),
            ("use san listen sshd *:22", ROUTE),
            ("use off both sshd *:22", ROLE),
            ("use off listen /usr/sbin/sshd *:22", PROGRAM),
            ("use off listen sshd *", WHERE),
            ("use off listen sshd *:22-21", WHERE),
            ("use off listen sshd *:70000", WHERE),
            ("use off listen sshd fd00::1:22", WHERE),
            ("use off listen sshd [10.0.0.1]:22", WHERE),
            ("use off listen sshd host:22", WHERE),
        ] {
            let error = format!("\n{line} # here").parse::<Rules>().unwrap_err();
            assert_eq!(error.to_string(), format!("line 2, '{line}': {why}"));
        }
    }

    #[test]
    fn this_program_has_a_name() {
        let names = program_names();
        assert!(
            names.iter().any(|name| name.starts_with("san_switch-")),
            "{names:?}"
        );
        let rules: Rules = format!("use off any {} *:*", names[0]).parse().unwrap();
        let address = "10.0.0.1:1".parse().unwrap();
        assert_eq!(
            rules.choose(SocketRole::Connect, address),
            Some(RouteChoice::Off)
        );
        assert_eq!(Rules::default().choose(SocketRole::Connect, address), None);
    }
}
