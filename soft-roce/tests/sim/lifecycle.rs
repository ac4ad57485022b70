//! Connections from their request to their end, made by the CM.

use std::cell::Cell;

use soft_roce::time::Time;
use soft_roce::wire::cm::RejReason;

use crate::delivery::random_terms;
use crate::managed::{Managed, Phase};
use crate::net::Weather;
use crate::rng::Rng;
use crate::script::Script;
use crate::with_seeds;

fn managed(seed: u64, gale: f64, timeout: u8) -> (Managed, Rng) {
    let mut rng = Rng::new(seed);
    let mut weather = Weather::random(&mut rng);
    weather.loss = weather.loss.min(gale);
    weather.answer_loss = weather.answer_loss.min(gale);
    weather.corruption = weather.corruption.min(gale);
    weather.queue = weather.queue.max(64);
    let mut world = Managed::new(weather, &mut rng);
    for _ in 0..rng.range(1, 6) {
        let mut terms = random_terms(&mut rng);
        terms.ours = true;
        terms.timeout = timeout;
        let mtu = terms.mtu.bytes() as usize;
        let mut script = || {
            let n = rng.range(0, 12) as usize;
            Script::random(&mut rng, n, mtu, true)
        };
        let scripts = [script(), script()];
        let begin = Time(rng.below(50_000_000));
        world.plan(terms, scripts, begin);
    }
    (world, rng)
}

/// Every request is answered; what was accepted delivers everything; what was
/// refused is nothing on either side; in the end nothing is remembered.
#[test]
fn made_used_and_ended() {
    with_seeds(500, |seed| {
        let (mut world, _) = managed(seed, 0.05, 20);
        world.refuses = seed % 3 * 2;
        let ended = world.run(Time(600_000_000_000));
        assert!(
            ended,
            "not over after ten minutes of {:?}",
            world.net.weather
        );
        for plan in &world.plans {
            match plan.phase {
                Phase::Finished => assert!(plan.accepted && !plan.refused),
                Phase::Refused(RejReason::CONSUMER_DEFINED) => assert!(plan.refused),
                other => panic!("{other:?}"),
            }
        }
        world.check_end();
    });
}

/// A server that does not answer for a while has as many waiting as its backlog
/// holds. The others are refused, and it never hears of them.
#[test]
fn no_place_in_the_backlog() {
    let refused = Cell::new(0);
    with_seeds(100, |seed| {
        let (mut world, _) = managed(seed, 0.05, 20);
        world.backlog = 2;
        world.listen();
        world.sleeps_until = Time(1_000_000_000);
        assert!(world.run(Time(600_000_000_000)));
        for plan in &world.plans {
            match plan.phase {
                Phase::Finished => assert!(plan.accepted),
                Phase::Refused(_) => {
                    refused.set(refused.get() + 1);
                    assert!(!plan.accepted);
                }
                other => panic!("{other:?}"),
            }
        }
        world.check_end();
    });
    println!("{} connections refused", refused.get());
    assert!(refused.get() > 0 || std::env::var_os("SOFT_ROCE_SEED").is_some());
}

/// The server crashes and comes back. What it had ends on the client's side with
/// everything flushed; what is asked of it later works.
#[test]
fn a_server_that_crashes_and_comes_back() {
    with_seeds(300, |seed| {
        let (mut world, mut rng) = managed(seed, 0.01, 14);
        world.crash_at = Some(Time(rng.below(60_000_000)));
        let before = world.plans.len();
        let mut terms = random_terms(&mut rng);
        terms.ours = true;
        terms.timeout = 20;
        let mtu = terms.mtu.bytes() as usize;
        let scripts = [0, 1].map(|_| Script::random(&mut rng, 5, mtu, true));
        world.plan(terms, scripts, Time(5_000_000_000));
        let ended = world.run(Time(600_000_000_000));
        assert!(
            ended,
            "not over after ten minutes of {:?}",
            world.net.weather
        );
        assert!(world.crashed);
        for plan in &world.plans[..before] {
            assert!(
                matches!(
                    plan.phase,
                    Phase::Finished | Phase::Broken | Phase::Refused(_)
                ),
                "{:?}",
                plan.phase
            );
        }
        assert_eq!(world.plans[before].phase, Phase::Finished);
        world.check_end();
    });
}
