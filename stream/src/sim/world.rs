//! A run: what may happen next is drawn by lot, until both ends have everything.

use std::time::{Duration, Instant};

use super::Random;
use super::end::{End, Habits, Stepped};
use super::network::{Pipe, Qp};
use crate::engine::{LEAST_FRAME, Mutation};
use crate::{Config, Event, Failure, Refusal, Role, Route, State, Thresholds};

/// What a run is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Story {
    /// Small writes, up and down.
    Small,
    /// Bulk by the ring, up and down.
    Bulk,
    /// No TCP, and no break.
    Direct,
    /// No TCP, and a break: what was read is a beginning of what was written.
    DirectBreak,
    /// One process dies.
    Death,
    /// One application gives up.
    Abort,
}

/// What happened in many runs, so that a test can see that everything did.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    pub(super) seeds: u64,
    pub(super) ups: u64,
    pub(super) sans: u64,
    pub(super) breaks: u64,
    pub(super) leavings: u64,
    pub(super) steps: u64,
    pub(super) ended_on_qp: u64,
    pub(super) reads: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    Write,
    TcpOut,
    TcpIn,
    Carry,
    Post,
    Deliver,
    Acknowledge,
    Read,
    Poll,
    Acknowledged,
    AppRead,
    Notice,
    Drain,
    Connect,
    Break,
    Down,
    Fate,
}

const MOVES: [Move; 17] = [
    Move::Write,
    Move::TcpOut,
    Move::TcpIn,
    Move::Carry,
    Move::Post,
    Move::Deliver,
    Move::Acknowledge,
    Move::Read,
    Move::Poll,
    Move::Acknowledged,
    Move::AppRead,
    Move::Notice,
    Move::Drain,
    Move::Connect,
    Move::Break,
    Move::Down,
    Move::Fate,
];

pub(super) struct World {
    random: Random,
    story: Story,
    ends: [End; 2],
    /// By who writes.
    pipes: [Pipe; 2],
    qp: Qp,
    /// The accepting end does not know yet that it is connected.
    is_answering: bool,
    left_breaks: u32,
    break_chance: usize,
    down_chance: usize,
    slow: [usize; 2],
    fate: Option<usize>,
    ups: u64,
    reads: u64,
    breaks: u64,
}

impl World {
    pub(super) fn new(seed: u64, story: Story, mutation: Option<Mutation>) -> Self {
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let now = Instant::now();
        let is_direct = matches!(story, Story::Direct | Story::DirectBreak);
        let is_bulk = match story {
            Story::Small => false,
            Story::Bulk => true,
            _ => random.per_mille(300),
        };
        let is_keyed = random.per_mille(200);
        let first_writer = random.below(8);
        let max_message = random.pick(&[64, 300, 4096]);
        let may_offer = random.per_mille(900);
        let mut end = |index: usize| {
            let role = if index == 0 {
                Role::Acceptor
            } else {
                Role::Connector
            };
            let route = if is_direct {
                Route::Direct
            } else {
                Route::Upgrade
            };
            let mut config = Config::new(role, route);
            config.is_keyed = is_keyed;
            config.max_message = if is_bulk { 4096 } else { max_message };
            config.may_offer = may_offer;
            config.receive_buffer = random.pick(&[4096, 40_000, 100_000, 300_000]);
            config.thresholds = Thresholds {
                bytes: random.below(if is_bulk { 4000 } else { 40 }) as u64,
                turns: 3,
                age: Duration::from_millis(50),
                old_turns: 1,
            };
            let (total, most) = match is_bulk {
                false => random.pick(&[
                    (600, 3),
                    (2000, 30),
                    (6000, 300),
                    (12_000, 400),
                    (9000, 2000),
                ]),
                true => (600_000, random.pick(&[3000, 50_000, 200_000])),
            };
            let habits = Habits {
                total: random.below(total) as u64,
                most,
                writes_first: first_writer == index,
                is_urgent: is_direct || random.per_mille(20),
            };
            let mut end = End::new(index, config, habits, now);
            end.places = random.pick(&[1, 2, 6, 30]);
            end.engine.mutation = mutation;
            end
        };
        let ends = [end(0), end(1)];
        let scale = if is_bulk { 40 } else { 1 };
        let mut pipe = || Pipe {
            send_room: scale * random.pick(&[40, 100, 1000]),
            receive_room: scale * random.pick(&[33, 80, 1000]),
            ..Pipe::default()
        };
        let pipes = [pipe(), pipe()];
        Self {
            story,
            ends,
            pipes,
            qp: Qp::default(),
            is_answering: false,
            left_breaks: match story {
                Story::Direct => 0,
                Story::DirectBreak => 1,
                _ => random.below(9) as u32,
            },
            break_chance: random.pick(&[0, 1, 3, 10, 30, 100]),
            down_chance: random.pick(&[0, 0, 0, 1, 4]),
            slow: [
                random.pick(&[1000, 1000, 500, 200]),
                random.pick(&[1000, 1000, 500, 200]),
            ],
            fate: matches!(story, Story::Death | Story::Abort).then(|| random.below(2)),
            random,
            ups: 0,
            reads: 0,
            breaks: 0,
        }
    }

    fn step(&mut self, index: usize, what: Move) -> Stepped {
        let [first, second] = &mut self.pipes;
        let (out, tcp) = if index == 0 {
            (first, second)
        } else {
            (second, first)
        };
        let (random, qp) = (&mut self.random, &mut self.qp);
        if what == Move::Carry {
            return Ok(out.carry(random));
        }
        let end = &mut self.ends[index];
        match what {
            Move::Deliver => return Ok(qp.deliver(index)),
            Move::Acknowledge => return Ok(qp.acknowledge(index)),
            Move::Read => {
                let has_read = qp.read(index, self.ends[1 - index].ring());
                self.reads += u64::from(has_read);
                return Ok(has_read);
            }
            Move::Break => {
                let is_up = !qp.is_broken && self.ends.iter().any(End::has_qp);
                if is_up && self.left_breaks > 0 && random.per_mille(self.break_chance) {
                    self.left_breaks -= 1;
                    self.breaks += 1;
                    qp.is_broken = true;
                    return Ok(true);
                }
                return Ok(false);
            }
            Move::Connect => return self.connect(),
            Move::Fate => return self.meet_fate(index),
            _ => {}
        }
        if end.is_dead {
            return Ok(false);
        }
        match what {
            Move::Write => end.app_write(random, out, qp),
            Move::TcpOut => end.tcp_out(random, out, qp),
            Move::TcpIn => end.tcp_in(random, tcp, qp),
            Move::Post => end.post(random, tcp, qp),
            Move::Poll => end.poll(tcp, qp),
            Move::Acknowledged => end.acknowledged(tcp, qp),
            Move::AppRead => end.app_read(random, tcp, qp),
            Move::Notice => end.notice(tcp, qp),
            Move::Drain => end.drain(tcp, qp),
            Move::Down if random.per_mille(self.down_chance) => {
                let for_good = random.per_mille(100);
                end.tell(Event::WantDown { for_good }, tcp, qp)
                    .map(|_| false)
            }
            _ => Ok(false),
        }
    }

    /// The accepting end dials, and the connecting end answers or does not.
    fn connect(&mut self) -> Stepped {
        let [to_connector, to_acceptor] = &mut self.pipes;
        let [acceptor, connector] = &mut self.ends;
        if self.is_answering {
            self.is_answering = false;
            acceptor.dials = false;
            return acceptor.qp_up(&mut self.qp, to_acceptor, to_connector.written);
        }
        if !acceptor.dials || acceptor.is_dead || connector.is_dead {
            return Ok(false);
        }
        acceptor.tell(Event::Dialled, to_acceptor, &mut self.qp)?;
        if !connector.listens {
            acceptor.dials = false;
            return acceptor.tell(Event::Refused(Refusal::NotNow), to_acceptor, &mut self.qp);
        }
        connector.listens = false;
        self.ups += 1;
        self.qp = Qp {
            generation: self.qp.generation + 1,
            ..Qp::default()
        };
        self.is_answering = true;
        connector.qp_up(&mut self.qp, to_connector, to_acceptor.written)
    }

    /// A process dies, or its application gives up.
    fn meet_fate(&mut self, index: usize) -> Stepped {
        // Where so little of a frame is out that it could be bytes of the application, nobody dies.
        let is_readable = !(1..LEAST_FRAME).contains(&self.ends[index].engine.frame_written());
        let is_time = is_readable && self.fate == Some(index) && self.random.per_mille(3);
        if !is_time {
            return Ok(false);
        }
        self.fate = None;
        let end = &mut self.ends[index];
        if self.story == Story::Abort {
            let mut unused = Pipe::default();
            end.tell(Event::Abort, &mut unused, &mut self.qp)?;
        }
        self.qp.is_broken |= end.has_qp();
        end.is_dead = true;
        let is_reset = end.was_reset;
        self.pipes[index].fin = true;
        if is_reset {
            self.reset(1 - index)?;
        }
        Ok(true)
    }

    fn reset(&mut self, index: usize) -> Stepped {
        let tcp = &mut self.pipes[1 - index];
        self.ends[index].tell(Event::TcpReset, tcp, &mut self.qp)
    }

    fn is_done(&self) -> bool {
        self.ends
            .iter()
            .all(|end| end.is_dead || end.is_over() && !end.has_qp())
            && self
                .ends
                .iter()
                .enumerate()
                .all(|(i, end)| end.is_dead || end.engine.failure().is_some() || self.is_told(i))
    }

    /// FIN is out, where there is TCP.
    fn is_told(&self, index: usize) -> bool {
        self.pipes[index].fin || matches!(self.story, Story::Direct | Story::DirectBreak)
    }

    pub(super) fn run(&mut self, coverage: &mut Coverage) -> Result<(), String> {
        let mut idle = 0;
        let mut steps = 0u64;
        while !self.is_done() {
            steps += 1;
            if steps > 3_000_000 {
                return Err(self.describe("no end"));
            }
            let index = self.random.below(2);
            let what = self.random.pick(&MOVES);
            let may_be_slow =
                matches!(what, Move::TcpIn | Move::Write | Move::AppRead | Move::Poll);
            if may_be_slow && !self.random.per_mille(self.slow[index]) {
                continue;
            }
            if self.step(index, what)? {
                idle = 0;
            } else {
                idle += 1;
            }
            self.after_death()?;
            if idle > 150 {
                idle = 0;
                self.unstick()?;
            }
        }
        coverage.steps += steps;
        coverage.ups += self.ups;
        coverage.breaks += self.breaks;
        coverage.reads += self.reads;
        for end in &self.ends {
            let count = |state| end.log.iter().filter(|s| **s == state).count() as u64;
            coverage.sans += count(State::San);
            coverage.leavings += count(State::Leaving);
            let ends = count(State::Ended) > 0 && count(State::TcpForGood) == 0;
            coverage.ended_on_qp += u64::from(ends);
        }
        self.judge()
    }

    /// A dead end's kernel resets who still writes to it.
    fn after_death(&mut self) -> Result<(), String> {
        for dead in 0..2 {
            let pipe = &mut self.pipes[1 - dead];
            if self.ends[dead].is_dead && !pipe.arrived.is_empty() {
                pipe.arrived.clear();
                // A reset overtakes nothing here: bytes of the dead end that are under way are read.
                if self.pipes[dead].is_over() {
                    self.reset(1 - dead)?;
                }
            }
        }
        Ok(())
    }

    /// Nothing seemed to happen: look at everything, then let time pass.
    fn unstick(&mut self) -> Result<(), String> {
        for index in 0..2 {
            for what in MOVES {
                let is_real = !matches!(what, Move::Break | Move::Down | Move::Fate);
                let is_news = what != Move::Acknowledged;
                if is_real && self.step(index, what)? && is_news {
                    return Ok(());
                }
            }
        }
        if self.is_done() {
            return Ok(());
        }
        let next = self
            .ends
            .iter()
            .filter(|e| !e.is_dead)
            .filter_map(|e| e.engine.next_timeout());
        let Some(next) = next.min() else {
            return Err(self.describe("stuck"));
        };
        for index in 0..2 {
            let end = &mut self.ends[index];
            let is_waiting = matches!(end.engine.state(), State::Cutting | State::Leaving);
            let is_late = end.engine.next_timeout() == Some(next);
            if is_waiting && is_late && self.story != Story::Death && self.story != Story::Abort {
                return Err(self.describe("stuck until a deadline"));
            }
            end.now = end.now.max(next);
            if !end.is_dead {
                let tcp = &mut self.pipes[1 - index];
                end.tell(Event::Timer, tcp, &mut self.qp)?;
            }
        }
        Ok(())
    }

    fn judge(&self) -> Result<(), String> {
        for (i, end) in self.ends.iter().enumerate() {
            let peer = &self.ends[1 - i];
            if end.read > peer.written {
                return Err(self.describe("read more than was written"));
            }
            if end.is_dead {
                continue;
            }
            if let Some(Failure::Protocol(_)) = end.engine.failure() {
                return Err(self.describe("an honest peer is accused"));
            }
            let is_whole = end.read == peer.habits.total && end.engine.received().1;
            match self.story {
                Story::Small | Story::Bulk | Story::Direct => {
                    if !is_whole || end.engine.state() != State::Ended {
                        return Err(self.describe("not whole"));
                    }
                }
                _ => {
                    if end.engine.state() == State::Ended && !is_whole && !peer.is_dead {
                        return Err(self.describe("ended, and not whole"));
                    }
                }
            }
        }
        Ok(())
    }

    fn describe(&self, what: &str) -> String {
        let ends: Vec<String> = self.ends.iter().map(|end| format!("{end:?}")).collect();
        let pipes: Vec<_> = self
            .pipes
            .iter()
            .map(|p| (p.sending.len(), p.arrived.len(), p.fin, p.fin_arrived))
            .collect();
        format!(
            "{what}; {:?}; {pipes:?}; qp {:?}\n{}",
            self.story,
            self.qp,
            ends.join("\n")
        )
    }
}
