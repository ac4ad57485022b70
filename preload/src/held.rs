//! The process's table, and the ways to what is in it.

use std::ffi::c_int;
use std::sync::Arc;

use san_switch::program::{Held, Program, Stream};

use crate::hooks::process::OWNER;
use crate::inside::{Answer, inside, is_inside};
use crate::kernel::LIBRARY;
use crate::table::Table;

/// What the program has under its numbers.
pub(crate) static TABLE: Table<Held> = Table::new();

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
    OWNER.is_here();
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
