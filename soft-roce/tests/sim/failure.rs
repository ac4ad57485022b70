//! What cannot be delivered fails in time, and every request says so once.

use soft_roce::rc::{QpState, Status};
use soft_roce::time::Time;

use crate::delivery::random_terms;
use crate::net::Weather;
use crate::rng::Rng;
use crate::script::{Kind, Script};
use crate::side::Terms;
use crate::with_seeds;
use crate::world::World;

/// Patience of the connections here: 67 ms * 7.
const TIMEOUT: u8 = 14;
const PATIENCE: u64 = (4096 << TIMEOUT) * 7;

fn world(seed: u64, terms: impl Fn(&mut Terms)) -> World {
    let mut rng = Rng::new(seed);
    let mut weather = Weather::random(&mut rng);
    // A gale could end a connection before its time.
    weather.loss = weather.loss.min(0.02);
    weather.answer_loss = 0.0;
    weather.corruption = 0.0;
    weather.delay = weather.delay.min(100_000);
    let mut world = World::new(weather, &mut rng);
    let mut t = random_terms(&mut rng);
    t.timeout = TIMEOUT;
    terms(&mut t);
    let mtu = t.mtu.bytes() as usize;
    let scripts = [0, 1].map(|_| Script::random(&mut rng, 60, mtu, true));
    world.connect(&mut rng, t, scripts);
    world
}

#[test]
fn a_partition_ends_with_retry_exceeded_and_flush() {
    with_seeds(300, |seed| {
        let mut world = world(seed, |_| {});
        let cut = Time(seed * 97_000 % 2_000_000);
        world.net.weather.cut_at = Some(cut);
        world.run(Time(cut.0 + 4 * PATIENCE), |w| {
            w.all_broken() || w.all_done()
        });
        if world.all_done() {
            // The cut came after the end.
            return;
        }
        for host in 0..2 {
            let now = world.net.now;
            let side = world.side_mut(host, 0);
            if side.qp.state() != QpState::Error {
                // Had sent all it had, and waits for nothing.
                assert_eq!(side.qp.sends_posted(), 0);
                continue;
            }
            assert!(now.0 < cut.0 + 3 * PATIENCE, "in time");
            side.check_flushed();
            assert_eq!(side.failure, Some(Status::RetryExceeded));
            assert!(side.failed_sends > 0);
        }
        assert!(world.sides().any(|s| s.failure.is_some()));
    });
}

#[test]
fn a_crashed_peer_is_noticed_by_a_probe() {
    with_seeds(50, |seed| {
        let mut rng = Rng::new(seed);
        let mut world = World::new(Weather::FAIR, &mut rng);
        let mut terms = random_terms(&mut rng);
        terms.timeout = TIMEOUT;
        terms.lazy = 1;
        let script = Script::uniform(5, Kind::Send, 300);
        world.connect(&mut rng, terms, [script.clone(), script]);
        assert!(world.run(Time(60_000_000_000), World::all_done));
        // While the peer lives, a probe changes nothing that can be seen.
        world.side_mut(0, 0).qp.probe();
        world.settle();
        world.check_end();
        assert_eq!(world.side_mut(0, 0).qp.state(), QpState::Rts);
        world.crash(1);
        world.settle();
        assert_eq!(world.side_mut(0, 0).qp.state(), QpState::Rts);
        world.side_mut(0, 0).qp.probe();
        let from = world.net.now;
        assert!(world.run(Time(u64::MAX), World::all_broken));
        let waited = world.net.now.nanos_since(from);
        assert!((PATIENCE..2 * PATIENCE).contains(&waited), "{waited}");
        let side = world.side_mut(0, 0);
        assert_eq!(side.failed_sends, 0, "a probe completes nothing");
        side.check_flushed();
    });
}

#[test]
fn a_peer_that_posts_no_receive_costs_the_rnr_retries() {
    for ours in [false, true] {
        let mut rng = Rng::new(1);
        let mut world = World::new(Weather::FAIR, &mut rng);
        let mut terms = random_terms(&mut rng);
        terms.ours = ours;
        terms.rnr_retry = 3;
        terms.min_rnr_timer = 14; // 1.28 ms
        terms.srq = false;
        terms.send_wr = 8;
        let script = Script::uniform(8, Kind::Send, 3000);
        world.connect(&mut rng, terms, [script, Script::uniform(0, Kind::Send, 0)]);
        world.side_mut(1, 0).stopped = true;
        world.run(Time(1_000_000_000), |w| {
            w.sides().any(|s| s.qp.state() == QpState::Error)
        });
        let now = world.net.now.0;
        assert!((3_800_000..5_000_000).contains(&now), "three waits: {now}");
        let side = world.side_mut(0, 0);
        side.check_flushed();
        assert_eq!(side.failure, Some(Status::RnrRetryExceeded));
        assert_eq!(side.failed_sends, 8);
    }
}
