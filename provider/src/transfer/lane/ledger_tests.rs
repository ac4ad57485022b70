use super::*;

fn promised(ledger: &Ledger) -> u32 {
    unpack(ledger.taken.load(Ordering::Acquire)).1
}

/// Grows as a busy connection does, from `window` by doubling; what it comes to.
fn grow_all(ledger: &Ledger, mut window: u32, most: u32) -> u32 {
    while window < most && ledger.grow(window, window.min(most - window)) {
        window += window.min(most - window);
    }
    window
}

#[test]
fn a_place_comes_with_its_receives() {
    let ledger = Ledger::new(10, 3, 100, 8);
    for n in 1..=10 {
        assert!(ledger.join());
        assert_eq!((ledger.connections(), promised(&ledger)), (n, 8 + 3 * n));
    }
    assert!(!ledger.has_place() && !ledger.join(), "there were ten");
    assert_eq!(ledger.leave(3, 0), 0);
    assert_eq!((ledger.connections(), promised(&ledger)), (9, 35));
    assert!(ledger.has_place());
}

#[test]
fn there_are_no_more_places_than_receives_for_them() {
    let ledger = Ledger::new(256, 3, 32, 8);
    let joined = (0..256).take_while(|_| ledger.join()).count();
    assert_eq!(joined, 8);
    assert_eq!(promised(&ledger), 32);
}

#[test]
fn busy_connections_leave_the_free_places_their_receives() {
    for places in [1, 2, 7, 40, 256] {
        for busy in 1..=places {
            let ledger = Ledger::new(places, 3, 1024, 8);
            for _ in 0..busy {
                assert!(ledger.join());
                grow_all(&ledger, 2, 64);
            }
            let more = (busy..places).filter(|_| ledger.join()).count();
            assert_eq!(more as u32, places - busy, "{busy} of {places} were busy");
        }
    }
}

#[test]
fn who_comes_later_gets_less_but_not_nothing() {
    let ledger = Ledger::new(64, 3, 1024, 8);
    let windows: Vec<u32> = (0..12)
        .map(|_| {
            assert!(ledger.join());
            grow_all(&ledger, 2, 64)
        })
        .collect();
    assert_eq!(windows[0], 64);
    assert!(windows.windows(2).all(|w| w[0] >= w[1]), "{windows:?}");
    assert!(windows[11] >= 16, "{windows:?}");
}

#[test]
fn what_is_held_of_a_connection_that_is_gone_takes_no_place() {
    let ledger = Ledger::new(4, 3, 20, 0);
    // Each leaves with all that it was promised still held by the application.
    for n in 1..=6 {
        assert!(ledger.join());
        assert_eq!(ledger.leave(3, 3), 3);
        assert_eq!((ledger.connections(), promised(&ledger)), (0, 0));
        assert_eq!((ledger.kept(), ledger.buffers()), (3 * n, 3 * n));
    }
    // Past the bound it goes on counting as promised, until it is let go.
    assert!(ledger.join());
    assert_eq!(ledger.leave(3, 3), 2);
    assert_eq!((promised(&ledger), ledger.kept()), (1, 20));
    ledger.release(1);
    ledger.release_kept(20);
    assert_eq!(ledger.buffers(), 0);
}

#[test]
fn threads_take_and_give_back_without_losing_any() {
    let ledger = Ledger::new(6, 3, 64, 4);
    std::thread::scope(|scope| {
        for n in 0..4_u32 {
            let ledger = &ledger;
            scope.spawn(move || {
                for round in 0..5000 {
                    if !ledger.join() {
                        continue;
                    }
                    let window = grow_all(ledger, 2, 16);
                    let held = (round + n) % (window + 1);
                    let kept = ledger.leave(window + 1, held);
                    ledger.release(held - kept);
                    ledger.release_kept(kept);
                    assert!(promised(ledger) <= 64);
                }
            });
        }
    });
    assert_eq!((ledger.connections(), promised(&ledger)), (0, 4));
    assert_eq!(ledger.kept(), 0);
}
