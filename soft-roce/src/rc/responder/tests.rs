//! The responder's answers, to requests that the test sends.

use crate::rc::testkit::*;
use crate::rc::{Access, Modify, QpEvent, QpState, Status};
use crate::wire::{Bth, Ieth, NakCode, Opcode, Packet, Syndrome, aeth};

use Opcode::*;

#[test]
fn one_ack_for_many_and_none_unasked() {
    let mut rig = Rig::new(ANYBODY);
    rig.post_receive(1, 0, 600);
    rig.post_receive(2, 1000, 10);
    for (n, opcode, len) in [(0, SendFirst, MTU), (1, SendMiddle, MTU), (2, SendLast, 3)] {
        let data = vec![n as u8 + 1; len];
        let mut packet = request(opcode, n, &data);
        packet.bth.ack_req = false;
        rig.take(&packet);
    }
    assert_eq!(rig.answers(), []);
    assert_eq!(rig.recv_done(), [(1, Status::Success)]);
    assert_eq!(rig.bytes(510, 5), [2, 2, 3, 3, 3]);
    rig.request(SendOnlyImm, 3, b"four");
    assert_eq!(rig.answers(), [(RQ_PSN + 3, ACK)]);
    assert_eq!(rig.recv_done(), [(2, Status::Success)]);
}

#[test]
fn one_nak_a_gap() {
    let mut rig = Rig::new(ANYBODY);
    for id in 0..4 {
        rig.post_receive(id, 0, 10);
    }
    let gap = nak(NakCode::SequenceError);
    rig.request(SendOnly, 1, b"b");
    rig.request(SendOnly, 2, b"c");
    assert_eq!(rig.answers(), [(RQ_PSN, gap)]);
    rig.request(SendOnly, 3, b"d");
    assert_eq!(rig.answers(), []);
    rig.request(SendOnly, 0, b"a");
    assert_eq!(rig.answers(), [(RQ_PSN, ACK)]);
    rig.request(SendOnly, 2, b"c");
    assert_eq!(rig.answers(), [(RQ_PSN + 1, gap)], "a new gap");
    assert_eq!(rig.recv_done().len(), 1);
    assert_eq!(rig.qp.counters().out_of_order, 4);
}

#[test]
fn a_peer_of_our_kind_is_told_what_is_kept() {
    let mut rig = Rig::new(OURS);
    for id in 0..5 {
        rig.post_receive(id, 10 * id, 10);
    }
    for n in [1, 2, 4] {
        rig.request(SendOnly, n, &[n as u8]);
    }
    let sent = rig.sent();
    let packet = Packet::parse(sent.last().unwrap()).unwrap();
    assert_eq!(packet.bth.psn, RQ_PSN);
    assert_eq!(packet.payload, [0b1011, 0, 0, 0]);
    rig.request(SendOnly, 0, &[0]);
    let sent = rig.sent();
    let packet = Packet::parse(sent.last().unwrap()).unwrap();
    assert_eq!(packet.bth.psn, RQ_PSN + 3);
    assert_eq!(packet.payload, [1, 0, 0, 0]);
    rig.request(SendOnly, 3, &[3]);
    assert_eq!(rig.answers(), [(RQ_PSN + 4, ACK)]);
    let ids: Vec<u64> = rig.recv_done().iter().map(|c| c.0).collect();
    assert_eq!(ids, [0, 1, 2, 3, 4]);
    for n in 0..5 {
        assert_eq!(rig.bytes(10 * n, 1), [n as u8]);
    }
}

#[test]
fn duplicates_get_the_latest_number_and_do_nothing() {
    let mut rig = Rig::new(ANYBODY);
    rig.post_receive(1, 0, 10);
    rig.post_receive(2, 100, 10);
    rig.request(SendOnly, 0, b"first");
    rig.request(SendOnly, 1, b"second");
    rig.answers();
    rig.request(SendOnly, 0, b"other");
    assert_eq!(rig.answers(), [(RQ_PSN + 1, ACK)]);
    assert_eq!(rig.recv_done().len(), 2);
    assert_eq!(rig.bytes(0, 5), b"first");
    assert_eq!(rig.qp.counters().duplicates, 1);
}

/// An ACK with the PSN of an RDMA READ says to others that its data has come.
#[test]
fn no_acknowledgement_has_the_number_of_a_read() {
    let write = |r: &mut Rig| r.rdma(WriteOnly, 0, (0, 4), b"data");
    let send = |r: &mut Rig| r.request(SendOnly, 0, b"data");
    for (name, first) in [("WRITE", &write as &dyn Fn(&mut Rig)), ("SEND", &send)] {
        for choice in [ANYBODY, OURS] {
            let mut rig = Rig::new(choice);
            rig.post_receive(1, 0, 10);
            first(&mut rig);
            rig.rdma(ReadRequest, 1, (0, 64), &[]);
            rig.sent();
            first(&mut rig);
            assert_eq!(rig.answers(), [(RQ_PSN, ACK)], "{name}");
        }
    }
}

/// The packet that was told as missing is an RDMA READ's: nothing is told when
/// it has come, but its response.
#[test]
fn a_gap_that_a_read_closes() {
    for choice in [ANYBODY, OURS] {
        let mut rig = Rig::new(choice);
        rig.post_receive(1, 0, 10);
        rig.post_receive(2, 0, 10);
        rig.rdma(ReadRequest, 0, (0, 64), &[]);
        rig.sent();
        rig.request(SendOnly, 2, b"c");
        let mut late = request(SendOnly, 1, b"b");
        late.bth.ack_req = false;
        // The NAK for 1 is not sent yet when 1 comes.
        rig.take(&late);
        let answers: Vec<u32> = rig.answers().iter().map(|a| a.0).collect();
        assert!(!answers.contains(&RQ_PSN), "{answers:?}");
    }
}

#[test]
fn no_receive_posted() {
    let mut rig = Rig::new(ANYBODY);
    rig.request(SendOnly, 0, b"a");
    rig.request(SendOnly, 1, b"b");
    assert_eq!(
        rig.answers(),
        [(RQ_PSN, Syndrome::Rnr(14))],
        "no gap as well"
    );
    rig.post_receive(1, 0, 10);
    rig.now.0 += aeth::rnr_nanos(14);
    rig.request(SendOnly, 1, b"b");
    let gap = nak(NakCode::SequenceError);
    assert_eq!(rig.answers(), [(RQ_PSN, gap)], "now it is one");
    rig.request(SendOnly, 0, b"a");
    assert_eq!(rig.answers(), [(RQ_PSN, ACK)]);
    // Neither the data nor the receive of a WRITE with immediate data are
    // touched before both can be.
    let before = rig.bytes(0, 4);
    rig.rdma(WriteOnlyImm, 1, (0, 4), b"data");
    assert_eq!(rig.answers(), [(RQ_PSN + 1, Syndrome::Rnr(14))]);
    assert_eq!(rig.bytes(0, 4), before);
    rig.post_receive(2, 0, 0);
    rig.rdma(WriteOnlyImm, 1, (0, 4), b"data");
    assert_eq!(rig.answers(), [(RQ_PSN + 1, ACK)]);
    assert_eq!(rig.bytes(0, 4), b"data");
    assert_eq!(rig.recv_done().len(), 2);
}

#[test]
fn a_read_takes_as_many_numbers_as_its_response() {
    let mut rig = Rig::new(ANYBODY);
    rig.post_receive(1, 0, 10);
    rig.rdma(ReadRequest, 0, (100, 3 * MTU as u32 - 1), &[]);
    rig.request(SendOnly, 3, b"x");
    let sent = rig.sent();
    let parsed: Vec<Packet<'_>> = sent.iter().map(|b| Packet::parse(b).unwrap()).collect();
    let brief: Vec<(Opcode, u32)> = parsed.iter().map(|p| (p.bth.opcode, p.bth.psn)).collect();
    assert_eq!(
        brief,
        [
            (ReadResponseFirst, RQ_PSN),
            (ReadResponseMiddle, RQ_PSN + 1),
            (ReadResponseLast, RQ_PSN + 2),
            (Ack, RQ_PSN + 3)
        ]
    );
    let mut data: Vec<u8> = Vec::new();
    for packet in &parsed {
        data.extend(packet.payload);
    }
    // The receive has changed what the first bytes were.
    assert_eq!(data, rig.bytes(100, 3 * MTU - 1));
    // A part of it once more.
    rig.rdma(ReadRequest, 1, (100 + MTU as u64, MTU as u32), &[]);
    assert_eq!(rig.sent_brief(), [(ReadResponseOnly, RQ_PSN + 1, false)]);
    // Not more than was asked for before.
    rig.rdma(ReadRequest, 2, (0, 3 * MTU as u32), &[]);
    assert_eq!(rig.sent_brief(), []);
    assert_eq!(rig.qp.state(), QpState::Rts);
}

#[test]
fn a_requester_that_goes_back_is_not_sent_the_rest() {
    let mut rig = Rig::new(ANYBODY);
    rig.rdma(ReadRequest, 0, (0, 4 * MTU as u32), &[]);
    let mut sink = crate::sink::VecSink {
        room: Some(2),
        ..Default::default()
    };
    rig.qp.transmit(rig.now, &mut sink);
    rig.rdma(ReadRequest, 1, (MTU as u64, 3 * MTU as u32), &[]);
    let numbers: Vec<u32> = rig.sent_brief().iter().map(|p| p.1).collect();
    assert_eq!(numbers, [RQ_PSN + 1, RQ_PSN + 2, RQ_PSN + 3]);
}

/// Every way to break the rules has its NAK, and the state Error.
#[test]
fn broken_rules() {
    type Case = (&'static str, NakCode, fn(&mut Rig));
    use NakCode::{InvalidRequest, RemoteAccess};
    const FULL: [u8; MTU] = [1; MTU];
    const KEY: u32 = 0xdead;
    let cases: [Case; 16] = [
        ("middle first", InvalidRequest, |r| {
            r.request(SendMiddle, 0, &FULL);
        }),
        ("last first", InvalidRequest, |r| {
            r.request(WriteLast, 0, b"x");
        }),
        ("first after first", InvalidRequest, |r| {
            r.request(SendFirst, 0, &FULL);
            r.request(SendFirst, 1, &FULL);
        }),
        ("write in a send", InvalidRequest, |r| {
            r.request(SendFirst, 0, &FULL);
            r.request(WriteMiddle, 1, &FULL);
        }),
        ("read in a send", InvalidRequest, |r| {
            r.request(SendFirst, 0, &FULL);
            r.rdma(ReadRequest, 1, (0, 1), &[]);
        }),
        ("short first", InvalidRequest, |r| {
            r.request(SendFirst, 0, b"four");
        }),
        ("long only", InvalidRequest, |r| {
            r.request(SendOnly, 0, &[0; MTU + 4]);
        }),
        ("empty last", InvalidRequest, |r| {
            r.request(SendFirst, 0, &FULL);
            r.request(SendLast, 1, &[]);
        }),
        ("more than the length", InvalidRequest, |r| {
            r.rdma(WriteOnly, 0, (0, 3), b"four");
        }),
        ("less than the length", InvalidRequest, |r| {
            r.rdma(WriteFirst, 0, (0, MTU as u32 + 8), &FULL);
            r.request(WriteLast, 1, b"four");
        }),
        ("no last", InvalidRequest, |r| {
            r.rdma(WriteFirst, 0, (0, 2 * MTU as u32), &FULL);
            r.request(WriteMiddle, 1, &FULL);
        }),
        ("longer than any message", InvalidRequest, |r| {
            r.rdma(WriteFirst, 0, (0, u32::MAX), &FULL);
        }),
        ("one read too many", InvalidRequest, |r| {
            for n in 0..3 {
                r.rdma(ReadRequest, n, (0, 1), &[]);
            }
        }),
        ("wrong key", RemoteAccess, |r| {
            let mut packet = request(WriteOnly, 0, b"four");
            packet.reth.as_mut().unwrap().rkey = KEY;
            r.take(&packet);
        }),
        ("past the end", RemoteAccess, |r| {
            r.rdma(ReadRequest, 0, (LEN as u64 - 1, 2), &[]);
        }),
        ("window of nobody", RemoteAccess, |r| {
            let mut packet = request(SendOnlyInvalidate, 0, b"");
            packet.ieth = Some(Ieth(KEY));
            r.take(&packet);
        }),
    ];
    for (name, code, case) in cases {
        let mut rig = Rig::new(ANYBODY);
        rig.post_receive(1, 0, 4096);
        rig.post_receive(2, 0, 4096);
        case(&mut rig);
        assert_eq!(rig.qp.state(), QpState::Error, "{name}");
        let sent = rig.sent();
        let last = Packet::parse(sent.last().unwrap()).unwrap();
        assert_eq!(last.aeth.unwrap().syndrome, nak(code), "{name}");
        let done = rig.recv_done();
        assert_eq!(done.len(), 2, "{name}");
        assert!(done.iter().all(|c| c.1 != Status::Success), "{name}");
        assert!(matches!(rig.qp.poll_event(), Some(QpEvent::Failed(_))));
        // The peer that missed it hears it again, and nothing else.
        let n = last.bth.psn - RQ_PSN;
        rig.request(SendOnly, n, b"again");
        assert_eq!(rig.answers(), [(last.bth.psn, nak(code))], "{name}");
        assert_eq!(rig.recv_done(), [], "{name}");
    }
}

#[test]
fn atomics_are_refused() {
    for opcode in [CompareSwap, FetchAdd] {
        let mut rig = Rig::new(ANYBODY);
        rig.request(opcode, 0, &[0; 28]);
        let invalid = nak(NakCode::InvalidRequest);
        assert_eq!(rig.answers(), [(RQ_PSN, invalid)]);
    }
}

#[test]
fn the_queue_pair_grants_before_the_key_does() {
    for opcode in [WriteOnly, ReadRequest] {
        let mut rig = Rig::new(Choice {
            access: Access::NONE,
            ..ANYBODY
        });
        rig.rdma(opcode, 0, (0, 0), &[]);
        let invalid = nak(NakCode::InvalidRequest);
        assert_eq!(rig.answers(), [(RQ_PSN, invalid)]);
    }
}

#[test]
fn a_message_longer_than_its_receive() {
    let mut rig = Rig::new(ANYBODY);
    rig.post_receive(1, 0, 3);
    rig.post_receive(2, 0, 100);
    rig.request(SendOnly, 0, b"four");
    let expected = [(1, Status::LocalLength), (2, Status::WrFlush)];
    assert_eq!(rig.recv_done(), expected);
    let invalid = nak(NakCode::InvalidRequest);
    assert_eq!(rig.answers(), [(RQ_PSN, invalid)]);
}

#[test]
fn no_bytes_need_no_key() {
    let mut rig = Rig::new(ANYBODY);
    rig.take(&request(WriteOnly, 0, &[]));
    assert_eq!(rig.answers(), [(RQ_PSN, ACK)]);
    rig.take(&request(ReadRequest, 1, &[]));
    assert_eq!(rig.sent_brief(), [(ReadResponseOnly, RQ_PSN + 1, false)]);
}

#[test]
fn memory_withdrawn_before_the_response() {
    let mut rig = Rig::new(ANYBODY);
    rig.rdma(ReadRequest, 0, (0, 2 * MTU as u32), &[]);
    rig.table.deregister(rig.region.lkey()).unwrap();
    let sent = rig.sent();
    let parsed: Vec<Packet<'_>> = sent.iter().map(|b| Packet::parse(b).unwrap()).collect();
    assert_eq!(parsed[0].bth.dest_qpn, 0, "goes to no queue pair");
    assert!(parsed[0].payload.iter().all(|b| *b == 0));
    assert_eq!(parsed[1].aeth.unwrap().syndrome, nak(NakCode::RemoteAccess));
    assert_eq!(rig.qp.state(), QpState::Error);
}

/// The first packet says that the peer takes the connection as established,
/// even if the CM's own message got lost.
#[test]
fn established_by_a_packet() {
    let mut rig = Rig::new(ANYBODY);
    rig.qp.modify(&Modify::Reset).unwrap();
    rig.request(SendOnly, 0, b"early");
    assert_eq!(rig.qp.counters().wrong_state, 1);
    for step in &rig.steps[..2] {
        rig.qp.modify(step).unwrap();
    }
    rig.post_receive(1, 0, 10);
    assert_eq!(rig.qp.poll_event(), None);
    rig.request(SendOnly, 0, b"first");
    assert_eq!(rig.qp.poll_event(), Some(QpEvent::Established));
    assert_eq!(rig.answers(), [(RQ_PSN, ACK)]);
}

#[test]
fn a_datagram_is_no_part_of_it() {
    let mut rig = Rig::new(ANYBODY);
    rig.take(&Packet::new(Bth::new(UdSendOnly, QPN, RQ_PSN)));
    assert_eq!(rig.qp.counters().wrong_opcode, 1);
    assert_eq!(rig.qp.state(), QpState::Rts);
}
