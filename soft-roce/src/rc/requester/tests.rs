//! The requester's packets and what answers do, against a peer that the test
//! plays. What comes of it all under loss is the simulation's business.

use crate::rc::testkit::*;
use crate::rc::{
    MAX_SGE, Modify, Payload, PostError, QpEvent, QpState, SendOp, SendRequest, Sge, Status,
};
use crate::wire::{Aeth, Bth, NakCode, Opcode, Packet, Reth, Syndrome, aeth};

/// The n-th PSN that is sent.
fn psn(n: u32) -> u32 {
    (SQ_PSN + n) & 0xff_ffff
}

fn opcodes(op: SendOp, len: usize) -> Vec<Opcode> {
    let mut rig = Rig::new(ANYBODY);
    rig.post(1, op, len);
    let sent = rig.sent();
    let mut at = 0;
    for (n, bytes) in sent.iter().enumerate() {
        let packet = Packet::parse(bytes).unwrap();
        assert_eq!(packet.bth.psn, psn(n as u32));
        assert_eq!(packet.bth.ack_req, n + 1 == sent.len());
        assert_eq!(packet.payload, rig.bytes(at, packet.payload.len()));
        at += packet.payload.len();
    }
    assert_eq!(at, len);
    let parse = |bytes: &Vec<u8>| Packet::parse(bytes).unwrap().bth.opcode;
    sent.iter().map(parse).collect()
}

#[test]
fn cut_by_the_path() {
    use Opcode::*;
    assert_eq!(opcodes(SendOp::Send, 0), [SendOnly]);
    assert_eq!(opcodes(SendOp::Send, MTU), [SendOnly]);
    assert_eq!(opcodes(SendOp::Send, MTU + 1), [SendFirst, SendLast]);
    let three = opcodes(SendOp::SendImm(1), 3 * MTU);
    assert_eq!(three, [SendFirst, SendMiddle, SendLastImm]);
    assert_eq!(opcodes(SendOp::SendImm(1), 3), [SendOnlyImm]);
    let inv = SendOp::SendInvalidate(9);
    assert_eq!(opcodes(inv, 3), [SendOnlyInvalidate]);
    assert_eq!(opcodes(inv, MTU + 3), [SendFirst, SendLastInvalidate]);
    let write = SendOp::Write(Rig::remote());
    assert_eq!(opcodes(write, 1), [WriteOnly]);
    assert_eq!(
        opcodes(write, 2 * MTU + 1),
        [WriteFirst, WriteMiddle, WriteLast]
    );
    let imm = SendOp::WriteImm(Rig::remote(), 7);
    assert_eq!(opcodes(imm, 1), [WriteOnlyImm]);
    assert_eq!(opcodes(imm, MTU + 1), [WriteFirst, WriteLastImm]);
}

#[test]
fn extension_headers() {
    let mut rig = Rig::new(ANYBODY);
    rig.post(1, SendOp::WriteImm(Rig::remote(), 7), MTU + 1);
    rig.post(2, SendOp::SendInvalidate(9), 5);
    let sent = rig.sent();
    let parsed: Vec<Packet<'_>> = sent.iter().map(|b| Packet::parse(b).unwrap()).collect();
    let reth = Reth {
        va: Rig::remote().va,
        rkey: Rig::remote().rkey,
        len: MTU as u32 + 1,
    };
    assert_eq!(parsed[0].reth, Some(reth));
    assert_eq!(parsed[1].imm.map(|i| i.0), Some(7));
    assert_eq!((parsed[1].bth.pad, parsed[2].bth.pad), (3, 3));
    assert_eq!(parsed[2].ieth.map(|i| i.0), Some(9));
}

#[test]
fn solicited_on_the_last_packet_alone() {
    let mut rig = Rig::new(ANYBODY);
    let sge = rig.sge(0, 2 * MTU);
    rig.qp
        .post_send(&SendRequest {
            wr_id: 1,
            op: SendOp::Send,
            payload: Payload::Sges(&[sge]),
            signaled: true,
            fence: false,
            solicited: true,
        })
        .unwrap();
    let flags: Vec<bool> = rig
        .sent()
        .iter()
        .map(|b| Packet::parse(b).unwrap().bth.solicited)
        .collect();
    assert_eq!(flags, [false, true]);
}

#[test]
fn one_ack_completes_what_it_covers_in_order() {
    let mut rig = Rig::new(ANYBODY);
    for id in 0..5 {
        rig.post(id, SendOp::Send, 10);
    }
    let asks: Vec<bool> = rig.sent_brief().iter().map(|p| p.2).collect();
    assert_eq!(asks, [false, false, false, false, true]);
    rig.ack(psn(2));
    let ok = |id| (id, Status::Success);
    assert_eq!(rig.send_done(), [ok(0), ok(1), ok(2)]);
    rig.ack(psn(1));
    assert_eq!(rig.send_done(), [], "an old one says nothing");
    rig.ack(psn(5));
    assert_eq!(rig.send_done(), [], "nor one for what was not sent");
    assert_eq!(rig.qp.counters().stale_answers, 2);
    rig.ack(psn(4));
    assert_eq!(rig.send_done(), [ok(3), ok(4)]);
    assert_eq!(rig.qp.poll_timeout(), None);
}

/// What `rdma_rxe` can take: 64 packets under way, 128 numbers.
#[test]
fn the_window_towards_anybody() {
    let mut rig = Rig::new(ANYBODY);
    rig.post(1, SendOp::Send, 200 * MTU);
    let first = rig.sent_brief();
    assert_eq!(first.len(), 64);
    assert!(first.last().unwrap().2, "the last one before a wait asks");
    let asked: Vec<u32> = first.iter().filter(|p| p.2).map(|p| p.1).collect();
    assert!(asked.len() >= 3, "and some on the way");
    rig.ack(asked[0]);
    let n = (asked[0].wrapping_sub(SQ_PSN) & 0xff_ffff) + 1;
    assert_eq!(rig.sent_brief().len() as u32, n);
}

#[test]
fn a_gap_is_sent_again_from_there_once() {
    let mut rig = Rig::new(ANYBODY);
    rig.post(1, SendOp::Send, 8 * MTU);
    rig.sent();
    rig.answer(psn(3), nak(NakCode::SequenceError));
    let again: Vec<u32> = rig.sent_brief().iter().map(|p| p.1).collect();
    assert_eq!(again, (3..8).map(psn).collect::<Vec<_>>());
    rig.answer(psn(3), nak(NakCode::SequenceError));
    assert_eq!(rig.sent_brief(), [], "a copy of the NAK");
    assert_eq!(rig.qp.counters().retransmitted, 5);
    rig.ack(psn(7));
    assert_eq!(rig.send_done(), [(1, Status::Success)]);
}

#[test]
fn a_peer_of_our_kind_gets_what_it_misses() {
    let mut rig = Rig::new(OURS);
    rig.post(1, SendOp::Send, 12 * MTU);
    rig.sent();
    // 3 is missing, 4 and 6 to 9 are kept.
    let kept = 0b11_1101_u32.to_le_bytes();
    rig.take(&Packet {
        aeth: Some(Aeth {
            syndrome: nak(NakCode::SequenceError),
            msn: 0,
        }),
        payload: &kept,
        ..Packet::new(Bth::new(Opcode::Ack, QPN, psn(3)))
    });
    let again: Vec<u32> = rig.sent_brief().iter().map(|p| p.1).collect();
    assert_eq!(again, [psn(3), psn(5)]);
    rig.ack(psn(11));
    assert_eq!(rig.send_done(), [(1, Status::Success)]);
}

#[test]
fn the_end_of_a_connection_has_a_reason() {
    for (code, status) in [
        (NakCode::InvalidRequest, Status::RemoteInvalidRequest),
        (NakCode::RemoteAccess, Status::RemoteAccess),
        (NakCode::RemoteOperation, Status::RemoteOperation),
    ] {
        let mut rig = Rig::new(ANYBODY);
        for id in 0..4 {
            rig.post(id, SendOp::Send, 10);
        }
        rig.post_receive(9, 0, 10);
        rig.sent();
        rig.answer(psn(1), nak(code));
        let flushed = Status::WrFlush;
        assert_eq!(
            rig.send_done(),
            [
                (0, Status::Success),
                (1, status),
                (2, flushed),
                (3, flushed)
            ]
        );
        assert_eq!(rig.recv_done(), [(9, flushed)]);
        assert_eq!(rig.qp.state(), QpState::Error);
        assert_eq!(rig.sent_brief(), []);
        assert_eq!(rig.qp.poll_timeout(), None);
        // What is posted now completes at once.
        rig.post(4, SendOp::Send, 10);
        rig.post_receive(10, 0, 10);
        assert_eq!(rig.send_done(), [(4, flushed)]);
        assert_eq!(rig.recv_done(), [(10, flushed)]);
    }
}

#[test]
fn no_receive_means_wait_then_try_again() {
    let mut rig = Rig::new(ANYBODY);
    rig.post(1, SendOp::Send, 10);
    rig.post(2, SendOp::Send, 10);
    rig.sent();
    for _ in 0..2 {
        rig.answer(psn(1), Syndrome::Rnr(10));
        assert_eq!(rig.sent_brief(), []);
        assert_eq!(rig.sleep(), aeth::rnr_nanos(10));
        assert_eq!(rig.sent_brief(), [(Opcode::SendOnly, psn(1), true)]);
    }
    assert_eq!(rig.send_done(), [(1, Status::Success)]);
    rig.answer(psn(1), Syndrome::Rnr(10));
    assert_eq!(rig.send_done(), [(2, Status::RnrRetryExceeded)]);
}

#[test]
fn silence_is_met_by_the_round_trip_and_ends_with_patience() {
    let mut rig = Rig::new(ANYBODY);
    rig.post(1, SendOp::Send, 10);
    rig.sent();
    rig.now.0 += 300_000;
    rig.ack(psn(0));
    rig.post(2, SendOp::Send, 10);
    rig.post(3, SendOp::Send, 10);
    rig.sent();
    let start = rig.now;
    let mut waits = Vec::new();
    while rig.qp.state() != QpState::Error {
        waits.push(rig.sleep() / 1_000_000);
        rig.sent();
    }
    assert_eq!(waits[..6], [4, 8, 16, 32, 64, 67], "milliseconds");
    assert_eq!(rig.now.nanos_since(start), 7 * (4096 << TIMEOUT));
    let expected = [
        (1, Status::Success),
        (2, Status::RetryExceeded),
        (3, Status::WrFlush),
    ];
    assert_eq!(rig.send_done(), expected);
}

/// The tail is asked for again; the answer makes the wait short again.
#[test]
fn a_lost_ack_costs_one_wait() {
    let mut rig = Rig::new(OURS);
    rig.post(1, SendOp::Send, 3 * MTU);
    rig.sent();
    rig.sleep();
    let again: Vec<u32> = rig.sent_brief().iter().map(|p| p.1).collect();
    assert_eq!(again, [psn(0), psn(1), psn(2)]);
    rig.ack(psn(2));
    assert_eq!(rig.send_done(), [(1, Status::Success)]);
}

/// Posts an RDMA READ of six packets less a byte, and a SEND.
fn read_six(choice: Choice) -> (Rig, Vec<u8>) {
    let mut rig = Rig::new(choice);
    let len = 6 * MTU - 1;
    let sge = rig.sge(5000, len);
    rig.qp
        .post_send(&SendRequest {
            wr_id: 1,
            op: SendOp::Read(Rig::remote()),
            payload: Payload::Sges(&[sge]),
            signaled: true,
            fence: false,
            solicited: false,
        })
        .unwrap();
    rig.post(2, SendOp::Send, 10);
    let sent = rig.sent_brief();
    assert_eq!(
        sent,
        [
            (Opcode::ReadRequest, psn(0), false),
            (Opcode::SendOnly, psn(6), true)
        ]
    );
    (rig, (0..len).map(|i| (i * 3) as u8).collect())
}

/// The peer sends packet `n` of that READ's response.
fn respond(rig: &mut Rig, data: &[u8], n: u32) {
    let opcode = match n {
        0 => Opcode::ReadResponseFirst,
        5 => Opcode::ReadResponseLast,
        _ => Opcode::ReadResponseMiddle,
    };
    let from = n as usize * MTU;
    rig.take(&Packet {
        aeth: opcode.has_aeth().then_some(Aeth {
            syndrome: ACK,
            msn: 1,
        }),
        payload: &data[from..data.len().min(from + MTU)],
        ..Packet::new(Bth::new(opcode, QPN, psn(n)))
    });
}

/// The one request that is sent now: first packet and length.
fn asked(rig: &mut Rig) -> (u32, u32) {
    let sent = rig.sent();
    assert_eq!(sent.len(), 1);
    let packet = Packet::parse(&sent[0]).unwrap();
    let reth = packet.reth.unwrap();
    let n = packet.bth.psn.wrapping_sub(SQ_PSN) & 0xff_ffff;
    assert_eq!(reth.va, Rig::remote().va + u64::from(n) * MTU as u64);
    assert_eq!(reth.rkey, Rig::remote().rkey);
    (n, reth.len)
}

#[test]
fn a_read_is_placed_by_psn_and_its_gap_is_asked_for_alone() {
    let (mut rig, data) = read_six(OURS);
    for n in [0, 1, 4, 5] {
        respond(&mut rig, &data, n);
    }
    rig.ack(psn(6));
    assert_eq!(rig.send_done(), [], "in order");
    assert_eq!(asked(&mut rig), (2, 2 * MTU as u32));
    respond(&mut rig, &data, 3);
    respond(&mut rig, &data, 2);
    let ok = Status::Success;
    assert_eq!(rig.send_done(), [(1, ok), (2, ok)]);
    assert_eq!(rig.bytes(5000, data.len()), data);
    respond(&mut rig, &data, 2);
    assert_eq!(rig.qp.counters().stale_answers, 1);
}

/// `rdma_rxe` answers nothing before the place that was last asked for again.
#[test]
fn anybody_is_asked_from_the_first_gap_to_the_end() {
    let (mut rig, data) = read_six(ANYBODY);
    for n in [0, 2, 3] {
        respond(&mut rig, &data, n);
    }
    rig.ack(psn(6));
    let rest = |n: u32| data.len() as u32 - n * MTU as u32;
    assert_eq!(asked(&mut rig), (1, rest(1)));
    // The first gap stays, although the last packet comes.
    respond(&mut rig, &data, 5);
    rig.sleep();
    assert_eq!(asked(&mut rig), (1, rest(1)));
    for n in [1, 2, 3, 4] {
        respond(&mut rig, &data, n);
    }
    let ok = Status::Success;
    assert_eq!(rig.send_done(), [(1, ok), (2, ok)]);
    assert_eq!(rig.bytes(5000, data.len()), data);
}

/// An ACK says nothing of an RDMA READ's data, even with one of its numbers: the
/// READ is asked for again, and complete when all of it has come.
#[test]
fn no_ack_completes_a_read() {
    for choice in [ANYBODY, OURS] {
        for acked in [3, 5, 6] {
            let (mut rig, data) = read_six(choice);
            rig.ack(psn(acked));
            assert_eq!(rig.send_done(), [], "{acked}");
            rig.sleep();
            assert_eq!(asked(&mut rig).0, 0, "{acked}");
            for n in 0..6 {
                assert_eq!(rig.send_done(), [], "{acked} {n}");
                respond(&mut rig, &data, n);
            }
            rig.ack(psn(6));
            let ok = Status::Success;
            assert_eq!(rig.send_done(), [(1, ok), (2, ok)], "{acked}");
            assert_eq!(rig.bytes(5000, data.len()), data);
        }
    }
}

#[test]
fn a_response_of_the_wrong_length_is_a_bad_response() {
    let mut rig = Rig::new(ANYBODY);
    rig.post(1, SendOp::Read(Rig::remote()), 2 * MTU);
    rig.sent();
    rig.take(&Packet {
        payload: &[0; MTU - 4],
        ..Packet::new(Bth::new(Opcode::ReadResponseMiddle, QPN, psn(0)))
    });
    assert_eq!(rig.send_done(), [(1, Status::BadResponse)]);
}

#[test]
fn a_response_to_no_read_touches_nothing() {
    let mut rig = Rig::new(ANYBODY);
    rig.post(1, SendOp::Send, MTU);
    rig.sent();
    let before = rig.bytes(0, LEN);
    for n in 0..3 {
        rig.take(&Packet {
            payload: &[0xee; MTU],
            ..Packet::new(Bth::new(Opcode::ReadResponseMiddle, QPN, psn(n)))
        });
    }
    assert_eq!(rig.qp.state(), QpState::Rts);
    assert_eq!(rig.bytes(0, LEN), before);
}

/// 300 packets of response never come all at once.
#[test]
fn a_long_read_goes_out_in_parts() {
    let mut rig = Rig::new(ANYBODY);
    rig.post(1, SendOp::Read(Rig::remote()), 300 * MTU);
    let lens = |rig: &mut Rig| -> Vec<u32> {
        let len = |b: &Vec<u8>| Packet::parse(b).unwrap().reth.unwrap().len / MTU as u32;
        rig.sent().iter().map(len).collect()
    };
    assert_eq!(lens(&mut rig), [32, 32], "two at a time, 64 packets");
    for n in 0..32 {
        rig.take(&Packet {
            payload: &[1; MTU],
            ..Packet::new(Bth::new(Opcode::ReadResponseMiddle, QPN, psn(n)))
        });
    }
    assert_eq!(lens(&mut rig), [32]);
}

#[test]
fn a_fence_waits_for_reads() {
    let mut rig = Rig::new(ANYBODY);
    rig.post(1, SendOp::Read(Rig::remote()), 10);
    rig.qp
        .post_send(&SendRequest {
            wr_id: 2,
            op: SendOp::Send,
            payload: Payload::Inline(b"after"),
            signaled: true,
            fence: true,
            solicited: false,
        })
        .unwrap();
    assert_eq!(rig.sent_brief().len(), 1);
    rig.take(&Packet {
        aeth: Some(Aeth {
            syndrome: ACK,
            msn: 1,
        }),
        payload: &[9; 10],
        ..Packet::new(Bth::new(Opcode::ReadResponseOnly, QPN, psn(0)))
    });
    assert_eq!(rig.sent_brief(), [(Opcode::SendOnly, psn(1), true)]);
}

#[test]
fn inline_bytes_are_copied_when_posted() {
    fn request(data: &[u8]) -> SendRequest<'_> {
        SendRequest {
            wr_id: 1,
            op: SendOp::Send,
            payload: Payload::Inline(data),
            signaled: true,
            fence: false,
            solicited: false,
        }
    }
    let mut rig = Rig::new(ANYBODY);
    // So often that the ring of inline bytes turns.
    for round in 0..50u8 {
        let mut data = [round; 60];
        rig.qp.post_send(&request(&data)).unwrap();
        data.fill(0);
        rig.qp.post_send(&request(&data[..13])).unwrap();
        let sent = rig.sent();
        assert_eq!(Packet::parse(&sent[0]).unwrap().payload, [round; 60]);
        assert_eq!(Packet::parse(&sent[1]).unwrap().payload, [0; 13]);
        // The second one stays until the next round.
        rig.ack(psn(2 * u32::from(round)));
    }
    assert_eq!(
        rig.qp.post_send(&request(&[0; 65])),
        Err(PostError::InlineTooLong(65))
    );
}

#[test]
fn a_wrong_key_fails_when_its_turn_comes() {
    let mut rig = Rig::new(ANYBODY);
    rig.post(1, SendOp::Send, 10);
    let bad = Sge {
        lkey: 1,
        ..rig.sge(0, 10)
    };
    rig.qp
        .post_send(&SendRequest {
            wr_id: 2,
            op: SendOp::Send,
            payload: Payload::Sges(&[bad]),
            signaled: false,
            fence: false,
            solicited: false,
        })
        .unwrap();
    assert_eq!(rig.sent_brief(), [(Opcode::SendOnly, psn(0), true)]);
    assert_eq!(rig.send_done(), []);
    rig.ack(psn(0));
    rig.sent();
    let expected = [(1, Status::Success), (2, Status::LocalProtection)];
    assert_eq!(rig.send_done(), expected);
}

/// The packet that cannot be filled goes to no queue pair.
#[test]
fn memory_withdrawn_under_way_fails_the_request() {
    let mut rig = Rig::new(ANYBODY);
    rig.post(1, SendOp::Send, 2 * MTU);
    rig.sent();
    rig.table.deregister(rig.region.lkey()).unwrap();
    rig.answer(psn(0), nak(NakCode::SequenceError));
    let sent = rig.sent();
    assert_eq!(sent.len(), 1);
    let packet = Packet::parse(&sent[0]).unwrap();
    assert_eq!(packet.bth.dest_qpn, 0);
    assert!(packet.payload.iter().all(|b| *b == 0));
    assert_eq!(rig.send_done(), [(1, Status::LocalProtection)]);
}

#[test]
fn draining_finishes_what_was_begun() {
    let mut rig = Rig::new(ANYBODY);
    rig.post(1, SendOp::Send, 100 * MTU);
    rig.post(2, SendOp::Send, 10);
    assert_eq!(rig.sent().len(), 64);
    rig.qp.modify(&Modify::Sqd).unwrap();
    rig.ack(psn(63));
    assert_eq!(rig.sent().len(), 36);
    assert_eq!(rig.qp.poll_event(), None);
    rig.ack(psn(99));
    assert_eq!(rig.sent_brief(), []);
    assert_eq!(rig.qp.poll_event(), Some(QpEvent::Drained));
    rig.qp.modify(&Modify::Resume).unwrap();
    assert_eq!(rig.sent_brief(), [(Opcode::SendOnly, psn(100), true)]);
}

#[test]
fn a_probe_asks_and_completes_nothing() {
    let mut rig = Rig::new(ANYBODY);
    rig.qp.probe();
    rig.qp.probe();
    assert_eq!(rig.sent_brief(), [(Opcode::WriteOnly, psn(0), true)]);
    rig.ack(psn(0));
    assert_eq!(rig.send_done(), []);
    assert_eq!(rig.qp.poll_timeout(), None);
}

#[test]
fn what_is_not_taken() {
    let mut rig = Rig::new(ANYBODY);
    let post = |rig: &mut Rig, op, payload: Payload<'_>| {
        rig.qp.post_send(&SendRequest {
            wr_id: 1,
            op,
            payload,
            signaled: true,
            fence: false,
            solicited: false,
        })
    };
    let read = SendOp::Read(Rig::remote());
    assert_eq!(
        post(&mut rig, read, Payload::Inline(&[])),
        Err(PostError::InlineRead)
    );
    let many = [Sge::default(); MAX_SGE + 1];
    assert_eq!(
        post(&mut rig, SendOp::Send, Payload::Sges(&many)),
        Err(PostError::TooManySges(MAX_SGE + 1))
    );
    for _ in 0..200 {
        post(&mut rig, SendOp::Send, Payload::Inline(&[])).unwrap();
    }
    assert_eq!(
        post(&mut rig, SendOp::Send, Payload::Inline(&[])),
        Err(PostError::QueueFull)
    );
    rig.qp.modify(&Modify::Reset).unwrap();
    assert_eq!(
        post(&mut rig, SendOp::Send, Payload::Inline(&[])),
        Err(PostError::State(QpState::Reset))
    );
    assert_eq!(rig.send_done(), [], "a reset completes nothing");
}

/// A request waits for more to go along with only while an answer is sure to come.
#[test]
fn what_may_wait_for_more() {
    let mut rig = Rig::new(OURS);
    rig.post(1, SendOp::Send, 8);
    assert!(!rig.qp.gathers(), "nothing is under way");
    rig.sent();
    assert!(rig.qp.gathers(), "an answer will come");
    for wr_id in 2..17 {
        rig.post(wr_id, SendOp::Send, 8);
        assert!(rig.qp.gathers(), "request {wr_id}");
    }
    rig.post(17, SendOp::Send, 8);
    assert!(!rig.qp.gathers(), "enough for a datagram");
    rig.sent();
    rig.post(18, SendOp::Read(Rig::remote()), 8);
    assert!(!rig.qp.gathers(), "an RDMA READ is waited for");
    rig.sent();
    rig.answer(psn(0), Syndrome::Rnr(1));
    rig.post(19, SendOp::Send, 8);
    assert!(!rig.qp.gathers(), "the peer is waited for");
}

#[test]
fn what_waits_is_little() {
    let mut rig = Rig::new(OURS);
    rig.post(1, SendOp::Send, 8);
    rig.sent();
    for wr_id in 2..6 {
        assert!(rig.qp.gathers(), "request {wr_id}");
        rig.post(wr_id, SendOp::Send, 4096);
    }
    assert!(!rig.qp.gathers(), "16 KiB wait");
    rig.sent();
    rig.ack(psn(40));
    rig.sent();
    rig.post(9, SendOp::Send, 8);
    assert!(rig.qp.gathers(), "the last 24 packets are under way");
    rig.ack(psn(64));
    assert!(!rig.qp.gathers(), "all is answered");
}
