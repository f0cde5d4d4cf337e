//! Deep features kept from one model call for the next ones, which then run the outermost layers only: the deep ones
//! hardly change between neighbouring steps (Ma et al., "DeepCache: Accelerating Diffusion Models for Free",
//! arXiv 2312.00858). The outermost skip connection is the paper's cheapest choice.

use super::trunk::Pass;
use super::{Conditions, UNet};
use crate::tensor::Tensor;

impl UNet {
    /// As [`UNet::forward`], and the deep features: what goes into the last layer on the way up,
    /// [batch, h, w, channels].
    ///
    /// # Panics
    /// As [`UNet::forward`].
    pub fn forward_keeping(
        &self,
        latents: &Tensor,
        step: usize,
        conditions: &Conditions,
    ) -> (Tensor, Tensor) {
        let mut deep = None;
        let out = self.run(latents, step, conditions, &mut |_, _| {}, Some(&mut deep));
        (out, deep.expect("every UNet has a last layer"))
    }

    /// A prediction from the deep features of an earlier call: only the input, the last layer on the way up and the
    /// output are computed.
    ///
    /// # Panics
    /// If `deep` is of another batch, or as [`UNet::forward`].
    pub fn forward_shallow(
        &self,
        latents: &Tensor,
        step: usize,
        conditions: &Conditions,
        deep: &Tensor,
    ) -> Tensor {
        let pass = Pass::of(step, conditions);
        assert_eq!(deep.dim(0), pass.rows());
        let mut skip = self.trunk.conv_in.forward(latents).repeated(pass.rows());
        if let Some(residuals) = conditions.residuals {
            residuals.add_to_first(&mut skip);
        }
        let (i, level) = self.up.iter().enumerate().next_back().expect("every UNet has levels");
        let last = level.resnets.len() - 1;
        let h = level.layer("up_blocks", i, last, &deep.concat_channels(&skip), &pass, &mut |_, _| {});
        self.conv_out.forward(&self.norm_out.forward_silu(&h))
    }
}
