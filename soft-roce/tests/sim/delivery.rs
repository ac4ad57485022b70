//! Everything arrives: exactly once, in order, with its completion.

use soft_roce::rc::{PathMtu, SendWindow};
use soft_roce::time::Time;

use crate::net::Weather;
use crate::rng::Rng;
use crate::script::Script;
use crate::side::Terms;
use crate::with_seeds;
use crate::world::World;

pub fn random_terms(rng: &mut Rng) -> Terms {
    let packets = rng.pick(&[1, 4, 16, 64, 128]) as u32;
    Terms {
        mtu: rng.pick(&[PathMtu::B256, PathMtu::B256, PathMtu::B1024]),
        ours: rng.one_in(2),
        depth: rng.pick(&[1, 2, 4, 16]),
        window: rng.one_in(2).then(|| SendWindow {
            psns: packets.max(8) * rng.range(1, 2) as u32,
            packets,
        }),
        // 4.3 s: no run of losses is long enough to give up.
        timeout: 20,
        retry_count: 6,
        rnr_retry: 7,
        min_rnr_timer: rng.pick(&[1, 8, 14]),
        send_wr: rng.range(1, 40) as u32,
        receives: rng.range(1, 12) as usize,
        lazy: rng.pick(&[1, 1, 3, 10]),
        srq: rng.one_in(3),
    }
}

fn random_world(seed: u64, connections: u64) -> World {
    let mut rng = Rng::new(seed);
    let weather = Weather::random(&mut rng);
    let mut world = World::new(weather, &mut rng);
    world.sloth = rng.pick(&[0, 1_000, 20_000, 200_000]);
    world.room = rng.one_in(3).then(|| rng.range(1, 20) as usize);
    for _ in 0..connections {
        let terms = random_terms(&mut rng);
        let mtu = terms.mtu.bytes() as usize;
        let script = |rng: &mut Rng| {
            let n = rng.range(0, 30) as usize;
            Script::random(rng, n, mtu, true)
        };
        let scripts = [script(&mut rng), script(&mut rng)];
        world.connect(&mut rng, terms, scripts);
    }
    world
}

#[test]
fn exactly_once_and_in_order() {
    with_seeds(1_500, |seed| {
        let mut world = random_world(seed, 1 + seed % 3);
        let done = world.run(Time(600_000_000_000), World::all_done);
        assert!(
            done,
            "not done after ten minutes of {:?}",
            world.net.weather
        );
        world.settle();
        world.check_end();
    });
}

/// A cable is pulled and put back before patience ends.
#[test]
fn an_outage_is_survived() {
    with_seeds(200, |seed| {
        let mut world = random_world(seed, 1);
        let from = seed * 37_000 % 3_000_000;
        world.net.weather.outage = Some((Time(from), Time(from + 2_000_000_000)));
        let done = world.run(Time(600_000_000_000), World::all_done);
        assert!(
            done,
            "not done after ten minutes of {:?}",
            world.net.weather
        );
        world.settle();
        world.check_end();
    });
}
