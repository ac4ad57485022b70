//! The same calls on a stream of ours and on a TCP socket of the kernel's give the same results, over the
//! SAN and over our TCP. `suite.rs` has the calls.

#[path = "suite.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod suite;
#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use san_tests::time::within;

use suite::{FEW, SEQUENCES, TIME, same_results};
use support::*;

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn the_same_calls_give_the_same_results() {
    within(2 * TIME + PATIENCE, || {
        same_results(&switch(), false, SEQUENCES);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn the_same_calls_give_the_same_results_on_our_tcp() {
    within(2 * TIME + PATIENCE, || same_results(&switch(), true, FEW));
}
