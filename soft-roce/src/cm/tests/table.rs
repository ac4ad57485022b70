//! Every state with every message: a change here is a change of behaviour.

use std::net::SocketAddr;

use super::super::conn::State;
use super::super::*;
use crate::rc::keys::KeySource;
use crate::time::Time;
use crate::wire::cm::{CmMessage, Drep, Dreq, Mra, Rej, RejReason, Rejected, Rep, Rtu};

const THEIRS: u32 = 77;

fn path() -> Path {
    let at = |s: &str| s.parse::<SocketAddr>().unwrap();
    Path {
        local: at("10.0.0.1:4791"),
        remote: at("10.0.0.2:4791"),
    }
}

/// An engine with one connection in `state`.
fn engine_in(state: State) -> (Engine, ConnKey) {
    let mut engine = Engine::new(Config::default(), KeySource::seeded(1));
    let mut net = super::net::Net::new();
    let connect = Connect {
        path: path(),
        ..net.request("10.0.0.2:1")
    };
    let key = engine.connect(Time::ZERO, &connect).unwrap();
    let conn = engine.conns.get_mut(&key).unwrap();
    conn.state = state;
    if !matches!(state, State::ReqSent | State::ReqWaiting) {
        conn.remote_id = THEIRS;
    }
    engine.out.clear();
    (engine, key)
}

fn messages(key: ConnKey) -> Vec<(&'static str, CmMessage)> {
    let private_data = [0; 222];
    let mra = |message| Mra {
        local_comm_id: THEIRS,
        remote_comm_id: key.0,
        message,
        service_timeout: 1,
        private_data,
    };
    let rep = Rep {
        local_comm_id: THEIRS,
        remote_comm_id: key.0,
        qpn: 2,
        extension: 0,
        starting_psn: 0,
        responder_resources: 1,
        initiator_depth: 1,
        target_ack_delay: 0,
        flow_control: false,
        rnr_retry_count: 7,
        srq: false,
        ca_guid: 5,
        private_data: [0; 196],
    };
    let dreq = Dreq {
        local_comm_id: THEIRS,
        remote_comm_id: key.0,
        remote_qpn: 1,
        private_data: [0; 220],
    };
    vec![
        ("MRA of REQ", CmMessage::Mra(mra(Rejected::Req))),
        ("MRA of REP", CmMessage::Mra(mra(Rejected::Rep))),
        (
            "REJ",
            CmMessage::Rej(Rej::new(THEIRS, key.0, Rejected::Other, RejReason::NO_QP)),
        ),
        ("REP", CmMessage::Rep(rep)),
        ("RTU", CmMessage::Rtu(Rtu::new(THEIRS, key.0))),
        ("DREQ", CmMessage::Dreq(dreq)),
        ("DREP", CmMessage::Drep(Drep::new(THEIRS, key.0))),
    ]
}

#[test]
fn every_state_with_every_message() {
    let states = [
        State::ReqSent,
        State::ReqWaiting,
        State::RepReceived,
        State::ReqReceived(None),
        State::RepSent,
        State::Established,
        State::DreqSent,
        State::Timewait,
    ];
    let mut table = Vec::new();
    for state in states {
        let (_, key) = engine_in(state);
        for (name, message) in messages(key) {
            let (mut engine, key) = engine_in(state);
            engine.handle(Time::ZERO, path(), &message.emit(1));
            let after = engine
                .conns
                .get(&key)
                .map_or("gone".into(), |c| format!("{:?}", c.state));
            let event = engine.poll_event().map(|event| {
                let text = format!("{event:?}");
                text.split(' ').next().unwrap_or_default().to_owned()
            });
            let answers = engine.out.len();
            let changed = after != format!("{state:?}");
            if changed || event.is_some() || answers > 0 {
                let event = event.unwrap_or_default();
                table.push(format!("{state:?} + {name} -> {after} {event} {answers}"));
            }
        }
    }
    let want = "\
ReqSent + MRA of REQ -> ReqWaiting  0
ReqSent + REJ -> gone Rejected 0
ReqSent + REP -> RepReceived ConnectResponse 0
ReqSent + DREQ -> gone Rejected 1
ReqWaiting + REJ -> gone Rejected 0
ReqWaiting + REP -> RepReceived ConnectResponse 0
ReqWaiting + DREQ -> gone Rejected 1
RepReceived + REJ -> gone Rejected 0
RepReceived + DREQ -> gone Rejected 1
ReqReceived(None) + REJ -> gone Rejected 0
RepSent + REJ -> gone Rejected 0
RepSent + RTU -> Established Established 0
RepSent + DREQ -> Timewait Disconnected 1
Established + REJ -> Timewait Disconnected 0
Established + REP -> Established  1
Established + DREQ -> Timewait Disconnected 1
DreqSent + REJ -> Timewait Disconnected 0
DreqSent + DREQ -> Timewait Disconnected 1
DreqSent + DREP -> Timewait Disconnected 0
Timewait + DREQ -> Timewait  1";
    assert_eq!(table.join("\n"), want);
}
