//! What watching costs the program in mappings, and the rule that bounds it.
//!
//! The kernel keeps watched pages as a mapping of their own, and joins it with its neighbours again
//! when the watch ends. Only what is mapped beside watched pages and written before the watch ends
//! is never joined with them. A program that registers ever new memory at the rim of what it has
//! mapped would so collect mappings until the system's limit. So it is counted how often a join was
//! lost in this way, and after a number of times memory at a rim is no longer kept registered. It
//! lies at no rim any more once more memory has been mapped beside it.
//!
//! Not done here: looking at mappings, and watching.

use std::collections::BTreeSet;
use std::ops::Range;

use verbs_shim::AtRim;

/// Joins that may be lost in all. A process may have some 65,000 mappings.
const MOST: u32 = 64;

/// Rims of watched memory, and what became of those that were.
#[derive(Debug, Default)]
pub(super) struct Rims {
    /// Addresses on one side of which nothing was mapped when the watch on the other began.
    open: BTreeSet<usize>,
    lost: u32,
}

impl Rims {
    /// Whether memory at a rim may be watched.
    pub(super) fn may_watch(&self) -> bool {
        self.lost < MOST
    }

    /// These pages are watched from now on.
    pub(super) fn watched(&mut self, pages: &Range<usize>, at_rim: AtRim) {
        let ends = [(at_rim.before, pages.start), (at_rim.behind, pages.end)];
        self.open
            .extend(ends.iter().filter(|end| end.0).map(|end| end.1));
    }

    /// These pages are not watched any more. `is_seam` says whether two mappings still meet at an
    /// address that could be one.
    pub(super) fn unwatched(&mut self, pages: &Range<usize>, is_seam: impl Fn(usize) -> bool) {
        while let Some(&at) = self.open.range(pages.start..=pages.end).next() {
            self.open.remove(&at);
            if is_seam(at) {
                self.lost = self.lost.saturating_add(1);
            }
        }
    }

    /// These pages are not mapped any more, and so they are nobody's neighbours.
    pub(super) fn unmapped(&mut self, pages: &Range<usize>) {
        while let Some(&at) = self.open.range(pages.start..=pages.end).next() {
            self.open.remove(&at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: AtRim = AtRim {
        before: true,
        behind: false,
    };

    #[test]
    fn only_joins_that_were_lost_count() {
        let mut rims = Rims::default();
        for n in 0..1000 {
            let pages = 0x10_0000 + n * 0x2000..0x10_1000 + n * 0x2000;
            rims.watched(&pages, BEFORE);
            match n % 2 {
                0 => rims.unwatched(&pages, |_| false),
                _ => rims.unmapped(&pages),
            }
            // Not at a rim: what meets there met there before.
            rims.watched(
                &pages,
                AtRim {
                    before: false,
                    behind: false,
                },
            );
            rims.unwatched(&pages, |_| true);
        }
        assert!(rims.may_watch());
        assert!(rims.open.is_empty());
    }

    #[test]
    fn a_number_of_joins_may_be_lost() {
        let mut rims = Rims::default();
        let both = AtRim {
            before: true,
            behind: true,
        };
        for _ in 0..MOST / 2 {
            assert!(rims.may_watch());
            rims.watched(&(0x1000..0x3000), both);
            rims.unwatched(&(0..0x1000), |at| at == 0x1000);
            rims.unwatched(&(0x2000..0x3000), |at| at == 0x3000);
        }
        assert!(!rims.may_watch());
    }
}
