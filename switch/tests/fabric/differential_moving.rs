//! As `differential.rs`, of streams that move to the SAN and back between the calls.

#[path = "suite.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod suite;
#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use san_switch::{RouteChoice, Switch};
use san_tests::time::within;

use suite::{SEQUENCES, TIME, same_results};
use support::*;

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn the_same_calls_give_the_same_results_while_streams_move() {
    within(2 * TIME + PATIENCE, || {
        let moving = config().route(RouteChoice::Upgrade).upgrade_bytes(4096);
        let switch = Switch::new(moving).unwrap();
        same_results(&switch, false, SEQUENCES);
        let stats = switch.stats();
        eprintln!("{} up, {} down", stats.streams_up, stats.streams_down);
        assert!(stats.streams_up > 0 && stats.streams_down > 0, "{stats:?}");
    });
}
