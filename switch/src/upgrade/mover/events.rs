//! What the stream is ready for.

use rustix::event::PollFlags;
use san_stream::{Failure, Kind, Source, TcpIn, Write};

use super::{Around, Mover};
use crate::readiness::Events;

impl Mover {
    /// What the stream is ready for. `is_shut`: the application reads no more.
    pub(in crate::upgrade) fn events(&self, around: &Around, is_shut: bool) -> Events {
        let mut events = Events::empty();
        let is_over = self.engine.failure().is_some();
        let has_ended = self.engine.received().1;
        let source = self.engine.source();
        let is_on_tcp = source == Source::Tcp && matches!(self.engine.tcp_in(), TcpIn::Raw { .. });
        let room = self.room();
        // The kernel is asked only where TCP has a say.
        let tcp = match is_on_tcp || room == Write::Tcp {
            true => around
                .tcp
                .ready(PollFlags::IN | PollFlags::OUT | PollFlags::RDHUP | PollFlags::PRI),
            false => PollFlags::empty(),
        };
        let inbox = self.pair.as_ref().map(|pair| pair.data.inbox());
        let comes = match source {
            Source::Tcp => is_on_tcp && tcp.intersects(PollFlags::IN | PollFlags::RDHUP),
            // A queue pair that is over is no end of the stream: the thread that hears of it goes on over TCP.
            Source::Message => inbox.is_some_and(|inbox| inbox.first.is_some()),
            Source::Landed { .. } => true,
            Source::Nothing => false,
        };
        if !self.kept.is_empty() || is_over || has_ended || comes || is_shut {
            events |= Events::READABLE;
        }
        if is_on_tcp {
            events.set(Events::PRIORITY, tcp.contains(PollFlags::PRI));
            // A reset that no call has met yet; and what poll(2) tells unasked.
            events.set(Events::ERROR, tcp.contains(PollFlags::ERR));
            events.set(Events::HANG_UP, tcp.contains(PollFlags::HUP));
        }
        let takes = match room {
            Write::Tcp => tcp.contains(PollFlags::OUT),
            Write::Full => false,
            Write::Message(_) | Write::Stage { .. } | Write::Closed => true,
        };
        if takes || is_over {
            events |= Events::WRITABLE;
        }
        let end_waits = inbox.is_some_and(|inbox| inbox.last == Some(Kind::End.number()));
        if has_ended
            || is_over
            || end_waits
            || is_shut
            || is_on_tcp && tcp.contains(PollFlags::RDHUP)
        {
            events |= Events::READ_CLOSED;
        }
        if is_over || self.is_closed() && events.contains(Events::READ_CLOSED) {
            events |= Events::HANG_UP;
        }
        let is_broken = !matches!(self.engine.failure(), None | Some(Failure::PeerGone));
        if is_broken && !self.has_told {
            events |= Events::ERROR;
        }
        events
    }

    /// What a write would come to that a watcher is woken for. On the queue pair, as much room as makes that
    /// worth while: a third of the bound.
    fn room(&self) -> Write {
        if !self.is_on_san() {
            return self.engine.write(1, false);
        }
        let third = usize::try_from(self.engine.buffers().0 / 3).unwrap_or(1);
        match self.engine.write(third.max(1), false) {
            Write::Stage { length, .. } if length < third => Write::Full,
            other => other,
        }
    }
}
