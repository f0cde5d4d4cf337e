//! GGUF against ggml's own Python package (`testkit/recipe/gguf_files.py`), and files that lie.

mod mutate;

use instantstyle_nets::weights::{
    Block, Dtype, Format, Stored, Weights, Written, quantise, write_gguf, write_safetensors,
};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

fn open(name: &str) -> Weights {
    Weights::open(fixture(name)).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn every_format_widens_to_the_bit() {
    let (got, want) = (open("blocks.gguf"), open("blocks.safetensors"));
    assert_eq!(got.format(), Format::Gguf);
    assert_eq!(got.metadata()["general.architecture"], "sd1");
    for (key, tensor) in got.iter() {
        let expected = want.get(key).unwrap();
        assert_eq!((tensor.dtype().name(), tensor.shape()), (key, expected.shape()));
        let bits = |t: &Stored| t.to_f32().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(tensor), bits(expected), "{key}");
        assert!(tensor.is_mapped());
    }
    assert_eq!(got.len(), Block::ALL.len() + 3);
}

#[test]
fn values_are_quantised_to_the_bit() {
    let want = open("blocks.safetensors");
    let given = want.get("given").unwrap().to_f32();
    for block in [Block::Q4_0, Block::Q5_0, Block::Q8_0] {
        let expected = want.get(&format!("to {}", block.name())).unwrap();
        assert_eq!(quantise(block, &given).unwrap(), expected.bytes(), "{block:?}");
    }
}

#[test]
fn axes_alignment_and_true_shapes() {
    let file = open("odd.gguf");
    assert_eq!(file.metadata()["general.name"], "odd");
    let cube = file.get("cube").unwrap();
    assert_eq!((cube.shape(), cube.to_f32()), (&[2, 3, 4][..], (0..24).map(|v| v as f32).collect()));
    let kernel = file.get("kernel").unwrap();
    assert_eq!((kernel.shape(), kernel.dtype()), (&[4, 128, 1, 1][..], Dtype::Blocks(Block::Q8_0)));
    let values = kernel.to_f32();
    assert!(values.iter().enumerate().all(|(i, v)| (v - i as f32 / 64.0).abs() < 0.05));
    assert_eq!(kernel.rows(1, 2).unwrap().to_f32(), values[128..384]);
    assert!(kernel.reshape([512]).unwrap().rows(1, 1).is_none(), "a row that is no whole block");
}

/// What is written is read again, and ggml's package reads it too (`testkit/recipe/check_gguf.py`).
#[test]
fn what_is_written_is_read() {
    let source = open("blocks.safetensors");
    let tensor = |key: &str| source.get(key).unwrap().clone();
    let written = |key: &str, dtype: Dtype| Written { key: key.into(), tensor: tensor(key), dtype };
    let blocks = [
        ("given", Dtype::Blocks(Block::Q8_0)),
        ("F32", Dtype::F32),
        ("Q4_K", Dtype::F16),
        ("F16", Dtype::BF16),
    ];
    let all: Vec<Written> = blocks.iter().map(|(key, dtype)| written(key, *dtype)).collect();
    let mut bytes = Vec::new();
    write_gguf(&all, &[("general.architecture", "sd1")], &mut bytes, &mut |_| true).unwrap();
    let read = Weights::from_bytes(bytes, "written.gguf").unwrap();
    assert_eq!(read.get("given").unwrap().bytes(), tensor("to Q8_0").bytes());
    assert_eq!(read.get("F32").unwrap().to_f32(), tensor("F32").to_f32());
    for (key, dtype) in &blocks {
        assert_eq!(
            (read.get(key).unwrap().dtype(), read.get(key).unwrap().shape()),
            (*dtype, tensor(key).shape())
        );
    }
    let mut bytes = Vec::new();
    write_safetensors(&all[1..], &mut bytes, &mut |_| true).unwrap();
    let again = Weights::from_bytes(bytes, "written.safetensors").unwrap();
    assert_eq!(again.get("Q4_K").unwrap().to_f32(), read.get("Q4_K").unwrap().to_f32());
    assert!(write_safetensors(&all, &mut Vec::new(), &mut |_| true).is_err(), "blocks have no name there");
    let stopped = write_gguf(&all, &[], &mut Vec::new(), &mut |n| n < 2).unwrap_err();
    assert_eq!(stopped.kind(), std::io::ErrorKind::Interrupted);
}

/// One tensor's table, with places to lie in.
struct Lie {
    version: u32,
    tensors: u64,
    entries: u64,
    name: u64,
    shape: Vec<u64>,
    kind: u32,
    offset: u64,
    values: usize,
}

const HONEST: Lie =
    Lie { version: 3, tensors: 1, entries: 0, name: 1, shape: Vec::new(), kind: 0, offset: 0, values: 4 };

impl Lie {
    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        [self.tensors, self.entries, self.name].iter().for_each(|n| out.extend(n.to_le_bytes()));
        out.push(b'w');
        out.extend((self.shape.len() as u32).to_le_bytes());
        self.shape.iter().for_each(|n| out.extend(n.to_le_bytes()));
        out.extend(self.kind.to_le_bytes());
        out.extend(self.offset.to_le_bytes());
        out.resize(out.len().next_multiple_of(32) + self.values, 0);
        out
    }
}

#[test]
fn lies_are_named() {
    assert_eq!(Weights::from_bytes(HONEST.bytes(), "x").unwrap().get("w").unwrap().to_f32(), [0.0]);
    let cases = [
        (Lie { version: 1, ..HONEST }, "version 1"),
        (Lie { version: 3u32.swap_bytes(), ..HONEST }, "big-endian"),
        (Lie { tensors: u64::MAX, ..HONEST }, "table of tensors needs"),
        (Lie { tensors: 2, ..HONEST }, "table of tensors"),
        (Lie { entries: u64::MAX, ..HONEST }, "the GGUF metadata"),
        (Lie { name: u64::MAX, ..HONEST }, "table of tensors needs"),
        (Lie { offset: 32, ..HONEST }, "incomplete: tensor w needs"),
        (Lie { offset: u64::MAX - 31, ..HONEST }, "incomplete: tensor w needs"),
        (Lie { offset: 1, ..HONEST }, "expected an offset that is a multiple of 32, found 1"),
        (Lie { values: 3, ..HONEST }, "incomplete: tensor w needs"),
        (Lie { shape: vec![1 << 40, 1 << 40], ..HONEST }, "a shape that fits in memory"),
        (Lie { shape: vec![u64::MAX], ..HONEST }, "a shape that fits in memory"),
        // Nothing, of sides whose product overflows.
        (Lie { shape: vec![1 << 40, 1 << 40, 0], ..HONEST }, "a shape that fits in memory"),
        (Lie { shape: vec![1; 17], ..HONEST }, "at most 16 axes"),
        (Lie { kind: 8, shape: vec![31], ..HONEST }, "rows of whole blocks of 32 values (Q8_0), found [31]"),
        (Lie { kind: 8, ..HONEST }, "rows of whole blocks"),
        (Lie { kind: 20, shape: vec![32], ..HONEST }, "found ggml's type 20"),
        (Lie { kind: u32::MAX, ..HONEST }, "ggml's type 4294967295"),
    ];
    for (lie, expected) in cases {
        let text = Weights::from_bytes(lie.bytes(), "x.gguf").unwrap_err().to_string();
        assert!(text.contains(expected), "{text:?} should contain {expected:?}");
        assert!(text.starts_with("x.gguf: ") && !text.contains('\n'), "{text:?}");
    }
    // Two tensors at one place.
    let two =
        Written { key: "a".into(), tensor: Stored::from_f32([8], &[0.0; 8]).unwrap(), dtype: Dtype::F32 };
    let other = Written { key: "b".into(), tensor: two.tensor.clone(), dtype: Dtype::F32 };
    let mut bytes = Vec::new();
    write_gguf(&[two, other], &[], &mut bytes, &mut |_| true).unwrap();
    let at = bytes.windows(8).rposition(|w| w == 32u64.to_le_bytes()).expect("the second offset");
    bytes[at] = 0;
    let text = Weights::from_bytes(bytes, "x.gguf").unwrap_err().to_string();
    assert!(text.contains("inside the tensor before"), "{text}");
}

#[test]
fn damaged_files_are_harmless() {
    let files = ["blocks.gguf", "odd.gguf"].map(|n| std::fs::read(fixture(n)).unwrap());
    let mut read = 0;
    mutate::survive(&files, 4000, |bytes| {
        if let Ok(weights) = Weights::from_bytes(bytes, "damaged") {
            read += 1;
            for (_, tensor) in weights.iter() {
                assert_eq!(tensor.to_f32().len(), tensor.shape().iter().product::<usize>());
            }
        }
    });
    assert!(read > 200, "only {read} of the damaged files were readable");
}
