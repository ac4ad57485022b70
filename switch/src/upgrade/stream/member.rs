//! A stream as the thread `san-stream` sees it: what it wants, and what became of a dial.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use san_provider::Rejection;
use san_provider::wire::Session;
use san_stream::{Event, Refusal, State};

use super::{DRAIN, MESSAGE, MovingStream};
use crate::san::socket::ProviderSocket;
use crate::upgrade::mover::{Mover, Phase};
use crate::upgrade::request::{self, Ends, PURPOSE};
use crate::upgrade::service::Member;

/// How often it is asked whether another process wants the stream.
const ASK: Duration = Duration::from_millis(20);

impl Member for MovingStream {
    fn attend(&self) {
        if self.follower().is_some_and(|one| one.wants_tcp()) {
            self.with(|mover, around| mover.tell(around, Event::WantDown { for_good: true }));
        }
        self.with(Mover::progress);
        let drains = self.look_at(|mover| mover.drains);
        // A read that waits does it itself. What is not here yet is looked for in a millisecond
        // (`next_timeout`): all streams wait for this thread, and many may break at once.
        if drains && let Some(_reading) = self.reading.try_lock() {
            self.with(Mover::drain);
        }
        if self.is_left.load(Ordering::Acquire)
            && let Some(_reading) = self.reading.try_lock()
        {
            self.with(Mover::see_off);
        }
        let left = self.with(|mover, _| std::mem::take(&mut mover.left));
        for one in left {
            one.close();
        }
        // What the last read knew of a queue pair that is gone would keep all that belongs to it.
        if !self.look_at(|mover| mover.pair.is_some())
            && let Some(mut reading) = self.reading.try_lock()
        {
            reading.forget();
        }
        self.wake();
        self.tell_watcher();
    }

    fn tcp_stirred(&self) {
        self.around.feed.set_tcp_stirs(true);
    }

    fn is_changing(&self) -> bool {
        self.look_at(|mover| mover.changing().is_some())
    }

    fn wait_for_change(&self, time: Duration) {
        if let Some(data) = self.look_at(Mover::changing) {
            self.around.feed.wait(&data, time);
        }
    }

    fn next_timeout(&self) -> Option<Instant> {
        let (timeout, is_kernels) = self.look_at(|mover| {
            let state = mover.engine.state();
            // On TCP the application's own calls look at the clock.
            let timeout = mover.engine.next_timeout().filter(|_| state != State::Tcp);
            // A queue pair that could not be emptied yet is tried again, and one that waits for
            // acknowledgements is looked at.
            let soon = (mover.drains || mover.is_stalled).then(|| Instant::now() + DRAIN);
            let next = [timeout, soon].into_iter().flatten().min();
            (next, mover.phase() == Phase::Kernel)
        });
        let is_shared = || self.follower().is_some_and(|one| one.is_shared());
        let ask = (!is_kernels && is_shared()).then(|| Instant::now() + ASK);
        [timeout, ask].into_iter().flatten().min()
    }

    fn tcp(&self) -> BorrowedFd<'_> {
        self.around.tcp.as_fd()
    }

    fn ends(&self) -> Ends {
        self.ends
    }

    fn request(&self) -> Option<Session> {
        self.with(|mover, around| {
            if mover.engine.state() != State::Dialling {
                return None;
            }
            let generation = u16::try_from(self.carrying().ups + 1).unwrap_or(u16::MAX);
            let (dialled, session) = request::request(
                around.service.key(),
                self.ends,
                generation,
                nonce()?,
                &mover.beginnings(),
            );
            mover.dialled = Some(dialled);
            mover.tell(around, Event::Dialled);
            Some(session)
        })
    }

    fn answer(&self, session: &Session) -> Result<Session, Rejection> {
        self.with(|mover, around| {
            if session.purpose != PURPOSE || mover.engine.state() != State::Inviting {
                return Err(Rejection::NoSuchConnection);
            }
            let nonce = nonce().ok_or(Rejection::NotNow)?;
            let answered = request::answer(
                around.service.key(),
                self.ends,
                session,
                nonce,
                &mover.beginnings(),
            );
            match answered {
                Ok((agreed, reply)) => {
                    mover.agreed = Some(agreed);
                    Ok(reply)
                }
                Err(why) => {
                    around.service.counters.moves_unproven.raise();
                    tracing::warn!(peer = %self.ends.acceptor, %why, "a request for a second carrier is turned down");
                    Err(Rejection::NoSuchConnection)
                }
            }
        })
    }

    fn connected(&self, socket: ProviderSocket, reply: Option<&Session>) {
        self.with(|mover, around| {
            let agreed = match reply {
                None => mover.agreed.take(),
                Some(reply) => {
                    let Some(dialled) = mover.dialled.take() else {
                        return;
                    };
                    let key = around.service.key();
                    match request::confirm(key, &dialled, reply, &mover.beginnings()) {
                        Ok(agreed) => Some(agreed),
                        Err(why) => {
                            around.service.counters.moves_unproven.raise();
                            tracing::warn!(peer = %self.ends.connector, %why, "a second carrier is turned down");
                            None
                        }
                    }
                }
            };
            match agreed {
                Some(agreed) if socket.max_message_size() >= MESSAGE => {
                    mover.connected(around, socket, agreed.key, agreed.generation);
                }
                _ => mover.tell(around, Event::Refused(Refusal::Never)),
            }
        });
        // Whoever follows knows by now that the socket's readiness says nothing any more: only then is the
        // peer told that it may write frames.
        self.with(Mover::begin);
    }

    fn refused(&self, refusal: Refusal) {
        self.with(|mover, around| mover.tell(around, Event::Refused(refusal)));
    }

    fn leave(&self) {
        self.move_to_tcp(true);
    }

    fn has_left(&self) -> bool {
        self.look_at(Mover::has_left)
    }

    fn is_through(&self) -> bool {
        self.look_at(Mover::is_through)
    }
}

/// A random number that is not 0. `None`: the kernel has none.
fn nonce() -> Option<u64> {
    let mut bytes = [0; 8];
    let flags = rustix::rand::GetRandomFlags::empty();
    match rustix::rand::getrandom(&mut bytes, flags) {
        Ok(8) => Some(u64::from_ne_bytes(bytes).max(1)),
        _ => None,
    }
}
