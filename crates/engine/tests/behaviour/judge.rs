//! The judge of `training/train.py`, as written by `training/export.py`: five strided convolutions and two heads.

use instantstyle_engine::picture::Picture;
use instantstyle_kernels::{conv, gemm};
use instantstyle_nets::weights::Weights;

/// Side of the pictures that it was trained on.
const SIDE: usize = 128;
/// Convolutions, each of 3×3 and stride 2.
const LAYERS: usize = 5;

pub struct Judge(Weights);

/// What the judge says of one picture.
pub struct Look {
    /// A logit for each content; several may be there.
    pub contents: Vec<f32>,
    /// A logit for each style.
    pub style: Vec<f32>,
}

impl Look {
    /// The content that is there most likely.
    pub fn content(&self) -> usize {
        largest(&self.contents)
    }

    /// The style.
    pub fn style(&self) -> usize {
        largest(&self.style)
    }

    /// True if content `i` appears.
    pub fn shows(&self, i: usize) -> bool {
        self.contents[i] > 0.0 || self.content() == i
    }
}

fn largest(values: &[f32]) -> usize {
    (0..values.len()).max_by(|a, b| values[*a].total_cmp(&values[*b])).expect("logits")
}

impl Judge {
    pub fn open() -> Self {
        Judge(Weights::open(testkit::fixtures().join("judge.safetensors")).expect("a sound fixture"))
    }

    /// torch's answer about an embedded reference picture: logits of "contents" or "style".
    pub fn answer(&self, style: &str, content: &str, what: &str) -> Vec<f32> {
        self.values(&format!("answer.{style}-{content}.{what}"))
    }

    fn values(&self, key: &str) -> Vec<f32> {
        self.0.get(key).unwrap_or_else(|| panic!("{key} is not in the fixture")).to_f32()
    }

    fn linear(&self, name: &str, x: &[f32]) -> Vec<f32> {
        let bias = self.values(&format!("{name}.bias"));
        let weight =
            self.0.get(&format!("{name}.weight")).and_then(|w| w.kernel_view()).expect("f16 weights");
        let mut out = vec![0.0; bias.len()];
        gemm::linear(x, x.len(), weight, Some(&bias), None, &mut out);
        out
    }

    pub fn look(&self, picture: &Picture) -> Look {
        assert_eq!((picture.width, picture.height), (SIDE, SIDE));
        let mut x: Vec<f32> = picture.rgb.iter().map(|v| f32::from(*v) / 127.5 - 1.0).collect(); // [y, x, channels]
        let (mut side, mut inputs) = (SIDE, 3);
        for layer in 0..LAYERS {
            let name = format!("features.{}", 2 * layer);
            let bias = self.values(&format!("{name}.bias"));
            let weight =
                self.0.get(&format!("{name}.weight")).and_then(|w| w.kernel_view()).expect("f16 weights");
            let shape = conv::Conv {
                batch: 1,
                height: side,
                width: side,
                inputs,
                outputs: bias.len(),
                kernel: 3,
                stride: 2,
                pad_before: 1,
                pad_after: 1,
                upsample: false,
            };
            (side, inputs) = (shape.out_width(), bias.len());
            let mut out = vec![0.0; side * side * inputs];
            conv::conv2d(shape, &x, weight, Some(&bias), None, &mut out);
            x = out.into_iter().map(|v| v.max(0.0)).collect();
        }
        let channel = |c: usize| x.iter().skip(c).step_by(inputs).copied();
        let mean: Vec<f32> = (0..inputs).map(|c| channel(c).sum::<f32>() / (side * side) as f32).collect();
        let flat: Vec<f32> = (0..inputs).flat_map(channel).collect(); // [channels, y, x], as torch flattens
        let hidden: Vec<f32> = self.linear("contents.0", &flat).into_iter().map(|v| v.max(0.0)).collect();
        Look { contents: self.linear("contents.2", &hidden), style: self.linear("style", &mean) }
    }
}
