//! Many runs.

use super::world::{Coverage, Story, World};
use crate::engine::Mutation;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
    )
}

/// Runs the seeds of the settings, or the usual number.
fn run(story: Story, usual: u64) -> Coverage {
    let seeds = match number("SAN_STREAM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SAN_STREAM_SEEDS").unwrap_or(usual),
    };
    let mut coverage = Coverage {
        seeds: seeds.end - seeds.start,
        ..Coverage::default()
    };
    let started = std::time::Instant::now();
    for seed in seeds {
        let outcome = World::new(seed, story, None).run(&mut coverage);
        if let Err(mut why) = outcome {
            why.truncate(20000);
            panic!("SAN_STREAM_SEED={seed}, {story:?}: {why}");
        }
    }
    println!("{story:?} in {:?}: {coverage:?}", started.elapsed());
    coverage
}

#[test]
fn small_writes_go_up_and_down() {
    let seen = run(Story::Small, 10_000);
    if seen.seeds >= 1000 {
        assert!(
            seen.ups * 5 > seen.seeds * 4 && seen.sans * 4 > seen.seeds,
            "{seen:?}"
        );
        assert!(
            seen.breaks * 8 > seen.seeds && seen.ended_on_qp * 20 > seen.seeds,
            "{seen:?}"
        );
    }
}

#[test]
fn bulk_goes_up_and_down() {
    let seen = run(Story::Bulk, 1000);
    if seen.seeds >= 1000 {
        assert!(
            seen.reads > seen.seeds && seen.sans * 4 > seen.seeds,
            "{seen:?}"
        );
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
    let found = (0..seeds).filter(|seed| {
        World::new(*seed, Story::Small, Some(mutation))
            .run(&mut coverage)
            .is_err()
    });
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
