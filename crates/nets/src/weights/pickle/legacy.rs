//! The layout of PyTorch before 1.6: magic number, protocol, system, the object, the list of storage keys (a pickle
//! each), then every storage as an eight-byte length and its values.

use super::super::{Bytes, WeightsError};
use super::machine::{Id, Machine, Node};
use super::{Storage, run};
use std::collections::BTreeMap;
use std::path::Path;

/// 0x1950a86a20f9469cfc6c
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

pub(super) struct File {
    pub machine: Machine,
    pub root: Id,
    pub storages: BTreeMap<String, Bytes>,
}

pub(super) fn read(bytes: &Bytes, path: &Path) -> Result<File, WeightsError> {
    let malformed = |message: &str| WeightsError::Malformed { path: path.into(), message: message.into() };
    let mut at = 0;
    let mut next = || -> Result<(Machine, Id), WeightsError> {
        let (machine, root, read) = run(&bytes[at..], path)?;
        at += read;
        Ok((machine, root))
    };
    let (machine, magic) = next()?;
    if !matches!(machine.node(magic), Node::Big(b) if *b == MAGIC) {
        return Err(WeightsError::NotWeights {
            path: path.into(),
            found: "a Python pickle that torch.save did not write".into(),
            way_out: "expected safetensors or a PyTorch checkpoint".into(),
        });
    }
    let (machine, protocol) = next()?;
    if !matches!(machine.node(protocol), Node::Int(1001)) {
        return Err(malformed("an unknown version of PyTorch's old layout"));
    }
    let (machine, system) = next()?;
    if let Node::Dict(entries) = machine.node(system) {
        let big = |(k, v): &(Id, Id)| {
            matches!(machine.node(*k), Node::Str(k) if k == "little_endian")
                && matches!(machine.node(*v), Node::Bool(false))
        };
        if entries.iter().any(big) {
            return Err(malformed(
                "the values are big-endian, which is not supported (save it on another machine)",
            ));
        }
    }
    let (machine, root) = next()?;
    let (key_machine, keys) = next()?;

    // The values do not say how wide they are; the storages named in the object do.
    let mut widths: BTreeMap<&str, usize> = BTreeMap::new();
    for storage in machine.storages() {
        widths.insert(&storage.key, storage.unit());
    }
    let Node::List(keys) = key_machine.node(keys) else { return Err(malformed("no list of storages")) };
    let mut storages = BTreeMap::new();
    for key in keys {
        let Node::Str(key) = key_machine.node(*key) else {
            return Err(malformed("a storage without a name"));
        };
        let found = bytes.len().saturating_sub(at) as u64;
        let truncated = |expected: usize| WeightsError::Truncated {
            path: path.into(),
            what: "a storage".into(),
            expected: expected as u64,
            found,
        };
        let length = bytes.get(at..).and_then(|b| b.first_chunk::<8>()).ok_or_else(|| truncated(8))?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| truncated(usize::MAX))?;
        at += 8;
        let width = *widths.get(key.as_str()).ok_or_else(|| malformed("a storage that no tensor uses"))?;
        let size = length.checked_mul(width).ok_or_else(|| truncated(usize::MAX))?;
        let end = at.checked_add(size).ok_or_else(|| truncated(size))?;
        let data = bytes.slice(at..end).ok_or_else(|| truncated(size))?;
        at = end;
        storages.insert(key.clone(), data);
    }
    Ok(File { machine, root, storages })
}

impl Machine {
    fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.nodes().iter().filter_map(|n| match n {
            Node::Storage(s) => Some(s),
            _ => None,
        })
    }
}
