//! Counters: always on, read without stopping anything.
//!
//! Each is a number that only grows, but for a child that is forked. One relaxed addition; nobody orders memory by them.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Adds 1.
    pub fn raise(&self) {
        self.add(1);
    }

    /// The number now.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// In a child that was forked: what has been counted is its parent's. Nothing is written that is 0 already.
    pub fn begin_anew(&self) {
        if self.value() != 0 {
            self.0.store(0, Ordering::Relaxed);
        }
    }
}

/// Declares numbers that are counted, each once: name and documentation.
///
/// The first form gives a struct of plain numbers (`rows`, `add`), for whoever counts under a lock.
/// The second gives a struct of plain numbers, which may have fields of its own besides, and the
/// structs of [`Counter`]s that it is a picture of (`snapshot`, `add_to`).
///
/// ```
/// san_base::counters! {
///     /// What a door has seen.
///     pub struct DoorStats { /// How wide it is.
///         width: usize, };
///
///     /// What a door counts.
///     struct DoorCounters {
///         /// Times that it was opened.
///         opened,
///     }
/// }
/// let door = DoorCounters::default();
/// door.opened.raise();
/// let stats = DoorStats { width: 80, ..door.snapshot() };
/// assert_eq!(stats.rows().collect::<Vec<_>>(), [("opened", 1)]);
/// ```
#[macro_export]
macro_rules! counters {
    (
        $(#[$doc:meta])*
        pub struct $plain:ident { $( $(#[$field_doc:meta])* $field:ident, )* }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $plain {
            $( $(#[$field_doc])* pub $field: u64, )*
        }

        #[allow(dead_code, reason = "not everybody needs each of them")]
        impl $plain {
            /// Names and values, in the order of the fields.
            pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$( (stringify!($field), self.$field), )*].into_iter()
            }

            /// Adds what another of them counted.
            pub(crate) fn add(&mut self, other: &Self) {
                $( self.$field += other.$field; )*
            }
        }
    };
    (
        $(#[$doc:meta])*
        pub struct $picture:ident $({ $( $(#[$own_doc:meta])* $own:ident: $own_type:ty, )* })?;
        $(
            $(#[$live_doc:meta])*
            $vis:vis struct $live:ident { $( $(#[$field_doc:meta])* $field:ident, )* }
        )*
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $picture {
            $( $( $(#[$own_doc])* pub $own: $own_type, )* )?
            $( $( $(#[$field_doc])* pub $field: u64, )* )*
        }

        impl $picture {
            /// Names and values of what was counted, in the order of the fields.
            pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$( $( (stringify!($field), self.$field), )* )*].into_iter()
            }
        }

        $(
            $(#[$live_doc])*
            #[derive(Debug, Default)]
            $vis struct $live {
                $( $vis $field: $crate::Counter, )*
            }

            #[allow(dead_code, reason = "not everybody needs each of them")]
            impl $live {
                /// Adds what is counted here to a picture.
                $vis fn add_to(&self, picture: &mut $picture) {
                    $( picture.$field += self.$field.value(); )*
                }

                /// What is counted here, and nothing else.
                $vis fn snapshot(&self) -> $picture {
                    let mut picture = $picture::default();
                    self.add_to(&mut picture);
                    picture
                }

                /// In a child that was forked: what has been counted is its parent's.
                $vis fn begin_anew(&self) {
                    $( self.$field.begin_anew(); )*
                }
            }
        )*
    };
}

#[cfg(test)]
mod tests {
    #![allow(
        unreachable_pub,
        reason = "what the macro makes public is here for the tests alone"
    )]

    crate::counters! {
        /// All at one time.
        pub struct Picture {
            /// Not a count.
            limit: usize,
        };

        /// What one part counts.
        struct Control {
            /// Requests.
            requests,
        }

        /// What the other part counts.
        struct Data {
            /// Bytes.
            bytes,
            /// Messages.
            messages,
        }
    }

    crate::counters! {
        /// Counted under a lock.
        pub struct Plain {
            /// Packets.
            packets,
            /// Losses.
            losses,
        }
    }

    #[test]
    fn a_picture_adds_up_its_parts() {
        let control = Control::default();
        control.requests.raise();
        control.requests.raise();
        let data = [Data::default(), Data::default()];
        data[0].bytes.add(10);
        data[1].bytes.add(5);
        let mut all = control.snapshot();
        for part in &data {
            part.add_to(&mut all);
        }
        let wanted = [("requests", 2), ("bytes", 15), ("messages", 0)];
        assert_eq!(all.rows().collect::<Vec<_>>(), wanted);
        assert_eq!(all.limit, 0);
    }

    #[test]
    fn plain_numbers_add_up_too() {
        let mut sum = Plain::default();
        sum.add(&Plain {
            packets: 3,
            losses: 1,
        });
        sum.add(&Plain {
            packets: 4,
            losses: 0,
        });
        assert_eq!(
            sum.rows().collect::<Vec<_>>(),
            [("packets", 7), ("losses", 1)]
        );
    }
}
