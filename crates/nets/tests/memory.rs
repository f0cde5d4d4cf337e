//! Estimates of memory against an allocator that counts.

use instantstyle_kernels::buffer;
use instantstyle_nets::Tensor;
use instantstyle_nets::clip::{TextConfig, TextEncoder, VisionConfig, VisionEncoder};
use instantstyle_nets::controlnet::{ControlNet, ControlNetConfig};
use instantstyle_nets::layers::Precision;
use instantstyle_nets::unet::{Added, Conditions, Cross, Injections, UNet, UNetConfig};
use instantstyle_nets::vae::{Decoder, Encoder, VaeConfig};
use instantstyle_nets::weights::Weights;
use peak_alloc::PeakAlloc;
use std::path::PathBuf;
use testkit::fixtures;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

fn model(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

fn json(path: PathBuf) -> serde_json::Value {
    let text = std::fs::read_to_string(path).expect("a file");
    let mut value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    value.as_object_mut().expect("an object").retain(|_, v| !v.is_null());
    value
}

/// Most bytes that `run` had alive beyond what was there before, on one thread: those of buffers, and all others.
fn peak<T>(run: impl FnOnce() -> T) -> u64 {
    buffer::release();
    let before = (ALLOCATOR.current_usage(), buffer::most_bytes());
    ALLOCATOR.reset_peak_usage();
    let result = run();
    let peak = ALLOCATOR.peak_usage() - before.0 + buffer::most_bytes() - before.1;
    drop(result);
    peak as u64
}

/// The estimate may be short by a twentieth (what is not activations), and over by as much and what products may pack.
fn near(what: &str, estimate: u64, measured: u64) {
    let (e, m) = (estimate as f64, measured as f64);
    println!("{what}: estimated {e:.3e}, measured {m:.3e}, {:+.1} %", (e / m - 1.0) * 100.0);
    assert!(e > 0.95 * m && e < 1.05 * m + 1.1e6, "{what}: estimated {e:.3e} bytes, measured {m:.3e}");
}

/// All in one test: the allocator counts for the whole process.
#[test]
fn estimates_are_near_what_is_allocated() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    pool.install(|| {
        let noise = |shape: [usize; 4]| {
            let n = shape.iter().product::<usize>();
            Tensor::new(shape, (0..n).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>())
        };
        for (name, side) in [("sd15-v", 56), ("sdxl-a", 40)] {
            let folder = model(name).join("vae");
            let config: VaeConfig =
                serde_json::from_value(json(folder.join("config.json"))).expect("a config");
            let weights = Weights::open_component(&folder).expect("weights");
            let decoder = Decoder::load(&config, &weights).expect("a decoder");
            let (h, w) = (side, side * 5 / 4);
            let run = || decoder.forward(&noise([1, h, w, config.latent_channels]));
            near(&format!("{name} decode"), config.decode_bytes(h, w, Precision::F32), peak(run));
            let encoder = Encoder::load(&config, &weights).expect("an encoder");
            let (h, w) = (h * config.factor(), w * config.factor());
            near(
                &format!("{name} encode"),
                config.encode_bytes(h, w, Precision::F32),
                peak(|| encoder.forward(&noise([1, h, w, 3]))),
            );
        }
        let folder = fixtures().join("controls/sd15-s");
        let path = folder.join("config.json");
        let config = ControlNetConfig::from_json(&json(path.clone()), &path).expect("a config");
        let net = ControlNet::load(&config, &Weights::open_component(&folder).expect("weights"));
        let (net, picture) = (net.expect("a ControlNet"), noise([1, 640, 480, 3]));
        near("sd15-s hint", config.hint_bytes(640, 480), peak(|| net.hint(&picture)));
        let folder = model("sdxl-a").join("text_encoder_2");
        let config: TextConfig = serde_json::from_value(json(folder.join("config.json"))).expect("a config");
        let tower =
            TextEncoder::load(&config, &Weights::open_component(&folder).expect("weights")).expect("a tower");
        let ids = vec![vec![1; 77]; 20];
        near("text tower", config.forward_bytes(20), peak(|| tower.forward(&ids)));
        let config: VisionConfig =
            serde_json::from_value(json(model("vit-b").join("config.json"))).expect("a config");
        let tower = VisionEncoder::load(&config, &Weights::open_component(model("vit-b")).expect("weights"))
            .expect("a tower");
        let run = || tower.forward(&noise([1, config.image_size, config.image_size, 3]));
        near("picture tower", config.forward_bytes(), peak(run));
        for (name, h, w) in [("sd15-a", 64, 48), ("sdxl-a", 48, 65)] {
            let path = model(name).join("unet/config.json");
            let config = UNetConfig::from_json(&json(path.clone()), &path).expect("a config");
            let weights = Weights::open_component(model(name).join("unet")).expect("weights");
            let unet = UNet::load(&config, &weights).expect("a UNet");
            let tokens = Tensor::zeros([2, 77, config.context_dim()]);
            let text = unet.text(&tokens);
            let measured = peak(|| unet.text(&tokens));
            near(&format!("{name} text"), config.context_bytes(2, 77), measured);
            let pooled = config.added.as_ref().map(|a| Tensor::zeros([2, a.inputs - 6 * a.time_dim]));
            let sizes = [[64.0; 6]; 2];
            let added = pooled.as_ref().map(|pooled| Added { pooled, sizes: &sizes });
            let times = unet.times(&[500.0], 2, added.as_ref(), None);
            let injections = Injections::default();
            let conditions = Conditions {
                times: &times,
                text: &text,
                injections: &injections,
                residuals: None,
                hidiffusion: None,
                cross: Cross::Computed,
                merging: None,
            };
            let run = || unet.forward(&noise([2, h, w, config.in_channels]), 0, &conditions);
            near(&format!("{name} forward"), config.forward_bytes(2, h, w, Precision::F32), peak(run));
            // A call with one row for both has all rows where the most is alive.
            let run = || unet.forward(&noise([1, h, w, config.in_channels]), 0, &conditions);
            near(
                &format!("{name} forward of one row"),
                config.forward_bytes(2, h, w, Precision::F32),
                peak(run),
            );
            let narrow = UNet::load_in(&config, &weights, Precision::Bf16).expect("a UNet");
            let run = || narrow.forward(&noise([2, h, w, config.in_channels]), 0, &conditions);
            // The matrices are packed in the first call and stay.
            drop(run());
            near(
                &format!("{name} forward in bf16"),
                config.forward_bytes(2, h, w, Precision::Bf16),
                peak(run),
            );
            let run = || unet.forward_keeping(&noise([2, h, w, config.in_channels]), 0, &conditions);
            near(
                &format!("{name} forward, deep features kept"),
                config.forward_bytes(2, h, w, Precision::F32),
                peak(run),
            );
        }
    });
}
