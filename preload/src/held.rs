//! The process's table, and the ways to what is in it.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use san_switch::program::{Held, Program, Stream};

use crate::inside::{Answer, inside, is_inside};
use crate::kernel::LIBRARY;
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

/// Asks the stream under this number; `Pass`, if there is none.
#[inline]
pub(crate) fn on_stream<T>(
    fd: c_int,
    call: impl FnOnce(&Stream) -> std::io::Result<Option<T>>,
) -> Answer<T> {
    match held(fd).as_deref() {
        Some(Held::Stream(stream)) => inside(|| call(stream)),
        _ => Answer::Pass,
    }
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
