//! A listener's merged queue: whose turn is it, the SAN's or TCP's, and is there room?
//!
//! SAN connections that the accept thread has taken wait here for the application (duty 27), at
//! most as many as its backlog. TCP connections wait in the kernel, with the kernel's backlog;
//! of them only the *time of arrival* is kept, as a stamp. The engine orders both by arrival.
//! It owns no descriptor, wakes nobody and does not lock: the listener does.
//!
//! How true the order is: the accept thread stamps one arrival each time the TCP listener
//! signals. Connections that arrive in one burst, before that thread runs, share a stamp, so
//! after a TCP connection was taken its stamp stays while the kernel has more, for at most
//! [`SHARED`] of them: a flood on one side cannot starve the other.

use std::collections::VecDeque;

/// TCP connections that one stamp may stand for before the SAN gets its turn.
const SHARED: u32 = 8;
/// Stamps kept at most; a later arrival shares the last one.
const MOST_STAMPS: usize = 4096;

/// Whose turn it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn<T> {
    /// This SAN connection is the one that came first.
    San(T),
    /// Try TCP's accept, then report with [`ReadyQueue::tcp_taken`] or
    /// [`ReadyQueue::tcp_would_block`].
    Tcp(TcpTurn),
}

/// A turn of TCP's, to be handed back with its outcome.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TcpTurn {
    /// Stamps before this moment are settled by the outcome.
    until: u64,
}

/// The queue of one listener.
#[derive(Debug)]
pub(crate) struct ReadyQueue<T> {
    backlog: usize,
    san: VecDeque<(u64, T)>,
    tcp: VecDeque<u64>,
    taken_by_first_stamp: u32,
    clock: u64,
}

impl<T> ReadyQueue<T> {
    /// A queue for `backlog` waiting SAN connections.
    pub(crate) fn new(backlog: usize) -> Self {
        ReadyQueue {
            backlog,
            san: VecDeque::new(),
            tcp: VecDeque::new(),
            taken_by_first_stamp: 0,
            clock: 0,
        }
    }

    /// Whether as many SAN connections wait as the backlog allows.
    pub(crate) fn is_full(&self) -> bool {
        self.san.len() >= self.backlog
    }

    /// SAN connections that wait.
    pub(crate) fn san_waiting(&self) -> usize {
        self.san.len()
    }

    /// Queues a SAN connection that arrived now, or gives it back when there is no room.
    ///
    /// # Errors
    /// The connection itself, when the queue is full.
    pub(crate) fn push_san(&mut self, connection: T) -> Result<(), T> {
        if self.is_full() {
            return Err(connection);
        }
        let now = self.tick();
        self.san.push_back((now, connection));
        Ok(())
    }

    /// Notes that TCP signalled an arrival now.
    pub(crate) fn tcp_arrived(&mut self) {
        let now = self.tick();
        if self.tcp.len() < MOST_STAMPS {
            self.tcp.push_back(now);
        }
    }

    /// Says whose turn it is. With nothing known to wait TCP is tried, since the thread that
    /// stamps arrivals may not have run yet.
    pub(crate) fn take(&mut self) -> Turn<T> {
        let san_is_first = match (self.san.front(), self.tcp.front()) {
            (Some((san, _)), Some(tcp)) => san < tcp,
            (Some(_), None) => true,
            (None, _) => false,
        };
        match self.san.pop_front() {
            Some((_, connection)) if san_is_first => Turn::San(connection),
            Some(later) => {
                self.san.push_front(later);
                Turn::Tcp(TcpTurn { until: self.clock })
            }
            None => Turn::Tcp(TcpTurn { until: self.clock }),
        }
    }

    /// TCP's accept gave a connection; `more` says whether the kernel has another.
    #[expect(clippy::needless_pass_by_value, reason = "a turn has one outcome")]
    pub(crate) fn tcp_taken(&mut self, turn: TcpTurn, more: bool) {
        if !more {
            self.settle(turn.until);
        } else if self.tcp.len() > 1 {
            self.tcp.pop_front();
            self.taken_by_first_stamp = 0;
        } else if let Some(stamp) = self.tcp.pop_front() {
            self.taken_by_first_stamp += 1;
            let spent = self.taken_by_first_stamp >= SHARED;
            let stamp = if spent { self.tick() } else { stamp };
            if spent {
                self.taken_by_first_stamp = 0;
            }
            self.tcp.push_back(stamp);
        }
    }

    /// TCP's accept found nothing. Gives the SAN connection whose turn it then is, if one waits.
    #[expect(clippy::needless_pass_by_value, reason = "a turn has one outcome")]
    pub(crate) fn tcp_would_block(&mut self, turn: TcpTurn) -> Option<T> {
        self.settle(turn.until);
        self.san.pop_front().map(|(_, connection)| connection)
    }

    /// Takes out every waiting SAN connection, for a listener that closes.
    pub(crate) fn drain_san(&mut self) -> Vec<T> {
        self.san
            .drain(..)
            .map(|(_, connection)| connection)
            .collect()
    }

    fn settle(&mut self, until: u64) {
        while self.tcp.front().is_some_and(|stamp| *stamp <= until) {
            self.tcp.pop_front();
        }
        self.taken_by_first_stamp = 0;
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A TCP accept queue as the kernel keeps it, and the listener's steps around it.
    struct World {
        queue: ReadyQueue<u32>,
        kernel: VecDeque<u32>,
    }

    impl World {
        fn new(backlog: usize) -> Self {
            World {
                queue: ReadyQueue::new(backlog),
                kernel: VecDeque::new(),
            }
        }

        fn accept(&mut self) -> Option<u32> {
            match self.queue.take() {
                Turn::San(connection) => Some(connection),
                Turn::Tcp(turn) => match self.kernel.pop_front() {
                    Some(connection) => {
                        self.queue.tcp_taken(turn, !self.kernel.is_empty());
                        Some(connection)
                    }
                    None => self.queue.tcp_would_block(turn),
                },
            }
        }
    }

    #[test]
    fn wsd_027_the_backlog_bounds_the_san_side_and_room_comes_back() {
        let mut world = World::new(2);
        world.queue.push_san(1).unwrap();
        assert!(!world.queue.is_full());
        world.queue.push_san(2).unwrap();
        assert!(world.queue.is_full());
        assert_eq!(world.queue.push_san(3), Err(3));
        assert_eq!(world.accept(), Some(1));
        assert!(!world.queue.is_full());
        world.queue.push_san(4).unwrap();
        assert_eq!(world.queue.drain_san(), [2, 4]);
        assert_eq!(world.accept(), None);
    }

    #[test]
    fn a_tcp_connection_without_a_stamp_is_still_found() {
        let mut world = World::new(2);
        world.kernel.push_back(1);
        assert_eq!(world.accept(), Some(1));
    }

    #[test]
    fn a_burst_of_tcp_under_one_stamp_keeps_its_place() {
        let mut world = World::new(2);
        world.kernel.extend([1, 2, 3]);
        world.queue.tcp_arrived();
        world.queue.push_san(4).unwrap();
        let order: Vec<_> = std::iter::from_fn(|| world.accept()).collect();
        assert_eq!(order, [1, 2, 3, 4]);
    }

    #[test]
    fn a_flood_of_tcp_does_not_starve_the_san() {
        let mut world = World::new(2);
        world.kernel.extend(0..100);
        world.queue.tcp_arrived();
        world.queue.push_san(1000).unwrap();
        let position = std::iter::from_fn(|| world.accept()).position(|c| c == 1000);
        assert_eq!(position, Some(SHARED as usize));
    }

    #[test]
    fn a_stamp_that_came_to_nothing_holds_nobody_up() {
        let mut world = World::new(2);
        // The application took the TCP connection through the descriptor itself.
        world.queue.tcp_arrived();
        world.queue.push_san(1).unwrap();
        assert_eq!(world.accept(), Some(1));
        // A stamp of an arrival after the empty accept is kept.
        let Turn::Tcp(turn) = world.queue.take() else {
            panic!("nothing waits, so TCP is tried")
        };
        world.queue.tcp_arrived();
        world.kernel.push_back(2);
        world.queue.push_san(3).unwrap();
        assert_eq!(world.queue.tcp_would_block(turn), Some(3));
        assert_eq!(world.accept(), Some(2));
    }

    #[test]
    fn stamps_are_bounded() {
        let mut world = World::new(1);
        for _ in 0..3 * MOST_STAMPS {
            world.queue.tcp_arrived();
        }
        assert_eq!(world.queue.tcp.len(), MOST_STAMPS);
    }

    proptest! {
        #[test]
        fn wsd_027_both_sides_come_out_in_the_order_of_arrival(
            steps in proptest::collection::vec(0_u8..3, 1..200)
        ) {
            let mut world = World::new(usize::MAX);
            let mut expected = VecDeque::new();
            for (number, step) in (0_u32..).zip(steps) {
                match step {
                    0 => {
                        world.queue.push_san(number).unwrap();
                        expected.push_back(number);
                    }
                    1 => {
                        world.kernel.push_back(number);
                        world.queue.tcp_arrived();
                        expected.push_back(number);
                    }
                    _ => prop_assert_eq!(world.accept(), expected.pop_front()),
                }
            }
            while let Some(number) = world.accept() {
                prop_assert_eq!(Some(number), expected.pop_front());
            }
            prop_assert!(expected.is_empty());
        }
    }
}
