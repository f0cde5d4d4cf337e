//! LoRA files: keys, shapes, metadata; what fits is merged into a few layers.
#![no_main]

use instantstyle_nets::lora::{Lora, Names, Part, Use, merge};
use instantstyle_nets::weights::{Stored, Weights};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(weights) = Weights::from_bytes(data.to_vec(), "fuzz.safetensors") else { return };
    let Ok(lora) = Lora::of(&weights) else { return };
    let layer = |shape: &[usize]| {
        let n = shape.iter().product();
        Stored::from_f32(shape, &vec![0.5; n]).expect("as many values")
    };
    let model = [("fc.weight", layer(&[8, 4])), ("conv.weight", layer(&[6, 4, 3, 3])), ("norm.weight", layer(&[8]))];
    let model = Weights::from_tensors(model.map(|(k, t)| (k.to_owned(), t)), "model");
    let names = Names::of_text(&model);
    lora.context_dim();
    for part in [Part::UNet, Part::Text, Part::Text2] {
        let fit = lora.fit(part, &names, &model);
        let used = [Use { lora: &lora, weight: 0.5, only: None }];
        if fit.misshapen.is_empty() {
            let _ = merge(&used, part, &names, &model);
        }
    }
});
