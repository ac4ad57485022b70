//! What tells descriptors of our own in a program's epoll set from the program's: their data.

use std::sync::OnceLock;

/// A descriptor of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ours {
    Doorbell,
    /// That of a lane which is armed for a sleep.
    Armed,
    /// That of lanes with this mark, which are watched.
    Watched(u16),
}

/// What stands for the first two; marks are between them.
const DOORBELL: u16 = 0;
const ARMED: u16 = u16::MAX;

impl Ours {
    /// What an event of it carries.
    pub(super) fn data(self) -> u64 {
        tag()
            | u64::from(match self {
                Self::Doorbell => DOORBELL,
                Self::Armed => ARMED,
                Self::Watched(mark) => mark,
            })
    }

    /// What an event with this data is of; none: it is the program's.
    pub(super) fn of(data: u64) -> Option<Self> {
        let low = data as u16;
        (data ^ u64::from(low) == tag()).then_some(match low {
            DOORBELL => Self::Doorbell,
            ARMED => Self::Armed,
            mark => Self::Watched(mark),
        })
    }

    /// The mark of the lane with this number. Lanes that have one in common are looked at together.
    pub(super) fn mark(number: usize) -> u16 {
        const MARKS: usize = (ARMED - DOORBELL - 1) as usize;
        DOORBELL + 1 + (number % MARKS) as u16
    }
}

/// No pointer, and no small number; the low 16 bits are free.
fn tag() -> u64 {
    static TAG: OnceLock<u64> = OnceLock::new();
    *TAG.get_or_init(|| {
        let mut random = [0; 4];
        // Without randomness a fixed number that is no address serves nearly as well.
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        0x5a4e_0000_0000_0000 | u64::from(u32::from_ne_bytes(random)) << 16
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_known_by_its_data() {
        for ours in [
            Ours::Doorbell,
            Ours::Armed,
            Ours::Watched(Ours::mark(0)),
            Ours::Watched(Ours::mark(65_533)),
        ] {
            assert_eq!(Ours::of(ours.data()), Some(ours));
        }
        for data in [0, 1, u64::MAX, tag() ^ 1 << 16, tag() ^ 1 << 63] {
            assert_eq!(Ours::of(data), None, "{data:x}");
        }
    }

    #[test]
    fn no_mark_is_that_of_something_else() {
        for number in (0..200_000).chain([usize::MAX]) {
            assert!(![DOORBELL, ARMED].contains(&Ours::mark(number)));
        }
    }
}
