//! Memory for activations and scratch, used again: what is dropped is kept for the next that asks, so that feature maps
//! are neither cleared nor mapped anew for each layer. What is kept never raises the peak: before new memory is taken,
//! as much goes back as is needed to stay below the most that was in use at a time.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};

/// Below this many values the allocator is as good.
const LEAST: usize = 1 << 14;
/// Below this the allocator may keep what is freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BLOCK_BYTES: i32 = 1 << 20;
/// The huge page of x86-64, and of ARM with small pages.
#[cfg(target_os = "linux")]
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// All memory of buffers, in values.
struct Arena {
    /// What lies unused, the longest unused first.
    kept: Vec<Vec<f32>>,
    /// Values in use, and the most that were.
    live: usize,
    peak: usize,
}

static ARENA: Mutex<Arena> = Mutex::new(Arena { kept: Vec::new(), live: 0, peak: 0 });

fn arena() -> MutexGuard<'static, Arena> {
    // Nothing in here can be left half done by a panic.
    ARENA.lock().unwrap_or_else(|e| e.into_inner())
}

impl Arena {
    fn take(&mut self, values: usize) {
        self.live += values;
        self.peak = self.peak.max(self.live);
    }

    /// The smallest unused vector that is long enough and not more than a quarter longer.
    fn reuse(&mut self, len: usize) -> Option<Vec<f32>> {
        let fits = self.kept.iter().enumerate().filter(|(_, v)| v.len() >= len && v.len() <= len + len / 4);
        let (i, _) = fits.min_by_key(|(_, v)| v.len())?;
        Some(self.kept.remove(i))
    }

    /// Gives back what lies unused until it and what is in use are no more than the peak.
    fn trim(&mut self) {
        let mut unused = self.kept.iter().map(Vec::len).sum::<usize>();
        while unused > 0 && unused + self.live > self.peak {
            unused -= self.kept.remove(0).len();
        }
    }
}

/// Values of f32 from the memory that is used again.
#[derive(Default)]
pub struct Buffer {
    /// May be longer than what was asked for.
    values: Vec<f32>,
    len: usize,
}

impl Buffer {
    /// `len` values of any kind: whoever asks writes all of them before reading. In builds with debug assertions they
    /// are NaN.
    pub fn stale(len: usize) -> Self {
        let (mut buffer, _) = Buffer::any(len);
        if cfg!(debug_assertions) {
            buffer.fill(f32::NAN);
        }
        buffer
    }

    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let (mut buffer, zero) = Buffer::any(len);
        if !zero {
            buffer.fill(0.0);
        }
        buffer
    }

    /// Memory, and whether it is zero.
    fn any(len: usize) -> (Self, bool) {
        if len >= LEAST {
            let mut arena = arena();
            if let Some(values) = arena.reuse(len) {
                arena.take(values.len());
                return (Buffer { values, len }, false);
            }
            arena.take(len);
            arena.trim();
        }
        (Buffer { values: fresh(len), len }, true)
    }

    /// The values as a vector.
    pub fn into_vec(mut self) -> Vec<f32> {
        let mut values = std::mem::take(&mut self.values);
        if values.len() >= LEAST {
            arena().live -= values.len();
        }
        values.truncate(self.len);
        values
    }
}

/// Gives back what lies unused, e.g. between the denoising of a picture and its decoding.
pub fn release() {
    let mut arena = arena();
    arena.kept.clear();
    arena.peak = arena.live;
}

/// Has the C library's allocator give back what it is given from 1 MiB on. Left alone, glibc raises that limit to 32 MiB
/// when the first large block is freed, and keeps holes of feature maps and packed weights in its heap: of SD1.5 at 512 × 512 in
/// bf16 the peak was 2017 MiB, and is 1879. For programs, at their start: the setting is the whole process's.
pub fn return_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets a number of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES);
    }
}

/// New zeros, on huge pages where the system has them to give: a feature map then costs a few page faults, not thousands.
pub(crate) fn fresh(len: usize) -> Vec<f32> {
    let values = vec![0f32; len];
    #[cfg(target_os = "linux")]
    {
        let start = (values.as_ptr() as usize).next_multiple_of(HUGE_PAGE_BYTES);
        let end = (values.as_ptr() as usize + len * 4) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
        if end > start {
            // SAFETY: whole pages within the vector; the advice changes no value. Where it is refused nothing happens.
            unsafe {
                libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE);
            }
        }
    }
    values
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        if values.len() >= LEAST {
            let mut arena = arena();
            arena.live -= values.len();
            arena.kept.push(values);
        }
    }
}

impl From<Vec<f32>> for Buffer {
    fn from(values: Vec<f32>) -> Self {
        if values.len() >= LEAST {
            let mut arena = arena();
            arena.take(values.len());
            arena.trim();
        }
        Buffer { len: values.len(), values }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        let mut copy = Buffer::stale(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        self[..].fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_zeros_are_zero() {
        let n = LEAST * 3;
        let mut first = Buffer::stale(n);
        first.fill(7.0);
        drop(first);
        assert!(Buffer::zeros(n - 5).iter().all(|v| *v == 0.0));
        let b = Buffer::from(vec![1.0, 2.0]);
        assert_eq!(b.clone().into_vec(), [1.0, 2.0]);
        assert_eq!(Buffer::zeros(3).into_vec(), [0.0; 3]);
        // One that is far too long is left for others.
        drop(Buffer::from(vec![0.0; LEAST * 9]));
        assert!(Buffer::stale(LEAST * 2).values.len() <= LEAST * 5 / 2);
    }

    #[test]
    fn what_is_unused_does_not_raise_the_peak() {
        let mut arena = Arena { kept: vec![vec![0.0; 5], vec![0.0; 7], vec![0.0; 3]], live: 0, peak: 15 };
        arena.take(4);
        arena.trim();
        assert_eq!((arena.kept.len(), arena.live, arena.peak), (2, 4, 15));
        assert_eq!(arena.reuse(6).map(|v| v.len()), Some(7));
        assert_eq!(arena.reuse(2), None);
        arena.take(12);
        arena.trim();
        assert_eq!((arena.kept.len(), arena.live, arena.peak), (0, 16, 16));
    }
}
