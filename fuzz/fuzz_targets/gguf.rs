//! GGUF files: headers, tables, values of every format.
#![no_main]

use instantstyle_nets::weights::Weights;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend_from_slice(data.strip_prefix(b"GGUF").unwrap_or(data));
    if let Ok(weights) = Weights::from_bytes(bytes, "fuzz.gguf") {
        for (_, tensor) in weights.iter() {
            assert_eq!(tensor.to_f32().len(), tensor.shape().iter().product::<usize>());
        }
    }
});
