//! The end of the heap moves back: a test by itself, since a process has one heap.

use std::time::{Duration, Instant};

use verbs_shim::{MappingChange, MappingWatch, WatchError};

const PAGE: usize = 4096;

#[test]
fn giving_back_the_end_of_the_heap_is_told() {
    let watch = match MappingWatch::new() {
        Ok(watch) => watch,
        Err(error @ (WatchError::Unsupported { .. } | WatchError::Denied { .. })) => {
            eprintln!("not tested here: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    // SAFETY: the heap only grows, behind what is in use.
    let old = unsafe { libc::sbrk(16 * PAGE as libc::intptr_t) };
    assert_ne!(old as isize, -1);
    let start = (old as usize).next_multiple_of(PAGE);
    watch.watch(&(start..start + 4 * PAGE)).unwrap();
    let end = old as usize + 16 * PAGE;
    let thread = std::thread::spawn(move || {
        // SAFETY: nothing is changed.
        let now = unsafe { libc::sbrk(0) } as usize;
        assert_eq!(now, end, "malloc has grown the heap meanwhile");
        // SAFETY: what lies from `old` on is this test's, and nobody refers to it.
        unsafe { libc::sbrk(-(15 * PAGE as libc::intptr_t)) };
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut changes = Vec::new();
    while !thread.is_finished() {
        assert!(Instant::now() < deadline, "the thread is stuck");
        watch.read(|change| changes.push(change)).unwrap();
        std::thread::yield_now();
    }
    thread.join().unwrap();
    let [MappingChange::Unmapped(range)] = changes.as_slice() else {
        panic!("{changes:?}");
    };
    assert!(range.contains(&(start + PAGE)), "{range:x?} of {start:x}");
}
