//! A process with connections forks: its child has copies of all handles, none of which does anything,
//! and the parent keeps what it has.

use san_tests::program::Program;
use san_tests::time::{STEP, bounded};

/// The parent says that it is fine, and nobody says anything else.
fn parent_is_fine_when_the_child(way: &str) {
    let forker = Program::start(env!("CARGO_BIN_EXE_san-test-forker"), &[way]);
    let (status, said) = forker.finish(2 * STEP);
    assert_eq!(said, "fine");
    assert!(status.success(), "{status}");
}

#[test]
fn a_child_that_drops_everything_ends_nothing() {
    bounded(|| parent_is_fine_when_the_child("drop"));
}

#[test]
fn a_child_that_returns_from_main_ends_nothing() {
    bounded(|| parent_is_fine_when_the_child("main"));
}

#[test]
fn a_childs_calls_fail_at_once() {
    bounded(|| parent_is_fine_when_the_child("call"));
}

#[test]
fn a_child_that_fork_does_not_tell_of_can_abandon_what_it_has() {
    bounded(|| parent_is_fine_when_the_child("abandon"));
}
