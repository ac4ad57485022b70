use proptest::prelude::*;

use super::*;

fn full(limit: u32) -> Backlog<&'static str> {
    let mut backlog = Backlog::new(limit);
    for key in 0..u64::from(limit) {
        assert_eq!(backlog.arrive(key, "request"), Ok(()));
    }
    backlog
}

#[test]
fn wsd_078_backlogs_that_are_asked_for() {
    assert_eq!(granted(0), Some(1));
    assert_eq!(granted(1), Some(1));
    assert_eq!(granted(16), Some(16));
    assert_eq!(granted(SOMAXCONN), Some(SOMAXCONN));
    assert_eq!(granted(SOMAXCONN + 1), None);
    assert_eq!(granted(0x7fff_ffff), Some(SOMAXCONN));
    assert_eq!(granted(u32::MAX), None);
}

#[test]
fn wsd_079_requests_wait_in_their_order() {
    let mut backlog = Backlog::new(3);
    for key in [7, 3, 9] {
        assert_eq!(backlog.arrive(key, key), Ok(()));
    }
    let order: Vec<u64> = std::iter::from_fn(|| {
        let (ticket, request) = backlog.take()?;
        backlog.answered(ticket);
        Some(request)
    })
    .collect();
    assert_eq!(order, [7, 3, 9]);
}

#[test]
fn wsd_080_past_the_limit_there_is_no_place() {
    let mut backlog = full(2);
    assert_eq!(backlog.place(), Err(NoPlace::Full));
    assert_eq!(backlog.arrive(2, "third"), Err((NoPlace::Full, "third")));
    assert_eq!(backlog.queued(), 2);
}

#[test]
fn a_place_is_held_until_the_answer() {
    let mut backlog = full(1);
    let (ticket, _) = backlog.take().unwrap();
    assert_eq!((backlog.queued(), backlog.held()), (0, 1));
    assert_eq!(
        backlog.place(),
        Err(NoPlace::Full),
        "while the condition function runs"
    );
    backlog.answered(ticket);
    assert_eq!(backlog.place(), Ok(()));
}

#[test]
fn a_deferred_request_is_the_head_again() {
    let mut backlog = Backlog::new(2);
    backlog.arrive(1, "first").unwrap();
    backlog.arrive(2, "second").unwrap();
    let (ticket, request) = backlog.take().unwrap();
    assert_eq!(backlog.defer(ticket, request), Ok(()));
    assert_eq!((backlog.queued(), backlog.held()), (2, 2));
    assert_eq!(backlog.take().unwrap().1, "first");
}

#[test]
fn two_accepts_at_a_time_get_different_requests() {
    let mut backlog = full(2);
    let (first, _) = backlog.take().unwrap();
    let (second, _) = backlog.take().unwrap();
    assert_ne!(first, second);
    assert!(backlog.take().is_none());
    backlog.answered(second);
    assert_eq!(backlog.held(), 1);
    backlog.answered(first);
    assert_eq!(backlog.held(), 0);
}

#[test]
fn a_withdrawn_request_frees_its_place() {
    let mut backlog = full(2);
    assert_eq!(backlog.withdraw(0), Withdrawn::Queued("request"));
    assert_eq!(backlog.place(), Ok(()));
    assert_eq!(backlog.withdraw(0), Withdrawn::Unknown);
    assert_eq!(backlog.take().unwrap().0, Ticket { key: 1 });
}

#[test]
fn a_request_withdrawn_while_it_is_decided_about() {
    let mut backlog = full(1);
    let (ticket, request) = backlog.take().unwrap();
    assert_eq!(backlog.standing(&ticket), Standing::Good);
    assert_eq!(backlog.withdraw(0), Withdrawn::Deciding);
    assert_eq!(backlog.standing(&ticket), Standing::PeerGone);
    assert_eq!(backlog.place(), Err(NoPlace::Full));
    assert_eq!(
        backlog.defer(ticket, request),
        Err((Standing::PeerGone, "request"))
    );
    assert_eq!(backlog.place(), Ok(()));
}

#[test]
fn a_closed_listener_gives_back_what_is_queued() {
    let mut backlog = full(3);
    let (ticket, request) = backlog.take().unwrap();
    assert_eq!(
        backlog.close().map(|(key, _)| key).collect::<Vec<_>>(),
        [1, 2]
    );
    assert_eq!(backlog.arrive(9, "late"), Err((NoPlace::Closed, "late")));
    assert_eq!(backlog.standing(&ticket), Standing::Closed);
    assert_eq!(
        backlog.defer(ticket, request),
        Err((Standing::Closed, "request"))
    );
    assert_eq!(backlog.held(), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Arrive,
    Take,
    Answer(usize),
    Defer(usize),
    Withdraw(u64),
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Arrive),
        4 => Just(Step::Take),
        3 => (0usize..8).prop_map(Step::Answer),
        1 => (0usize..8).prop_map(Step::Defer),
        2 => (0u64..40).prop_map(Step::Withdraw),
        1 => Just(Step::Close),
    ]
}

proptest! {
    // Whatever happens in whatever order: the bound holds, no request is lost, none is answered
    // twice.
    #[test]
    fn every_request_ends_once(limit in 1u32..5, steps in proptest::collection::vec(step(), 0..120)) {
        let mut backlog = Backlog::new(limit);
        let mut tickets = Vec::new();
        let mut ended = Vec::new();
        let mut next = 0u64;
        for step in steps {
            match step {
                Step::Arrive => {
                    if let Err((_, request)) = backlog.arrive(next, next) {
                        ended.push(request);
                    }
                    next += 1;
                }
                Step::Take => tickets.extend(backlog.take()),
                Step::Answer(at) if at < tickets.len() => {
                    let (ticket, request) = tickets.swap_remove(at);
                    backlog.answered(ticket);
                    ended.push(request);
                }
                Step::Defer(at) if at < tickets.len() => {
                    let (ticket, request) = tickets.swap_remove(at);
                    if let Err((_, request)) = backlog.defer(ticket, request) {
                        ended.push(request);
                    }
                }
                Step::Withdraw(key) => {
                    if let Withdrawn::Queued(request) = backlog.withdraw(key) {
                        ended.push(request);
                    }
                }
                Step::Close => ended.extend(backlog.close().map(|(_, request)| request)),
                Step::Answer(_) | Step::Defer(_) => {}
            }
            prop_assert!(backlog.held() <= backlog.limit());
            prop_assert_eq!(backlog.held() - backlog.queued(), tickets.len());
        }
        ended.extend(backlog.close().map(|(_, request)| request));
        ended.extend(tickets.into_iter().map(|(_, request)| request));
        ended.sort_unstable();
        prop_assert_eq!(ended, (0..next).collect::<Vec<_>>());
    }
}

#[test]
fn wsd_080_a_place_whose_peer_is_gone_is_found_when_it_is_needed() {
    let mut backlog = Backlog::new(3);
    for key in 1..=3 {
        backlog.arrive(key, key * 10).unwrap();
    }
    // Two at a time, from where the last look ended.
    assert_eq!(backlog.withdraw_gone(2, |r| *r != 30), None);
    assert_eq!(backlog.withdraw_gone(2, |r| *r != 30), Some((3, 30)));
    assert_eq!(backlog.place(), Ok(()));
    assert_eq!(backlog.withdraw_gone(9, |_| true), None);
    assert_eq!(backlog.queued(), 2);
    assert_eq!(Backlog::<u8>::new(1).withdraw_gone(9, |_| false), None);
}
