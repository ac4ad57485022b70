//! How a round trip is timed, and how often: the same for all that are compared.

use std::time::Instant;

use san_benches::Result;
use san_benches::stats::Samples;

/// Sizes of the messages.
pub(crate) const SIZES: [usize; 2] = [64, 4096];

/// Round trips that are measured.
pub(crate) const ROUNDS: usize = 2000;

/// The same for messages of this size.
pub(crate) fn rounds(size: usize) -> usize {
    match size {
        0..=4096 => ROUNDS,
        _ => 300,
    }
}

/// Round trips before that.
pub(crate) const WARM_UP: usize = 200;

/// Samples of half a round trip.
pub(crate) fn ping(mut round_trip: impl FnMut() -> Result<()>) -> Result<Samples> {
    ping_times(ROUNDS, &mut round_trip)
}

/// The same, so many times.
pub(crate) fn ping_times(
    times: usize,
    mut round_trip: impl FnMut() -> Result<()>,
) -> Result<Samples> {
    for _ in 0..WARM_UP.min(times) {
        round_trip()?;
    }
    let mut samples = Samples::with_capacity(times);
    for _ in 0..times {
        let start = Instant::now();
        round_trip()?;
        samples.push(start.elapsed() / 2);
    }
    Ok(samples)
}
