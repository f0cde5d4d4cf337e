//! The clock of these benchmarks.

// Each of the benchmarks uses some of these.
#![allow(dead_code)]

use std::time::Instant;

/// Seconds that `f` takes by the clock.
pub fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// Seconds that `f` takes by the clock, the least of at least three runs, until about 0.6 s are spent: other programs disturb the
/// least little. (The system's count of a thread's own time has been seen to run behind on virtual machines, and would give
/// more than the processor can do.)
pub fn best(mut f: impl FnMut()) -> f64 {
    let (mut best, mut spent, mut n) = (f64::INFINITY, 0.0, 0);
    while n < 3 || spent < 0.6 {
        let took = seconds(&mut f);
        (best, spent, n) = (best.min(took), spent + took, n + 1);
    }
    best
}

/// Runs `f` and `other` in turns, as [`best`] does: the least seconds of each.
pub fn beside(mut f: impl FnMut(), mut other: impl FnMut()) -> [f64; 2] {
    let mut least = [f64::INFINITY; 2];
    _ = best(|| {
        least[0] = seconds(&mut f).min(least[0]);
        least[1] = seconds(&mut other).min(least[1]);
    });
    least
}
