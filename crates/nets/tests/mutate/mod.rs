//! Damages valid files at random, from a seed, and watches that reading the result stays harmless.

/// A small generator (SplitMix64); the sequence is part of the test.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }
}

/// One to four changes: flipped bits, telling values, cuts, doubled and exchanged pieces, pieces of `other`.
pub fn mutate(file: &[u8], other: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut out = file.to_vec();
    for _ in 0..=dice.below(4) {
        if out.is_empty() {
            break;
        }
        let at = dice.below(out.len());
        let n = 1 + dice.below((out.len() - at).min(64));
        match dice.below(9) {
            0 => out[at] ^= 1 << dice.below(8),
            1 => out[at] = dice.roll() as u8,
            2 => out.truncate(at),
            3 => drop(out.drain(at..at + n)),
            4 => {
                let piece = out[at..at + n].to_vec();
                let to = dice.below(out.len());
                out.splice(to..to, piece);
            }
            5 => {
                let from = dice.below(other.len());
                let piece = &other[from..other.len().min(from + n)];
                let end = (at + piece.len()).min(out.len());
                out.splice(at..end, piece.iter().copied());
            }
            6 => {
                let telling = [0u64, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];
                let bytes = telling[dice.below(telling.len())].to_le_bytes();
                let n = n.min([1, 2, 4, 8][dice.below(4)]);
                out[at..at + n].copy_from_slice(&bytes[..n]);
            }
            7 => {
                // A digit of a header grows.
                if let Some(digit) = out[at..].iter().position(u8::is_ascii_digit) {
                    let more = vec![b'9'; 1 + dice.below(20)];
                    out.splice(at + digit..at + digit, more);
                }
            }
            _ => out[at..at + n].fill(dice.roll() as u8),
        }
    }
    out
}

/// The most address space this process has had, where the system says so (Linux).
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmPeak:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

/// Calls `read` with `count` damaged versions of each file. A panic fails the test by itself; so does address space
/// that grows by more than two gigabytes (the threads of a test take some), and a reader that takes more than five seconds for one small file.
pub fn survive(files: &[Vec<u8>], count: u64, mut read: impl FnMut(Vec<u8>)) {
    let before = peak_bytes();
    for (i, file) in files.iter().enumerate() {
        for seed in 0..count {
            let mut dice = Dice(seed << 16 | i as u64);
            let other = &files[dice.below(files.len())];
            let damaged = mutate(file, other, &mut dice);
            let start = std::time::Instant::now();
            read(damaged);
            assert!(start.elapsed().as_secs() < 5, "file {i}, seed {seed}: took {:?}", start.elapsed());
        }
    }
    if let (Some(before), Some(after)) = (before, peak_bytes()) {
        // The system's count of the most there was can go back a little while other threads give memory back.
        let grew = after.saturating_sub(before);
        assert!(grew < 2 << 30, "address space grew by {} MiB", grew >> 20);
    }
}
