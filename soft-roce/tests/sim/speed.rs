//! How much of the bandwidth is left when packets get lost, in virtual time.

use soft_roce::rc::PathMtu;
use soft_roce::time::Time;

use crate::net::Weather;
use crate::rng::Rng;
use crate::script::{Kind, Script};
use crate::side::Terms;
use crate::world::World;

/// Bytes a second with so much loss.
fn speed(kind: Kind, ours: bool, delay: u64, loss: f64) -> f64 {
    let mut rng = Rng::new(42);
    let weather = Weather {
        delay,
        loss,
        ..Weather::FAIR
    };
    let mut world = World::new(weather, &mut rng);
    let terms = Terms {
        mtu: PathMtu::B1024,
        ours,
        depth: 16,
        window: None,
        timeout: 14,
        retry_count: 6,
        rnr_retry: 7,
        min_rnr_timer: 1,
        send_wr: 64,
        receives: 32,
        lazy: 1,
        srq: false,
    };
    let script = Script::uniform(1200, kind, 16_384);
    let other = match kind {
        Kind::Read => Script::uniform(1200, Kind::Write, 16_384),
        _ => Script::uniform(0, Kind::Send, 0),
    };
    // For RDMA READ there must be something to read; it is not written.
    world.connect(&mut rng, terms, [script, other]);
    if kind == Kind::Read {
        world.side_mut(1, 0).stopped = true;
    }
    let bytes = world.side_mut(0, 0).bytes() as f64;
    assert!(
        world.run(Time(60_000_000_000), |w| {
            w.sides().next().is_some_and(crate::side::Side::is_done)
        }),
        "done"
    );
    bytes / (world.net.now.0 as f64 / 1e9)
}

#[test]
fn one_percent_of_loss_leaves_more_than_three_fifths() {
    for kind in [Kind::Send, Kind::Write, Kind::Read] {
        for delay in [10_000, 100_000] {
            let fair = speed(kind, true, delay, 0.0);
            let foul = speed(kind, true, delay, 0.01);
            println!(
                "{kind:?}, {} us: {:.0} MB/s, with 1 % loss {:.0} MB/s ({:.0} %)",
                delay / 1000,
                fair / 1e6,
                foul / 1e6,
                foul / fair * 100.0
            );
            assert!(foul >= fair * 0.6);
        }
    }
}

/// Towards any peer the rules allow no more than going back to the gap; it is
/// still far from what `rdma_rxe` keeps (6 %).
#[test]
fn going_back_is_bearable() {
    for kind in [Kind::Send, Kind::Write, Kind::Read] {
        let fair = speed(kind, false, 10_000, 0.0);
        let foul = speed(kind, false, 10_000, 0.01);
        println!(
            "{kind:?}: {:.0} MB/s, with 1 % loss {:.0} MB/s ({:.0} %)",
            fair / 1e6,
            foul / 1e6,
            foul / fair * 100.0
        );
        assert!(foul >= fair * 0.25);
    }
}
