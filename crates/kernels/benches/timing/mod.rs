//! The clock of these benchmarks.

use std::time::Instant;

/// Seconds that `f` takes by the clock, the least of at least three runs, until about 0.6 s are spent: other programs disturb the
/// least little. (The system's count of a thread's own time has been seen to run behind on virtual machines, and would give
/// more than the processor can do.)
pub fn best(mut f: impl FnMut()) -> f64 {
    let (mut best, mut spent, mut n) = (f64::INFINITY, 0.0, 0);
    while n < 3 || spent < 0.6 {
        let start = Instant::now();
        f();
        let took = start.elapsed().as_secs_f64();
        (best, spent, n) = (best.min(took), spent + took, n + 1);
    }
    best
}
