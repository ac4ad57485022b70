//! Sleeping in an epoll set of one's own, on a real fabric.

mod support;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use support::{End, SOON, Shape, pair};
use verbs_shim::{CompletionBatch, SendFlags, Sleeper, Verb, Woken};

fn sleeper(end: &End) -> Sleeper {
    let other = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    end.parts.cq_channel.sleeper(other).unwrap()
}

fn set_of(sleeper: &Sleeper) -> OwnedFd {
    let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    for (n, fd) in sleeper.fds().into_iter().enumerate() {
        let data = epoll::EventData::new_u64(n as u64);
        epoll::add(&set, fd, data, epoll::EventFlags::IN).unwrap();
    }
    set
}

fn sleep(set: &OwnedFd, limit: Duration) -> bool {
    let mut found = Vec::with_capacity(4);
    let limit = Timespec::try_from(limit).unwrap();
    let buffer = rustix::buffer::spare_capacity(&mut found);
    epoll::wait(set, buffer, Some(&limit)).unwrap() > 0
}

fn send(end: &End, n: u32) {
    let flags = SendFlags::SIGNALED;
    end.qp
        .post_inline(n, Verb::SendWithImm(n), b"hello", flags)
        .unwrap();
}

/// Sleeps until a completion is there; `post` is done once it is ready to sleep.
fn next(end: &End, sleeper: &Sleeper, set: &OwnedFd, post: impl FnOnce()) -> (bool, Option<u32>) {
    let mut batch = CompletionBatch::new();
    let mut post = Some(post);
    let until = Instant::now() + SOON;
    loop {
        end.parts.cq.request_notify().unwrap();
        let mut found = end.parts.cq.poll(&mut batch).unwrap();
        if found == 0 {
            let may_sleep = sleeper.before();
            // An announcement of what was polled before it may still be there.
            if may_sleep && let Some(post) = post.take() {
                post();
            }
            let limit = if may_sleep { SOON } else { Duration::ZERO };
            let woken = sleep(set, limit);
            sleeper.after().unwrap();
            assert!(woken || !may_sleep, "nothing woke it");
            found = end.parts.cq.poll(&mut batch).unwrap();
        }
        assert!(found < 2, "{batch:?}");
        if let Some(completion) = batch.drain().next() {
            let claim = end.qp.claim(&completion).unwrap();
            if completion.is_recv() {
                let buffer = claim.into_buffer().unwrap();
                assert_eq!(&buffer[..], b"hello");
                end.qp.post_recv(0, buffer).unwrap();
            }
            return (completion.is_recv(), completion.imm());
        }
        assert!(Instant::now() < until, "it is woken for nothing");
    }
}

/// One thread, one epoll set: nobody else reads the sockets of a fabric in user space meanwhile.
#[test]
#[ignore = "needs an RDMA fabric (ci/rxe, ci/soft)"]
fn messages_wake_an_epoll_set_of_ones_own() {
    let (client, server) = pair(Shape::default());
    let sleeper = sleeper(&server);
    let set = set_of(&sleeper);
    for n in 0..100 {
        let got = next(&server, &sleeper, &set, || send(&client, n));
        assert_eq!(got, (true, Some(n)));
        let sent = client.parts.completion();
        assert!(sent.is_success() && client.qp.claim(&sent).is_some());
    }
}

/// Of two that sleep at once, one in an epoll set, each is woken by what is its own, whoever of
/// them works the sockets.
#[test]
#[ignore = "needs an RDMA fabric (ci/rxe, ci/soft)"]
fn it_shares_the_sockets_with_those_who_sleep_otherwise() {
    let (client, server) = pair(Shape::default());
    let (ours, theirs) = (sleeper(&server), sleeper(&client));
    let set = set_of(&ours);
    for n in 0..50 {
        client.parts.cq.request_notify().unwrap();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let until = Instant::now() + SOON;
                while !matches!(theirs.sleep(Some(SOON)), Woken::Announced) {
                    assert!(Instant::now() < until, "nothing woke the other");
                }
            });
            let got = next(&server, &ours, &set, || send(&client, n));
            assert_eq!(got, (true, Some(n)));
            // Its send has completed, or does so by our poll.
            other.join().unwrap();
        });
        let sent = client.parts.completion();
        assert!(sent.is_success() && client.qp.claim(&sent).is_some());
    }
}
