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

impl Shared<'_> {
    /// Tells the processor that `start..start + len` will be written soon.
    #[inline(always)]
    pub fn soon(&self, start: usize, len: usize) {
        for line in (start..start + len).step_by(16) {
            soon_written(self.line(line));
        }
    }

    /// Where `start` is, which may be outside.
    pub fn line(&self, start: usize) -> *const f32 {
        self.0.wrapping_add(start)
    }
}

/// Tells the processor that the line of the cache at `p` will be written soon.
#[inline(always)]
pub(crate) fn soon_written(p: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing; any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(p.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Tells the processor that the line of the cache at `p` will be used soon.
#[inline(always)]
pub(crate) fn soon_used(p: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing; any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Tells the processor that `data[start..start + len]`, as far as there is such, will be read soon.
#[inline(always)]
pub(crate) fn soon<T>(data: &[T], start: usize, len: usize) {
    if let Some(part) = data.get(start..data.len().min(start + len)) {
        for byte in (0..std::mem::size_of_val(part)).step_by(64) {
            soon_used(part.as_ptr().cast::<f32>().wrapping_byte_add(byte));
        }
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
