//! What this process offers to others, and the thread `san-duplicate`, which waits for them to ask. It
//! starts with the first offer and ends when there is none any more.
//!
//! Requests are served one after the other, in the order in which they come (duty 53). An offer is good
//! once, for the process that it names, and for [`LIFE`].

use std::fmt;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use san_base::{Deadline, Process, Signal, lock, runtime_dir};

use super::package::{self, Gone, Package};
use super::ticket::{Duplicate, Token, token};
use crate::wait::wait_readable;

/// The thread's name, as `ps -L` shows it.
pub(crate) const THREAD_NAME: &str = "san-duplicate";
/// An offer that nobody has used by then is void, and what was offered is closed if nobody else has it.
const LIFE: Duration = Duration::from_secs(60);
/// How long a hand-over may take: for calls that are under way, and for the peer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Who asks says what for in this time, and reads its answer.
const CLIENT: Duration = Duration::from_secs(2);
/// Offers that may be open at a time.
const MOST: usize = 256;
/// Between two looks at offers that are too old.
const LOOK: Duration = Duration::from_secs(1);
/// The ending of a socket's name.
const ENDING: &str = ".move";

/// Sockets that this process has made so far.
static SOCKETS: AtomicU32 = AtomicU32::new(0);

/// What can be handed over. While it is offered it stays open.
pub(crate) trait Leaves: Send + Sync {
    /// Whether it can be offered now.
    ///
    /// # Errors
    /// ENOTCONN: it is over, or another process's. What else keeps it here.
    fn may_leave(&self) -> io::Result<()>;

    /// Hands it to the process `target`: nothing of it is of use here after that.
    fn leave(&self, target: u32, deadline: Deadline) -> io::Result<Gone>;
}

struct Offer {
    token: Token,
    target: Process,
    until: Instant,
    what: Arc<dyn Leaves>,
}

/// The offers of a switch.
#[derive(Default)]
pub(crate) struct Offers {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    open: Vec<Offer>,
    served: Option<Served>,
    is_over: bool,
}

/// The thread that runs.
struct Served {
    path: PathBuf,
    stop: Arc<Signal>,
    handle: JoinHandle<()>,
}

impl Offers {
    /// Offers this to the process `target`.
    ///
    /// # Errors
    /// Those of [`Leaves::may_leave`]. ESRCH: there is no such process; ENOBUFS: too many offers are open; what the system says to a
    /// socket in the runtime directory.
    pub(crate) fn offer(&self, target: u32, what: Arc<dyn Leaves>) -> io::Result<Duplicate> {
        what.may_leave()?;
        let target = Process::with_pid(target).ok_or(Errno::SRCH)?;
        let token = token()?;
        let mut state = lock(&self.state);
        if state.is_over {
            return Err(Errno::SHUTDOWN.into());
        }
        if state.open.len() >= MOST {
            return Err(Errno::NOBUFS.into());
        }
        let path = match &state.served {
            Some(served) => served.path.clone(),
            None => {
                let served = Served::start(&self.state)?;
                state.served.insert(served).path.clone()
            }
        };
        let duplicate = Duplicate::new(target.pid, path, token)?;
        state.open.push(Offer {
            token,
            target,
            until: Instant::now() + LIFE,
            what,
        });
        Ok(duplicate)
    }

    /// Takes all offers back, and ends the thread.
    pub(crate) fn shut_down(&self) {
        let mut state = lock(&self.state);
        state.is_over = true;
        let open = std::mem::take(&mut state.open);
        let served = state.served.take();
        drop(state);
        drop(open);
        if let Some(served) = served {
            served.end();
        }
    }
}

impl Served {
    fn start(state: &Arc<Mutex<State>>) -> io::Result<Self> {
        let (listener, path) = bind()?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(Signal::new()?);
        let state = Arc::downgrade(state);
        let (stopped, own_path) = (Arc::clone(&stop), path.clone());
        let thread = std::thread::Builder::new().name(THREAD_NAME.to_owned());
        let handle = thread.spawn(move || {
            // What is offered may be the last that keeps the switch.
            while let Some(state) = state.upgrade() {
                if !serve(&state, &listener, &stopped) {
                    break;
                }
            }
            let _ = std::fs::remove_file(&own_path);
        })?;
        Ok(Self { path, stop, handle })
    }

    fn end(self) {
        let _ = std::fs::remove_file(&self.path);
        self.stop.set();
        if self.handle.thread().id() != std::thread::current().id() && self.handle.join().is_err() {
            tracing::error!("the thread of duplicates panicked");
        }
    }
}

/// A listening socket that is this user's alone.
fn bind() -> io::Result<(UnixListener, PathBuf)> {
    let directory = runtime_dir::open("san")?;
    clean(&directory);
    let nth = SOCKETS.fetch_add(1, Ordering::Relaxed) + 1;
    let path = directory.join(format!("{}-{nth}{ENDING}", std::process::id()));
    if is_dead(&path) {
        std::fs::remove_file(&path)?;
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok((listener, path))
}

/// Takes away what processes that were killed have left.
fn clean(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        let path = entry.path();
        let is_ours = path.to_str().is_some_and(|path| path.ends_with(ENDING));
        if is_ours && is_dead(&path) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

fn is_dead(path: &Path) -> bool {
    let error = UnixStream::connect(path).err();
    error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// One round of the thread; whether there is another.
fn serve(state: &Mutex<State>, listener: &UnixListener, stop: &Signal) -> bool {
    match wait_readable([listener.as_fd(), stop.as_fd()], Deadline::after(LOOK)) {
        Ok([_, true]) => return false,
        Ok([true, false]) => match listener.accept() {
            Ok((client, _)) => {
                if let Err(error) = answer(state, &client) {
                    tracing::debug!(%error, "a hand-over failed");
                }
            }
            Err(error) => tracing::debug!(%error, "nobody who asks"),
        },
        Ok(_) => {}
        Err(error) => {
            tracing::error!(%error, "the thread of duplicates cannot wait");
            return false;
        }
    }
    let now = Instant::now();
    let mut state = lock(state);
    let (open, old): (Vec<_>, Vec<_>) = std::mem::take(&mut state.open)
        .into_iter()
        .partition(|offer| offer.until > now);
    state.open = open;
    let goes_on = !state.open.is_empty();
    if !goes_on {
        // The next offer starts another thread.
        state.served = None;
    }
    drop(state);
    // They may be closed by this.
    drop(old);
    goes_on
}

fn answer(state: &Mutex<State>, client: &UnixStream) -> io::Result<()> {
    client.set_read_timeout(Some(CLIENT))?;
    client.set_write_timeout(Some(CLIENT))?;
    let who = rustix::net::sockopt::socket_peercred(client)?;
    let who = u32::try_from(who.pid.as_raw_pid()).ok();
    let asks = who.and_then(Process::with_pid);
    let mut asked = Token::default();
    { client }.read_exact(&mut asked)?;
    let offer = {
        let mut state = lock(state);
        let open = &mut state.open;
        match open.iter().position(|offer| offer.token == asked) {
            // Used, or too old.
            None => Err(Errno::NOTCONN),
            Some(at) if Some(open[at].target) != asks => Err(Errno::ACCESS),
            Some(at) => Ok(open.remove(at)),
        }
    };
    let offer = match offer {
        Ok(offer) => offer,
        Err(why) => {
            tracing::warn!(pid = who, %why, "a process asked for what is not offered to it");
            return package::refuse(client, why.raw_os_error());
        }
    };
    match offer
        .what
        .leave(offer.target.pid, Deadline::after(PATIENCE))
    {
        Ok(gone) => {
            let package: &Package = &gone.package;
            package::send(client, package)
        }
        Err(error) => {
            let unknown = Errno::IO.raw_os_error();
            package::refuse(client, error.raw_os_error().unwrap_or(unknown))?;
            Err(error)
        }
    }
}

impl fmt::Debug for Offers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = lock(&self.state).open.len();
        f.debug_struct("Offers")
            .field("open", &open)
            .finish_non_exhaustive()
    }
}
