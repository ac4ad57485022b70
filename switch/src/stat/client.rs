//! Asking a process for its report.
//!
//! The answer comes from another process, perhaps of another user: its length is bounded, its
//! sender checked, and the wait for it has a deadline.

use super::report::Report;
use super::sockets;
use san_base::{Deadline, runtime_dir};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer, at most.
const LONGEST: usize = 64 << 20;
/// Entries of a directory that are looked at for users, at most.
const MOST_ENTRIES: usize = 65_536;
/// Users that are looked at, at most.
const MOST_USERS: usize = 1024;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatError {
    /// There is no such process.
    #[error("there is no process {pid}")]
    NoProcess {
        /// Which one.
        pid: u32,
    },
    /// The process does not answer for a switch.
    #[error("process {pid} ({program}) has no San Direct switch, or has statistics turned off")]
    NoSwitch {
        /// Which one.
        pid: u32,
        /// Its program.
        program: String,
    },
    /// The process is another user's.
    #[error("process {pid} ({program}) belongs to user {uid}; only they and root may ask it")]
    Foreign {
        /// Which one.
        pid: u32,
        /// Its program.
        program: String,
        /// Its user.
        uid: u32,
    },
    /// The process did not answer, or not with a report.
    #[error("process {pid} gave no report on {path}: {source}")]
    NoAnswer {
        /// Which one.
        pid: u32,
        /// Its socket.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

impl Report {
    /// The reports of a process, one for each switch that it has.
    ///
    /// # Errors
    /// [`StatError`].
    pub fn of_process(pid: u32) -> Result<Vec<Self>, StatError> {
        if !sockets::is_there(pid) {
            return Err(StatError::NoProcess { pid });
        }
        let (program, uid) = describe(pid);
        let own = rustix::process::geteuid();
        if uid != own.as_raw() && !own.is_root() {
            return Err(StatError::Foreign { pid, program, uid });
        }
        let paths: Vec<PathBuf> = runtime_dir::of_user(sockets::DIRECTORY, uid)
            .iter()
            .filter(|directory| runtime_dir::check(directory, uid).is_ok())
            .flat_map(|directory| sockets::in_directory(directory))
            .filter_map(|(named, path)| (named == pid).then_some(path))
            .collect();
        let mut reports = Vec::new();
        for path in paths {
            match ask(pid, &path) {
                Ok(report) => reports.push(report),
                // An earlier process of that number left it, or the switch ended just now.
                Err(error) if is_gone(&error) => {}
                Err(source) => return Err(StatError::NoAnswer { pid, path, source }),
            }
        }
        match reports.is_empty() {
            true => Err(StatError::NoSwitch { pid, program }),
            false => Ok(reports),
        }
    }

    /// The processes of this user that seem to have a switch; for root, those of every user whose
    /// directory lies where it usually does.
    #[must_use]
    pub fn processes() -> Vec<u32> {
        let own = rustix::process::geteuid();
        let mut users = vec![own.as_raw()];
        if own.is_root() {
            users.extend(other_users());
        }
        let mut all: Vec<u32> = users.into_iter().flat_map(processes_of).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

fn processes_of(uid: u32) -> Vec<u32> {
    runtime_dir::of_user(sockets::DIRECTORY, uid)
        .iter()
        .filter(|directory| runtime_dir::check(directory, uid).is_ok())
        .flat_map(|directory| sockets::in_directory(directory))
        .filter(|(pid, path)| sockets::is_there(*pid) && !sockets::is_dead(path))
        .map(|(pid, _)| pid)
        .collect()
}

/// The users who have a directory for sockets, as the names say; each is checked before it is used.
fn other_users() -> Vec<u32> {
    let shared = format!("{}-", sockets::DIRECTORY);
    let names = |directory: &str| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.take(MOST_ENTRIES).collect::<Vec<String>>()
    };
    let of_tmp = names("/tmp");
    let of_tmp = of_tmp
        .iter()
        .filter_map(|name| name.strip_prefix(&shared)?.parse::<u32>().ok());
    let of_sessions = names("/run/user");
    let of_sessions = of_sessions.iter().filter_map(|name| name.parse().ok());
    let mut users: Vec<u32> = of_tmp.chain(of_sessions).collect();
    users.sort_unstable();
    users.dedup();
    users.truncate(MOST_USERS);
    users
}

fn ask(pid: u32, path: &Path) -> io::Result<Report> {
    let mut stream = UnixStream::connect(path)?;
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let answers = rustix::net::sockopt::socket_peercred(&stream)?
        .pid
        .as_raw_pid();
    if u32::try_from(answers) != Ok(pid) {
        return Err(invalid(format!("process {answers} answers for it")));
    }
    let deadline = Deadline::after(PATIENCE);
    let mut text = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let left = deadline.left().unwrap_or_default();
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => text.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if text.len() > LONGEST {
            return Err(invalid(format!("more than {LONGEST} bytes")));
        }
    }
    if text.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let report: Report = serde_json::from_slice(&text).map_err(io::Error::from)?;
    match report.format {
        Report::FORMAT => Ok(report),
        other => Err(invalid(format!(
            "a report of form {other}, which is not known"
        ))),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NotFound
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
    )
}

/// A process's program and effective user.
fn describe(pid: u32) -> (String, u32) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let program = field("Name:").map_or("?", str::trim).to_owned();
    let uids = field("Uid:").unwrap_or_default();
    let effective = uids.split_whitespace().nth(1);
    let uid = effective.and_then(|uid| uid.parse().ok());
    (program, uid.unwrap_or(u32::MAX))
}
