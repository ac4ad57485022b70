//! Peers that are gone, as the host tells.

use std::time::Duration;

use super::net::Net;
use crate::cm::Event;
use crate::wire::cm::RejReason;

fn peer_of_client(net: &Net) -> std::net::SocketAddr {
    let mut peers = Vec::new();
    net.client.engine.peers(&mut peers);
    assert_eq!(peers.len(), 1, "{peers:?}");
    *peers.first().unwrap()
}

/// However far a connection has come, its end is told in the words for it.
#[test]
fn a_process_that_died_ends_what_there_was_with_it() {
    // After how many messages the server's process dies, and what its client hears.
    let cases = [
        (1, vec!["Rejected"]),
        (3, vec!["ConnectResponse", "Disconnected", "TimewaitExit"]),
    ];
    for (messages, story) in cases {
        let mut net = Net::new();
        net.listen("10.0.0.2:7471", 8);
        net.connect("10.0.0.2:7471");
        net.run_until(|net| net.kinds().len() >= messages);
        let (now, peer) = (net.now, peer_of_client(&net));
        net.deaf = true;
        net.client.engine.peer_died(now, peer);
        net.run_for(Duration::from_secs(30));
        assert_eq!(net.client.story, story, "{}", net.trace());
        assert_eq!(net.client.engine.connections(), 0);
        // Again, and nothing is left that could end.
        let now = net.now;
        net.client.engine.peer_died(now, peer);
        net.run_for(Duration::from_secs(1));
        assert_eq!(net.client.story, story);
    }
}

#[test]
fn a_request_of_the_dead_is_withdrawn() {
    let mut net = Net::new();
    net.server.slow = true;
    net.listen("10.0.0.2:7471", 8);
    net.connect("10.0.0.2:7471");
    net.run_for(Duration::from_millis(10));
    assert_eq!(net.server.story, ["ConnectRequest"]);
    let (now, mut peers) = (net.now, Vec::new());
    net.server.engine.peers(&mut peers);
    for peer in peers {
        net.server.engine.peer_died(now, peer);
    }
    net.run_for(Duration::from_millis(1));
    assert_eq!(net.server.story, ["ConnectRequest", "Rejected"]);
    assert_eq!(net.server.reasons(), [RejReason::CONSUMER_DEFINED]);
    assert_eq!(net.server.engine.connections(), 0);
}

#[test]
fn others_do_not_die_with_it() {
    let mut net = Net::new();
    net.listen("10.0.0.2:7471", 8);
    net.connect("10.0.0.2:7471");
    net.run_for(Duration::from_secs(1));
    let now = net.now;
    let stranger = "10.0.0.2:4792".parse().unwrap();
    net.client.engine.peer_died(now, stranger);
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.client.story, ["ConnectResponse"]);
}

#[test]
fn where_nobody_is_a_request_is_refused() {
    let mut net = Net::new();
    net.deaf = true;
    let key = net.connect("10.0.0.2:7471");
    net.client.engine.nobody_there(key);
    net.run_for(Duration::from_millis(1));
    assert_eq!(net.client.reasons(), [RejReason::INVALID_SERVICE_ID]);
    assert_eq!(net.client.engine.counters().nobody, 1);
    assert!(matches!(net.client.events[..], [Event::Rejected { .. }]));
    net.assert_empty();
}

/// Somebody may have come to be there by the time the request would go out.
#[test]
fn a_request_to_nobody_does_not_go_out() {
    let mut net = Net::new();
    net.listen("10.0.0.2:7471", 8);
    let key = net.connect("10.0.0.2:7471");
    net.client.engine.nobody_there(key);
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.client.reasons(), [RejReason::INVALID_SERVICE_ID]);
    assert!(net.server.story.is_empty(), "{}", net.trace());
    assert_eq!(net.client.engine.counters().sent, 0);
    net.assert_empty();
}
