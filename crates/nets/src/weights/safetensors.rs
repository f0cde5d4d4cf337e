//! The safetensors format: eight bytes of header length, a JSON header, the values.
//! Specification: github.com/huggingface/safetensors, README, "Format".

use super::error::shown;
use super::{Bytes, Dtype, Format, MAX_RANK, Stored, Weights, WeightsError, size_in_bytes};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// The specification's limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

pub(super) fn read(bytes: Bytes, path: &Path) -> Result<Weights, WeightsError> {
    let malformed = |message: String| WeightsError::Malformed { path: path.into(), message };
    let truncated = |what: &str, expected: u64| WeightsError::Truncated {
        path: path.into(),
        what: what.into(),
        expected,
        found: bytes.len() as u64,
    };
    let Some(length) = bytes.first_chunk::<8>() else { return Err(truncated("a safetensors header", 8)) };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(malformed(format!(
            "safetensors header of {length} bytes, expected at most {MAX_HEADER_BYTES}"
        )));
    }
    let start = 8 + length as usize;
    let Some(header) = bytes.get(8..start) else {
        return Err(truncated("the safetensors header", start as u64));
    };
    if header.first() != Some(&b'{') {
        return Err(malformed("safetensors header: expected a JSON object starting with {".into()));
    }
    let header: Header = serde_json::from_slice(header)
        .map_err(|e| malformed(format!("safetensors header: {}", shown(&e.to_string()))))?;

    let mut order: Vec<(&String, &Entry)> = header.tensors.iter().collect();
    order.sort_by_key(|(_, e)| e.offsets);
    let mut tensors = BTreeMap::new();
    let mut end = 0u64;
    for (key, entry) in order {
        let wrong = |expected: String, found: String| WeightsError::Tensor {
            path: path.into(),
            key: shown(key),
            expected,
            found,
        };
        let dtype = Dtype::from_safetensors(&entry.dtype)
            .ok_or_else(|| wrong("a known number type, e.g. F32, F16 or BF16".into(), shown(&entry.dtype)))?;
        let size = size_in_bytes(dtype, &entry.shape)
            .ok_or_else(|| wrong("a shape that fits in memory".into(), format!("{:?}", entry.shape)))?;
        let (from, to) = entry.offsets;
        if to.checked_sub(from) != Some(size as u64) {
            return Err(wrong(
                format!("{size} bytes for {} {:?}", dtype.name(), entry.shape),
                format!("data_offsets [{from}, {to}]"),
            ));
        }
        if from != end {
            let what = if from < end { "overlapping the tensor before" } else { "leaving a gap" };
            return Err(wrong(format!("data_offsets to begin at {end}"), format!("[{from}, {to}], {what}")));
        }
        end = to;
        let place = usize::try_from(from).ok().and_then(|from| {
            let begin = start.checked_add(from)?;
            bytes.slice(begin..begin.checked_add(size)?)
        });
        let Some(bytes) = place else {
            return Err(truncated(&format!("tensor {}", shown(key)), (start as u64).saturating_add(to)));
        };
        tensors.insert(key.clone(), Stored { dtype, shape: entry.shape.clone(), bytes });
    }
    let found = (bytes.len() - start) as u64;
    if found != end {
        return Err(malformed(format!("{found} bytes of values, but the header describes {end}")));
    }
    Ok(Weights { source: path.into(), format: Format::Safetensors, tensors, metadata: header.metadata })
}

/// The bytes of a safetensors file with these f32 tensors (key, shape, values), in this order.
///
/// # Panics
/// If the number of values does not fit a shape, or a key appears twice.
pub fn to_safetensors(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (key, shape, values) in tensors {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "values of {key} for shape {shape:?}");
        let from = end;
        end += values.len() * 4;
        let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [from, end] });
        assert!(header.insert((*key).to_owned(), entry).is_none(), "key {key} appears twice");
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    // The values start at a multiple of eight, so that readers can map them aligned.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = Vec::with_capacity(8 + header.len() + end);
    out.extend_from_slice(&(header.len() as u64).to_le_bytes());
    out.extend_from_slice(&header);
    for (_, _, values) in tensors {
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    out
}

struct Header {
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    #[serde(deserialize_with = "shape")]
    shape: Vec<usize>,
    #[serde(rename = "data_offsets")]
    offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header { tensors: BTreeMap::new(), metadata: BTreeMap::new() };
                let mut described = false;
                while let Some(key) = map.next_key::<String>()? {
                    let again = if key == "__metadata__" {
                        // Trainers write null here.
                        header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                        std::mem::replace(&mut described, true)
                    } else {
                        let entry =
                            map.next_value().map_err(|e| A::Error::custom(format!("tensor {key}: {e}")))?;
                        header.tensors.insert(key.clone(), entry).is_some()
                    };
                    if again {
                        return Err(A::Error::custom(format!("the key {key} appears twice")));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// A list of sizes, no longer than any real one, so that a header cannot ask for endless memory.
fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    struct Sizes;
    impl<'de> Visitor<'de> for Sizes {
        type Value = Vec<usize>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a shape (a list of sizes)")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<usize>, A::Error> {
            let mut sizes = Vec::new();
            while let Some(size) = seq.next_element()? {
                if sizes.len() == MAX_RANK {
                    return Err(A::Error::custom(format!("a shape of more than {MAX_RANK} axes")));
                }
                sizes.push(size);
            }
            Ok(sizes)
        }
    }
    deserializer.deserialize_seq(Sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, values: usize) -> Vec<u8> {
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend_from_slice(header.as_bytes());
        out.resize(out.len() + values, 0);
        out
    }

    fn error(bytes: Vec<u8>) -> String {
        Weights::from_bytes(bytes, "x.safetensors").expect_err("must be refused").to_string()
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes =
            to_safetensors(&[("b", &[2, 1], &[1.0, -2.5]), ("a", &[], &[7.0]), ("none", &[0, 3], &[])]);
        let w = Weights::from_bytes(bytes, "x").unwrap();
        assert_eq!(w.keys().collect::<Vec<_>>(), ["a", "b", "none"]);
        assert_eq!(w.get("b").unwrap().shape(), [2, 1]);
        assert_eq!(w.get("b").unwrap().to_f32(), [1.0, -2.5]);
        assert_eq!(w.get("b").unwrap().rows(1, 1).unwrap().to_f32(), [-2.5]);
        assert_eq!(w.get("a").unwrap().to_f32(), [7.0]);
        assert!(w.get("none").unwrap().is_empty());
        assert_eq!(w.size_bytes(), 12);
    }

    #[test]
    fn a_static_file_is_not_copied() {
        let bytes: &'static [u8] = to_safetensors(&[("a", &[1], &[7.0])]).leak();
        let w = Weights::from_bytes(bytes, "embedded").unwrap();
        assert!(bytes.as_ptr_range().contains(&w.get("a").unwrap().bytes().as_ptr()));
        assert!(w.get("a").unwrap().is_mapped());
    }

    #[test]
    fn faults_are_named() {
        let one = |d: &str, s: &str, o: &str| {
            format!(r#"{{"w":{{"dtype":"{d}","shape":{s},"data_offsets":{o}}}}}"#)
        };
        let cases = [
            (file(&one("F32", "[2]", "[0,8]"), 7), "incomplete: tensor w needs"),
            (file(&one("F32", "[2]", "[0,8]"), 9), "9 bytes of values, but the header describes 8"),
            (file(&one("F16", "[2]", "[0,8]"), 8), "expected 4 bytes for F16 [2], found data_offsets [0, 8]"),
            (file(&one("F32", "[2]", "[8,0]"), 8), "data_offsets [8, 0]"),
            (file(&one("F32", "[2]", "[1,9]"), 9), "leaving a gap"),
            (file(&one("F99", "[2]", "[0,8]"), 8), "expected a known number type"),
            (file(&one("F32", "[4294967296,4294967296,16]", "[0,8]"), 8), "a shape that fits in memory"),
            (file(&one("F32", "[-2]", "[0,8]"), 8), "invalid value"),
            (file(&one("F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]"), 4), "more than 16 axes"),
            (file(&one("F32", "[2]", "[0,18446744073709551608]"), 8), "tensor w: expected 8 bytes"),
            (file(r#"{"a":1}"#, 0), "tensor a: invalid type"),
            (file(r#"{"a":{"dtype":"F32"}}"#, 0), "missing field"),
            (file("{\"a\\n\":1}", 0), r"tensor a\n"),
            (file("{]", 0), "safetensors header"),
            (file("", 0), "expected a JSON object"),
            (
                u64::MAX.to_le_bytes().into_iter().chain(*b"{}").collect(),
                "header of 18446744073709551615 bytes",
            ),
            (
                50_000_000u64.to_le_bytes().into_iter().chain(*b"{}").collect(),
                "needs 50000008 bytes, found 10",
            ),
            (vec![1, 2, 3], "needs 8 bytes, found 3"),
        ];
        for (bytes, expected) in cases {
            let message = error(bytes);
            assert!(message.contains(expected), "{message:?} should contain {expected:?}");
            assert!(message.starts_with("x.safetensors: ") && !message.contains('\n'), "{message:?}");
        }
        let overlap = r#"{"v":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"w":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
        assert!(error(file(overlap, 6)).contains("overlapping"));
        let twice = r#"{"v":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"v":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#;
        assert!(error(file(twice, 8)).contains("the key v appears twice"));
    }
}
