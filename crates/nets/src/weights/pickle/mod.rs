//! PyTorch checkpoints (`.bin`, `.ckpt`, `.pth`, `.pt`), read without running anything.
//!
//! A pickle is a program for a stack machine; the machine in [`machine`] knows the data instructions and no code. The
//! few functions that `torch.save` refers to are recognised by name and carried out here; any other name ends the
//! reading.

mod legacy;
mod machine;
mod torch;

use super::error::shown;
use super::zip;
use super::{Bytes, Format, Stored, Weights, WeightsError};
use machine::{Fault, Machine, Node};
use std::collections::BTreeMap;
use std::path::Path;
use torch::Storage;

/// Larger pickles (without the tensors' values) do not exist; it bounds the memory that a hostile one can ask for.
const MAX_PICKLE_BYTES: usize = 64 << 20;
/// Dictionaries in dictionaries.
const MAX_DEPTH: usize = 32;
/// Sum of the lengths of all keys, and number of dictionary entries looked at.
const MAX_KEY_BYTES: usize = 64 << 20;
const MAX_VISITS: usize = 4_000_000;

/// Since PyTorch 1.6: a zip archive with `NAME/data.pkl` and one member `NAME/data/KEY` per storage.
pub(super) fn read_zip(bytes: Bytes, path: &Path) -> Result<Weights, WeightsError> {
    let malformed = |message: String| WeightsError::Malformed { path: path.into(), message };
    let members = zip::members(&bytes).map_err(malformed)?;
    let mut pickles = members.iter().filter(|(k, _)| *k == "data.pkl" || k.ends_with("/data.pkl"));
    let Some((name, pickle)) = pickles.next() else {
        return Err(WeightsError::NotWeights {
            path: path.into(),
            found: "a zip archive without data.pkl".into(),
            way_out: "unpack it, or name a PyTorch checkpoint".into(),
        });
    };
    if let Some((other, _)) = pickles.next() {
        return Err(malformed(format!("two pickles, {} and {}", shown(name), shown(other))));
    }
    let prefix = &name[..name.len() - "data.pkl".len()];
    if members.get(&format!("{prefix}byteorder")).is_some_and(|b| **b != *b"little") {
        return Err(malformed(
            "the values are big-endian, which is not supported (save it on another machine)".into(),
        ));
    }
    let (machine, root, _) = run(pickle, path)?;
    let find = |storage: &Storage| members.get(&format!("{prefix}data/{}", storage.key)).cloned();
    collect(&machine, root, &find, bytes.len(), Format::PickleZip, path)
}

/// Before PyTorch 1.6: five pickles in a row, then the storages.
pub(super) fn read_legacy(bytes: Bytes, path: &Path) -> Result<Weights, WeightsError> {
    let file = legacy::read(&bytes, path)?;
    let find = |storage: &Storage| file.storages.get(&storage.key).cloned();
    collect(&file.machine, file.root, &find, bytes.len(), Format::PickleLegacy, path)
}

/// Runs one pickle: the machine with its nodes, the result, and the number of bytes read.
fn run(bytes: &[u8], path: &Path) -> Result<(Machine, machine::Id, usize), WeightsError> {
    let mut machine = Machine::default();
    let bytes = &bytes[..bytes.len().min(MAX_PICKLE_BYTES)];
    match machine.run(bytes) {
        Ok((root, read)) => Ok((machine, root, read)),
        Err(Fault::Refused(global)) => {
            Err(WeightsError::Refused { path: path.into(), global: shown(&global) })
        }
        Err(Fault::Broken(message)) => {
            Err(WeightsError::Malformed { path: path.into(), message: format!("pickle: {message}") })
        }
    }
}

/// Flattens nested dictionaries into keys with dots and gives each tensor its bytes.
fn collect(
    machine: &Machine,
    root: machine::Id,
    find: &dyn Fn(&Storage) -> Option<Bytes>,
    file_bytes: usize,
    format: Format,
    path: &Path,
) -> Result<Weights, WeightsError> {
    let mut walk = Walk {
        machine,
        path,
        tensors: BTreeMap::new(),
        found: BTreeMap::new(),
        key_bytes: 0,
        visits: 0,
        // Views that are not contiguous are copied; a hostile file must not multiply itself.
        copies: file_bytes.saturating_mul(2).saturating_add(1 << 20),
        find,
    };
    walk.visit(unwrap(machine, root), String::new(), 0)?;
    if walk.tensors.is_empty() {
        return Err(WeightsError::NotWeights {
            path: path.into(),
            found: "a PyTorch file without tensors".into(),
            way_out: "expected a dictionary of tensors (a state dict)".into(),
        });
    }
    Ok(Weights { source: path.into(), format, tensors: walk.tensors, metadata: BTreeMap::new() })
}

/// Trainers wrap the weights: `{"state_dict": {...}, "epoch": 3, ...}`.
fn unwrap(machine: &Machine, root: machine::Id) -> machine::Id {
    if let Node::Dict(entries) = machine.node(root) {
        for (key, value) in entries.iter().rev() {
            if let (Node::Str(key), Node::Dict(_)) = (machine.node(*key), machine.node(*value))
                && key == "state_dict"
            {
                return *value;
            }
        }
    }
    root
}

struct Walk<'a> {
    machine: &'a Machine,
    path: &'a Path,
    tensors: BTreeMap<String, Stored>,
    /// Storages already looked up.
    found: BTreeMap<&'a str, Bytes>,
    key_bytes: usize,
    visits: usize,
    copies: usize,
    find: &'a dyn Fn(&Storage) -> Option<Bytes>,
}

impl<'a> Walk<'a> {
    fn malformed(&self, message: impl Into<String>) -> WeightsError {
        WeightsError::Malformed { path: self.path.into(), message: message.into() }
    }

    fn visit(&mut self, id: machine::Id, key: String, depth: usize) -> Result<(), WeightsError> {
        self.visits += 1;
        self.key_bytes += key.len();
        if depth > MAX_DEPTH || self.visits > MAX_VISITS || self.key_bytes > MAX_KEY_BYTES {
            return Err(self.malformed("dictionaries nested too deeply or too many"));
        }
        let machine = self.machine;
        let inner = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
        match machine.node(id) {
            Node::Dict(entries) => {
                // As in Python, the last value of a key counts.
                let mut last = BTreeMap::new();
                for (k, v) in entries {
                    match machine.node(*k) {
                        Node::Str(k) => last.insert(k.clone(), *v),
                        Node::Int(k) => last.insert(k.to_string(), *v),
                        _ => None,
                    };
                }
                for (name, value) in last {
                    self.visit(value, inner(&name), depth + 1)?;
                }
            }
            Node::List(items) | Node::Tuple(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.visit(*item, inner(&i.to_string()), depth + 1)?;
                }
            }
            Node::Tensor(tensor) => {
                let key = if key.is_empty() { "tensor".to_owned() } else { key };
                let stored = self.tensor(tensor, &key)?;
                if self.tensors.insert(key.clone(), stored).is_some() {
                    return Err(self.malformed(format!("the key {} appears twice", shown(&key))));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn tensor(&mut self, tensor: &'a torch::Tensor, key: &str) -> Result<Stored, WeightsError> {
        let wrong = |expected: String, found: String| WeightsError::Tensor {
            path: self.path.into(),
            key: shown(key),
            expected,
            found,
        };
        let Node::Storage(storage) = self.machine.node(tensor.storage) else {
            return Err(wrong("a storage".into(), "something else".into()));
        };
        let whole = match self.found.get(storage.key.as_str()) {
            Some(bytes) => bytes.clone(),
            None => {
                let bytes = (self.find)(storage).ok_or_else(|| WeightsError::Truncated {
                    path: self.path.into(),
                    what: format!("tensor {} (storage {})", shown(key), shown(&storage.key)),
                    expected: storage.size_bytes() as u64,
                    found: 0,
                })?;
                self.found.insert(&storage.key, bytes.clone());
                bytes
            }
        };
        let bytes = storage.range().and_then(|r| whole.slice(r)).ok_or_else(|| WeightsError::Truncated {
            path: self.path.into(),
            what: format!("tensor {}", shown(key)),
            expected: storage.size_bytes() as u64,
            found: whole.len() as u64,
        })?;
        tensor
            .place(storage.dtype, bytes, &mut self.copies)
            .map_err(|(expected, found)| wrong(expected, found))
    }
}
