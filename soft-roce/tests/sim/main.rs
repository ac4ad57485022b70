//! The RC engines of two hosts under a virtual clock, on a network that loses,
//! doubles, reorders, delays and spoils packets.
//!
//! `SOFT_ROCE_SEED=n` runs that seed alone, in the test that is chosen by name;
//! `SOFT_ROCE_SEEDS=n` runs so many seeds in each test. A seed that fails is
//! printed.

#![allow(unreachable_pub, reason = "everything is for this test alone")]

mod managed;
mod memory;
mod net;
mod rng;
mod script;
mod side;
mod witness;
mod world;

mod delivery;
mod failure;
mod lifecycle;
mod speed;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Runs `case` with `count` seeds, or with the one that the environment names.
fn with_seeds(count: u64, case: impl Fn(u64)) {
    let variable = |name| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seeds = match variable("SOFT_ROCE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("SOFT_ROCE_SEEDS").unwrap_or(count),
    };
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| case(seed))) {
            eprintln!("failed with SOFT_ROCE_SEED={seed}");
            resume_unwind(panic);
        }
    }
}
