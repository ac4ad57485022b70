//! Event objects and network events of a listening and of a connecting socket (duties 81 to 83, 88).

use std::time::Duration;

use san_provider::{AcceptError, Decision, EventObject, NetworkEvents, Rejection, WsaCode};
use san_tests::net;
use san_tests::san::{Connector, Listener, San};
use san_tests::time::{STEP, bounded};

/// How long a test looks that something does not come.
const QUIET: Duration = Duration::from_millis(300);

#[test]
fn wsd_081_each_request_sets_the_event() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(4);
        assert!(!listener.event.is_set(), "nobody has asked");
        let mut connectors = Vec::new();
        for _ in 0..3 {
            connectors.push(san.connect(listener.addr));
            listener.wait_event();
            let record = listener
                .socket
                .enum_network_events(Some(&listener.event))
                .expect("the record");
            assert!(record.accept && record.connect.is_none(), "{record:?}");
            assert!(!listener.event.is_set(), "reset by the call");
        }
    });
}

#[test]
fn wsd_082_events_are_selected_in_any_combination() {
    bounded(|| {
        let san = San::start();
        for events in [NetworkEvents::CONNECT, NetworkEvents::NONE] {
            let listener = san.listen_a(4);
            listener
                .socket
                .event_select(&listener.event, events)
                .expect("selected");
            let requests = san.counters().requests;
            let _connector = san.connect(listener.addr);
            san.wait_requests(requests + 1);
            assert!(!listener.event.wait(QUIET), "FD_ACCEPT was not selected");
            assert!(
                !listener
                    .socket
                    .enum_network_events(None)
                    .expect("the record")
                    .accept
            );
            // What waits already sets the event as soon as it is asked for.
            let both = NetworkEvents::ACCEPT | NetworkEvents::CONNECT;
            listener
                .socket
                .event_select(&listener.event, both)
                .expect("selected");
            assert!(listener.event.is_set());
            assert!(
                listener
                    .socket
                    .enum_network_events(None)
                    .expect("the record")
                    .accept
            );
        }
    });
}

#[test]
fn wsd_082_another_selection_takes_the_place_of_the_first() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(4);
        let other = EventObject::new().expect("an event object");
        listener
            .socket
            .event_select(&other, NetworkEvents::ACCEPT)
            .expect("selected");
        let _connector = san.connect(listener.addr);
        assert!(other.wait(STEP), "the new event object");
        assert!(!listener.event.wait(QUIET), "the old one");
    });
}

#[test]
fn wsd_082_select_errors() {
    bounded(|| {
        let san = San::start();
        let socket = san.socket(net::addr_a());
        let event = EventObject::new().expect("an event object");
        socket.close().expect("close");
        let error = socket
            .event_select(&event, NetworkEvents::ACCEPT)
            .expect_err("closed");
        assert_eq!(error.code(), WsaCode::NotSocket);
        assert_eq!(
            socket.enum_network_events(None).expect_err("closed").code(),
            WsaCode::NotSocket
        );
    });
}

#[test]
fn wsd_083_enum_returns_what_happened_since_the_last_call() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(4);
        let connector = san.connect(listener.addr);
        listener.wait_event();
        // The application resets the event itself: what is recorded stays recorded.
        listener.event.reset();
        let record = || {
            listener
                .socket
                .enum_network_events(None)
                .expect("the record")
        };
        assert!(record().accept);
        assert!(!record().accept, "told once");
        let _accepted = listener
            .socket
            .accept(|_| Decision::Accept)
            .expect("the request");
        connector.result().expect("accepted");
        assert!(connector.ended().is_none(), "told once");
    });
}

#[test]
fn wsd_083_enum_resets_only_the_event_it_is_given() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(4);
        let _connector = san.connect(listener.addr);
        listener.wait_event();
        assert!(
            listener
                .socket
                .enum_network_events(None)
                .expect("the record")
                .accept
        );
        assert!(listener.event.is_set(), "no event was given");
        let other = EventObject::new().expect("an event object");
        other.set();
        let _ = listener
            .socket
            .enum_network_events(Some(&other))
            .expect("the record");
        assert!(!other.is_set() && listener.event.is_set());
    });
}

#[test]
fn wsd_088_the_event_is_set_again_while_requests_are_queued() {
    bounded(|| {
        let san = San::start();
        let (listener, connectors) = queued(&san, 3);
        for left in [2, 1] {
            let accepted = listener.socket.accept(|_| Decision::Accept);
            let _accepted = accepted.expect("a request");
            assert!(listener.event.is_set(), "{left} are queued");
            assert!(
                listener
                    .socket
                    .enum_network_events(None)
                    .expect("the record")
                    .accept,
                "{left} are queued"
            );
        }
        let _last = listener
            .socket
            .accept(|_| Decision::Accept)
            .expect("the last request");
        assert!(!listener.event.is_set(), "none is queued");
        assert!(matches!(
            listener.socket.accept(|_| Decision::Accept),
            Err(AcceptError::WouldBlock)
        ));
        drop(connectors);
    });
}

#[test]
fn wsd_088_the_event_is_set_again_after_a_rejection_too() {
    bounded(|| {
        let san = San::start();
        let (listener, connectors) = queued(&san, 2);
        let rejected = listener
            .socket
            .accept(|_| Decision::Reject(Rejection::Unwanted));
        assert!(matches!(rejected, Err(AcceptError::Refused)));
        assert!(listener.event.is_set(), "one is queued");
        let rejected = listener
            .socket
            .accept(|_| Decision::Reject(Rejection::Unwanted));
        assert!(matches!(rejected, Err(AcceptError::Refused)));
        assert!(!listener.event.is_set(), "none is queued");
        for connector in connectors {
            assert_eq!(connector.failure().code(), WsaCode::ConnRefused);
        }
    });
}

#[test]
fn wsd_088_a_deferred_request_sets_the_event_again() {
    bounded(|| {
        let san = San::start();
        let (listener, connectors) = queued(&san, 1);
        let deferred = listener.socket.accept(|_| Decision::Defer);
        assert!(matches!(deferred, Err(AcceptError::Deferred)));
        assert!(listener.event.is_set(), "it is still queued");
        let _accepted = listener.accept();
        connectors[0].result().expect("accepted");
    });
}

#[test]
fn wsd_088_a_request_that_arrives_during_accept_is_not_missed() {
    bounded(|| {
        let san = San::start();
        let (listener, _connectors) = queued(&san, 1);
        let mut late = None;
        let accepted = listener.socket.accept(|_| {
            late = Some(san.connect(listener.addr));
            san.wait_for("queued", 2, |counters| counters.queued);
            Decision::Accept
        });
        let _accepted = accepted.expect("the first");
        assert!(listener.event.is_set(), "the second is queued");
        let _second = listener.accept();
        late.expect("started").result().expect("accepted");
    });
}

#[test]
fn wsd_088_an_event_that_was_reset_by_hand_is_set_again_by_accept() {
    bounded(|| {
        let san = San::start();
        let (listener, _connectors) = queued(&san, 3);
        listener.event.reset();
        let _first = listener
            .socket
            .accept(|_| Decision::Accept)
            .expect("a request");
        assert!(listener.event.is_set(), "two are queued");
        listener.event.reset();
        let _second = listener
            .socket
            .accept(|_| Decision::Accept)
            .expect("a request");
        assert!(listener.event.is_set(), "one is queued");
    });
}

/// A listener with so many requests queued.
fn queued(san: &San, count: u64) -> (Listener, Vec<Connector>) {
    let listener = san.listen_a(8);
    let connectors = (0..count).map(|_| san.connect(listener.addr)).collect();
    san.wait_for("queued", count, |counters| counters.queued);
    (listener, connectors)
}
