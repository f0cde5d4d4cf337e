//! Decodes latents in tiles, for measurements: `decode VAE_FOLDER latents.safetensors TILE_PX picture.safetensors` (`latents`
//! [1, channels, h, w] → `picture` [1, 3, height, width]); prints the seconds. A tile of 0 px is the whole.

use instantstyle_nets::Tensor;
use instantstyle_nets::vae::{Decoder, Tiling, VaeConfig};
use instantstyle_nets::weights::{Weights, to_safetensors};
use std::error::Error;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [folder, latents, tile_px, out] = &words[..] else {
        return Err("expected VAE_FOLDER LATENTS TILE_PX PICTURE".into());
    };
    let start = Instant::now();
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(format!("{folder}/config.json"))?)?;
    config.as_object_mut().ok_or("not a configuration")?.retain(|_, v| !v.is_null());
    let config: VaeConfig = serde_json::from_value(config)?;
    let decoder = Decoder::load(&config, &Weights::open_component(folder)?)?;
    let weights = Weights::open(latents)?;
    let planes = weights.get("latents").ok_or("no tensor latents")?;
    let &[1, c, h, w] = planes.shape() else { return Err("expected [1, c, h, w]".into()) };
    let values = planes.to_f32();
    let last = (0..h * w * c).map(|i| values[i % c * h * w + i / c]).collect::<Vec<f32>>();
    let latents = Tensor::new([1, h, w, c], last);
    let factor = config.factor();
    let (height, width) = (h * factor, w * factor);
    let mut rows: Vec<f32> = Vec::with_capacity(height * width * 3);
    let mut take = |band: Tensor| {
        rows.extend_from_slice(band.data());
        Ok::<(), std::convert::Infallible>(())
    };
    match tile_px.parse::<usize>()? {
        0 => take(decoder.forward(&latents))?,
        px => decoder.forward_tiled(&latents, Tiling::new(px / factor, factor), &mut take)?,
    }
    println!("{:.1}", start.elapsed().as_secs_f64());
    let n = height * width;
    let planes: Vec<f32> = (0..3 * n).map(|i| rows[i % n * 3 + i / n]).collect();
    std::fs::write(out, to_safetensors(&[("picture", &[1, 3, height, width], &planes)]))?;
    Ok(())
}
