//! Two engines in memory, over a wire that takes any time and keeps the order, as a reliable
//! connection does. What the shell does, [`End`] does with numbers in place of a device.

pub(in crate::transfer) mod calls;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::IoSliceMut;

use super::{
    Arrived, Body, Came, Ending, Engine, Look, NOBODYS, Notification, Operation, Outcome, Payloads,
    Post, Settings,
};

/// Payloads of tests: plain memory, and numbers.
#[derive(Debug)]
pub(crate) struct Pieces;

impl Payloads for Pieces {
    type Buffer = Vec<u8>;
    type Rdma = u32;
    type Waker = u32;
}

/// A message under way.
#[derive(Debug)]
struct Packet {
    immediate: u32,
    bytes: Vec<u8>,
}

/// One end of a connection.
struct End {
    engine: Engine<Pieces>,
    /// Receives that are posted for it.
    posted: u32,
    /// Requests on the send queue: token, and whether success makes a completion.
    send_queue: VecDeque<(u32, bool)>,
    /// Numbers of the messages sent, and received.
    sent: u32,
    received: Vec<u32>,
    /// Messages in the application's hands.
    held: Vec<Arrived<Vec<u8>>>,
    /// Operations that have not ended.
    sends: Vec<Operation>,
    receives: VecDeque<Operation>,
    /// How it was broken.
    broken: Option<Ending>,
}

impl End {
    fn new(window: u32, depth: u32) -> Self {
        Self {
            engine: Engine::new(Settings {
                window,
                most_window: 64,
                operations: 8,
                send_depth: depth,
            }),
            posted: window + 1,
            send_queue: VecDeque::new(),
            sent: 0,
            received: Vec::new(),
            held: Vec::new(),
            sends: Vec::new(),
            receives: VecDeque::new(),
            broken: None,
        }
    }

    /// Posts what may go out, as the shell does.
    fn pump(&mut self, wire: &mut VecDeque<Packet>) {
        loop {
            self.post_receives();
            match self.engine.next_post() {
                None => break,
                Some(Post::Message {
                    token,
                    buffer,
                    plan,
                    ..
                }) => self.post(wire, token, (plan.immediate, plan.signaled), buffer),
                Some(Post::Credits(plan)) => {
                    self.post(wire, NOBODYS, (plan.immediate, plan.signaled), Vec::new());
                }
                Some(Post::Handover { plan, answer, .. }) => {
                    let bytes = answer.map_or(Vec::new(), |a| a.resumption.emit().to_vec());
                    self.post(wire, NOBODYS, (plan.immediate, plan.signaled), bytes);
                }
                Some(Post::Rdma { .. }) => unreachable!("none was started"),
            }
        }
        if let Some(effects) = self.engine.effects() {
            self.broken = self.broken.or(effects.broken);
            if let Some(is_posted) = effects.answer_receive_over {
                self.posted -= u32::from(is_posted);
            }
        }
        self.check();
    }

    fn post_receives(&mut self) {
        let due = self.engine.receives_due();
        while self.engine.spent().is_some() {}
        self.posted += due;
        self.engine.receives_posted(due);
    }

    fn post(
        &mut self,
        wire: &mut VecDeque<Packet>,
        token: u32,
        (immediate, signaled): (u32, bool),
        bytes: Vec<u8>,
    ) {
        self.send_queue.push_back((token, signaled));
        wire.push_back(Packet { immediate, bytes });
    }

    /// What the engine says of its receives is true.
    fn check(&self) {
        assert_eq!(self.engine.posted_receives(), self.posted);
    }

    /// A number as a message, at once or queued; `false`: not now.
    fn send(&mut self, wire: &mut VecDeque<Packet>, by_operation: bool) -> bool {
        let bytes = self.sent.to_le_bytes().to_vec();
        if self.engine.check_send(bytes.len()).is_err() {
            return false;
        }
        if by_operation {
            if !self.engine.has_operation_left() {
                return false;
            }
            let operation = self
                .engine
                .queue_message(bytes, 0, false, Notification::Poll);
            self.sends.push(operation);
        } else {
            if !self.engine.can_send_now() {
                return false;
            }
            self.post_receives();
            let plan = self.engine.send_message(bytes.len(), 0, false);
            self.post(wire, NOBODYS, (plan.immediate, plan.signaled), bytes);
        }
        self.sent += 1;
        self.pump(wire);
        true
    }

    fn note(&mut self, bytes: &[u8]) {
        for number in bytes.chunks(4) {
            let number = number.try_into().expect("whole numbers");
            self.received.push(u32::from_le_bytes(number));
        }
    }

    /// Takes a message by a call, and keeps it or not.
    fn take(&mut self, hold: bool) {
        // What a receive got came before.
        self.collect();
        let Some(Ok(arrived)) = self.engine.take_message() else {
            return;
        };
        self.note(&arrived);
        if hold {
            self.held.push(arrived);
        } else {
            self.drop_message(&arrived);
        }
    }

    fn drop_message(&mut self, arrived: &Arrived<Vec<u8>>) {
        if let Body::Received(_) = arrived.body {
            self.engine.let_go();
        }
    }

    fn let_go(&mut self) {
        if let Some(arrived) = self.held.pop() {
            self.drop_message(&arrived);
        }
    }

    /// Reads what is there into two buffers of whole numbers.
    fn read(&mut self) {
        self.collect();
        let (mut first, mut second) = ([0; 8], [0; 12]);
        let mut buffers = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
        if let Some(Ok(read)) = self.engine.read_into(&mut buffers) {
            let bytes = [&first[..], &second].concat();
            self.note(&bytes[..read.bytes]);
        }
    }

    fn start_receive(&mut self) {
        if let Ok(operation) = self.engine.start_receive(Notification::Poll) {
            self.receives.push_back(operation);
        }
    }

    /// Takes the results of operations that have ended.
    fn collect(&mut self) {
        for operation in std::mem::take(&mut self.sends) {
            match self.engine.look(operation) {
                Look::Pending(_) => self.sends.push(operation),
                Look::Done(Outcome::Sent(4) | Outcome::Failed(_)) => {}
                other => panic!("a send ended as {other:?}"),
            }
        }
        while let Some(&operation) = self.receives.front() {
            match self.engine.look(operation) {
                Look::Pending(_) => break,
                Look::Done(Outcome::Received(arrived)) => {
                    self.note(&arrived);
                    self.drop_message(&arrived);
                }
                Look::Done(Outcome::Failed(_) | Outcome::Emptied) => {}
                other => panic!("a receive ended as {other:?}"),
            }
            self.receives.pop_front();
        }
    }

    /// The peer's transport has acknowledged the oldest request.
    fn acknowledged(&mut self, failed: Option<Ending>) {
        // Unsignaled ones are freed by the signaled one behind them: its completion says how many.
        let unsignaled = self.send_queue.iter().take_while(|(_, signaled)| !signaled);
        let freed = unsignaled.count() + 1;
        if freed > self.send_queue.len() {
            return;
        }
        let (token, _) = self.send_queue[freed - 1];
        self.send_queue.drain(..freed);
        self.engine
            .request_completed(token, u32::try_from(freed).unwrap(), failed);
    }

    /// A message comes.
    fn take_in(&mut self, packet: Packet) {
        assert!(self.posted > 0, "a message came without a receive for it");
        self.posted -= 1;
        // What a receive got came before.
        self.collect();
        // Somebody waits for it, now and then.
        let is_awaited = self.received.len() % 3 == 2;
        if is_awaited && self.read_plainly(Some(packet.immediate), &packet.bytes) {
            self.note(&packet.bytes);
            return;
        }
        match self
            .engine
            .message_came(Some(packet.immediate), packet.bytes)
        {
            None => self.grow(),
            // Posted again at once.
            Some(Came::Credits(_)) => self.posted += 1,
            Some(Came::Handover(_)) => {}
            Some(Came::Control(_, buffer)) => self.engine.recycle(buffer),
            Some(Came::Wrong(violation, _)) => {
                panic!("the engines misunderstand each other: {violation}")
            }
        }
    }

    /// Reads a message in its place, if that is allowed.
    fn read_plainly(&mut self, immediate: Option<u32>, bytes: &[u8]) -> bool {
        let data = match self.engine.is_plain() {
            true => self.engine.plain_data(immediate),
            false => None,
        };
        if let Some((credits, _)) = data {
            if self.engine.data_was_read(credits, bytes.len()) || self.engine.look_ahead() {
                assert_eq!(self.engine.wanted_growth(), 0, "something follows");
                assert!(!self.engine.must_return_credits(), "something follows");
            } else {
                self.grow();
            }
        }
        data.is_some()
    }

    fn grow(&mut self) {
        let growth = self.engine.wanted_growth();
        self.engine.grown(growth);
    }
}

/// Two ends that are connected.
struct World {
    ends: [End; 2],
    /// From each end to the other.
    wires: [VecDeque<Packet>; 2],
}

impl World {
    fn new(windows: [u16; 2], depth: u32) -> Self {
        let mut ends = windows.map(|window| End::new(u32::from(window), depth));
        for (at, end) in ends.iter_mut().enumerate() {
            end.engine
                .negotiated((4096, 0), windows[1 - at], true)
                .unwrap();
            end.engine.bring_up();
        }
        Self {
            ends,
            wires: Default::default(),
        }
    }

    /// The oldest message from one end arrives at the other, and is acknowledged.
    fn deliver(&mut self, from: usize) -> bool {
        let Some(packet) = self.wires[from].pop_front() else {
            return false;
        };
        let to = 1 - from;
        self.ends[to].take_in(packet);
        self.ends[to].pump(&mut self.wires[to]);
        let [a, b] = &mut self.ends;
        let sender = if from == 0 { a } else { b };
        let arrived = sender.send_queue.len() - self.wires[from].len();
        let whole = sender
            .send_queue
            .iter()
            .take(arrived)
            .any(|(_, signaled)| *signaled);
        if whole {
            sender.acknowledged(None);
        }
        sender.pump(&mut self.wires[from]);
        true
    }

    fn step(&mut self, at: usize, what: u8) {
        let (end, wire) = (&mut self.ends[at], &mut self.wires[at]);
        match what {
            0 | 1 => drop(end.send(wire, false)),
            2 => drop(end.send(wire, true)),
            3 => end.take(false),
            4 => end.take(true),
            5 => end.let_go(),
            6 => end.read(),
            7 => end.start_receive(),
            8 => end.collect(),
            _ => drop(self.deliver(at)),
        }
        self.ends[at].pump(&mut self.wires[at]);
    }

    /// Both ends take in everything, and let everything go.
    fn run_dry(&mut self) {
        let mut idle = 0;
        while idle < 4 {
            let mut moved = false;
            for at in [0, 1] {
                while self.deliver(at) {
                    moved = true;
                }
                let before = self.ends[at].received.len();
                self.ends[at].collect();
                self.ends[at].let_go();
                self.ends[at].take(false);
                moved |= self.ends[at].received.len() > before;
                self.ends[at].pump(&mut self.wires[at]);
            }
            idle = if moved { 0 } else { idle + 1 };
        }
    }
}
