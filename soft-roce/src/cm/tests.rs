//! Two engines in memory under a pretend clock, with the loss and the repetition
//! of every single message; the table of states and messages; floods.

mod gone;
mod net;
mod table;

use std::time::Duration;

use self::net::{CLIENT, Net, SERVER};
use super::*;
use crate::wire::cm::RejReason;

/// What a user sees when all goes well, in the order of each side.
const CLIENT_STORY: [&str; 3] = ["ConnectResponse", "Disconnected", "TimewaitExit"];
const SERVER_STORY: [&str; 4] = [
    "ConnectRequest",
    "Established",
    "Disconnected",
    "TimewaitExit",
];

/// Connects, disconnects from the client's side and runs until all is quiet.
fn whole_life(net: &mut Net) {
    net.listen("10.0.0.2:7471", 8);
    let conn = net.connect("10.0.0.2:7471");
    net.run_until(|net| net.client.story.contains(&"ConnectResponse"));
    // Long enough for a lost RTU to be mended.
    net.run_for(Duration::from_secs(30));
    assert!(net.server.story.contains(&"Established"), "{}", net.trace());
    let now = net.now;
    net.client.engine.disconnect(now, conn).unwrap();
    net.run_for(Duration::from_secs(60));
    assert_eq!(net.client.story, CLIENT_STORY, "{}", net.trace());
    assert_eq!(net.server.story, SERVER_STORY, "{}", net.trace());
    net.assert_empty();
}

#[test]
fn a_connection_lives_and_ends() {
    let mut net = Net::new();
    whole_life(&mut net);
    assert_eq!(net.kinds(), ["REQ", "REP", "RTU", "DREQ", "DREP"]);
}

#[test]
fn every_message_may_be_lost_once() {
    for lost in 0..5 {
        let mut net = Net::new();
        net.lose(lost);
        whole_life(&mut net);
        assert!(
            net.kinds().len() > 5,
            "message {lost} was repeated: {}",
            net.trace()
        );
    }
}

#[test]
fn any_two_messages_may_be_lost() {
    for a in 0..6 {
        for b in a + 1..7 {
            let mut net = Net::new();
            net.lose(a);
            net.lose(b);
            whole_life(&mut net);
        }
    }
}

#[test]
fn every_message_may_come_twice_and_late() {
    for twice in 0..5 {
        for delay in [0, 1, 300, 2000] {
            let mut net = Net::new();
            net.repeat(twice, Duration::from_millis(delay));
            whole_life(&mut net);
        }
    }
}

#[test]
fn a_refusal_arrives_with_its_data_even_if_lost_once() {
    for lost in [None, Some(0), Some(1)] {
        let mut net = Net::new();
        if let Some(lost) = lost {
            net.lose(lost);
        }
        net.server.refuse = Some((RejReason::CONSUMER_DEFINED, b"full".to_vec()));
        net.listen("10.0.0.2:7471", 8);
        net.connect("10.0.0.2:7471");
        net.run_for(Duration::from_secs(30));
        assert_eq!(net.client.story, ["Rejected"]);
        assert_eq!(
            net.server.story,
            ["ConnectRequest"],
            "asked once: {}",
            net.trace()
        );
        let Some(Event::Rejected {
            reason,
            private_data,
            ..
        }) = net.client.events.last()
        else {
            panic!("{}", net.trace());
        };
        assert_eq!(
            (*reason, &private_data[..5]),
            (RejReason::CONSUMER_DEFINED, &b"full\0"[..])
        );
        net.assert_empty();
    }
}

#[test]
fn nobody_listens() {
    let mut net = Net::new();
    net.listen("10.0.0.9:7471", 8);
    net.connect("10.0.0.2:7471");
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.client.reasons(), [RejReason::INVALID_SERVICE_ID]);
    net.assert_empty();
}

#[test]
fn nobody_answers() {
    let mut net = Net::new();
    net.deaf = true;
    net.connect("10.0.0.2:7471");
    net.run_for(Duration::from_secs(60));
    assert_eq!(net.client.story, ["Unreachable"]);
    assert_eq!(net.client.engine.counters().timeouts, 1);
    let sent = net.client.engine.counters().sent;
    assert_eq!(
        sent,
        u64::from(Config::default().retries) + 2,
        "REQs and a REJ"
    );
    net.assert_empty();
}

#[test]
fn a_slow_server_asks_for_patience() {
    let mut net = Net::new();
    net.server.slow = true;
    net.listen("10.0.0.2:7471", 8);
    net.connect("10.0.0.2:7471");
    net.run_for(Duration::from_secs(90));
    assert_eq!(net.client.story, [] as [&str; 0], "{}", net.trace());
    let reqs = net.kinds().iter().filter(|kind| **kind == "REQ").count();
    assert!(reqs < 25, "{reqs} REQs in 90 s");
    net.accept_waiting();
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.client.story, ["ConnectResponse"]);
    assert_eq!(net.server.story, ["ConnectRequest", "Established"]);
}

#[test]
fn data_stands_in_for_a_lost_rtu() {
    let mut net = Net::new();
    net.lose(2);
    net.listen("10.0.0.2:7471", 8);
    net.connect("10.0.0.2:7471");
    net.run_for(Duration::from_millis(50));
    assert_eq!(net.server.story, ["ConnectRequest"]);
    let key = net.server.events[0].conn();
    net.server.engine.peer_has_sent(key);
    net.run_for(Duration::from_secs(10));
    assert_eq!(net.server.story, ["ConnectRequest", "Established"]);
    assert_eq!(net.kinds(), ["REQ", "REP", "RTU"], "nothing was repeated");
}

#[test]
fn both_disconnect_at_once() {
    let mut net = Net::new();
    net.listen("10.0.0.2:7471", 8);
    let conn = net.connect("10.0.0.2:7471");
    net.run_for(Duration::from_secs(1));
    let now = net.now;
    let other = net.server.events[0].conn();
    net.client.engine.disconnect(now, conn).unwrap();
    net.server.engine.disconnect(now, other).unwrap();
    net.run_for(Duration::from_secs(10));
    assert_eq!(net.client.story, CLIENT_STORY);
    assert_eq!(net.server.story, SERVER_STORY);
    net.assert_empty();
}

#[test]
fn a_peer_that_vanished_does_not_keep_us() {
    let mut net = Net::new();
    net.listen("10.0.0.2:7471", 8);
    let conn = net.connect("10.0.0.2:7471");
    net.run_for(Duration::from_secs(1));
    net.deaf = true;
    let now = net.now;
    net.client.engine.disconnect(now, conn).unwrap();
    net.run_for(Duration::from_secs(10));
    assert_eq!(net.client.story, CLIENT_STORY);
}

#[test]
fn destroyed_ids_leave_nothing_behind_on_either_side() {
    // After how many messages the client, or the server, lets go.
    for messages in 0..6 {
        for side in [CLIENT, SERVER] {
            let mut net = Net::new();
            net.listen("10.0.0.2:7471", 8);
            let conn = net.connect("10.0.0.2:7471");
            net.run_until(|net| net.kinds().len() > messages);
            let now = net.now;
            if side == CLIENT {
                net.client.engine.destroy(now, conn);
            } else if let Some(event) = net.server.events.first() {
                let key = event.conn();
                net.server.engine.destroy(now, key);
            }
            net.run_for(Duration::from_secs(30));
            for node in [&mut net.client, &mut net.server] {
                node.let_go_of_all(net.now);
            }
            net.run_for(Duration::from_secs(60));
            net.assert_empty();
        }
    }
}

#[test]
fn a_restarted_peer_is_told_that_its_connection_is_no_more() {
    let mut net = Net::new();
    net.listen("10.0.0.2:7471", 8);
    let conn = net.connect("10.0.0.2:7471");
    net.run_for(Duration::from_secs(1));
    net.restart_server();
    let now = net.now;
    net.client.engine.disconnect(now, conn).unwrap();
    net.run_for(Duration::from_millis(100));
    assert_eq!(
        net.client.story,
        CLIENT_STORY[..2],
        "answered by a DREP at once"
    );
}

#[test]
fn a_reused_queue_pair_ends_the_stale_connection() {
    let mut net = Net::new();
    net.listen("10.0.0.2:7471", 8);
    net.connect("10.0.0.2:7471");
    net.run_for(Duration::from_secs(1));
    // The same GUID and queue pair with a new id: the client has forgotten.
    net.restart_client();
    net.connect("10.0.0.2:7471");
    net.run_for(Duration::from_secs(3));
    assert_eq!(net.client.reasons(), [RejReason::STALE_CONNECTION]);
    assert_eq!(net.server.story, SERVER_STORY);
    assert_eq!(net.server.engine.counters().stale, 1);
    net.connect("10.0.0.2:7471");
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.client.story, ["Rejected", "ConnectResponse"]);
}

#[test]
fn a_flood_of_requests_is_bounded_and_refused() {
    let mut net = Net::new();
    net.server.slow = true;
    net.listen("10.0.0.2:7471", 4);
    for _ in 0..50 {
        net.connect("10.0.0.2:7471");
    }
    net.run_for(Duration::from_millis(100));
    assert_eq!(net.client.reasons(), [RejReason::NO_RESOURCES; 46]);
    assert_eq!(net.server.engine.connections(), 4);
    assert_eq!(net.server.engine.counters().backlog_full, 46);
    // A request that the user has read makes room for one more, as in rdma_cm.
    let key = net.server.events[0].conn();
    net.server.engine.taken(key);
    net.connect("10.0.0.2:7471");
    net.connect("10.0.0.2:7471");
    net.run_for(Duration::from_millis(50));
    assert_eq!(net.client.reasons().len(), 47);
    assert_eq!(net.server.engine.connections(), 5);
}

#[test]
fn the_table_of_connections_is_bounded() {
    let mut net = Net::with(Config {
        max_connections: 3,
        ..Config::default()
    });
    net.listen("10.0.0.2:7471", 100);
    for _ in 0..3 {
        net.connect("10.0.0.2:7471");
    }
    let connect = net.request("10.0.0.2:7471");
    assert_eq!(
        net.client.engine.connect(net.now, &connect),
        Err(CmError::Full)
    );
    net.run_for(Duration::from_secs(1));
    net.restart_client();
    net.client.next_qpn = 0x200;
    net.connect("10.0.0.2:7471");
    net.run_for(Duration::from_millis(100));
    assert_eq!(net.client.reasons(), [RejReason::NO_RESOURCES]);
    assert_eq!(net.server.engine.counters().table_full, 1);
}

#[test]
fn a_stranger_cannot_end_a_connection() {
    let mut net = Net::new();
    net.listen("10.0.0.2:7471", 8);
    net.connect("10.0.0.2:7471");
    net.run_for(Duration::from_secs(1));
    let key = net.server.events[0].conn();
    let ours = net.client.events[0].conn();
    net.inject_from_stranger(key, ours);
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.server.story, ["ConnectRequest", "Established"]);
    assert_eq!(net.server.engine.counters().forged, 3);
}

#[test]
fn listeners_share_ports_as_in_rdma_cm() {
    let mut engine = Net::new().server.engine;
    let mut listen = |addr: &str, v6_only| engine.listen(addr.parse().unwrap(), v6_only, 1);
    let exact = listen("10.0.0.2:1", false).unwrap();
    assert_eq!(listen("10.0.0.2:1", false), Err(CmError::InUse));
    assert_eq!(listen("0.0.0.0:1", false), Err(CmError::InUse));
    assert_eq!(listen("[::]:1", false), Err(CmError::InUse));
    listen("[::]:1", true).unwrap();
    assert_eq!(listen("[::1]:1", false), Err(CmError::InUse));
    listen("10.0.0.3:1", false).unwrap();
    listen("[::]:2", false).unwrap();
    assert_eq!(listen("10.0.0.3:2", false), Err(CmError::InUse));
    engine.unlisten(exact);
    engine
        .listen("10.0.0.2:1".parse().unwrap(), false, 1)
        .unwrap();
}

#[test]
fn wildcards_take_requests() {
    for addr in ["0.0.0.0:7471", "[::]:7471", "[::ffff:10.0.0.2]:7471"] {
        let mut net = Net::new();
        net.listen(addr, 8);
        net.connect("10.0.0.2:7471");
        net.run_for(Duration::from_secs(1));
        assert_eq!(net.server.story, ["ConnectRequest", "Established"]);
    }
}
