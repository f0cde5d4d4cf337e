//! Latents of one row that stands for all rows of a batch: every way of a model call gives the bits of the call with all rows,
//! each by itself.

use instantstyle_nets::Tensor;
use instantstyle_nets::controlnet::{ControlNet, ControlNetConfig};
use instantstyle_nets::layers::Precision;
use instantstyle_nets::unet::{
    Added, Branch, Conditions, Cross, CrossOutputs, HiDiffusion, Injections, KeyValue, Merging, Residuals,
    TextContext, Times, UNet, UNetConfig,
};
use instantstyle_nets::weights::Weights;
use std::cell::RefCell;
use std::path::PathBuf;
use testkit::fixtures;

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];
/// Several register tiles of tokens at the finest level, there enough for attention in bytes, and sides that halve three times.
const SIDES: [usize; 2] = [32, 40];

fn json(path: &PathBuf) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("a file")).expect("JSON")
}

fn load(name: &str, precision: Precision) -> UNet {
    let folder = fixtures().join("models").join(name).join("unet");
    let path = folder.join("config.json");
    let config = UNetConfig::from_json(&json(&path), &path).expect("a sound configuration");
    let weights = Weights::open_component(&folder).expect("weights");
    UNet::load_in(&config, &weights, precision).expect("a sound model")
}

/// Values that no two places of a tensor share.
fn noise(shape: &[usize], seed: f32) -> Tensor {
    let n = shape.iter().product::<usize>();
    Tensor::new(shape, (0..n).map(|i| 2.0 * (i as f32 * 0.7123 + seed).sin()).collect())
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.data().iter().map(|v| v.to_bits()).collect()
}

fn same(what: &str, got: &Tensor, want: &Tensor) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    assert!(bits(got) == bits(want), "{what}: {:.1e}", testkit::distance(got.data(), want.data()));
}

/// A network and what its calls read: the rows' texts differ.
struct Given {
    unet: UNet,
    rows: usize,
    times: Times,
    text: TextContext,
}

impl Given {
    /// Where the model has pooled text, that of row i is `pooled[i]` all over.
    fn new(name: &str, precision: Precision, pooled: &[f32]) -> Self {
        let unet = load(name, precision);
        let rows = pooled.len();
        let times_of = |added: Option<&Added>| unet.times(&[741.5, 300.0], rows, added, None);
        let times = match &unet.config().added {
            Some(a) => {
                let n = a.inputs - 6 * a.time_dim;
                let values = pooled.iter().flat_map(|v| std::iter::repeat_n(*v, n)).collect();
                let pooled = Tensor::new([rows, n], values);
                times_of(Some(&Added { pooled: &pooled, sizes: &vec![[64.0; 6]; rows] }))
            }
            None => times_of(None),
        };
        let text = unet.text(&noise(&[rows, 77, unet.config().context_dim()], 1.0));
        Given { unet, rows, times, text }
    }

    fn conditions<'a>(&'a self, injections: &'a Injections) -> Conditions<'a> {
        Conditions {
            times: &self.times,
            text: &self.text,
            injections,
            residuals: None,
            hidiffusion: None,
            cross: Cross::Computed,
            merging: None,
        }
    }

    fn latents(&self) -> (Tensor, Tensor) {
        let one = noise(&[1, SIDES[0], SIDES[1], self.unet.config().in_channels], 3.0);
        let all = Tensor::stack(&vec![&one; self.rows]);
        (one, all)
    }

    /// Compares calls at the second step, of which nothing is like that of the first.
    fn check(&self, what: &str, conditions: &Conditions) -> Tensor {
        let (one, all) = self.latents();
        let want = self.unet.forward(&all, 1, conditions);
        assert!(want.data().iter().all(|v| v.is_finite()), "{what}");
        assert!(bits(&want.row(0)) != bits(&want.row(1)), "{what}: the rows do not differ");
        same(what, &self.unet.forward(&one, 1, conditions), &want);
        want
    }

    fn tokens(&self, site: usize) -> usize {
        let level = self.unet.sites()[site].level;
        (SIDES[0] >> level) * (SIDES[1] >> level)
    }

    /// Image tokens at every site, other ones for each row, with masks at some.
    fn images(&self) -> Injections {
        let mut injections = Injections::default();
        for (i, site) in self.unet.sites().iter().enumerate() {
            let shape = [self.rows, 4, site.width];
            let tokens = KeyValue { k: noise(&shape, i as f32), v: noise(&shape, i as f32 + 0.5) };
            let mask = (i % 2 == 0).then(|| noise(&[self.tokens(i)], 9.0).into_data());
            injections.push(i, Branch { tokens, weight: 0.8, calls: 0..2, mask });
        }
        injections
    }
}

/// The models with what tells their rows apart: the text alone, and in SDXL the pooled text too, or not.
fn models() -> impl Iterator<Item = (String, Given)> {
    let cases: [(&str, &[f32]); 6] = [
        ("sd15-a", &[0.0, 0.0]),
        ("sd15-s", &[0.0, 0.0]),
        ("sd15-v", &[0.0, 0.0, 0.0]),
        ("sdxl-a", &[0.1, -0.7]),
        ("sdxl-a", &[0.4, 0.4]),
        ("sdxl-b", &[0.4, 0.4]),
    ];
    cases.into_iter().flat_map(|(name, pooled)| {
        let one = move |p| (format!("{name} {pooled:?} {p:?}"), Given::new(name, p, pooled));
        PRECISIONS.into_iter().map(one)
    })
}

#[test]
fn one_row_gives_the_bits_of_all() {
    for (name, given) in models() {
        let plain = Injections::default();
        given.check(&name, &given.conditions(&plain));
        let images = given.images();
        let with = given.check(&format!("{name} images"), &given.conditions(&images));
        let (_, all) = given.latents();
        assert_ne!(with, given.unet.forward(&all, 1, &given.conditions(&plain)), "{name}");
    }
}

#[test]
fn rows_are_one_until_something_tells_them_apart() {
    let rows_at = |given: &Given, wanted: &[&str]| -> Vec<usize> {
        let injections = Injections::default();
        let mut rows = vec![0; wanted.len()];
        given.unet.forward_seen(&given.latents().0, 1, &given.conditions(&injections), &mut |place, x| {
            let place = place.to_string();
            wanted.iter().zip(&mut rows).filter(|(w, _)| **w == place).for_each(|(_, r)| *r = x.dim(0));
        });
        rows
    };
    let block = "down_blocks.0.attentions.0.transformer_blocks.0";
    let places = [
        "down_blocks.0.resnets.0",
        &format!("{block}.after_attn1"),
        &format!("{block}.after_attn2"),
        "down_blocks.0.attentions.0",
    ];
    let given = Given::new("sd15-a", Precision::F32, &[0.0; 2]);
    assert!(given.times.equal_rows() && given.times.row(1).equal_rows());
    assert_eq!(rows_at(&given, &places), [1, 1, 2, 2]);
    // SDXL's finest level has no text.
    let block = "down_blocks.1.attentions.0.transformer_blocks.0";
    let places = [
        "conv_in",
        "down_blocks.0.resnets.0",
        "down_blocks.0",
        &format!("{block}.after_attn1"),
        &format!("{block}.after_attn2"),
    ];
    let given = Given::new("sdxl-a", Precision::F32, &[0.4, 0.4]);
    assert!(given.times.equal_rows());
    assert_eq!(rows_at(&given, &places), [1, 1, 1, 1, 2]);
    let given = Given::new("sdxl-a", Precision::F32, &[0.1, -0.7]);
    assert!(!given.times.equal_rows() && given.times.row(0).equal_rows());
    assert_eq!(rows_at(&given, &places), [1, 2, 2, 2, 2]);
    // Two rows alike and a third one that is not.
    assert!(!Given::new("sdxl-a", Precision::F32, &[0.4, 0.4, 0.3]).times.equal_rows());
}

#[test]
fn deep_features_are_those_of_all_rows() {
    for (name, given) in models() {
        let injections = given.images();
        let conditions = given.conditions(&injections);
        let (one, all) = given.latents();
        let (want, deep) = given.unet.forward_keeping(&all, 0, &conditions);
        let (got, kept) = given.unet.forward_keeping(&one, 0, &conditions);
        same(&name, &got, &want);
        same(&format!("{name} kept"), &kept, &deep);
        let want = given.unet.forward_shallow(&all, 1, &conditions, &deep);
        same(&format!("{name} shallow"), &given.unet.forward_shallow(&one, 1, &conditions, &kept), &want);
    }
}

#[test]
fn cross_attention_is_recorded_for_all_rows() {
    for (name, given) in models() {
        let injections = given.images();
        let (one, all) = given.latents();
        let record = |latents: &Tensor| {
            let outputs = RefCell::new(CrossOutputs::default());
            let cross = Cross::Recorded(&outputs);
            let out = given.unet.forward(latents, 0, &Conditions { cross, ..given.conditions(&injections) });
            (out, outputs.into_inner())
        };
        let ((got, frozen), (want, want_frozen)) = (record(&one), record(&all));
        same(&name, &got, &want);
        // Guidance has ended: the prompt's row alone.
        let (times, text, injections) = (given.times.row(1), given.text.row(1), injections.row(1));
        let alone = |outputs| {
            let conditions = Conditions { times: &times, text: &text, ..given.conditions(&injections) };
            given.unet.forward(&one, 1, &Conditions { cross: Cross::Frozen(outputs), ..conditions })
        };
        same(&format!("{name} frozen"), &alone(&frozen), &alone(&want_frozen));
    }
}

#[test]
fn tokens_merge_as_in_all_rows() {
    for (name, given) in models() {
        let finest = given.unet.sites().iter().map(|s| s.level).min().expect("sites");
        let squares = Merging::squares([SIDES[0] >> finest, SIDES[1] >> finest]);
        let places: Vec<u8> = (0..squares).map(|i| (i * 7 % 4) as u8).collect();
        let at = |level| (level == finest).then(|| places.clone());
        let merging =
            Merging { ratio: 0.5, places: given.unet.sites().iter().map(|s| at(s.level)).collect() };
        let injections = given.images();
        let plain = given.conditions(&injections);
        let merged = given.check(&name, &Conditions { merging: Some(&merging), ..plain });
        let (_, all) = given.latents();
        let plain = given.conditions(&injections);
        assert_ne!(merged, given.unet.forward(&all, 1, &plain), "{name}");
    }
}

#[test]
fn large_pictures_are_as_in_all_rows() {
    for (name, given) in models() {
        let hidiffusion = HiDiffusion { strided: Some(0), pooled: Some(1), windows: vec![Some(3)] };
        let injections = Injections::default();
        let conditions = Conditions { hidiffusion: Some(&hidiffusion), ..given.conditions(&injections) };
        given.check(&name, &conditions);
        let windows = HiDiffusion { strided: None, pooled: None, ..hidiffusion };
        let injections = given.images();
        let conditions = Conditions { hidiffusion: Some(&windows), ..given.conditions(&injections) };
        given.check(&format!("{name} windows"), &conditions);
    }
}

#[test]
fn controlnets_give_all_rows_the_same_bits() {
    for (name, base, pooled) in [
        ("sd15-a", "sd15-a", [0.0, 0.0]),
        ("sd15-s-small", "sd15-s", [0.0, 0.0]),
        ("sd15-s-pooled", "sd15-s", [0.0, 0.0]),
        ("sdxl-a", "sdxl-a", [0.1, -0.7]),
        ("sdxl-a", "sdxl-a", [0.4, 0.4]),
    ] {
        for precision in PRECISIONS {
            let given = Given::new(base, precision, &pooled);
            let folder = fixtures().join("controls").join(name);
            let (config, weights) = if folder.exists() {
                let path = folder.join("config.json");
                let config = ControlNetConfig::from_json(&json(&path), &path).expect("a configuration");
                (config, Weights::open_component(&folder).expect("weights"))
            } else {
                let weights = Weights::open(folder.with_extension("safetensors")).expect("weights");
                (ControlNetConfig::of_weights(&weights, given.unet.config()).expect("a ControlNet"), weights)
            };
            let net = ControlNet::load_in(&config, &weights, precision).expect("a sound model");
            let trunk = &config.trunk;
            let tokens = noise(&[2, 77, trunk.context_dim()], 5.0);
            let pooled = trunk.added.as_ref().map(|a| {
                let n = a.inputs - 6 * a.time_dim;
                Tensor::new([2, n], pooled.iter().flat_map(|v| std::iter::repeat_n(*v, n)).collect())
            });
            let added = pooled.as_ref().map(|pooled| Added { pooled, sizes: &[[64.0; 6]; 2] });
            let (times, text) = (net.times(&[741.5, 300.0], 2, added.as_ref()), net.text(&tokens));
            let hint = net.hint(&noise(&[1, 8 * SIDES[0], 8 * SIDES[1], 3], 6.0));
            let (one, all) = given.latents();
            let what = format!("{name} {precision:?}");
            let run = |latents: &Tensor| net.forward(latents, &hint, 1, &times, &text, 0.7);
            let (got, want) = (run(&one), run(&all));
            let pairs = got.down.iter().zip(&want.down).chain(got.mid.iter().zip(&want.mid));
            assert_eq!(pairs.clone().count(), want.down.len() + 1);
            pairs.for_each(|(got, want)| same(&what, got, want));
            let outermost = |latents: &Tensor| net.forward_outermost(latents, &hint, 0.7);
            let (first, firsts) = (outermost(&one), outermost(&all));
            same(&what, &first.down[0].clone().repeated(2), &firsts.down[0]);
            // What they add, in the UNet: a whole call, and a shallow one.
            let injections = given.images();
            let conditions = Conditions { residuals: Some(&got), ..given.conditions(&injections) };
            given.check(&what, &conditions);
            let (_, deep) = given.unet.forward_keeping(&all, 0, &conditions);
            let firsts = Residuals { down: firsts.down, mid: None };
            let conditions = Conditions { residuals: Some(&firsts), ..given.conditions(&injections) };
            let shallow = |latents: &Tensor| given.unet.forward_shallow(latents, 1, &conditions, &deep);
            same(&format!("{what} shallow"), &shallow(&one), &shallow(&all));
        }
    }
}
