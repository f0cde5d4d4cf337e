//! Names of original checkpoints beside diffusers' (`testkit/recipe/names.py`), and weights to fill them with.

use crate::fixtures;
use std::collections::BTreeMap;

/// How a tensor of an original checkpoint becomes one of diffusers'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// As it is.
    Same,
    /// Transposed.
    Transposed,
    /// This third of its rows.
    Third(usize),
}

/// One tensor on both sides.
pub struct Name {
    /// Key in the original checkpoint.
    pub original: String,
    /// Key in diffusers or transformers.
    pub diffusers: String,
    /// Shape in diffusers or transformers.
    pub shape: Vec<usize>,
    /// How the one becomes the other.
    pub how: How,
}

/// Key, shape, values.
pub type Filled = (String, Vec<usize>, Vec<f32>);

/// Reads `fixtures/names/NAME.tsv`.
///
/// # Panics
/// If the file is not there or not of its form.
pub fn names(name: &str) -> Vec<Name> {
    let path = fixtures().join("names").join(format!("{name}.tsv"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let line = |line: &str| {
        let [original, diffusers, shape, how] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line:?} has no four columns");
        };
        Name {
            original: original.into(),
            diffusers: diffusers.into(),
            shape: shape.split('x').map(|n| n.parse().expect("a size")).collect(),
            how: match how {
                "=" => How::Same,
                "T" => How::Transposed,
                third => How::Third(third[..1].parse().expect("a number")),
            },
        }
    };
    text.lines().map(line).collect()
}

/// Values that follow from a key alone, in the range of trained weights.
pub fn values(key: &str, shape: &[usize]) -> Vec<f32> {
    let n: usize = shape.iter().product();
    let mut seed =
        key.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3));
    // SplitMix64; 12 bits are exact in every number type of a checkpoint but bf16.
    let uniform = std::iter::repeat_with(move || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 53) as f32 / 1024.0 - 1.0
    });
    let fan_in: usize = shape.iter().skip(1).product();
    let (start, scale) = match shape.len() {
        1 if (key.contains("norm") || key.contains("ln_")) && key.ends_with("weight") => (1.0, 0.125),
        1 => (0.0, 0.0625),
        _ => (0.0, 2f32.powf(((3.0 / fan_in as f32).sqrt()).log2().round())),
    };
    uniform.take(n).map(|v| start + v * scale).collect()
}

/// The tensors as diffusers has them, with `prefix` in front of each key.
pub fn in_diffusers(names: &[Name], prefix: &str) -> Vec<Filled> {
    names
        .iter()
        .map(|n| (format!("{prefix}{}", n.diffusers), n.shape.clone(), values(&n.diffusers, &n.shape)))
        .collect()
}

/// The same tensors as the original checkpoint has them.
pub fn in_original(names: &[Name], prefix: &str) -> Vec<Filled> {
    let mut out: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for n in names {
        let given = values(&n.diffusers, &n.shape);
        let key = format!("{prefix}{}", n.original);
        match n.how {
            How::Same => drop(out.insert(key, (n.shape.clone(), given))),
            How::Transposed => {
                let [rows, columns] = n.shape[..] else { panic!("{key} is no matrix") };
                let turned = (0..rows * columns).map(|i| given[i % rows * columns + i / rows]).collect();
                out.insert(key, (vec![columns, rows], turned));
            }
            How::Third(third) => {
                let mut shape = n.shape.clone();
                shape[0] *= 3;
                let (_, all) = out.entry(key).or_insert_with(|| (shape, vec![0.0; 3 * given.len()]));
                all[third * given.len()..][..given.len()].copy_from_slice(&given);
            }
        }
    }
    out.into_iter().map(|(key, (shape, values))| (key, shape, values)).collect()
}
