//! What a wait costs with many idle connections in the poller: processor time of the thread that waits.
//!
//! ```console
//! $ cargo run --release -p san-switch --example waiting [IDLE...]
//! ```
//!
//! A process of its own has the other ends, since one may not open as many descriptors. One connection is
//! active: a byte comes over it, the poller tells, and the byte is read. In the first column the byte is here
//! before the wait begins, so that the wait finds it; in the second it comes while the wait sleeps. The last
//! column is that of one `Poller::add`.

use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use san_switch::{
    ConnectOptions, Connection, FabricChoice, Interest, ListenOptions, PolledEvent, Poller,
    SOMAXCONN, Switch, SwitchConfig,
};

const WAITS: u32 = 1000;
const RUNS: usize = 3;
const ACTIVE: u64 = u64::MAX - 1;
/// How long after it was asked to the peer sends a byte that a wait sleeps for.
const SLEEP: Duration = Duration::from_micros(500);
/// How long a byte may take that a wait is to find.
const ARRIVAL: Duration = Duration::from_millis(1);

/// How long a connect may take.
const PATIENCE: Duration = Duration::from_secs(60);

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Processor time of this thread.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

fn config() -> SwitchConfig {
    SwitchConfig::default()
        .fabric(FabricChoice::Soft)
        .connect_timeout(PATIENCE)
        .fabric_connect_timeout(PATIENCE)
        .stat(false)
}

/// The other end may not have come to accept the ones before.
fn connect(switch: &Switch, to: SocketAddr, options: &ConnectOptions) -> Result<Connection> {
    for _ in 0..1000 {
        match switch.connect(to, options).map_err(io::Error::from) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::thread::sleep(Duration::from_millis(20));
            }
            outcome => return Ok(outcome?),
        }
    }
    Err("the backlog stays full".into())
}

/// The process with the other ends: it sends a byte over the last one for each line that it reads, after a
/// pause if the line says so.
fn peer(to: SocketAddr, count: u64) -> Result<()> {
    let switch = Switch::new(config())?;
    let options = ConnectOptions::default().local("127.0.0.1:0".parse()?);
    let mut all = Vec::new();
    for _ in 0..count {
        let connection = connect(&switch, to, &options)?;
        if !connection.is_san() {
            return Err(format!("the connection goes over {}", connection.route()).into());
        }
        all.push(connection);
    }
    let active = all.last().ok_or("there is none")?;
    for line in io::stdin().lines() {
        if line? == "pause" {
            std::thread::sleep(SLEEP);
        }
        active.send(b"x")?;
    }
    Ok(())
}

struct Scene {
    poller: Poller,
    active: Arc<Connection>,
    adding: Duration,
    peer: Child,
    asks: ChildStdin,
    _all: Vec<Arc<Connection>>,
    _switch: Switch,
}

impl Scene {
    fn new(idle: u64) -> Result<Self> {
        let switch = Switch::new(config())?;
        let options = ListenOptions::default().backlog(SOMAXCONN);
        let listener = switch.listen("127.0.0.2:0".parse()?, options)?;
        let mut peer = Command::new(std::env::current_exe()?)
            .args(["peer", &listener.local_addr().to_string()])
            .arg((idle + 1).to_string())
            .stdin(Stdio::piped())
            .spawn()?;
        let asks = peer.stdin.take().ok_or("no input")?;
        let poller = Poller::new()?;
        let (mut all, mut adding) = (Vec::new(), Duration::ZERO);
        for token in 0..=idle {
            let connection = Arc::new(listener.accept_timeout(PATIENCE)?);
            let token = if token == idle { ACTIVE } else { token };
            let begun = processor_time();
            poller.add(&connection, token, Interest::READABLE)?;
            adding += processor_time() - begun;
            all.push(connection);
        }
        Ok(Self {
            poller,
            active: Arc::clone(all.last().ok_or("there is none")?),
            adding: adding / u32::try_from(idle + 1)?,
            peer,
            asks,
            _all: all,
            _switch: switch,
        })
    }

    /// One wait, which tells of the active connection; the processor time that it took.
    fn wait(&self, events: &mut Vec<PolledEvent>) -> Result<Duration> {
        let begun = processor_time();
        self.poller.wait(events, Some(PATIENCE))?;
        let took = processor_time() - begun;
        if events.len() != 1 || events[0].token != ACTIVE {
            return Err(format!("told {events:?}").into());
        }
        self.active.receive(&mut [0; 9])?;
        Ok(took)
    }

    /// Microseconds of a wait that finds something.
    fn found(&mut self) -> Result<f64> {
        self.waits("at once", ARRIVAL)
    }

    /// Microseconds of a wait that sleeps.
    fn slept(&mut self) -> Result<f64> {
        self.waits("pause", Duration::ZERO)
    }

    fn waits(&mut self, ask: &str, pause: Duration) -> Result<f64> {
        let (mut all, mut events) = (Duration::ZERO, Vec::new());
        for _ in 0..WAITS {
            writeln!(self.asks, "{ask}")?;
            std::thread::sleep(pause);
            all += self.wait(&mut events)?;
        }
        Ok(all.as_secs_f64() * 1e6 / f64::from(WAITS))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.peer.kill();
        let _ = self.peer.wait();
    }
}

fn median(mut figure: impl FnMut() -> Result<f64>) -> Result<f64> {
    let mut figures: Vec<f64> = (0..RUNS).map(|_| figure()).collect::<Result<_>>()?;
    figures.sort_by(f64::total_cmp);
    Ok(figures[RUNS / 2])
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, to, count] = &arguments[..]
        && first == "peer"
    {
        return peer(to.parse()?, count.parse()?);
    }
    let wanted = match arguments.is_empty() {
        true => vec![10, 1000, 10_000],
        false => arguments
            .iter()
            .map(|one| one.parse())
            .collect::<Result<_, _>>()?,
    };
    println!(
        "{:>8} {:>10} {:>10} {:>10}",
        "idle", "found us", "slept us", "add us"
    );
    for idle in wanted {
        let mut scene = Scene::new(idle)?;
        let found = median(|| scene.found())?;
        let slept = median(|| scene.slept())?;
        let adding = scene.adding.as_secs_f64() * 1e6;
        println!("{idle:>8} {found:>10.2} {slept:>10.2} {adding:>10.2}");
    }
    Ok(())
}
