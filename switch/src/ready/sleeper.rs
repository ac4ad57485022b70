//! Waiting as poll(2) and select(2) do: for sources and kernel descriptors, once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::hub::{Source, Told};
use super::lanes::{Armed, SharedLane, Turn};
use rustix::event::epoll::EventFlags;
use san_base::{Deadline, Signal};

/// What one source is waited for, and what was found.
pub(crate) struct Waited {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) wanted: EventFlags,
    pub(crate) found: EventFlags,
}

/// The kernel's part: it waits for the caller's descriptors, and for these, so long, and says how many
/// of the caller's are ready.
pub(crate) type KernelPoll<'a> =
    &'a mut dyn FnMut(&[BorrowedFd<'_>], Option<Duration>) -> io::Result<usize>;

struct Bell(Arc<Signal>);

impl Told for Bell {
    fn ready(self: Arc<Self>) {
        self.0.set();
    }
}

thread_local! {
    /// A thread that polls once is likely to do so again.
    static BELL: std::cell::OnceCell<Arc<Bell>> = const { std::cell::OnceCell::new() };
}

/// Waits until something of either kind is ready or the time is over; how many that are. `None`: a
/// source has become the kernel's, and the caller has to begin anew.
///
/// # Errors
/// What the kernel's part says; EMFILE.
pub(crate) fn wait_for(
    waited: &mut [&mut Waited],
    timeout: Option<Duration>,
    kernel: KernelPoll<'_>,
) -> io::Result<Option<usize>> {
    if waited.is_empty() {
        // No source, no bell, which would take a descriptor.
        return kernel(&[], timeout).map(Some);
    }
    let deadline = Deadline::after(timeout);
    let bell = bell()?;
    let mut turn = Turn::new(&bell.0, None);
    loop {
        // A source may have moved to a lane meanwhile.
        let lanes = lanes(waited)?;
        for lane in &lanes {
            lane.poll();
        }
        if waited.iter().any(|one| one.source.is_kernels()) {
            return Ok(None);
        }
        let found = look(waited);
        if found > 0 || deadline.is_over() {
            return Ok(Some(found + kernel(&[], Some(Duration::ZERO))?));
        }
        let ready = sleep(waited, &lanes, &bell, &mut turn, deadline, kernel)?;
        if ready > 0 {
            return Ok(Some(ready + look(waited)));
        }
    }
}

/// Sleeps until something may be ready; how many of the kernel's descriptors are.
fn sleep(
    waited: &mut [&mut Waited],
    lanes: &[Arc<SharedLane>],
    bell: &Arc<Bell>,
    turn: &mut Turn<'_>,
    deadline: Deadline,
    kernel: KernelPoll<'_>,
) -> io::Result<usize> {
    bell.0.reset();
    // First who is to be woken, then the look: what happens in between is seen by one of the two.
    let told: Weak<dyn Told> = Arc::downgrade(bell) as Weak<dyn Told>;
    for one in waited.iter() {
        one.source.hub().add(Weak::clone(&told));
    }
    let armed = turn.arm(lanes);
    let left = match armed == Armed::MaySleep && look(waited) == 0 {
        true => deadline.left(),
        false => Some(Duration::ZERO),
    };
    let mut extra = vec![bell.0.as_fd()];
    extra.extend(turn.armed().map(SharedLane::fd));
    let outcome = kernel(&extra, left);
    drop(extra);
    turn.awake(|_| ());
    for one in waited.iter() {
        one.source.hub().remove(&told);
    }
    outcome
}

fn look(waited: &mut [&mut Waited]) -> usize {
    let mut found = 0;
    for one in waited {
        let always = EventFlags::ERR | EventFlags::HUP;
        one.found = one.source.events() & (one.wanted | always);
        found += usize::from(!one.found.is_empty());
    }
    found
}

/// Each lane once.
fn lanes(waited: &[&mut Waited]) -> io::Result<Vec<Arc<SharedLane>>> {
    let mut lanes: Vec<Arc<SharedLane>> = Vec::new();
    for lane in waited.iter().filter_map(|one| one.source.lane()) {
        let lane = SharedLane::of(lane)?;
        if !lanes.iter().any(|one| Arc::ptr_eq(one, &lane)) {
            lanes.push(lane);
        }
    }
    Ok(lanes)
}

fn bell() -> io::Result<Arc<Bell>> {
    BELL.with(|cell| {
        if let Some(bell) = cell.get() {
            return Ok(Arc::clone(bell));
        }
        let bell = Arc::new(Bell(Arc::new(Signal::new()?)));
        Ok(Arc::clone(cell.get_or_init(|| bell)))
    })
}
