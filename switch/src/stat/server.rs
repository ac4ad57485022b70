//! The thread `san-stat`: it sleeps until somebody asks, and answers one at a time.
//!
//! A client that is not of the same user or root gets nothing; one that does not read loses its
//! answer after [`PATIENCE`]. Others wait in the kernel's queue meanwhile. The thread has no part
//! in any connection, so whatever happens to it, they go on.

use super::report::Report;
use super::sockets;
use crate::net::rooms::Rooms;
use crate::wait::wait_readable;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use san_base::{Deadline, Signal, runtime_dir};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The thread's name, as `ps -L` shows it.
pub(crate) const THREAD_NAME: &str = "san-stat";
/// How long a client may take to read its answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long nobody is answered after the system gave no descriptor.
const REST: Duration = Duration::from_millis(100);
const STACK: usize = 512 * 1024;

/// Switches that this process has made so far.
static SWITCHES: AtomicU32 = AtomicU32::new(0);

/// The running thread. Dropped, it ends and its socket is gone.
#[derive(Debug)]
pub(crate) struct StatThread {
    path: PathBuf,
    /// A child made by fork has no thread, and must leave its parent's socket alone.
    pid: u32,
    stop: Arc<Signal>,
    handle: Option<JoinHandle<()>>,
}

impl StatThread {
    /// Makes the socket and starts the thread.
    pub(crate) fn start(rooms: &Arc<Rooms>) -> io::Result<Self> {
        let (listener, path) = bind()?;
        let stop = Arc::new(Signal::new()?);
        let mut this = StatThread {
            path,
            pid: std::process::id(),
            stop: Arc::clone(&stop),
            handle: None,
        };
        listener.set_nonblocking(true)?;
        let rooms = Arc::clone(rooms);
        let thread = std::thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .stack_size(STACK);
        this.handle = Some(thread.spawn(move || serve(&rooms, &listener, &stop))?);
        tracing::debug!(path = %this.path.display(), "statistics");
        Ok(this)
    }
}

impl Drop for StatThread {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            return;
        }
        let _ = std::fs::remove_file(&self.path);
        self.stop.set();
        if let Some(handle) = self.handle.take()
            && handle.thread().id() != std::thread::current().id()
            && handle.join().is_err()
        {
            tracing::error!("the statistics thread panicked");
        }
    }
}

/// A listening socket at the first place that can be had.
fn bind() -> io::Result<(UnixListener, PathBuf)> {
    let nth = SWITCHES.fetch_add(1, Ordering::Relaxed) + 1;
    let mut failure = None;
    for directory in runtime_dir::own(sockets::DIRECTORY) {
        let path = directory.join(sockets::name(std::process::id(), nth));
        match bind_at(&directory, &path) {
            Ok(listener) => return Ok((listener, path)),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "no place for statistics");
                failure = Some(error);
            }
        }
    }
    Err(failure.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

fn bind_at(directory: &Path, path: &Path) -> io::Result<UnixListener> {
    runtime_dir::prepare(directory)?;
    sockets::clean(directory);
    // An earlier process of the same number left it.
    if sockets::is_dead(path) {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn serve(rooms: &Rooms, listener: &UnixListener, stop: &Signal) {
    loop {
        match wait_readable([listener.as_fd(), stop.as_fd()], Deadline::NEVER) {
            Ok([_, true]) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "the statistics thread cannot wait");
                return;
            }
        }
        match listener.accept() {
            Ok((client, _)) => {
                if let Err(error) = answer(rooms, client, stop) {
                    tracing::debug!(%error, "statistics not delivered");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::debug!(%error, "no descriptor to answer with");
                let _ = wait_readable([stop.as_fd()], Deadline::after(REST));
            }
        }
    }
}

fn answer(rooms: &Rooms, client: UnixStream, stop: &Signal) -> io::Result<()> {
    let asks = rustix::net::sockopt::socket_peercred(&client)?.uid;
    if asks != rustix::process::geteuid() && !asks.is_root() {
        tracing::warn!(uid = asks.as_raw(), "another user asked for statistics");
        return Ok(());
    }
    let text = serde_json::to_vec(&Report::of(rooms)).map_err(io::Error::from)?;
    deliver(&text, client, stop, PATIENCE)
}

// The client is told the end of its answer by the end of the stream.
#[expect(clippy::needless_pass_by_value, reason = "the stream ends here")]
fn deliver(text: &[u8], client: UnixStream, stop: &Signal, patience: Duration) -> io::Result<()> {
    client.set_nonblocking(true)?;
    let deadline = Deadline::after(patience);
    let mut left = text;
    while !left.is_empty() {
        match (&client).write(left) {
            Ok(written) => left = &left[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !wait_writable(&client, stop, deadline)? {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits until the client has room; `false`: its time is over, or the thread has to stop.
fn wait_writable(client: &UnixStream, stop: &Signal, deadline: Deadline) -> io::Result<bool> {
    let mut fds = [
        PollFd::new(client, PollFlags::OUT),
        PollFd::new(stop, PollFlags::IN),
    ];
    match poll(&mut fds, deadline.timespec().as_ref()) {
        Ok(0) => Ok(false),
        Ok(_) => Ok(fds[1].revents().is_empty()),
        Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::Instant;

    const LONG: usize = 16 << 20;

    #[test]
    fn a_client_that_does_not_read_loses_its_answer() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stop = Signal::new().unwrap();
        let started = Instant::now();
        let error = deliver(&vec![b' '; LONG], ours, &stop, Duration::from_millis(50));
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= Duration::from_millis(50));
        drop(theirs);
    }

    #[test]
    fn stopping_does_not_wait_for_a_client() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stop = Signal::new().unwrap();
        stop.set();
        let started = Instant::now();
        let hour = Duration::from_secs(3600);
        assert!(deliver(&vec![b' '; LONG], ours, &stop, hour).is_err());
        assert!(started.elapsed() < Duration::from_secs(60));
        drop(theirs);
    }

    #[test]
    fn a_client_that_reads_gets_everything() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).map(|_| all.len())
        });
        let stop = Signal::new().unwrap();
        deliver(&vec![b' '; LONG], ours, &stop, Duration::from_secs(60)).unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), LONG);
    }
}
