//! The weights of a component's folder, as Diffusers and transformers write them.

use super::error::shown;
use super::{Weights, WeightsError};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Diffusers' models; transformers' models; transformers' old name for pickles.
const NAMES: [&str; 3] = ["diffusion_pytorch_model", "model", "pytorch_model"];
const VARIANTS: [&str; 3] = ["", ".fp16", ".bf16"];
const MAX_INDEX_BYTES: u64 = 64 << 20;

pub(super) fn open(dir: &Path) -> Result<Weights, WeightsError> {
    let entries = std::fs::read_dir(dir).map_err(|source| WeightsError::Io { path: dir.into(), source })?;
    let files: BTreeSet<String> = entries
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| dir.join(n).is_file())
        .collect();
    for extension in ["safetensors", "bin"] {
        for variant in VARIANTS {
            for name in NAMES {
                let single = format!("{name}{variant}.{extension}");
                if files.contains(&single) {
                    return Weights::open(dir.join(single));
                }
                // The variant's place has changed over the years.
                let indices = [
                    format!("{name}.{extension}.index{variant}.json"),
                    format!("{name}{variant}.{extension}.index.json"),
                ];
                if let Some(index) = indices.iter().find(|i| files.contains(*i)) {
                    return open_shards(dir, &dir.join(index));
                }
            }
        }
        // Under any other name, if there is no choice.
        let mut others = files.iter().filter(|f| f.ends_with(&format!(".{extension}")) && !is_other(f));
        if let (Some(only), None) = (others.next(), others.next()) {
            return Weights::open(dir.join(only));
        }
    }
    let mut found: Vec<&str> = files.iter().map(String::as_str).take(8).collect();
    if files.len() > found.len() {
        found.push("…");
    }
    let found = if found.is_empty() { "no files".to_owned() } else { shown(&found.join(", ")) };
    let expected =
        "model.safetensors, diffusion_pytorch_model.safetensors, their .fp16 variants, shards with an \
                    index, or .bin"
            .to_owned();
    Err(WeightsError::NoWeights { path: dir.into(), expected, found })
}

/// Files of a training run that are no weights.
fn is_other(name: &str) -> bool {
    ["training_args", "optimizer", "scheduler", "random_states"].iter().any(|n| name.starts_with(n))
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn open_shards(dir: &Path, index_path: &Path) -> Result<Weights, WeightsError> {
    let io = |source| WeightsError::Io { path: index_path.into(), source };
    let malformed = |message: String| WeightsError::Malformed { path: index_path.into(), message };
    let length = std::fs::metadata(index_path).map_err(io)?.len();
    if length > MAX_INDEX_BYTES {
        return Err(malformed(format!("an index of {length} bytes, expected at most {MAX_INDEX_BYTES}")));
    }
    let text = std::fs::read(index_path).map_err(io)?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|e| malformed(format!("index: {}", shown(&e.to_string()))))?;
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    let mut all: Option<Weights> = None;
    for shard in shards {
        // A plain name: an index must not reach outside its folder.
        let plain =
            Path::new(shard).file_name().is_some_and(|n| n == shard.as_str()) && !shard.contains('\\');
        if !plain {
            return Err(malformed(format!(
                "the shard \"{}\" is not a file name of this folder",
                shown(shard)
            )));
        }
        let path: PathBuf = dir.join(shard);
        if !path.is_file() {
            return Err(malformed(format!("the shard {} is missing from the folder", shown(shard))));
        }
        let part = Weights::open(&path)?;
        match &mut all {
            None => all = Some(Weights { source: dir.into(), ..part }),
            Some(all) => {
                for (key, tensor) in part.tensors {
                    if all.tensors.insert(key.clone(), tensor).is_some() {
                        return Err(malformed(format!("the tensor {} is in two shards", shown(&key))));
                    }
                }
            }
        }
    }
    let Some(all) = all else { return Err(malformed("an index without shards".into())) };
    if let Some((key, shard)) = index.weight_map.iter().find(|(key, _)| !all.tensors.contains_key(*key)) {
        return Err(malformed(format!("the tensor {} is not in its shard {}", shown(key), shown(shard))));
    }
    Ok(all)
}
