//! What became of a program's connections, and the report at its end.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use san_base::counters;

use super::Role;
use super::stays::{self, Why};
use crate::stat::{LeftToTcp, program_name};
use crate::switch::Switch;
use crate::tcp::aside;

counters! {
    /// What a program's connections came to.
    #[non_exhaustive]
    pub struct ProgramStats;

    /// What a program counts.
    pub(super) struct ProgramCounters {
        /// Connections over the SAN that it accepted.
        san_accepted,
        /// Connections over TCP that it accepted on sockets with companions.
        tcp_accepted,
        /// Connections over the SAN that it made.
        san_connected,
        /// Connects that were left to TCP.
        tcp_connects,
        /// Connects that the SAN refused for good.
        refused,
        /// Of those over TCP with the upgrade route, why they are closed there: they carried too little.
        stayed_short,
        /// Several processes had them.
        stayed_shared,
        /// Bytes went past the library, or the peer had ended.
        stayed_uncounted,
        /// There is no SAN, or it has no way to the peer.
        stayed_no_way,
        /// The peer's library has not taken part.
        stayed_unanswered,
        /// A call needed the kernel's socket.
        stayed_for_call,
        /// Moves that were begun and not finished in time.
        stayed_unfinished,
    }
}

/// What is counted, and why the last connect was left to TCP.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) counters: ProgramCounters,
    /// Of those over TCP: they have moved.
    moved: AtomicU64,
    moved_accepted: AtomicU64,
    /// The last connects that were left to TCP.
    left: Mutex<VecDeque<Left>>,
}

/// So many of them are remembered.
const MOST_LEFT: usize = 64;

struct Left {
    peer: SocketAddr,
    why: String,
    remedy: String,
    when: Instant,
}

/// Where the report goes.
pub(super) enum Sink {
    /// In words, to what was standard error when the program began: some close it before their end.
    Standard(Option<OwnedFd>),
    /// As JSON, one line for each process, to the end of this file.
    File(PathBuf),
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sink::Standard(_) => f.write_str("to standard error"),
            Sink::File(path) => write!(f, "to {}, which SAN_REPORT names", path.display()),
        }
    }
}

impl Sink {
    /// What `SAN_REPORT` says: a file, or `-`.
    pub(super) fn named(value: std::ffi::OsString) -> Self {
        match value.to_str() {
            Some("-") => {
                let stderr = rustix::stdio::stderr();
                Sink::Standard(rustix::io::fcntl_dupfd_cloexec(stderr, 0).ok().map(aside))
            }
            _ => Sink::File(PathBuf::from(value)),
        }
    }
}

impl Tally {
    /// A connection that began on TCP has moved.
    pub(super) fn moved(&self, is_accepted: bool) {
        self.moved.fetch_add(1, Ordering::Relaxed);
        match is_accepted {
            true => {
                self.moved_accepted.fetch_add(1, Ordering::Relaxed);
                self.counters.san_accepted.raise();
            }
            false => self.counters.san_connected.raise(),
        }
    }

    /// A TCP connection that the program has accepted or connected, or inherited.
    pub(super) fn tracks(&self, role: Role) {
        match role {
            Role::Connector => self.counters.tcp_connects.raise(),
            Role::Acceptor => self.counters.tcp_accepted.raise(),
        }
    }

    /// This process is a child: its parent's connections are its parent's, but for those that it has inherited.
    pub(super) fn in_child(&self) {
        self.counters.begin_anew();
        for moved in [&self.moved, &self.moved_accepted] {
            if moved.load(Ordering::Relaxed) != 0 {
                moved.store(0, Ordering::Relaxed);
            }
        }
    }

    /// A connection that could have moved is closed, and has not.
    pub(super) fn stayed(&self, why: Why) {
        let counters = &self.counters;
        match why {
            Why::Short => counters.stayed_short.raise(),
            Why::Shared => counters.stayed_shared.raise(),
            Why::Uncounted => counters.stayed_uncounted.raise(),
            Why::NoWay => counters.stayed_no_way.raise(),
            Why::Unanswered => counters.stayed_unanswered.raise(),
            Why::KernelCall => counters.stayed_for_call.raise(),
            Why::Unfinished => counters.stayed_unfinished.raise(),
        }
    }

    /// Whether there was any connection.
    pub(super) fn has_any(&self) -> bool {
        let stats = self.counters.snapshot();
        stats.tcp_accepted + stats.tcp_connects > 0
    }

    /// A connect was left to TCP, for a reason with what mends it.
    pub(super) fn left_to_tcp(&self, peer: SocketAddr, why: String, remedy: String) {
        self.counters.tcp_connects.raise();
        let mut left = self.left.lock();
        if left.len() == MOST_LEFT {
            left.pop_front();
        }
        left.push_back(Left {
            peer,
            why,
            remedy,
            when: Instant::now(),
        });
    }

    /// The last connects that were left to TCP, the latest last.
    pub(super) fn left(&self) -> Vec<LeftToTcp> {
        let left = self.left.lock();
        let told =
            |one: &Left| LeftToTcp::new(one.peer, one.why.clone(), one.remedy.clone(), one.when);
        left.iter().map(told).collect()
    }

    /// Writes the report.
    ///
    /// # Errors
    /// What the file's system says.
    pub(super) fn report(&self, switch: Option<&Switch>, sink: &Sink) -> io::Result<()> {
        match sink {
            Sink::Standard(kept) => {
                let text = self.in_words(switch);
                let kept = kept
                    .as_ref()
                    .map(|kept| rustix::io::write(kept, text.as_bytes()));
                if !matches!(kept, Some(Ok(_))) {
                    rustix::io::write(rustix::stdio::stderr(), text.as_bytes())?;
                }
                Ok(())
            }
            Sink::File(path) => match switch {
                Some(switch) => add_line(path, &serde_json::to_string(&switch.report())?),
                None => Ok(()),
            },
        }
    }

    fn in_words(&self, switch: Option<&Switch>) -> String {
        let mut text = self.carriers(switch);
        let stats = self.counters.snapshot();
        let reasons = stays::ALL.iter().filter_map(|(why, words)| {
            let count = stayed(&stats, *why);
            (count > 0).then(|| format!("{count} {words}"))
        });
        let reasons: Vec<_> = reasons.collect();
        if !reasons.is_empty() {
            let _ = writeln!(
                text,
                "san: {} (process {}): why on TCP: {}",
                program_name(),
                std::process::id(),
                reasons.join(", ")
            );
        }
        text
    }

    /// Which way the connections went, and their bytes.
    fn carriers(&self, switch: Option<&Switch>) -> String {
        let stats = self.counters.snapshot();
        let moved = self.moved.load(Ordering::Relaxed);
        let moved_accepted = self.moved_accepted.load(Ordering::Relaxed);
        let Some(switch) = switch else {
            return format!(
                "san: {} (process {}): 0 connections over the SAN (0 accepted), {} over TCP ({} accepted)\n",
                program_name(),
                std::process::id(),
                stats.tcp_accepted + stats.tcp_connects,
                stats.tcp_accepted
            );
        };
        let report = switch.report();
        let bytes = |name: &str| -> u64 {
            let counters = report.providers.iter().map(|one| &one.counters);
            counters.filter_map(|counters| counters.get(name)).sum()
        };
        let mut text = format!(
            "san: {} (process {}): {} over the SAN ({} accepted), {} over TCP ({} accepted); \
             over the SAN {} bytes received, {} sent\n",
            report.program,
            report.pid,
            connections(stats.san_accepted + stats.san_connected),
            stats.san_accepted,
            (stats.tcp_accepted + stats.tcp_connects).saturating_sub(moved),
            stats.tcp_accepted.saturating_sub(moved_accepted),
            bytes("bytes_received") + bytes("rdma_bytes_read"),
            // The beginning of a piece of bulk is in both.
            bytes("bytes_sent") + report.switch.get("bulk_sent").copied().unwrap_or(0),
        );
        let last = report.left_to_tcp.last().map(|left| left.why.as_str());
        if let Some(why) = report.no_san.as_deref().or(last) {
            let _ = writeln!(text, "san: {}: TCP since: {why}", report.program);
        }
        text
    }
}

fn connections(count: u64) -> String {
    match count {
        1 => "1 connection".to_owned(),
        n => format!("{n} connections"),
    }
}

fn stayed(stats: &ProgramStats, why: Why) -> u64 {
    match why {
        Why::Short => stats.stayed_short,
        Why::Shared => stats.stayed_shared,
        Why::Uncounted => stats.stayed_uncounted,
        Why::NoWay => stats.stayed_no_way,
        Why::Unanswered => stats.stayed_unanswered,
        Why::KernelCall => stats.stayed_for_call,
        Why::Unfinished => stats.stayed_unfinished,
    }
}

fn add_line(path: &Path, line: &str) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)?;
    // One write: the lines of several processes do not mix.
    io::Write::write_all(&mut file, format!("{line}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_the_report_names_the_program() {
        let tally = Tally::default();
        let peer = "192.0.2.7:7000".parse().unwrap();
        tally.left_to_tcp(peer, "a reason".to_owned(), "a remedy".to_owned());
        tally.stayed(Why::Short);
        let text = tally.in_words(None);
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        let name = format!(
            "san: {} (process {}): ",
            comm.trim_end(),
            std::process::id()
        );
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.lines().all(|line| line.starts_with(&name)), "{text}");
    }

    #[test]
    fn a_child_counts_what_it_has_inherited() {
        let tally = Tally::default();
        tally.tracks(Role::Acceptor);
        tally.stayed(Why::Short);
        tally.tracks(Role::Acceptor);
        tally.moved(true);
        tally.in_child();
        assert!(!tally.has_any());
        tally.tracks(Role::Acceptor);
        let text = tally.in_words(None);
        let told = "0 connections over the SAN (0 accepted), 1 over TCP (1 accepted)\n";
        assert!(text.ends_with(told), "{text}");
    }

    #[test]
    fn where_the_report_goes_is_said_by_the_name_of_the_file() {
        let sink = Sink::named("/no/such/report".into());
        assert_eq!(
            sink.to_string(),
            "to /no/such/report, which SAN_REPORT names"
        );
        let error = Tally::default().report(None, &sink);
        assert!(error.is_ok(), "without a switch nothing is written");
    }
}
