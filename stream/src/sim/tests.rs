//! Many runs.

use super::world::{Coverage, Story, World};
use crate::engine::Mutation;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Runs many seeds, of which a share is `part` in a thousand.
fn run(story: Story, usual: u64) -> Coverage {
    let seeds = match number("SAN_STREAM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SAN_STREAM_SEEDS").unwrap_or(usual),
    };
    let mut coverage = Coverage::default();
    let started = std::time::Instant::now();
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let outcome = World::new(seed, story, None).run(&mut coverage);
        if let Err(mut why) = outcome {
            why.truncate(20000);
            panic!("SAN_STREAM_SEED={seed}, {story:?}: {why}");
        }
    }
    println!("{story:?}: {count} seeds in {:?}: {coverage:?}", started.elapsed());
    coverage
}

#[test]
fn small_writes_go_up_and_down() {
    let coverage = run(Story::Small, 6000);
    if coverage.steps > 10_000_000 {
        assert!(coverage.sans > 4000 && coverage.breaks > 1000 && coverage.ended_on_qp > 100);
    }
}

#[test]
fn bulk_goes_up_and_down() {
    let coverage = run(Story::Bulk, 1500);
    if coverage.steps > 10_000_000 {
        assert!(coverage.reads > 1000 && coverage.sans > 1000);
    }
}

#[test]
fn without_tcp() {
    run(Story::Direct, 1500);
}

#[test]
fn without_tcp_a_break_is_the_end() {
    run(Story::DirectBreak, 1000);
}

#[test]
fn a_process_dies() {
    run(Story::Death, 1500);
}

#[test]
fn an_application_gives_up() {
    run(Story::Abort, 1000);
}

/// How many of the seeds show that a rule is missing.
fn violations(mutation: Mutation, seeds: u64) -> u64 {
    let mut coverage = Coverage::default();
    let found = (0..seeds)
        .filter(|seed| World::new(*seed, Story::Small, Some(mutation)).run(&mut coverage).is_err());
    let found = found.count() as u64;
    println!("{mutation:?}: {found} of {seeds}");
    found
}

#[test]
fn a_frame_at_a_place_that_was_not_confirmed_is_noticed() {
    assert!(violations(Mutation::NoReady, 1000) > 0);
}

#[test]
fn a_position_before_draining_is_noticed() {
    assert!(violations(Mutation::Early, 1000) > 0);
}

#[test]
fn going_on_at_what_was_acknowledged_is_noticed() {
    assert!(violations(Mutation::FromAcknowledged, 1000) > 0);
}

#[test]
fn sending_before_go_is_noticed() {
    assert!(violations(Mutation::NoGo, 3000) > 0);
}
