//! The foot of the ladder: single operations against torch, and image projections against diffusers
//! (`testkit/recipe/ladder.py`).

use instantstyle_kernels::{act, attention, conv, norm};
use instantstyle_nets::Tensor;
use instantstyle_nets::ip_adapter::IpAdapter;
use instantstyle_nets::unet::{UNetConfig, sites};
use instantstyle_nets::weights::Weights;
use testkit::{distance, fixtures, tolerance};

fn ladder(name: &str) -> Weights {
    Weights::open(fixtures().join(format!("ladder/{name}.safetensors"))).expect("a sound fixture")
}

fn tensor(w: &Weights, key: &str) -> Tensor {
    let t = w.get(key).unwrap_or_else(|| panic!("{key} is not in the fixture"));
    Tensor::new(t.shape().to_vec(), t.to_f32())
}

/// Integers of the fixture are 64-bit scalars.
fn number(w: &Weights, key: &str) -> usize {
    tensor(w, key).data()[0] as usize
}

/// `[batch, channels, ..]` → `[batch, .., channels]`, as one list.
fn last(x: &Tensor) -> Vec<f32> {
    let (b, c) = (x.dim(0), x.dim(1));
    let pixels = x.data().len() / b / c;
    let mut out = vec![0.0; x.data().len()];
    for (i, v) in x.data().iter().enumerate() {
        let (p, ch, row) = (i % pixels, i / pixels % c, i / pixels / c);
        out[(row * pixels + p) * c + ch] = *v;
    }
    out
}

fn check(what: &str, got: &[f32], want: &[f32]) {
    let d = distance(got, want);
    assert!(d < tolerance::OPERATION, "{what}: {d:.1e}");
}

#[test]
fn norms_equal_torch() {
    let w = ladder("ops");
    for tag in ["a", "b", "c"] {
        let get = |k: &str| tensor(&w, &format!("group_norm.{tag}.{k}"));
        let (x, groups) = (get("x"), number(&w, &format!("group_norm.{tag}.groups")));
        let mut out = vec![0.0; x.data().len()];
        let (gamma, beta, eps) = (get("weight"), get("bias"), get("eps").data()[0]);
        norm::group_norm(&last(&x), x.dim(0), groups, gamma.data(), beta.data(), eps, false, &mut out);
        check(tag, &out, &last(&get("y")));
    }
    let get = |k: &str| tensor(&w, &format!("layer_norm.{k}"));
    let x = get("x");
    let mut out = vec![0.0; x.data().len()];
    norm::layer_norm(x.data(), get("weight").data(), get("bias").data(), 1e-5, &mut out);
    check("layer norm", &out, get("y").data());
}

#[test]
fn activations_equal_torch() {
    let w = ladder("ops");
    let x = tensor(&w, "activation.x");
    for (name, kind) in [
        ("silu", act::Activation::Silu),
        ("gelu", act::Activation::Gelu),
        ("quick_gelu", act::Activation::QuickGelu),
    ] {
        let mut got = x.data().to_vec();
        act::activate(kind, &mut got);
        let want = tensor(&w, &format!("activation.{name}"));
        for ((x, got), want) in x.data().iter().zip(&got).zip(want.data()) {
            // Far below zero torch keeps what is left of the exponential; absolute, since nothing depends on it.
            assert!((got - want).abs() <= 2e-6 * want.abs().max(1.0), "{name}({x}) = {got}, not {want}");
        }
    }
    let weight = w.get("geglu.weight").expect("weights");
    let (x, bias) = (tensor(&w, "geglu.x"), tensor(&w, "geglu.bias"));
    let rows = x.data().len() / 12;
    let (mut wide, mut out) = (vec![0.0; rows * 40], vec![0.0; rows * 20]);
    let view = weight.kernel_view().expect("floats");
    instantstyle_kernels::gemm::linear(x.data(), 12, view, Some(bias.data()), None, &mut wide);
    act::geglu(&wide, 20, &mut out);
    check("geglu", &out, tensor(&w, "geglu.y").data());
}

#[test]
fn convolutions_equal_torch() {
    let w = ladder("ops");
    for tag in ["3x3", "stride2", "stride2_odd", "1x1", "patch", "asymmetric_even", "asymmetric_odd"] {
        let get = |k: &str| tensor(&w, &format!("conv.{tag}.{k}"));
        let (stride, before, after) = if tag.starts_with("asymmetric") {
            (2, 0, 1)
        } else {
            let pad = number(&w, &format!("conv.{tag}.pad"));
            (number(&w, &format!("conv.{tag}.stride")), pad, pad)
        };
        let (x, want) = (get("x"), get("y"));
        let weight = w.get(&format!("conv.{tag}.weight")).expect("weights");
        let shape = conv::Conv {
            batch: x.dim(0),
            height: x.dim(2),
            width: x.dim(3),
            inputs: x.dim(1),
            outputs: want.dim(1),
            kernel: weight.shape()[2],
            stride,
            pad_before: before,
            pad_after: after,
            upsample: false,
        };
        assert_eq!((shape.out_height(), shape.out_width()), (want.dim(2), want.dim(3)), "{tag}");
        let mut out = vec![0.0; want.data().len()];
        let view = weight.kernel_view().expect("floats");
        conv::conv2d(shape, &last(&x), view, Some(get("bias").data()), None, &mut out);
        check(tag, &out, &last(&want));
    }
}

/// A convolution of one tap and weight 1 shows the doubled input itself.
#[test]
fn upsampling_equals_torch() {
    let w = ladder("ops");
    let (x, want) = (tensor(&w, "nearest.x"), tensor(&w, "nearest.double"));
    let shape = conv::Conv {
        batch: 1,
        height: 4,
        width: 5,
        inputs: 3,
        outputs: 3,
        kernel: 1,
        stride: 1,
        pad_before: 0,
        pad_after: 0,
        upsample: true,
    };
    let one: Vec<u8> = (0..9).flat_map(|i| f32::from(u8::from(i % 4 == 0)).to_le_bytes()).collect();
    let mut out = vec![0.0; want.data().len()];
    conv::conv2d(shape, &last(&x), instantstyle_kernels::Weight::F32(&one), None, None, &mut out);
    assert_eq!(out, last(&want));
}

#[test]
fn attention_equals_torch() {
    let w = ladder("ops");
    for tag in ["self", "cross", "one", "causal"] {
        let get = |k: &str| tensor(&w, &format!("attention.{tag}.{k}"));
        let (q, k, v) = (get("q"), get("k"), get("v"));
        let heads = number(&w, &format!("attention.{tag}.heads"));
        let dim = q.channels() / heads;
        let shape = attention::Attention {
            batch: q.dim(0),
            heads,
            dim,
            queries: q.dim(1),
            keys: k.dim(1),
            scale: 1.0 / (dim as f32).sqrt(),
            causal: tag == "causal",
            add: None,
            mask: None,
        };
        let mut out = vec![0.0; q.data().len()];
        attention::attention(shape, q.data(), k.data(), v.data(), &mut out);
        check(tag, &out, get("y").data());
    }
}

/// Every kind of image projection of every adapter among the fixtures.
#[test]
fn image_projections_equal_diffusers() {
    let w = ladder("projections");
    let mut seen = 0;
    for key in w.keys() {
        let Some(file) = key.strip_suffix(".x") else { continue };
        let family = &file[..6];
        let path = fixtures().join("models").join(family).join("unet/config.json");
        let json = serde_json::from_slice(&std::fs::read(&path).expect("a configuration")).expect("JSON");
        let sites = sites(&UNetConfig::from_json(&json, &path).expect("a sound configuration"));
        let weights = Weights::open(fixtures().join("adapters").join(file)).expect("an adapter");
        let adapter = IpAdapter::load(&weights, &sites).expect("a sound adapter");
        for (x, y) in [("x", "y"), ("zero", "zero")] {
            let features = tensor(&w, &format!("{file}.x"));
            let Some(want) = w.get(&format!("{file}.{y}")) else { continue };
            let features = if x == "x" { features } else { Tensor::zeros([1, features.channels()]) };
            let d = distance(adapter.tokens(&features).data(), &want.to_f32());
            assert!(d < tolerance::NETWORK, "{file} {y}: {d:.1e}");
        }
        seen += 1;
    }
    assert!(seen >= 5, "{seen} adapters");
}
