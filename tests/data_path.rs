//! The data path by itself: `DataPath`, `LaneHandle`, disconnect, keepalive.

use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use san_provider::{
    AcceptOptions, ConnectOptions, DataPath, Decision, Operation, ProviderConfig, Readiness,
    ReadySink, Receipt, Received, Socket, TransferError,
};
use san_tests::san::{self, San};
use san_tests::time::{STEP, bounded, eventually, within};

fn pair(san: &San) -> ((Socket, DataPath), (Socket, DataPath)) {
    let (connected, accepted) = san.pair();
    let with_path = |socket: Socket| {
        let data = socket.data_path().expect("connected");
        (socket, data)
    };
    (with_path(connected), with_path(accepted))
}

/// Sends, waiting for credits.
fn send(data: &DataPath, bytes: &[u8], kind: u8) {
    eventually("a message may go out", STEP, || {
        match data.try_send(bytes, kind) {
            Ok(()) => true,
            Err(TransferError::WouldBlock) => false,
            Err(error) => panic!("{error}"),
        }
    });
}

fn read(data: &DataPath, buffer: &mut [u8]) -> Result<Received, TransferError> {
    data.receive_into(&mut [IoSliceMut::new(buffer)], STEP)
}

#[test]
fn a_read_takes_what_is_there_and_fits() {
    bounded(|| {
        let san = San::start();
        let ((_a, from), (_b, to)) = pair(&san);
        for part in ["one", "two", "three"] {
            send(&from, part.as_bytes(), 0);
        }
        send(&from, b"x", 7);
        // All have arrived: the one behind them would not be here otherwise.
        let mut all = Vec::new();
        while all.len() < 11 {
            let (mut first, mut second) = ([0; 4], [0; 3]);
            let mut buffers = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
            let received = to.receive_into(&mut buffers, STEP).expect("bytes");
            assert_eq!(received.kind, 0);
            assert!(received.bytes > 0);
            all.extend_from_slice(&[&first[..], &second].concat()[..received.bytes]);
            assert_eq!(received.whole, [3, 6, 11].contains(&all.len()));
        }
        assert_eq!(all, b"onetwothree");
        // Another kind is never joined with them.
        let mut buffer = [0; 100];
        let received = read(&to, &mut buffer).expect("the last one");
        assert_eq!(
            (received.bytes, received.kind, received.whole),
            (1, 7, true)
        );
        let none = to.receive_into(&mut [IoSliceMut::new(&mut buffer)], Duration::ZERO);
        assert!(matches!(none, Err(TransferError::WouldBlock)), "{none:?}");
    });
}

#[test]
fn a_message_is_gathered_from_several_places() {
    bounded(|| {
        let san = San::start();
        let ((_a, from), (_b, to)) = pair(&san);
        for long in [0, 3000] {
            let long = vec![7; long];
            let parts = [
                IoSlice::new(b"head"),
                IoSlice::new(&long),
                IoSlice::new(b"tail"),
            ];
            from.try_send_gathered(&parts, 3).expect("sent");
            let message = to.receive_within(STEP).expect("received");
            assert_eq!(message.kind(), 3);
            assert_eq!(&*message, [&b"head"[..], &long, b"tail"].concat());
        }
        let much = vec![0; 4000];
        let parts = [IoSlice::new(&much), IoSlice::new(&much)];
        let error = from.try_send_gathered(&parts, 0).expect_err("too long");
        assert!(
            matches!(error, TransferError::MessageTooLong { length: 8000, .. }),
            "{error}"
        );
    });
}

#[test]
fn what_the_transport_has_is_told() {
    bounded(|| {
        let san = San::start();
        let ((_a, from), (_b, to)) = pair(&san);
        // More than inline, so that every one of them makes a completion.
        for _ in 0..2 {
            send(&from, &[1; 500], 0);
        }
        to.receive_within(STEP).expect("received");
        to.receive_within(STEP).expect("received");
        eventually("both are acknowledged", STEP, || from.unacknowledged() == 0);
    });
}

#[test]
fn after_disconnect_what_had_arrived_is_received() {
    bounded(|| {
        let san = San::start();
        let ((a, from), (b, to)) = pair(&san);
        send(&from, b"one", 0);
        send(&from, b"two", 0);
        // Both have arrived, and nobody has asked for them.
        eventually("both wait", STEP, || {
            let _ = to.unacknowledged();
            b.data_path().expect("connected").lane().poll();
            b.stats()
                .expect("open")
                .connection
                .is_some_and(|c| c.messages_waiting == 2)
        });
        b.disconnect().expect("connected");
        b.disconnect().expect("again is no error");
        let mut buffer = [0; 100];
        let received = read(&to, &mut buffer).expect("what had arrived");
        assert_eq!(&buffer[..received.bytes], b"onetwo");
        let error = read(&to, &mut buffer).expect_err("over");
        assert!(matches!(error, TransferError::Reset), "{error}");
        assert!(matches!(to.try_send(b"x", 0), Err(TransferError::Reset)));
        // The peer hears of it.
        let error = read(&from, &mut buffer).expect_err("over");
        assert!(matches!(error, TransferError::Reset), "{error}");
        drop((a, b));
    });
}

#[test]
fn disconnect_needs_a_connection() {
    bounded(|| {
        let san = San::start();
        let socket = san.socket(san_tests::net::addr_a());
        assert!(matches!(
            socket.disconnect(),
            Err(TransferError::NotConnected)
        ));
        socket.close().expect("open");
        assert!(matches!(socket.disconnect(), Err(TransferError::NotSocket)));
    });
}

#[test]
fn after_close_every_call_says_so_from_every_thread() {
    bounded(|| {
        let san = San::start();
        let ((a, data), (_b, _to)) = pair(&san);
        let waiting = {
            let data = data.clone();
            thread::spawn(move || read(&data, &mut [0; 10]))
        };
        a.close().expect("open");
        let error = waiting.join().expect("no panic").expect_err("closed");
        assert!(matches!(error, TransferError::NotSocket), "{error}");
        let calls = [
            data.try_send(b"x", 0).expect_err("closed"),
            data.try_receive().map(drop).expect_err("closed"),
            data.try_send_gathered(&[IoSlice::new(b"x"), IoSlice::new(b"y")], 0)
                .expect_err("closed"),
            read(&data, &mut [0; 10]).map(drop).expect_err("closed"),
        ];
        for error in calls {
            assert!(matches!(error, TransferError::NotSocket), "{error}");
        }
        assert_eq!(data.unacknowledged(), 0);
        let mut bytes = [0; 10];
        let nothing = data.receive_unless(
            &mut [IoSliceMut::new(&mut bytes)],
            Duration::ZERO,
            &AtomicBool::new(false),
        );
        assert_eq!(nothing, Receipt::Over);
        let error = data.explain(nothing).expect_err("closed");
        assert!(matches!(error, TransferError::NotSocket), "{error}");
        assert!(a.data_path().is_err());
    });
}

#[derive(Default)]
struct Sink {
    readable: AtomicUsize,
    writable: AtomicUsize,
    control: Mutex<Vec<(u64, u8, Vec<u8>)>>,
    ended: Mutex<Vec<Operation>>,
}

impl ReadySink for Sink {
    fn ready(&self, token: u64, readiness: Readiness) {
        assert_eq!(token, 42);
        match readiness {
            Readiness::Readable => &self.readable,
            Readiness::Writable => &self.writable,
        }
        .fetch_add(1, Ordering::SeqCst);
    }

    fn control(&self, token: u64, kind: u8, bytes: &[u8]) {
        let mut control = self.control.lock().expect("no panic");
        control.push((token, kind, bytes.to_vec()));
    }

    fn ended(&self, _: u64, operation: Operation, result: Result<usize, TransferError>) {
        assert!(result.is_ok(), "{result:?}");
        self.ended.lock().expect("no panic").push(operation);
    }
}

#[test]
fn a_sink_hears_of_each_change_once_and_of_control_messages_at_once() {
    bounded(|| {
        let san = San::start();
        let ((_a, from), (_b, to)) = pair(&san);
        let sink = Arc::new(Sink::default());
        to.set_sink(Some((Arc::clone(&sink) as Arc<dyn ReadySink>, 42)));
        let readable = || sink.readable.load(Ordering::SeqCst);
        // The accepting end may not have heard yet that the connection stands.
        eventually("it is writable from the start", STEP, || {
            sink.writable.load(Ordering::SeqCst) == 1
        });
        assert_eq!(readable(), 0);
        send(&from, b"first", 0);
        eventually("the sink hears of it", STEP, || readable() == 1);
        send(&from, b"second", 0);
        // Past those that nobody reads.
        send(&from, b"now", 16);
        eventually("control comes", STEP, || {
            *sink.control.lock().expect("no panic") == [(42, 16, b"now".to_vec())]
        });
        assert_eq!(readable(), 1, "it was readable all the time");
        let mut buffer = [0; 100];
        assert_eq!(read(&to, &mut buffer).expect("both").bytes, 11);
        send(&from, b"third", 0);
        eventually("the sink hears again", STEP, || readable() == 2);
        to.set_sink(None);
        read(&to, &mut buffer).expect("the third");
        send(&from, b"fourth", 0);
        read(&to, &mut buffer).expect("the fourth");
        assert_eq!(readable(), 2);
        // Without a sink, control messages are messages like others.
        send(&from, b"control", 16);
        let received = read(&to, &mut buffer).expect("the control message");
        assert_eq!((received.bytes, received.kind), (7, 16));
    });
}

#[test]
fn a_sink_hears_of_what_comes_behind_others() {
    bounded(|| {
        let san = San::start();
        let ((_a, from), (b, to)) = pair(&san);
        let sink = Arc::new(Sink::default());
        to.set_sink(Some((Arc::clone(&sink) as Arc<dyn ReadySink>, 42)));
        let readable = || sink.readable.load(Ordering::SeqCst);
        send(&from, b"first", 0);
        eventually("the sink hears of it", STEP, || readable() == 1);
        send(&from, b"another kind", 1);
        eventually("and of another kind", STEP, || readable() == 2);
        let inbox = to.inbox();
        assert_eq!(
            (inbox.first, inbox.last, inbox.is_over),
            (Some(0), Some(1), false)
        );
        to.tell_each(true);
        send(&from, b"plain", 0);
        eventually("and of each", STEP, || readable() == 3);
        b.disconnect().expect("connected");
        eventually("and of the end", STEP, || readable() == 4);
        assert!(to.inbox().is_over);
    });
}

#[test]
fn control_gets_through_a_full_inbox() {
    bounded(|| {
        let san = San::start();
        let ((_a, from), (_b, to)) = pair(&san);
        let (here, there) = (Arc::new(Sink::default()), Arc::new(Sink::default()));
        from.set_sink(Some((Arc::clone(&here) as Arc<dyn ReadySink>, 42)));
        to.set_sink(Some((Arc::clone(&there) as Arc<dyn ReadySink>, 42)));
        // The window grows as it fills; nobody reads.
        let mut filled = 0;
        while here.writable.load(Ordering::SeqCst) < 100 && filled < 1000 {
            match from.try_send(b"plain", 0) {
                Ok(()) => filled = 0,
                Err(TransferError::WouldBlock) => {
                    filled += 1;
                    thread::sleep(Duration::from_micros(300));
                }
                Err(error) => panic!("{error}"),
            }
        }
        for n in 0..200_u32 {
            send(&from, &n.to_be_bytes(), 16);
        }
        eventually("all of them came", STEP, || {
            there.control.lock().expect("no panic").len() == 200
        });
    });
}

#[test]
fn a_message_that_is_told_has_arrived_with_all_before_it() {
    bounded(|| {
        let san = San::start();
        let ((_a, from), (_b, to)) = pair(&san);
        let sink = Arc::new(Sink::default());
        from.set_sink(Some((Arc::clone(&sink) as Arc<dyn ReadySink>, 42)));
        from.try_send_filled(3000, 0, |place| place.fill(9))
            .expect("sent");
        // The window is of two at first, and the last credit is for control.
        let mut told = None;
        eventually("it may go out", STEP, || {
            told = from.try_send_told(1).ok();
            told.is_some()
        });
        eventually("it has arrived", STEP, || {
            sink.ended
                .lock()
                .expect("no panic")
                .contains(&told.expect("sent"))
        });
        assert_eq!(from.unacknowledged(), 0);
        let mut buffer = [0; 4096];
        assert_eq!(read(&to, &mut buffer).expect("the first").bytes, 3000);
        assert!(buffer[..3000].iter().all(|byte| *byte == 9));
        assert_eq!(read(&to, &mut buffer).expect("the second").kind, 1);
        assert!(to.peer().reads);
        assert_eq!(to.peer().layer, 0);
    });
}

#[test]
fn a_wait_can_be_called_off() {
    bounded(|| {
        let san = San::start();
        let ((_a, data), (_b, _to)) = pair(&san);
        let flag = AtomicBool::new(false);
        // One of them polls, the others wait for it.
        thread::scope(|scope| {
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let mut buffer = [0; 10];
                        let buffers = &mut [IoSliceMut::new(&mut buffer)];
                        data.receive_into_unless(buffers, STEP, &flag)
                    })
                })
                .collect();
            let waits = scope.spawn(|| data.wait_for(&flag, STEP));
            thread::sleep(Duration::from_millis(30));
            flag.store(true, Ordering::Release);
            data.wake();
            for reader in readers {
                let called_off = reader.join().expect("no panic");
                assert!(matches!(called_off, Err(TransferError::WouldBlock)));
            }
            assert!(waits.join().expect("no panic"));
        });
    });
}

#[test]
fn control_messages_do_not_run_out_of_receives() {
    bounded(|| {
        let san = San::start();
        let ((_a, from), (_b, to)) = pair(&san);
        let sink = Arc::new(Sink::default());
        to.set_sink(Some((Arc::clone(&sink) as Arc<dyn ReadySink>, 42)));
        send(&from, b"nobody reads this", 0);
        for n in 0..500_u32 {
            send(&from, &n.to_be_bytes(), 200);
        }
        eventually("all came", STEP, || {
            sink.control.lock().expect("no panic").len() == 500
        });
        let control = sink.control.lock().expect("no panic");
        let numbers = control.iter().map(|(_, _, bytes)| bytes.clone());
        assert!(numbers.eq((0..500_u32).map(|n| n.to_be_bytes().to_vec())));
    });
}

#[test]
fn connections_with_one_hint_share_a_lane_and_others_do_not() {
    bounded(|| {
        let san = San::start();
        let listener = san.listen_a(8);
        let lanes: Vec<_> = [Some(1), Some(2), Some(1), None]
            .into_iter()
            .map(|hint| {
                let socket = san.socket(san_tests::net::addr_b());
                let connector = san::Connector::new(socket);
                let options = ConnectOptions {
                    lane: hint,
                    ..ConnectOptions::default()
                };
                let error = connector
                    .socket
                    .connect(listener.addr, options)
                    .expect_err("it goes on");
                assert!(error.is_in_progress(), "{error}");
                listener.wait_event();
                let decision = match hint {
                    Some(hint) => Decision::AcceptWith(AcceptOptions::default().lane(hint + 10)),
                    None => Decision::Accept,
                };
                let accepted = listener.answer(decision).expect("accepted").socket;
                connector.result().expect("connected");
                let lanes = [&connector.socket, &accepted]
                    .map(|socket| socket.data_path().expect("connected").lane());
                (lanes, connector, accepted)
            })
            .collect();
        let same = |(a, b): (usize, usize), end: usize| lanes[a].0[end].same_as(&lanes[b].0[end]);
        for end in [0, 1] {
            assert!(same((0, 2), end));
            assert!(!same((0, 1), end));
            assert!(!same((0, 3), end));
        }
    });
}

/// An event loop of an application's own: no other thread takes part.
#[test]
fn an_event_loop_sleeps_on_a_lane() {
    bounded(|| {
        let san = San::start();
        let ((_a, from), (_b, to)) = pair(&san);
        let sink = Arc::new(Sink::default());
        to.set_polled_sink(Some((Arc::clone(&sink) as Arc<dyn ReadySink>, 42)));
        let lane = to.lane();
        let sender = thread::spawn(move || {
            for n in 0..200_u32 {
                send(&from, &n.to_be_bytes(), 0);
                if n % 50 == 0 {
                    // The loop gets to sleep.
                    thread::sleep(Duration::from_millis(20));
                }
            }
            from
        });
        let mut numbers = Vec::new();
        let mut sleeps = 0;
        while numbers.len() < 200 {
            lane.poll();
            let mut buffer = [0; 64];
            match to.receive_into(&mut [IoSliceMut::new(&mut buffer)], Duration::ZERO) {
                Ok(received) => {
                    let bytes = buffer[..received.bytes].chunks(4);
                    numbers.extend(bytes.map(|n| u32::from_be_bytes(n.try_into().expect("four"))));
                    continue;
                }
                Err(TransferError::WouldBlock) => {}
                Err(error) => panic!("{error}"),
            }
            if lane.arm() {
                assert!(lane.is_armed());
                let mut fds: Vec<_> = lane
                    .fds()
                    .into_iter()
                    .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                    .collect();
                let timeout = Timespec {
                    tv_sec: 10,
                    tv_nsec: 0,
                };
                let woken = rustix::event::poll(&mut fds, Some(&timeout));
                lane.disarm();
                sleeps += 1;
                assert!(woken.is_ok_and(|n| n > 0), "nothing woke the loop");
            }
        }
        assert!(numbers.into_iter().eq(0..200));
        assert!(sleeps > 0);
        drop(sender.join().expect("no panic"));
    });
}

#[test]
fn idle_peers_that_are_there_stay() {
    bounded(|| {
        let san = San::start_with(ProviderConfig {
            keepalive: Duration::from_millis(300),
            ..ProviderConfig::default()
        });
        let ((_a, from), (_b, to)) = pair(&san);
        // Some twenty probes, and nobody hears of them.
        thread::sleep(Duration::from_secs(2));
        assert_eq!(from.unacknowledged(), 0);
        send(&from, b"still there", 0);
        assert_eq!(&*to.receive_within(STEP).expect("received"), b"still there");
    });
}

// A connection keeps the buffers of what was read, to post them again. Where receives that closed connections left take
// their place, it must not go on keeping them: new connections need them.
#[test]
fn receives_that_are_left_over_keep_no_buffers_from_new_connections() {
    within(Duration::from_secs(120), || {
        let (here, there) = (San::start(), San::start());
        let open = || here.pair_with(&there);
        let talking: Vec<_> = (0..6).map(|_| open()).collect();
        let brief: Vec<_> = (0..40).map(|_| open()).collect();
        for (one, other) in brief {
            one.close().expect("open");
            other.close().expect("open");
        }
        for (from, to) in &talking {
            let (from, to) = (
                from.data_path().expect("open"),
                to.data_path().expect("open"),
            );
            for n in 0..4 {
                send(&from, &[n], 0);
                // It waits here before it is asked for.
                eventually("the message is here", STEP, || {
                    to.lane().poll();
                    to.inbox().first.is_some()
                });
                let mut byte = [0];
                assert_eq!(read(&to, &mut byte).expect("a message").bytes, 1);
                assert_eq!(byte, [n]);
            }
        }
        let more: Vec<_> = (0..80).map(|_| open()).collect();
        assert_eq!(more.len(), 80);
    });
}
