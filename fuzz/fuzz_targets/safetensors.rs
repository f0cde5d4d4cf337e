//! Weight files, told by their content: seeded with safetensors.
#![no_main]

use instantstyle_nets::weights::Weights;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // The name makes a file that begins otherwise a damaged safetensors file.
    if let Ok(weights) = Weights::from_bytes(data.to_vec(), "fuzz.safetensors") {
        for (_, tensor) in weights.iter() {
            assert_eq!(tensor.to_f32().len(), tensor.shape().iter().product::<usize>());
        }
    }
});
