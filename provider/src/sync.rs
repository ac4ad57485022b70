//! Locks that do not care about poison: no code under them leaves anything half-done when it
//! panics, since nothing is called out to while they are held.

pub(crate) use san_base::lock;
