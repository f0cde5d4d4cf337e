//! From reference pictures to the branches that the UNet reads.

use crate::encode::{self, Tower};
use crate::error::Error;
use crate::injection::mask_for_tokens;
use crate::model::Place;
use crate::picture::{Filter, Picture};
use crate::plan::{Plan, PlannedReference};
use instantstyle_nets::Tensor;
use instantstyle_nets::ip_adapter::{IpAdapter, Kind};
use instantstyle_nets::unet::{Branch, Injections, UNet};

/// One reference's image tokens and mask.
pub struct Tokens {
    /// Index into the plan's references.
    reference: usize,
    /// [rows, tokens, context]; row 0 is for the negative prompt where guidance is on.
    tokens: Tensor,
    /// 0 and 1 at the size of the picture.
    mask: Option<Vec<f32>>,
}

/// True if the reference does anything.
fn acts(r: &PlannedReference) -> bool {
    r.weights.iter().any(|w| *w != 0.0) && !r.calls.is_empty()
}

/// Encodes the pictures of all references that act; encoders are loaded one after the other and dropped.
pub fn encode(plan: &Plan, notice: &mut dyn FnMut(String)) -> Result<Vec<Tokens>, Error> {
    let mut out = Vec::new();
    for (i, r) in plan.references.iter().enumerate().filter(|(_, r)| acts(r)) {
        let picture = picture(&r.image)?;
        let pooled = r.shape.kind == Kind::Base;
        let features = encode::pictures(&r.image_encoder, &[&picture], pooled)?;
        let mut feature = features.pictures.into_iter().next().ok_or_else(|| Error::Internal("no features".into()))?;
        if let Some((tower, tokenizer, text, scale)) = &r.subtract {
            let content = encode::feature(&Tower::load(tower, tokenizer)?, text, notice)?;
            let scale = *scale as f32;
            feature.data_mut().iter_mut().zip(content.data()).for_each(|(f, c)| *f -= scale * c);
        }
        let adapter = IpAdapter::load(&r.adapter.weights()?, &plan.sites).map_err(crate::model_error)?;
        let rows = if plan.guided() { Tensor::stack(&[&features.nothing, &feature]) } else { feature };
        let mask = r.mask.as_ref().map(|m| mask(m, plan.width, plan.height)).transpose()?;
        out.push(Tokens { reference: i, tokens: adapter.tokens(&rows), mask });
    }
    Ok(out)
}

/// The branches of all references. References on one adapter with the same weight, window and no mask are attended
/// together, with one softmax over all their tokens, as published; others each on their own, and added up.
pub fn inject(plan: &Plan, unet: &UNet, tokens: &[Tokens]) -> Result<Injections, Error> {
    let mut injections = Injections::default();
    let mut done = vec![false; tokens.len()];
    for i in 0..tokens.len() {
        if done[i] {
            continue;
        }
        let first = &plan.references[tokens[i].reference];
        let shared: Vec<usize> = (i..tokens.len())
            .filter(|j| !done[*j] && plan.references[tokens[*j].reference].adapter == first.adapter)
            .collect();
        shared.iter().for_each(|j| done[*j] = true);
        let adapter = IpAdapter::load(&first.adapter.weights()?, &plan.sites).map_err(crate::model_error)?;
        // One mask on an adapter separates all its references, as in diffusers.
        let masked = shared.iter().any(|j| tokens[*j].mask.is_some());
        for (site, place) in unet.sites().iter().enumerate() {
            let queries = tokens_at(plan, place.level);
            let mut groups: Vec<(f32, std::ops::Range<usize>, Vec<usize>)> = Vec::new();
            for &j in &shared {
                let r = &plan.references[tokens[j].reference];
                let weight = r.weights[site];
                if weight == 0.0 {
                    continue;
                }
                match groups.iter_mut().find(|(w, c, _)| !masked && *w == weight && *c == r.calls) {
                    Some((_, _, members)) => members.push(j),
                    None => groups.push((weight, r.calls.clone(), vec![j])),
                }
            }
            for (weight, calls, members) in groups {
                let joined: Vec<&Tensor> = members.iter().map(|j| &tokens[*j].tokens).collect();
                let mask = tokens[members[0]].mask.as_ref().map(|m| mask_for_tokens(m, plan.height, plan.width, queries));
                let tokens = adapter.key_value(site, &Tensor::concat_tokens(&joined));
                injections.push(site, Branch { tokens, weight, calls, mask });
            }
        }
    }
    Ok(injections)
}

/// Tokens of a site: the latents halved `level` times, rounded up.
fn tokens_at(plan: &Plan, level: usize) -> usize {
    let halve = |n: usize| (0..level).fold(n, |n, _| n.div_ceil(2));
    halve(plan.height / plan.vae.factor()) * halve(plan.width / plan.vae.factor())
}

/// Reads a picture from disk or from the embedded model.
fn picture(place: &Place) -> Result<Picture, Error> {
    match place {
        Place::Disk(path) => Picture::open(path).map_err(|e| Error::file(path, e.message())),
        Place::Embedded(_) => Picture::decode(&place.read()?).map_err(|e| place.error(e.message())),
    }
}

/// A mask as diffusers' `IPAdapterMaskProcessor` prepares it: Lanczos to the picture's size, grey, cut at one half.
fn mask(place: &Place, width: usize, height: usize) -> Result<Vec<f32>, Error> {
    let picture = picture(place)?.resize(width as u32, height as u32, Filter::Lanczos);
    let grey = picture.rgb().as_chunks::<3>().0.iter().map(|p| crate::picture::luminance(*p));
    Ok(grey.map(|l| if l as f32 / 255.0 >= 0.5 { 1.0 } else { 0.0 }).collect())
}
