//! The queue of requests that a listening socket holds, and its bound (duties 79, 80, 84 to 88).
//!
//! A request has a place from its arrival until accept has answered it: while it is queued, and
//! also while a condition function decides about it. No more than `limit` requests have a place at
//! any time, whatever arrives. The engine is told what happened and says what to do; it calls
//! nobody, rejects nothing itself and knows no CM id: `R` is whatever stands for a request.

use std::collections::VecDeque;

/// The largest backlog (duty 78).
pub const SOMAXCONN: u32 = 4096;

/// What Winsock's headers call `SOMAXCONN`: "a reasonable maximum".
const WINSOCK_SOMAXCONN: u32 = 0x7fff_ffff;

/// The backlog that a request for `asked` gets; `None`: out of range.
pub fn granted(asked: u32) -> Option<u32> {
    match asked {
        0 => Some(1),
        1..=SOMAXCONN => Some(asked),
        WINSOCK_SOMAXCONN => Some(SOMAXCONN),
        _ => None,
    }
}

/// Why a request gets no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    Full,
    Closed,
}

/// The right and the duty to answer a request that was taken out of the queue.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket {
    key: u64,
}

/// What became of a request while it was being decided about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It can be answered.
    Good,
    /// The peer withdrew it: there is nobody to answer.
    PeerGone,
    /// The listener was closed.
    Closed,
}

/// Where a request was whose peer withdrew it.
#[derive(Debug, PartialEq, Eq)]
pub enum Withdrawn<R> {
    /// In the queue; its place is free now.
    Queued(R),
    /// Being decided about; its place is free when that ends.
    Deciding,
    /// Not here.
    Unknown,
}

/// The queue of one listening socket.
#[derive(Debug)]
pub struct Backlog<R> {
    limit: usize,
    closed: bool,
    queue: VecDeque<(u64, R)>,
    deciding: Vec<Deciding>,
    /// Where `withdraw_gone` goes on.
    looked_at: usize,
}

#[derive(Debug)]
struct Deciding {
    key: u64,
    peer_gone: bool,
}

impl<R> Backlog<R> {
    /// A queue with `limit` places.
    pub fn new(limit: u32) -> Self {
        Self {
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            closed: false,
            queue: VecDeque::new(),
            deciding: Vec::new(),
            looked_at: 0,
        }
    }

    /// How many places there are.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many requests are queued.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// How many requests have a place.
    pub fn held(&self) -> usize {
        self.queue.len() + self.deciding.len()
    }

    /// Whether a request that arrives now has a place. To be asked before anything is allocated
    /// for it.
    pub fn place(&self) -> Result<(), NoPlace> {
        if self.closed {
            Err(NoPlace::Closed)
        } else if self.held() >= self.limit {
            Err(NoPlace::Full)
        } else {
            Ok(())
        }
    }

    /// A request arrived. It is queued, or it comes back with the reason why not.
    pub fn arrive(&mut self, key: u64, request: R) -> Result<(), (NoPlace, R)> {
        if let Err(reason) = self.place() {
            return Err((reason, request));
        }
        self.queue.push_back((key, request));
        Ok(())
    }

    /// Takes the request that waits longest. It keeps its place until `answered` or `defer`.
    pub fn take(&mut self) -> Option<(Ticket, R)> {
        let (key, request) = self.queue.pop_front()?;
        self.deciding.push(Deciding {
            key,
            peer_gone: false,
        });
        Some((Ticket { key }, request))
    }

    /// Whether a request that was taken can still be answered.
    pub fn standing(&self, ticket: &Ticket) -> Standing {
        let peer_gone = self
            .deciding
            .iter()
            .any(|d| d.key == ticket.key && d.peer_gone);
        if peer_gone {
            Standing::PeerGone
        } else if self.closed {
            Standing::Closed
        } else {
            Standing::Good
        }
    }

    /// A request that was taken was answered: its place is free.
    // A ticket is spent.
    #[allow(clippy::needless_pass_by_value)]
    pub fn answered(&mut self, ticket: Ticket) {
        self.deciding.retain(|d| d.key != ticket.key);
    }

    /// Puts a request back at the head of the queue, its place kept. If it cannot be answered any
    /// more it comes back with the reason, its place free.
    pub fn defer(&mut self, ticket: Ticket, request: R) -> Result<(), (Standing, R)> {
        let standing = self.standing(&ticket);
        let key = ticket.key;
        self.answered(ticket);
        if standing != Standing::Good {
            return Err((standing, request));
        }
        self.queue.push_front((key, request));
        Ok(())
    }

    /// The peer of a request is gone.
    pub fn withdraw(&mut self, key: u64) -> Withdrawn<R> {
        if let Some(deciding) = self.deciding.iter_mut().find(|d| d.key == key) {
            deciding.peer_gone = true;
            return Withdrawn::Deciding;
        }
        match self.queue.iter().position(|(k, _)| *k == key) {
            Some(at) => match self.queue.remove(at) {
                Some((_, request)) => Withdrawn::Queued(request),
                None => Withdrawn::Unknown,
            },
            None => Withdrawn::Unknown,
        }
    }

    /// Looks for a queued request whose peer is gone, and takes it out: `is_waiting` is asked about
    /// at most `most` of them, the next ones at the next call.
    pub fn withdraw_gone(
        &mut self,
        most: usize,
        is_waiting: impl Fn(&R) -> bool,
    ) -> Option<(u64, R)> {
        for _ in 0..most.min(self.queue.len()) {
            let at = self.looked_at % self.queue.len();
            self.looked_at = at + 1;
            if self.queue.get(at).is_some_and(|(_, r)| !is_waiting(r)) {
                return self.queue.remove(at);
            }
        }
        None
    }

    /// No request gets a place any more. What is queued has to be refused by the caller; what is
    /// being decided about will be `Standing::Closed`.
    pub fn close(&mut self) -> impl Iterator<Item = (u64, R)> + use<R> {
        self.closed = true;
        std::mem::take(&mut self.queue).into_iter()
    }
}

#[cfg(test)]
mod tests;
