//! The process's table, and the ways to what is in it.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use san_switch::program::{Held, Program, Role, Stream};

use crate::inside::{Answer, inside, is_inside};
use crate::kernel::{LIBRARY, borrowed};
use crate::owner::OWNER;
use crate::table::TABLE;

/// What is under this number, if the switch has to do with it and the call is the program's own.
#[inline]
pub(crate) fn held(fd: c_int) -> Option<Arc<Held>> {
    if TABLE.is_empty() {
        return None;
    }
    held_there(fd)
}

#[inline(never)]
fn held_there(fd: c_int) -> Option<Arc<Held>> {
    if is_inside() {
        return None;
    }
    let held = TABLE.find(fd)?;
    if let Held::Stream(stream) = &*held
        && stream.is_kernels()
    {
        return None;
    }
    (!held.is_inherited()).then_some(held)
}

/// A call that is the kernel's, on a stream that may move: counted until it is over.
pub(crate) struct Passing(Option<Arc<Held>>);

impl Passing {
    fn stream(&self) -> Option<&Stream> {
        match self.0.as_deref() {
            Some(Held::Stream(stream)) => Some(stream),
            _ => None,
        }
    }

    /// Whether somebody counts.
    pub(crate) fn is_counted(&self) -> bool {
        self.0.is_some()
    }

    /// What the kernel has read into these pieces, or written from them, is counted.
    #[inline]
    pub(crate) fn note<'a>(
        &self,
        is_read: bool,
        bytes: isize,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) {
        if let Some(stream) = self.stream()
            && let Ok(bytes) = usize::try_from(bytes)
            && bytes > 0
        {
            stream.note(is_read, bytes, pieces);
        }
    }
}

impl Drop for Passing {
    #[inline]
    fn drop(&mut self) {
        if let Some(held) = self.0.take() {
            over(held);
        }
    }
}

/// The call may be the last that has the stream: then it is closed here.
fn over(held: Arc<Held>) {
    let _: Answer<()> = inside(|| {
        if let Held::Stream(stream) = &*held {
            stream.end();
        }
        drop(held);
        Ok(None)
    });
}

/// What becomes of a call on a descriptor.
pub(crate) enum Called<T> {
    /// It is answered.
    Done(T),
    /// It failed; errno is set.
    Failed,
    /// It is the kernel's, and counted as long as this is there.
    Pass(Passing),
}

/// Has the stream under this number serve a call.
#[inline]
pub(crate) fn call<T>(
    fd: c_int,
    call: impl FnOnce(&Stream) -> std::io::Result<Option<T>>,
) -> Called<T> {
    let Some(held) = held(fd) else {
        return Called::Pass(Passing(None));
    };
    let Held::Stream(stream) = &*held else {
        return Called::Pass(Passing(None));
    };
    if stream.is_upgrading() {
        return call_upgrading(&held, stream, fd, call);
    }
    match inside(|| call(stream)) {
        Answer::Done(outcome) => Called::Done(outcome),
        Answer::Failed => Called::Failed,
        Answer::Pass => Called::Pass(Passing(None)),
    }
}

fn call_upgrading<T>(
    held: &Arc<Held>,
    stream: &Stream,
    fd: c_int,
    call: impl FnOnce(&Stream) -> std::io::Result<Option<T>>,
) -> Called<T> {
    let passing = match inside(|| stream.begin(fd).map(Some)) {
        Answer::Done(true) => return Called::Pass(Passing(Some(Arc::clone(held)))),
        Answer::Done(false) => Passing(Some(Arc::clone(held))),
        _ => return Called::Failed,
    };
    match inside(|| call(stream)) {
        Answer::Done(outcome) => Called::Done(outcome),
        Answer::Failed => Called::Failed,
        Answer::Pass => Called::Pass(passing),
    }
}

/// As [`call`], for a call that moves no bytes.
#[inline]
pub(crate) fn on_stream<T>(
    fd: c_int,
    what: impl FnOnce(&Stream) -> std::io::Result<Option<T>>,
) -> Answer<T> {
    match call(fd, what) {
        Called::Done(outcome) => Answer::Done(outcome),
        Called::Failed => Answer::Failed,
        Called::Pass(_) => Answer::Pass,
    }
}

/// A stream that may move, under this number.
pub(crate) fn upgrading(fd: c_int) -> Option<Arc<Held>> {
    let held = held(fd)?;
    let is_upgrading = matches!(&*held, Held::Stream(stream) if stream.is_upgrading());
    is_upgrading.then_some(held)
}

/// What comes is the kernel's alone, or another process's: a stream under this number stays on TCP from
/// now on.
pub(crate) fn to_kernel(fd: c_int) {
    if let Some(held) = upgrading(fd)
        && let Held::Stream(stream) = &*held
    {
        let _: Answer<()> = inside(|| {
            stream.to_kernel();
            Ok(None)
        });
    }
}

/// A TCP connection of the program's begins: it may move.
pub(crate) fn track(fd: c_int, role: Role) {
    let _: Answer<()> = inside(|| {
        if let Some(program) = Program::of_this_process(&LIBRARY)
            && program.is_upgrading()
        {
            put(fd, Arc::new(Held::Stream(program.track(role))));
        }
        Ok(None)
    });
}

/// The program, if it has another route than TCP and the call is its own.
pub(crate) fn program() -> Option<&'static Program> {
    if is_inside() {
        return None;
    }
    Program::of_this_process(&LIBRARY)
}

/// Puts something under a number of the program's. What was there is gone, as after close.
pub(crate) fn put(fd: c_int, held: Arc<Held>) {
    OWNER.is_here(at_exit);
    // A number too high for the table stays with the kernel, where such a socket is not connected.
    if let Ok(Some(before)) = TABLE.put(fd, held) {
        gone(fd, &before);
    }
}

/// The program has closed this number, or has something else under it.
pub(crate) fn closed(fd: c_int) {
    if let Some(before) = TABLE.take(fd) {
        // It may be the last one: then the connection is closed here.
        let _: Answer<()> = inside(|| {
            gone(fd, &before);
            drop(before);
            Ok(None)
        });
    }
}

fn gone(fd: c_int, before: &Held) {
    if let Held::Stream(stream) = before
        && !stream.is_inherited()
    {
        stream.number_closed(fd);
    }
}

/// Whether this is a child of `vfork`: it has its parent's memory, and closes its own descriptors.
pub(crate) fn is_borrowed_memory() -> bool {
    OWNER.is_other()
}

/// Whether a stream that began on TCP is under this number.
pub(crate) fn is_moving_kind(fd: c_int) -> bool {
    upgrading(fd).is_some()
}

/// Standard input, output and error: what another program knows of what it inherits.
const STANDARD: std::ops::RangeInclusive<c_int> = 0..=2;

/// This process becomes another program, which knows nothing of the streams that it keeps: the kernel gets
/// those. A child of `vfork` is no other process to the table, which is its parent's: the kernel gets what
/// the program has for its standard streams.
pub(crate) fn before_exec() {
    if TABLE.is_empty() || is_inside() {
        return;
    }
    if OWNER.is_other() {
        return before_spawn();
    }
    TABLE.each(|fd, _| {
        if stays_at_exec(fd) {
            to_kernel_at_exec(fd);
        }
    });
}

fn stays_at_exec(fd: c_int) -> bool {
    let flags = borrowed(fd).map(rustix::io::fcntl_getfd);
    matches!(flags, Some(Ok(flags)) if !flags.contains(FdFlags::CLOEXEC))
}

/// Another program begins, which has our standard streams.
pub(crate) fn before_spawn() {
    if TABLE.is_empty() || is_inside() {
        return;
    }
    STANDARD.filter(|fd| stays_at_exec(*fd)).for_each(to_kernel);
}

/// A child of `vfork` has put this number where the program looks that it is going to be.
pub(crate) fn copied_in_borrowed_memory(fd: c_int, to: c_int) {
    if STANDARD.contains(&to) {
        to_kernel(fd);
    }
}

/// A child leaves what it has by chance to its parent, but for its standard streams.
fn to_kernel_at_exec(fd: c_int) {
    if STANDARD.contains(&fd) {
        // It is a user of it, if its parent is one.
        let _ = on_stream(fd, |_| Ok(Some(())));
        return to_kernel(fd);
    }
    if let Some(held) = upgrading(fd)
        && matches!(&*held, Held::Stream(stream) if stream.is_moving())
    {
        to_kernel(fd);
    }
}

/// How long the end of the process waits for the thread that sees to it.
const AT_EXIT: Duration = Duration::from_secs(3);

/// Closes what the program has left open, and waits for what is under way, two seconds at most.
pub(crate) extern "C" fn at_exit() {
    if OWNER.is_nobody() || OWNER.is_other() || is_inside() {
        return;
    }
    // What is local to this thread may have been destroyed already. Another thread has its own.
    static IS_DONE: AtomicBool = AtomicBool::new(false);
    let ending = std::thread::Builder::new().name("san-exit".to_owned());
    let started = ending.spawn(|| {
        for fd in TABLE.numbers(0, u32::MAX) {
            closed(fd);
        }
        let _: Answer<()> = inside(|| {
            Program::end();
            Ok(None)
        });
        IS_DONE.store(true, Ordering::Release);
    });
    if started.is_ok() {
        let until = Instant::now() + AT_EXIT;
        while !IS_DONE.load(Ordering::Acquire) && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
