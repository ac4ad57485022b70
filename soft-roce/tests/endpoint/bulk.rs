//! Data arrives whole and in order, whichever way it is moved and waited for.

use std::time::{Duration, Instant};

use soft_roce::memory::HeapMemory;
use soft_roce::rc::{
    Completion, Notify, Payload, RecvRequest, Remote, SendOp, SendRequest, Status,
};

use crate::util::{PATIENCE, Pair};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

fn request<'a>(wr_id: u64, op: SendOp, payload: Payload<'a>) -> SendRequest<'a> {
    SendRequest {
        wr_id,
        op,
        payload,
        signaled: true,
        fence: false,
        solicited: false,
    }
}

#[test]
fn writes_and_reads_of_a_megabyte() {
    let pair = Pair::new();
    let (a, b) = (&pair.connection.client, &pair.connection.server);
    const LEN: usize = 1 << 20;
    let ours = pair.client.memory(HeapMemory::from_vec(pattern(LEN)));
    let theirs = pair.server.memory(HeapMemory::new(LEN));
    let back = pair.client.memory(HeapMemory::new(LEN));
    let remote = Remote {
        va: theirs.mr.va(),
        rkey: theirs.mr.rkey(),
    };
    let before = pair.client.endpoint.counters();
    a.qp.post_send(&request(
        1,
        SendOp::Write(remote),
        Payload::Sges(&ours.sge(0, LEN)),
    ))
    .unwrap();
    // The server's thread works: nobody polls there.
    assert_eq!(a.success().wr_id, 1);
    // Of the WRITE alone: how many packets a READ asks with, one a call, is a matter of who runs when.
    let counters = pair.client.endpoint.counters();
    assert!(
        (counters.sent_calls - before.sent_calls) * 3 < counters.sent_packets - before.sent_packets,
        "segmentation offload: {before:?}, {counters:?}"
    );
    assert!(theirs.memory.to_vec() == pattern(LEN));
    a.qp.post_send(&request(
        2,
        SendOp::Read(remote),
        Payload::Sges(&back.sge(0, LEN)),
    ))
    .unwrap();
    let read = a.success();
    assert_eq!((read.wr_id, read.byte_len as usize), (2, LEN));
    assert!(back.memory.to_vec() == pattern(LEN));
    assert_eq!(b.qp.counters().access_denied, 0);
}

#[test]
fn a_stream_of_messages_keeps_its_order() {
    let pair = Pair::new();
    let (a, b) = (&pair.connection.client, &pair.connection.server);
    const LEN: usize = 20_000;
    const COUNT: u64 = 500;
    const SLOTS: u64 = 32;
    let inbox = pair.server.memory(HeapMemory::new(SLOTS as usize * LEN));
    let post = |wr_id: u64| {
        let slot = wr_id % SLOTS * LEN as u64;
        b.qp.post_receive(&RecvRequest {
            wr_id,
            sges: &inbox.sge(slot, LEN),
        })
        .unwrap();
    };
    (0..SLOTS).for_each(post);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..COUNT {
                let data = vec![n as u8; LEN];
                let out = pair.client.memory(HeapMemory::from_vec(data));
                let op = SendOp::SendImm(n as u32);
                a.qp.post_send(&request(n, op, Payload::Sges(&out.sge(0, LEN))))
                    .unwrap();
                assert_eq!(a.success().wr_id, n);
                pair.client.endpoint.deregister(out.mr.lkey()).unwrap();
            }
        });
        for n in 0..COUNT {
            let got = b.success();
            assert_eq!((got.wr_id, got.imm), (n, Some(n as u32)));
            let memory = inbox.memory.to_vec();
            let at = (n % SLOTS) as usize * LEN;
            assert!(memory[at..at + LEN].iter().all(|byte| *byte == n as u8));
            post(n + SLOTS);
        }
    });
}

/// Ping-pong in which both sides sleep: on the channel's descriptor, woken by the
/// endpoint's thread, or in `wait`, working the sockets themselves.
#[test]
fn sleepers_are_woken() {
    for by_wait in [false, true] {
        let pair = Pair::new();
        let (a, b) = (&pair.connection.client, &pair.connection.server);
        let sleep = |side: &crate::util::Side| loop {
            let mut out = [Completion::default()];
            side.cq.request_notify(Notify::Next);
            if side.cq.poll(&mut out).unwrap() == 1 {
                assert_eq!(out[0].status, Status::Success);
                return out[0];
            }
            if by_wait {
                assert!(side.channel.wait(None, PATIENCE).unwrap() > 0);
            } else {
                let fd = rustix::event::PollFd::new(&side.channel, rustix::event::PollFlags::IN);
                let time = rustix::event::Timespec {
                    tv_sec: 20,
                    tv_nsec: 0,
                };
                assert_eq!(rustix::event::poll(&mut [fd], Some(&time)).unwrap(), 1);
                // Now and then the descriptor is readable for nothing.
                let _ = side.channel.consume();
            }
        };
        const ROUNDS: u64 = 200;
        let receive = |side: &crate::util::Side| {
            side.qp
                .post_receive(&RecvRequest {
                    wr_id: 5,
                    sges: &[],
                })
                .unwrap();
        };
        let send = |side: &crate::util::Side| {
            let mut request = request(6, SendOp::Send, Payload::Inline(&[]));
            request.signaled = false;
            side.qp.post_send(&request).unwrap();
        };
        receive(a);
        receive(b);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    assert_eq!(sleep(b).wr_id, 5);
                    receive(b);
                    send(b);
                }
            });
            for _ in 0..ROUNDS {
                send(a);
                assert_eq!(sleep(a).wr_id, 5);
                receive(a);
            }
        });
    }
}

#[test]
fn waiting_has_an_end() {
    let pair = Pair::new();
    let channel = &pair.connection.client.channel;
    let start = Instant::now();
    assert_eq!(channel.wait(None, Duration::from_millis(50)).unwrap(), 0);
    assert!(start.elapsed() >= Duration::from_millis(50));
    // Something else is readable.
    let (other, writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut &writer, b"x").unwrap();
    let fd = std::os::fd::AsFd::as_fd(&other);
    assert_eq!(channel.wait(Some(fd), PATIENCE).unwrap(), 0);
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn a_wrong_key_breaks_that_connection_only() {
    let pair = Pair::new();
    let dst = pair.listener.local_addr().unwrap();
    let other = crate::util::connect(&pair.client, &pair.server, dst);
    let a = &pair.connection.client;
    let ours = pair.client.memory(HeapMemory::new(64));
    let sges = ours.sge(0, 64);
    let theirs = pair.server.memory(HeapMemory::new(64));
    for (wrong, sides) in [
        (
            Remote {
                va: theirs.mr.va(),
                rkey: theirs.mr.rkey() ^ 1,
            },
            a,
        ),
        (
            Remote {
                va: theirs.mr.va() + 1,
                rkey: theirs.mr.rkey(),
            },
            &other.client,
        ),
    ] {
        let write = request(1, SendOp::Write(wrong), Payload::Sges(&sges));
        sides.qp.post_send(&write).unwrap();
        assert_eq!(sides.poll().status, Status::RemoteAccess);
    }
    let third = crate::util::connect(&pair.client, &pair.server, dst);
    let right = Remote {
        va: theirs.mr.va(),
        rkey: theirs.mr.rkey(),
    };
    let write = request(1, SendOp::Write(right), Payload::Sges(&sges));
    third.client.qp.post_send(&write).unwrap();
    third.client.success();
}

/// A request that waits for others to go along with goes out in time, though its
/// user neither polls nor sleeps.
#[test]
fn nobody_polls_and_all_goes_out() {
    let pair = Pair::new();
    let (a, b) = (&pair.connection.client, &pair.connection.server);
    const COUNT: u64 = 200;
    let inbox = pair.server.memory(HeapMemory::new(64));
    for wr_id in 0..COUNT {
        let sges = inbox.sge(0, 64);
        b.qp.post_receive(&RecvRequest { wr_id, sges: &sges })
            .unwrap();
    }
    for _ in 0..COUNT / 10 {
        // The thread stands back while somebody spins.
        let spins_until = Instant::now() + Duration::from_millis(3);
        while Instant::now() < spins_until {
            a.cq.poll(&mut [Completion::default(); 32]).unwrap();
        }
        for wr_id in 0..10 {
            let payload = Payload::Inline(b"in time");
            a.qp.post_send(&request(wr_id, SendOp::Send, payload))
                .unwrap();
        }
        for _ in 0..10 {
            assert_eq!(b.success().byte_len, 7);
        }
    }
}
