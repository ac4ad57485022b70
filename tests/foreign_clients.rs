//! Requests that are not of this protocol: real programs of other makes, and malformed data. They are
//! refused with a reason of their own, counted, and never take a place.

use san_provider::wire::{Features, Hello, HelloKind, Refusal, RefusalReason, Session};
use san_provider::{AcceptError, Decision};
use san_tests::program::Program;
use san_tests::san::{Listener, San};
use san_tests::stranger::{Answer, Stranger};
use san_tests::time::{STEP, bounded};
use verbs_shim::RejectReason;

#[test]
#[ignore = "needs the kernel's RDMA: ci/test"]
fn wsd_080_ucmatose_takes_no_place() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let (ip, port) = (
            listener.addr.ip().to_string(),
            listener.addr.port().to_string(),
        );
        for _ in 0..3 {
            let client = Program::start("ucmatose", &["-s", &ip, "-p", &port, "-c", "1"]);
            let (_, said) = client.finish(STEP);
            assert!(said.contains("RDMA_CM_EVENT_REJECTED, error: 28"), "{said}");
        }
        refused_as_strangers(&san, &listener, 3);
    });
}

#[test]
#[ignore = "needs the kernel's RDMA: ci/test"]
fn wsd_080_rping_takes_no_place() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let (ip, port) = (
            listener.addr.ip().to_string(),
            listener.addr.port().to_string(),
        );
        let client = Program::start("rping", &["-c", "-a", &ip, "-p", &port, "-C", "1"]);
        let (status, said) = client.finish(STEP);
        assert!(said.contains("RDMA_CM_EVENT_REJECTED, error 28"), "{said}");
        assert!(!status.success(), "{said}");
        refused_as_strangers(&san, &listener, 1);
    });
}

#[test]
fn wsd_080_malformed_requests_take_no_place() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let good = request();
        let with = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            bytes
        };
        let cases: [(&str, &[u8]); 8] = [
            ("nothing at all", &[]),
            ("zeros", &[0; 56]),
            ("noise", &[0xa5; 56]),
            ("another magic", &with(0, b's')),
            ("a reply", &with(5, 2)),
            ("a refusal", &with(5, 3)),
            ("a wrong length", &with(7, 55)),
            ("cut off", &good[..8]),
        ];
        for (strangers, (what, data)) in (1..).zip(cases) {
            let refusal = refusal_of(Stranger::request(listener.addr, data).answer(), what);
            assert_eq!(refusal.reason, RefusalReason::NotOurProtocol, "{what}");
            // It is counted after the answer has left.
            san.wait_for("refused as a stranger's", strangers, |c| c.refused_foreign);
        }
        refused_as_strangers(&san, &listener, 8);
    });
}

#[test]
fn another_version_is_refused_with_the_versions_that_are_spoken() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        for version in [0, 2, 255] {
            let mut data = request();
            data[4] = version;
            let refusal = refusal_of(
                Stranger::request(listener.addr, &data).answer(),
                "another version",
            );
            assert_eq!(refusal.reason, RefusalReason::Version);
            assert_eq!((refusal.lowest_version, refusal.highest_version), (1, 1));
        }
        // A stranger may have its answer before that is counted.
        san.wait_for("refused_version", 3, |counters| counters.refused_version);
        assert_eq!(
            (san.counters().refused_version, san.counters().queued),
            (3, 0)
        );
    });
}

#[test]
fn a_well_formed_request_of_a_stranger_is_queued() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(1);
        let stranger = Stranger::request(listener.addr, &request());
        let _accepted = listener.accept();
        match stranger.answer() {
            Answer::Accepted(data) => {
                let reply = Hello::parse(HelloKind::Reply, &data).expect("a reply of ours");
                assert_eq!(
                    reply.max_message_size,
                    san.provider.config().max_message_size
                );
                assert_eq!(reply.credits, san.provider.config().initial_window);
            }
            other => panic!("{other:?}"),
        }
    });
}

/// Nothing of the strangers is queued, no event was set for them, and the one place is free.
fn refused_as_strangers(san: &San, listener: &Listener, strangers: u64) {
    // A stranger may have its answer before that is counted.
    san.wait_for("refused_foreign", strangers, |counters| {
        counters.refused_foreign
    });
    let counters = san.counters();
    assert_eq!(
        (counters.requests, counters.refused_foreign),
        (strangers, strangers),
        "{counters:?}"
    );
    assert_eq!(
        (
            counters.queued,
            counters.events_signalled,
            counters.refused_backlog
        ),
        (0, 0, 0)
    );
    assert!(!listener.event.is_set());
    assert!(matches!(
        listener.socket.accept(|_| Decision::Accept),
        Err(AcceptError::WouldBlock)
    ));
    let connector = san.connect(listener.addr);
    let _accepted = listener.accept();
    connector.result().expect("the place is free");
}

fn refusal_of(answer: Answer, what: &str) -> Refusal {
    match answer {
        Answer::Rejected(RejectReason::ConsumerDefined, data) => {
            Refusal::parse(&data).unwrap_or_else(|error| panic!("{what}: {error}"))
        }
        other => panic!("{what}: {other:?}"),
    }
}

fn request() -> [u8; Hello::LENGTH] {
    let hello = Hello {
        features: Features::default(),
        credits: 2,
        max_message_size: 4096,
        max_rdma_size: 0,
        session: Session::NONE,
    };
    hello.emit(HelloKind::Request)
}
