//! torch's CPU generator: a seed here gives the noise that it gives there.
//!
//! mt19937 (Matsumoto & Nishimura, 1998) as in ATen's `MT19937RNGEngine.h`; normal numbers as in
//! `DistributionTemplates.h`: sixteen or more values come from a blocked Box–Muller transform in f32, fewer one by one
//! in f64 with the second value of each pair kept for the next draw.

const N: usize = 624;
const M: usize = 397;

/// torch's CPU random generator.
pub struct TorchRng {
    state: [u32; N],
    next: usize,
    kept: Option<f64>,
}

impl TorchRng {
    /// As `torch.Generator().manual_seed(seed)`; the engine takes the low 32 bits, as torch's does.
    pub fn new(seed: u64) -> Self {
        let mut state = [0u32; N];
        state[0] = seed as u32;
        for i in 1..N {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        TorchRng { state, next: N, kept: None }
    }

    fn refill(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let twist = if y & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twist;
        }
        self.next = 0;
    }

    fn u32(&mut self) -> u32 {
        if self.next == N {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Uniform in 0..1 with 24 random bits: `torch.rand(1)` in float32.
    pub fn uniform_f32(&mut self) -> f32 {
        (self.u32() & ((1 << 24) - 1)) as f32 / (1u32 << 24) as f32
    }

    /// Whole and uniform in 0..n: `torch.randint(n, (1,))`, for n below 2^28.
    pub fn below(&mut self, n: u32) -> u32 {
        self.u32() % n
    }

    /// Uniform in 0..1 with 53 random bits.
    fn uniform_f64(&mut self) -> f64 {
        let high = (self.u32() as u64) << 32;
        let bits = high | self.u32() as u64;
        (bits & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// `torch.randn(n, generator=…)` in float32.
    pub fn normal_f32(&mut self, n: usize) -> Vec<f32> {
        if n < 16 {
            return (0..n).map(|_| self.normal_f64() as f32).collect();
        }
        let mut x: Vec<f32> = (0..n).map(|_| self.uniform_f32()).collect();
        for block in x.as_chunks_mut::<16>().0 {
            box_muller(block);
        }
        if n % 16 != 0 {
            // The last sixteen are drawn anew, over the end of the blocks before.
            let last: &mut [f32; 16] = (&mut x[n - 16..]).try_into().expect("sixteen");
            last.iter_mut().for_each(|v| *v = self.uniform_f32());
            box_muller(last);
        }
        x
    }

    fn normal_f64(&mut self) -> f64 {
        if let Some(kept) = self.kept.take() {
            return kept;
        }
        let u1 = self.uniform_f64();
        let u2 = self.uniform_f64();
        let r = (-2.0 * (-u2).ln_1p()).sqrt();
        let theta = 2.0 * std::f64::consts::PI * u1;
        self.kept = Some(r * theta.sin());
        r * theta.cos()
    }
}

fn box_muller(block: &mut [f32; 16]) {
    for j in 0..8 {
        let u1 = 1.0 - block[j];
        let u2 = block[j + 8];
        let radius = ((-2.0 * (u1 as f64).ln() as f32) as f64).sqrt() as f32;
        let theta = 2.0 * std::f64::consts::PI as f32 * u2;
        block[j] = radius * (theta as f64).cos() as f32;
        block[j + 8] = radius * (theta as f64).sin() as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.randn(n, generator=torch.Generator().manual_seed(s))`, torch 2.15 on x86-64: first and last values of
    /// consecutive draws with one generator.
    #[test]
    fn equals_torch() {
        let json: serde_json::Value =
            serde_json::from_str(include_str!("../tests/fixtures/rng.json")).expect("the fixture is JSON");
        for case in json.as_array().expect("a list") {
            let mut rng = TorchRng::new(case["seed"].as_u64().expect("a seed"));
            for draw in case["draws"].as_array().expect("draws") {
                let got = rng.normal_f32(draw["n"].as_u64().expect("a count") as usize);
                let want: Vec<f64> =
                    draw["values"].as_array().expect("values").iter().filter_map(|v| v.as_f64()).collect();
                let ends = got.iter().take(20).chain(got.iter().rev().take(20));
                for (g, w) in ends.zip(&want) {
                    assert!((*g as f64 - w).abs() < 1e-6, "n {}: {g} {w}", got.len());
                }
            }
        }
    }
}
