//! Weight files, told by their content: seeded with PyTorch checkpoints, old and new.
#![no_main]

use instantstyle_nets::weights::Weights;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(weights) = Weights::from_bytes(data.to_vec(), "fuzz.bin") {
        for (_, tensor) in weights.iter() {
            assert_eq!(tensor.to_f32().len(), tensor.shape().iter().product::<usize>());
        }
    }
});
