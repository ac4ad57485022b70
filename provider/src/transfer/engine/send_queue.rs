//! What is on the send queue of a queue pair: how many requests, which of them are data messages,
//! and which one has to make a completion.
//!
//! It counts. It knows no request and no completion.

use std::collections::VecDeque;

/// The requests on one send queue, oldest first.
#[derive(Debug)]
pub(crate) struct SendQueue {
    depth: u32,
    /// Requests that were posted and not freed by a completion yet.
    length: u32,
    /// So many more may follow without one that makes a completion.
    quiet_left: u32,
    /// So many follow one that does: a full queue has two of those, so that who waits for a place hears of
    /// one.
    most_quiet: u32,
    /// Requests that were freed; with `length`, the number of the next request.
    freed: u64,
    /// The numbers of those on the queue that are no data messages, oldest first: few.
    others: VecDeque<u64>,
}

impl SendQueue {
    pub(crate) fn new(depth: u32) -> Self {
        let most_quiet = (depth.saturating_sub(1) / 2).saturating_sub(1);
        Self {
            depth,
            length: 0,
            quiet_left: most_quiet,
            most_quiet,
            freed: 0,
            others: VecDeque::new(),
        }
    }

    /// Whether a message could be posted. One place is kept for a credit message.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.length + 1 < self.depth
    }

    /// Whether anything could be posted.
    pub(crate) fn has_any_room(&self) -> bool {
        self.length < self.depth
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Data messages that the device has.
    pub(crate) fn messages(&self) -> u32 {
        self.length - u32::try_from(self.others.len()).unwrap_or(self.length)
    }

    /// A request is about to be posted; whether it has to make a completion. It does if somebody
    /// waits for it or it holds memory (`wanted`), and now and then.
    #[inline(always)]
    pub(crate) fn posted(&mut self, is_message: bool, wanted: bool) -> bool {
        if !is_message {
            self.others.push_back(self.next());
        }
        self.length += 1;
        if wanted || self.quiet_left == 0 {
            self.quiet_left = self.most_quiet;
            return true;
        }
        self.quiet_left -= 1;
        false
    }

    /// The newest request was not posted after all.
    pub(crate) fn take_back(&mut self) {
        self.length -= 1;
        if self.others.back() == Some(&self.next()) {
            self.others.pop_back();
        }
        // One completion more than is needed does no harm.
        self.quiet_left = 0;
    }

    /// A completion has freed the `n` oldest requests.
    #[inline]
    pub(crate) fn completed(&mut self, n: u32) {
        let n = n.min(self.length);
        self.length -= n;
        self.freed += u64::from(n);
        while self.others.front().is_some_and(|&other| other < self.freed) {
            self.others.pop_front();
        }
    }

    /// The number of the next request.
    fn next(&self) -> u64 {
        self.freed + u64::from(self.length)
    }

    /// Another queue pair, with nothing on it.
    pub(crate) fn renew(&mut self) {
        (self.length, self.quiet_left) = (0, self.most_quiet);
        self.others.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_place_is_kept_for_credits() {
        let mut queue = SendQueue::new(3);
        assert!(!queue.posted(true, false) || queue.depth == 3);
        assert!(queue.has_room());
        queue.posted(true, false);
        assert!(!queue.has_room() && queue.has_any_room());
        queue.posted(false, false);
        assert!(!queue.has_any_room());
        assert_eq!(queue.messages(), 2);
    }

    proptest! {
        // Against a queue of flags.
        #[test]
        fn it_counts_what_is_there(depth in 2u32..150, steps in proptest::collection::vec((0u8..4, 0u32..5), 0..500)) {
            let mut queue = SendQueue::new(depth);
            let mut model: VecDeque<(bool, bool)> = VecDeque::new();
            for (step, n) in steps {
                match step {
                    0 | 1 if queue.has_any_room() => {
                        let signaled = queue.posted(step == 0, n == 0);
                        prop_assert!(signaled || n != 0);
                        model.push_back((step == 0, signaled));
                    }
                    2 => {
                        let n = n.min(model.len() as u32);
                        queue.completed(n);
                        model.drain(..n as usize);
                    }
                    3 if !model.is_empty() => {
                        queue.take_back();
                        model.pop_back();
                    }
                    _ => {}
                }
                let messages = model.iter().filter(|(message, _)| *message).count();
                prop_assert_eq!(queue.messages() as usize, messages);
                prop_assert_eq!(queue.is_empty(), model.is_empty());
                prop_assert_eq!(queue.has_any_room(), model.len() < depth as usize);
            }
        }

        // A full queue has a request that makes a completion, so its places come back.
        #[test]
        fn a_full_queue_is_heard_of(depth in 2u32..40) {
            let mut queue = SendQueue::new(depth);
            let mut signaled = false;
            while queue.has_room() {
                signaled |= queue.posted(true, false);
            }
            prop_assert!(signaled);
        }
    }
}
