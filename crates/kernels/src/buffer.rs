//! Memory for activations and scratch, used again: parts of one region of addresses, so that feature maps are neither
//! cleared nor mapped anew for each layer, and lie on huge pages. A part goes where the smallest gap fits; memory is taken
//! for the highest place that was ever in use, which is 11 to 14 % more than what is alive (SD1.5's UNet and decoder).

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, OnceLock};

/// Below this many values the allocator is as good.
const LEAST: usize = 1 << 14;
/// Values of a line of the cache: parts begin at one.
const LINE: usize = 16;
/// Addresses of the region, in values: a TiB, which costs nothing until it is written to.
const ADDRESSES: usize = 1 << 38;
/// Below this the allocator may keep what is freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BLOCK_BYTES: i32 = 1 << 20;
/// The huge page of x86-64, and of ARM with small pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// What of a row of places is in use.
#[derive(Default)]
struct Places {
    /// Gaps below the top, length by start; no two of them touch.
    gaps: BTreeMap<usize, usize>,
    /// Nothing from here on is in use.
    top: usize,
    /// The highest top since the last release.
    highest: usize,
    /// Places in use, and the most that were.
    live: usize,
    most: usize,
}

impl Places {
    /// Takes `size` places: the start of the smallest gap that has them, or the top.
    fn take(&mut self, size: usize) -> usize {
        self.live += size;
        self.most = self.most.max(self.live);
        let fits = self.gaps.iter().filter(|(_, len)| **len >= size);
        let start = match fits.min_by_key(|(_, len)| **len).map(|(start, len)| (*start, *len)) {
            Some((start, len)) => {
                self.gaps.remove(&start);
                if len > size {
                    self.gaps.insert(start + size, len - size);
                }
                start
            }
            None => {
                // A gap just below the top is its end's beginning.
                let start = match self.gaps.last_key_value() {
                    Some((start, len)) if start + len == self.top => *start,
                    _ => self.top,
                };
                self.gaps.remove(&start);
                self.top = start + size;
                start
            }
        };
        self.highest = self.highest.max(self.top);
        start
    }

    /// Gives them back.
    fn give(&mut self, mut start: usize, mut size: usize) {
        self.live -= size;
        if let Some(next) = self.gaps.remove(&(start + size)) {
            size += next;
        }
        if let Some((before, len)) = self.gaps.range(..start).next_back().map(|(s, l)| (*s, *l)) {
            if before + len == start {
                (start, size) = (before, len + size);
            }
        }
        if start + size == self.top {
            self.gaps.remove(&start);
            self.top = start;
        } else {
            self.gaps.insert(start, size);
        }
    }

    /// What lies unused below the highest top, which is the top from now on.
    fn unused(&mut self) -> Vec<(usize, usize)> {
        let above = (self.top, self.highest - self.top);
        self.highest = self.top;
        self.gaps.iter().map(|(s, l)| (*s, *l)).chain([above]).collect()
    }
}

static PLACES: Mutex<Places> =
    Mutex::new(Places { gaps: BTreeMap::new(), top: 0, highest: 0, live: 0, most: 0 });

fn places() -> MutexGuard<'static, Places> {
    // Nothing in here can be left half done by a panic.
    PLACES.lock().unwrap_or_else(|e| e.into_inner())
}

/// The address of the region; None where there is none. With debug assertions there is none either: buffers are then
/// allocations of their own, whose ends sanitizers see.
fn region() -> Option<NonNull<f32>> {
    static REGION: OnceLock<Option<usize>> = OnceLock::new();
    let at = REGION.get_or_init(|| if cfg!(debug_assertions) { None } else { reserve() });
    at.and_then(|at| NonNull::new(at as *mut f32))
}

#[cfg(unix)]
fn reserve() -> Option<usize> {
    // SAFETY: asks for addresses where nothing lies yet.
    unsafe {
        let (access, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE);
        let bytes = ADDRESSES * 4;
        let at = libc::mmap(std::ptr::null_mut(), bytes + HUGE_PAGE_BYTES, access, kind, -1, 0);
        if at == libc::MAP_FAILED {
            return None;
        }
        let at = (at as usize).next_multiple_of(HUGE_PAGE_BYTES);
        #[cfg(target_os = "linux")]
        libc::madvise(at as *mut libc::c_void, bytes, libc::MADV_HUGEPAGE);
        Some(at)
    }
}

#[cfg(not(unix))]
fn reserve() -> Option<usize> {
    None
}

/// Where a buffer's values are.
enum Values {
    /// In an allocation of their own.
    Own(Vec<f32>),
    /// In the region: its address, its first place, and how many it has.
    Part { at: NonNull<f32>, start: usize, size: usize },
}

/// Values of f32 from the memory that is used again.
pub struct Buffer {
    values: Values,
    len: usize,
}

impl Buffer {
    /// `len` values of any kind: whoever asks writes all of them before reading. In builds with debug assertions they
    /// are NaN.
    pub fn stale(len: usize) -> Self {
        let mut buffer = Buffer::any(len);
        if cfg!(debug_assertions) {
            buffer.fill(f32::NAN);
        }
        buffer
    }

    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let mut buffer = Buffer::any(len);
        if let Values::Part { .. } = buffer.values {
            buffer.fill(0.0);
        }
        buffer
    }

    /// Memory of its own is zero.
    fn any(len: usize) -> Self {
        if let Some(region) = region().filter(|_| (LEAST..ADDRESSES).contains(&len)) {
            let size = len.next_multiple_of(LINE);
            let mut places = places();
            let start = places.take(size);
            if start + size <= ADDRESSES {
                // SAFETY: within the region.
                let at = unsafe { region.add(start) };
                return Buffer { values: Values::Part { at, start, size }, len };
            }
            places.give(start, size);
        }
        Buffer { values: Values::Own(vec![0.0; len]), len }
    }

    /// The values as a vector.
    pub fn into_vec(mut self) -> Vec<f32> {
        match &mut self.values {
            Values::Own(values) => std::mem::take(values),
            Values::Part { .. } => self.to_vec(),
        }
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Values::Part { start, size, .. } = self.values {
            places().give(start, size);
        }
    }
}

impl From<Vec<f32>> for Buffer {
    fn from(values: Vec<f32>) -> Self {
        Buffer { len: values.len(), values: Values::Own(values) }
    }
}

// SAFETY: a part is its buffer's alone.
unsafe impl Send for Buffer {}
// SAFETY: as above; it is changed through a unique reference only.
unsafe impl Sync for Buffer {}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.values {
            Values::Own(values) => values,
            // SAFETY: the part is this buffer's alone, within the region, whose bytes are zero or were written as f32.
            Values::Part { at, .. } => unsafe { std::slice::from_raw_parts(at.as_ptr(), self.len) },
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.values {
            Values::Own(values) => values,
            // SAFETY: as above.
            Values::Part { at, .. } => unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), self.len) },
        }
    }
}

/// Gives back what lies unused: for programs that do other things between pictures.
pub fn release() {
    let mut places = places();
    let unused = places.unused();
    places.most = places.live;
    #[cfg(not(unix))]
    let _ = (unused, HUGE_PAGE_BYTES);
    #[cfg(unix)]
    if let Some(at) = region().map(|at| at.as_ptr() as usize) {
        for (start, size) in unused {
            let from = (at + start * 4).next_multiple_of(HUGE_PAGE_BYTES);
            let to = (at + (start + size) * 4) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
            // SAFETY: whole pages of the region that no buffer has; they are zero when they are read again. The lock is held,
            // so none is taken meanwhile.
            unsafe {
                if to > from {
                    libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED);
                }
            }
        }
    }
}

/// Bytes of the region that were in use at a time, at most, since the last [`release`]: for measurements.
pub fn most_bytes() -> usize {
    places().most * 4
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
    fn buffers_have_what_was_written() {
        let n = LEAST * 3;
        let mut first = Buffer::stale(n);
        first.fill(7.0);
        let second = Buffer::zeros(n);
        assert!(first.iter().all(|v| *v == 7.0) && second.iter().all(|v| *v == 0.0));
        drop(first);
        assert!(Buffer::zeros(n - 5).iter().all(|v| *v == 0.0));
        let b = Buffer::from(vec![1.0, 2.0]);
        assert_eq!(b.clone().into_vec(), [1.0, 2.0]);
        assert_eq!(Buffer::zeros(3).into_vec(), [0.0; 3]);
        let mut long = Buffer::zeros(n);
        long[n - 1] = 5.0;
        release();
        assert_eq!(long[n - 1], 5.0, "what is in use stays");
        assert_eq!(long.into_vec()[n - 1], 5.0);
        assert!(Buffer::default().is_empty());
    }

    /// Random sizes taken and given back in random order: no two overlap, gaps join again, and the region stays small.
    #[test]
    fn places_do_not_overlap() {
        let (mut places, mut taken, mut seed) = (Places::default(), Vec::<(usize, usize)>::new(), 1u64);
        let mut draw = |n: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % n
        };
        for _ in 0..20_000 {
            if taken.len() < 40 && draw(2) == 0 || taken.is_empty() {
                let bits = draw(9);
                let size = 1 + draw(2 << bits);
                let start = places.take(size);
                assert!(
                    taken.iter().all(|(s, l)| start + size <= *s || s + l <= start),
                    "overlap at {start}"
                );
                taken.push((start, size));
            } else {
                let (start, size) = taken.swap_remove(draw(taken.len()));
                places.give(start, size);
            }
            assert_eq!(places.live, taken.iter().map(|(_, l)| l).sum::<usize>());
            let gaps = places.gaps.values().sum::<usize>();
            assert_eq!(places.top, places.live + gaps);
            let ends: Vec<_> = places.gaps.iter().map(|(s, l)| s + l).collect();
            assert!(ends.iter().all(|e| !places.gaps.contains_key(e) && *e < places.top), "gaps touch");
        }
        assert!(places.highest < 2 * places.most, "{} for {}", places.highest, places.most);
        for (start, size) in taken {
            places.give(start, size);
        }
        assert_eq!((places.top, places.live, places.gaps.len()), (0, 0, 0));
        let highest = places.highest;
        assert_eq!((places.unused(), places.highest), (vec![(0, highest)], 0));
    }

    /// The smallest gap that is large enough is taken, and one below the top grows.
    #[test]
    fn the_smallest_gap_is_taken() {
        let mut places = Places::default();
        let starts: Vec<_> = [8, 1, 4, 1, 2].iter().map(|n| places.take(*n)).collect();
        assert_eq!(starts, [0, 8, 9, 13, 14]);
        places.give(0, 8);
        places.give(9, 4);
        assert_eq!(places.take(3), 9);
        places.give(14, 2);
        assert_eq!((places.take(9), places.top), (14, 23));
        assert_eq!((places.live, places.most, places.highest), (14, 16, 23));
    }
}
