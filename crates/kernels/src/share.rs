//! Writing disjoint parts of one output from several threads.

use std::marker::PhantomData;

/// A mutable slice that several threads write at disjoint places.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a>(*mut f32, usize, PhantomData<&'a mut [f32]>);

// SAFETY: the users below hand each thread ranges that no other thread touches.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(out: &'a mut [f32]) -> Self {
        Shared(out.as_mut_ptr(), out.len(), PhantomData)
    }

    /// The part `start..start + len`.
    ///
    /// # Safety
    /// No other thread may use any of it at the same time.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.1));
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

impl<'a> Shared<'a> {
    /// Where `start` is, with `len` values from there on inside.
    ///
    /// # Panics
    /// If they are not inside.
    pub fn at(&self, start: usize, len: usize) -> *mut f32 {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.1));
        // SAFETY: in bounds by the assertion.
        unsafe { self.0.add(start) }
    }
}

/// Runs `task(i)` for i in 0..n on the current rayon pool.
pub(crate) fn each(n: usize, task: impl Fn(usize) + Sync + Send) {
    use rayon::prelude::*;
    if n == 1 {
        task(0);
    } else {
        (0..n).into_par_iter().for_each(task);
    }
}
