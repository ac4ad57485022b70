//! Two CM engines and any sequence of calls and messages, the messages of one
//! delivered to the other, dropped, doubled or spoiled, and strangers' messages
//! in between.
//!
//! Promises: no panic; the number of connections is bounded; what is to be sent
//! is bounded by what came in.

use std::collections::VecDeque;
use std::net::SocketAddr;

use soft_roce::cm::{Accept, Config, ConnKey, Connect, Engine, Event, Extension, Path, Transmit};
use soft_roce::rc::KeySource;
use soft_roce::time::Time;
use soft_roce::wire::cm::RejReason;

use super::input::Input;

const MAX: usize = 8;
const BACKLOG: usize = 3;

struct End {
    engine: Engine,
    outbox: VecDeque<Transmit>,
    conns: Vec<ConnKey>,
    waiting: usize,
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut now = Time(1);
    let mut ends = [End::new(1), End::new(2)];
    for (at, end) in ends.iter_mut().enumerate() {
        let listener = end.engine.listen(address(at, 7000), false, BACKLOG);
        listener.expect("a free port");
    }
    for _ in 0..512 {
        if input.is_empty() {
            break;
        }
        let at = usize::from(input.flag());
        step(&mut ends, at, &mut now, &mut input);
        for end in &mut ends {
            end.collect(now, &mut input);
        }
    }
}

fn address(end: usize, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1 + end as u8], port))
}

fn path(end: usize) -> Path {
    Path {
        local: address(end, 4791),
        remote: address(1 - end, 4791),
    }
}

fn step(ends: &mut [End; 2], at: usize, now: &mut Time, input: &mut Input<'_>) {
    let conn = ends[at].pick(input);
    let engine = &mut ends[at].engine;
    match input.u8() % 16 {
        0 | 1 => {
            let port = if input.u8() == 0 { 7001 } else { 7000 };
            if let Ok(key) = engine.connect(*now, &connect(at, port, input)) {
                ends[at].conns.push(key);
            }
        }
        2 | 3 => {
            let _ = engine.accept(*now, conn, &accept(input));
        }
        4 => {
            let _ = engine.reject(*now, conn, RejReason::CONSUMER_DEFINED, b"no");
        }
        5 | 6 => {
            let _ = engine.ready(conn);
        }
        7 => {
            let _ = engine.disconnect(*now, conn);
        }
        8 => engine.destroy(*now, conn),
        9 => engine.peer_has_sent(conn),
        10 => {
            let timeout = engine.poll_timeout();
            *now = timeout
                .unwrap_or(*now)
                .max(now.plus_nanos(input.u32().into()));
            engine.handle_timeout(*now);
        }
        11 => {
            // A stranger's bytes, or a message that was tampered with.
            let mut mad = ends[at].outbox.front().map_or([0; 256], |t| t.mad);
            for _ in 0..input.u8() % 16 {
                let place = usize::from(input.u8());
                mad[place] = input.u8();
            }
            let from = if input.flag() { path(1 - at) } else { path(at) };
            ends[1 - at].engine.handle(*now, from, &mad);
        }
        12 => {
            let n = usize::from(input.u8());
            let bytes = input.bytes(n);
            engine.handle(*now, path(at), bytes);
        }
        13 => match input.u8() % 3 {
            0 => drop(ends[at].outbox.pop_front()),
            1 => ends[at]
                .outbox
                .rotate_left(usize::from(!ends[at].outbox.is_empty())),
            _ => {
                if let Some(transmit) = ends[at].outbox.front().copied() {
                    ends[1 - at]
                        .engine
                        .handle(*now, path(1 - at), &transmit.mad);
                }
            }
        },
        _ => {
            if let Some(transmit) = ends[at].outbox.pop_front() {
                ends[1 - at]
                    .engine
                    .handle(*now, path(1 - at), &transmit.mad);
            }
        }
    }
}

impl End {
    fn new(guid: u64) -> Self {
        let config = Config {
            guid,
            max_connections: MAX,
            ..Config::default()
        };
        Self {
            engine: Engine::new(config, KeySource::seeded(guid)),
            outbox: VecDeque::new(),
            conns: Vec::new(),
            waiting: 0,
        }
    }

    fn pick(&self, input: &mut Input<'_>) -> ConnKey {
        if self.conns.is_empty() {
            return ConnKey(input.u32());
        }
        input.pick(&self.conns)
    }

    /// Takes what the engine has to say.
    fn collect(&mut self, now: Time, input: &mut Input<'_>) {
        let mut n = 0;
        while let Some(transmit) = self.engine.poll_transmit() {
            n += 1;
            assert!(n <= 4 * MAX + 8, "more messages than one call can cause");
            self.outbox.push_back(transmit);
        }
        self.outbox.truncate(64);
        while let Some(event) = self.engine.poll_event() {
            if let Event::ConnectRequest { conn, .. } = event {
                self.conns.push(conn);
                self.waiting += 1;
                if input.flag() {
                    self.engine.taken(conn);
                }
            }
        }
        if self.conns.len() > 32 {
            let oldest = self.conns.remove(0);
            self.engine.destroy(now, oldest);
        }
        assert!(self.engine.connections() <= MAX);
    }
}

fn extension(input: &mut Input<'_>) -> Extension {
    Extension {
        window: input.u8().into(),
        features: 0,
    }
}

fn connect(end: usize, port: u16, input: &mut Input<'_>) -> Connect {
    Connect {
        path: path(end),
        src: address(end, 5000),
        dst: address(1 - end, port),
        qpn: 2 + input.below(4),
        psn: input.u32() & 0xff_ffff,
        mtu: 1 + input.u8() % 5,
        responder_resources: input.u8(),
        initiator_depth: input.u8(),
        retry_count: input.u8() % 8,
        rnr_retry_count: input.u8() % 8,
        ack_timeout: input.u8() % 32,
        srq: input.flag(),
        extension: extension(input),
        private_data: [7; 56],
    }
}

fn accept(input: &mut Input<'_>) -> Accept {
    Accept {
        qpn: 2 + input.below(4),
        psn: input.u32() & 0xff_ffff,
        responder_resources: input.u8(),
        initiator_depth: input.u8(),
        rnr_retry_count: input.u8() % 8,
        srq: input.flag(),
        extension: extension(input),
        private_data: [8; 196],
    }
}
