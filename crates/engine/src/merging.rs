//! Which tokens are places to merge into, call by call ([`instantstyle_nets::unet::Merging`]).

use crate::plan::Plan;
use crate::rng::TorchRng;
use instantstyle_nets::unet::Merging;

/// Draws the places of one picture.
///
/// The published code draws them, block by block in forward order, from a copy of torch's global generator: here it is a
/// generator of its own, seeded like the picture's noise (what `torch.manual_seed(seed)` before a run gives there).
pub struct Merger<'a> {
    plan: &'a Plan,
    rng: TorchRng,
    level: usize,
}

impl<'a> Merger<'a> {
    /// For a picture with this seed; None where nothing is merged.
    pub fn new(plan: &'a Plan, seed: u64) -> Option<Self> {
        plan.request().token_merging.filter(|ratio| *ratio > 0.0)?;
        let level = plan.sites.iter().map(|s| s.level).min()?;
        Some(Merger { plan, rng: TorchRng::new(seed), level })
    }

    /// For the next call, of so many rows. As published, places are drawn where prompt and negative prompt are together, and
    /// are the first token of each square elsewhere.
    pub fn call(&mut self, rows: usize) -> Merging {
        let factor = self.plan.vae.factor();
        let side = |px: usize| (px / factor).div_ceil(1 << self.level);
        let squares = Merging::squares([side(self.plan.height), side(self.plan.width)]);
        let place = |rng: &mut TorchRng| if rows % 2 == 0 { rng.below(4) as u8 } else { 0 };
        let mut at =
            |level| (level == self.level).then(|| (0..squares).map(|_| place(&mut self.rng)).collect());
        let places = self.plan.sites.iter().map(|s| at(s.level)).collect();
        Merging { ratio: self.plan.request().token_merging.unwrap_or(0.0), places }
    }
}
