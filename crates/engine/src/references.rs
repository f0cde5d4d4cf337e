//! From reference pictures to the branches that the UNet reads.

use crate::encode::{self, Tower};
use crate::error::Error;
use crate::init::tell_stretch;
use crate::injection::mask_for_tokens;
use crate::model::Place;
use crate::picture::{Filter, Picture, resize};
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
pub(crate) fn acts(r: &PlannedReference) -> bool {
    r.weights.iter().any(|w| *w != 0.0) && !r.calls.is_empty()
}

/// Encodes the pictures of all references that act; encoders are loaded one after the other and dropped.
pub fn encode(plan: &Plan, notice: &mut dyn FnMut(String)) -> Result<Vec<Tokens>, Error> {
    let mut out = Vec::new();
    for (i, r) in plan.references.iter().enumerate().filter(|(_, r)| acts(r)) {
        let picture = picture(&r.image)?;
        let pooled = r.shape.kind == Kind::Base;
        let features = encode::pictures(&r.image_encoder, &[&picture], pooled)?;
        let mut feature =
            features.pictures.into_iter().next().ok_or_else(|| Error::Internal("no features".into()))?;
        if let Some((tower, tokenizer, text, scale)) = &r.subtract {
            let content = encode::feature(&Tower::load(tower, tokenizer)?, text, notice)?;
            let scale = *scale as f32;
            feature.data_mut().iter_mut().zip(content.data()).for_each(|(f, c)| *f -= scale * c);
        }
        let adapter = IpAdapter::load(&r.adapter.weights()?, &plan.sites).map_err(crate::model_error)?;
        let rows = if plan.guided() { Tensor::stack(&[&features.nothing, &feature]) } else { feature };
        if let Some(mask) = &r.mask {
            let size = (plan.width, plan.height);
            tell_stretch(&format!("references[{i}].mask"), &self::picture(mask)?, size, notice);
        }
        let mask = r.mask.as_ref().map(|m| mask_at(m, plan.width, plan.height)).transpose()?;
        out.push(Tokens { reference: i, tokens: adapter.tokens(&rows), mask });
    }
    Ok(out)
}

/// The same tokens for a plan of another size: masks are read for it.
pub fn resized(plan: &Plan, tokens: &[Tokens]) -> Result<Vec<Tokens>, Error> {
    let one = |t: &Tokens| {
        let mask = plan.references[t.reference].mask.as_ref();
        let mask = mask.map(|m| mask_at(m, plan.width, plan.height)).transpose()?;
        Ok(Tokens { reference: t.reference, tokens: t.tokens.clone(), mask })
    };
    tokens.iter().map(one).collect()
}

/// The branches of all references. References on one adapter and encoder with the same weights and window and no mask
/// are attended together, with one softmax over all their tokens, as published; others each on their own, and added up.
pub fn inject(plan: &Plan, unet: &UNet, tokens: &[Tokens]) -> Result<Injections, Error> {
    let of = |t: &Tokens| &plan.references[t.reference];
    let together = |a: &Tokens, b: &Tokens| {
        let (x, y) = (of(a), of(b));
        (&x.adapter, &x.image_encoder, &x.weights, &x.calls)
            == (&y.adapter, &y.image_encoder, &y.weights, &y.calls)
            && a.mask.is_none()
            && b.mask.is_none()
    };
    let mut groups: Vec<Vec<&Tokens>> = Vec::new();
    for t in tokens {
        match groups.iter_mut().find(|g| together(g[0], t)) {
            Some(group) => group.push(t),
            None => groups.push(vec![t]),
        }
    }
    let mut injections = Injections::default();
    for group in groups {
        let first = of(group[0]);
        let adapter = IpAdapter::load(&first.adapter.weights()?, &plan.sites).map_err(crate::model_error)?;
        let joined = Tensor::concat_tokens(&group.iter().map(|t| &t.tokens).collect::<Vec<_>>());
        for (site, place) in unet.sites().iter().enumerate() {
            let weight = first.weights[site];
            if weight == 0.0 {
                continue;
            }
            let queries = tokens_at(plan, place.level);
            let mask = group[0].mask.as_ref().map(|m| mask_for_tokens(m, plan.height, plan.width, queries));
            let tokens = adapter.key_value(site, &joined);
            injections.push(site, Branch { tokens, weight, calls: first.calls.clone(), mask });
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
pub(crate) fn picture(place: &Place) -> Result<Picture, Error> {
    Ok(match place {
        Place::Disk(path) => Picture::open(path)?,
        _ => Picture::decode(&place.read()?, place.path())?,
    })
}

/// A mask as diffusers' `IPAdapterMaskProcessor` prepares it: Lanczos to the picture's size, grey, cut at one half.
pub(crate) fn mask_at(place: &Place, width: usize, height: usize) -> Result<Vec<f32>, Error> {
    let grey = resize(&picture(place)?, width, height, Filter::Lanczos).to_grey();
    Ok(grey.l.iter().map(|l| if *l as f32 / 255.0 >= 0.5 { 1.0 } else { 0.0 }).collect())
}
