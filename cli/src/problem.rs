//! What goes wrong, said so that an operator can act on it.
//!
//! A [`Problem`] is one line of what happened and, where one is known, a line with the command
//! that mends it.

use rustix::io::Errno;
use san_switch::{ConfigError, ConnectError, ListenError, OpenError};
use std::fmt;
use std::io;
use std::path::Path;

/// An error for people.
#[derive(Debug)]
pub(crate) struct Problem {
    text: String,
    remedy: Option<String>,
    broken_pipe: bool,
}

impl Problem {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Problem {
            text: text.into(),
            remedy: None,
            broken_pipe: false,
        }
    }

    /// A file that could not be used: `did` says what for, such as `cannot write`.
    pub(crate) fn of_file(did: &str, path: &Path, error: &io::Error) -> Self {
        let folder = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => path,
        };
        let has_no_folder = did.starts_with("cannot write") && !folder.exists();
        let (path, folder) = (path.display(), folder.display());
        let problem = Problem::new(format!("{did} {path}: {error}"));
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                problem.with_remedy(format!("make room, or name another place: df -h {folder}"))
            }
            io::ErrorKind::NotFound if has_no_folder => problem.with_remedy(format!(
                "there is no folder {folder}; make it: mkdir -p {folder}"
            )),
            io::ErrorKind::NotFound => {
                problem.with_remedy(format!("see what is there: ls -la {folder}"))
            }
            io::ErrorKind::PermissionDenied => problem.with_remedy(format!(
                "this user may not; see who may: id; ls -ld {folder} {path}"
            )),
            _ => problem,
        }
    }

    /// What happened, without the remedy.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is only that nobody reads the output any more, as with `san stat | head`.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.broken_pipe
    }

    pub(crate) fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if let Some(remedy) = &self.remedy {
            write!(f, "\n     {remedy}")?;
        }
        Ok(())
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        // What the switch of the process could not be made for has a remedy of its own.
        let error = match error.downcast::<OpenError>() {
            Ok(error) => return error.into(),
            Err(error) => error,
        };
        let error = match error.downcast::<ConfigError>() {
            Ok(error) => return error.into(),
            Err(error) => error,
        };
        Problem {
            broken_pipe: error.kind() == io::ErrorKind::BrokenPipe,
            ..Problem::new(error.to_string())
        }
    }
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        Problem::new(error.to_string()).with_remedy("see every setting that is wrong: san config")
    }
}

pub(crate) const TOO_FEW_DESCRIPTORS: &str = "raise the limit of descriptors, and start again: ulimit -n; \
    see the line descriptors of: san doctor";

fn is_want_of_descriptors(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE)
    )
}

impl From<OpenError> for Problem {
    fn from(error: OpenError) -> Self {
        let problem = match error {
            OpenError::Config(error) => return error.into(),
            ref error => Problem::new(error.to_string()),
        };
        match &error {
            OpenError::System { source, .. } if is_want_of_descriptors(source) => {
                problem.with_remedy(TOO_FEW_DESCRIPTORS)
            }
            OpenError::Fabric { .. } | OpenError::Provider { .. } => {
                problem.with_remedy("see what is missing, and what to type: san doctor")
            }
            _ => problem,
        }
    }
}

impl From<ListenError> for Problem {
    fn from(error: ListenError) -> Self {
        let problem = Problem::new(error.to_string());
        let ListenError::Tcp { address, source } = &error else {
            return problem;
        };
        if is_want_of_descriptors(source) {
            return problem.with_remedy(TOO_FEW_DESCRIPTORS);
        }
        match Errno::from_raw_os_error(error.errno()) {
            Errno::ADDRINUSE => problem.with_remedy(format!(
                "see who has the port: ss -ltnp 'sport = :{}'",
                address.port()
            )),
            Errno::ADDRNOTAVAIL => problem.with_remedy(format!(
                "{} is not an address of this host; see which are: ip -br address, san devices",
                address.ip()
            )),
            Errno::ACCESS => {
                problem.with_remedy("ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned())
            }
            _ => problem,
        }
    }
}

impl From<ConnectError> for Problem {
    fn from(error: ConnectError) -> Self {
        let problem = Problem::new(error.to_string());
        match &error {
            ConnectError::Local { address, .. }
                if error.errno() == Errno::ADDRNOTAVAIL.raw_os_error() =>
            {
                problem.with_remedy(format!(
                    "{} is not an address of this host; see which are: ip -br address, san devices",
                    address.ip()
                ))
            }
            ConnectError::San {
                destination,
                source,
            } => problem.with_remedy(source.failure().remedy(*destination)),
            ConnectError::Tcp { source, .. } if is_want_of_descriptors(source) => {
                problem.with_remedy(TOO_FEW_DESCRIPTORS)
            }
            ConnectError::Tcp { destination, .. }
                if error.errno() == Errno::CONNREFUSED.raw_os_error() =>
            {
                problem.with_remedy(format!(
                    "nobody listens there; on the peer: ss -ltnp 'sport = :{}'",
                    destination.port()
                ))
            }
            ConnectError::Tcp { destination, .. } | ConnectError::TimedOut { destination, .. } => {
                problem.with_remedy(format!("see both ways there: san doctor {destination}"))
            }
            _ => problem,
        }
    }
}

/// What keeps this process from RDMA although there is a device: rights and limits.
pub(crate) fn hindrances() -> Vec<Problem> {
    let mut found = Vec::new();
    let device = "/dev/infiniband/rdma_cm";
    let access = rustix::fs::access(
        device,
        rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK,
    );
    match access {
        Ok(()) => {}
        Err(Errno::NOENT) => found.push(
            Problem::new(format!("{device} does not exist"))
                .with_remedy("load its module, as root: modprobe rdma_ucm"),
        ),
        Err(errno) => found.push(
            Problem::new(format!(
                "{device} cannot be opened: {}",
                io::Error::from(errno)
            ))
            .with_remedy("run as root, or give the rights: chmod a+rw /dev/infiniband/*"),
        ),
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    if let Some(limit) = limit
        && limit < LEAST_MEMLOCK
        && !rustix::process::geteuid().is_root()
    {
        found.push(
            Problem::new(format!(
                "only {} KiB may be locked in memory (ulimit -l); registered memory is locked",
                limit / 1024
            ))
            .with_remedy(
                "raise it: ulimit -l, LimitMEMLOCK=infinity in a systemd unit, or a line \
                 'USER - memlock unlimited' in /etc/security/limits.conf",
            ),
        );
    }
    found
}

/// What a handful of connections need of locked memory, in bytes.
const LEAST_MEMLOCK: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use san_provider::ConnectFailure;

    #[test]
    fn a_switch_that_cannot_be_made_has_a_remedy() {
        for (error, remedy) in [
            (
                OpenError::System {
                    step: "make an epoll set",
                    source: Errno::MFILE.into(),
                },
                "ulimit -n",
            ),
            (
                OpenError::Fabric {
                    fabric: san_switch::FabricChoice::Rdma,
                    source: "RDMA is not usable".into(),
                },
                "san doctor",
            ),
        ] {
            let text = Problem::from(io::Error::from(error)).to_string();
            assert!(text.contains("\n     ") && text.contains(remedy), "{text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_has_a_remedy() {
        for (errno, path, remedy) in [
            (Errno::NOSPC, "/tmp/a.json", "df -h /tmp"),
            (Errno::DQUOT, "a.json", "df -h ."),
            (Errno::NOENT, "/none/a.json", "mkdir -p /none"),
            (Errno::NOENT, "/tmp/a.json", "ls -la /tmp"),
            (Errno::ACCESS, "/root/key", "ls -ld /root /root/key"),
        ] {
            let error = io::Error::from(errno);
            let text = Problem::of_file("cannot write", Path::new(path), &error).to_string();
            let expected = format!("cannot write {path}: {error}\n     ");
            assert!(
                text.starts_with(&expected) && text.ends_with(remedy),
                "{text}"
            );
        }
    }

    #[test]
    fn every_way_in_which_a_connect_fails_has_a_remedy() {
        let destination = "10.0.7.2:9".parse().unwrap();
        let tcp = |errno: Errno| ConnectError::Tcp {
            destination,
            source: io::Error::from(errno),
            fallback: None,
        };
        for (error, remedy) in [
            (
                ConnectError::San {
                    destination,
                    source: ConnectFailure::BacklogFull { backlog: 4 }.into(),
                },
                "SAN_BACKLOG",
            ),
            (tcp(Errno::CONNREFUSED), "ss -ltnp 'sport = :9'"),
            (tcp(Errno::NETUNREACH), "san doctor 10.0.7.2:9"),
            (tcp(Errno::MFILE), "ulimit -n"),
            (
                ConnectError::TimedOut {
                    destination,
                    fallback: None,
                },
                "san doctor 10.0.7.2:9",
            ),
        ] {
            let text = Problem::from(error).to_string();
            assert!(text.contains("\n     ") && text.contains(remedy), "{text}");
        }
    }
}
