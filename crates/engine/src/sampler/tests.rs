//! Every sampler against diffusers' trajectories (`testkit/recipe/samplers.py`).

use super::*;

/// What the recipe uses in place of a network.
fn fake_model(x: &[f32], t: f64) -> Vec<f32> {
    x.iter().map(|v| 0.3 * v.sin() + 0.1 * ((t as f32 / 100.0).cos())).collect()
}

/// Relative distance of two trajectories after the last step, in the L2 norm. The largest seen is 3.2e-5, where a
/// zero-SNR schedule starts at sigma 4096 and diffusers rounds to f32 on the way.
const TRAJECTORY: f64 = 5e-5;

#[test]
fn every_sampler_follows_diffusers() {
    let json: Value = serde_json::from_str(include_str!("../../tests/fixtures/samplers.json"))
        .expect("the fixture is JSON");
    let mut failed = Vec::new();
    let cases = json.as_array().expect("a list");
    assert!(cases.len() > 200, "the fixture covers every sampler");
    for case in cases {
        let name = format!("{} {} {} steps", case["sampler"], case["config_name"], case["steps"]);
        let config = SchedulerConfig::from_json(&case["config"]).expect("a sound configuration");
        let built = build(case["sampler"].as_str(), &config, case["steps"].as_u64().expect("steps") as usize);
        if case.get("error").is_some() {
            if built.is_ok() {
                failed.push(format!("{name}: diffusers refuses ({}), we do not", case["error"]));
            }
            continue;
        }
        let mut sampler = match built {
            Ok(s) => s,
            Err(e) => {
                failed.push(format!("{name}: {e}"));
                continue;
            }
        };
        let numbers = |key: &str| -> Vec<f64> {
            case[key].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
        };
        let timesteps = numbers("timesteps");
        if timesteps.len() != sampler.timesteps().len()
            || timesteps.iter().zip(sampler.timesteps()).any(|(a, b)| (a - b).abs() > 2e-2)
        {
            failed.push(format!("{name}: timesteps {:?} not {timesteps:?}", sampler.timesteps()));
            continue;
        }
        let mut rng = TorchRng::new(7);
        let sigma = sampler.init_noise_sigma();
        let mut x: Vec<f32> = rng.normal_f32(120).into_iter().map(|v| v * sigma).collect();
        for (i, t) in timesteps.iter().enumerate() {
            let mut input = x.clone();
            sampler.scale_model_input(i, &mut input);
            let output = fake_model(&input, *t);
            sampler.step(i, &output, &mut x, &mut rng);
        }
        let want = numbers("final");
        let distance: f64 = x.iter().zip(&want).map(|(a, b)| (*a as f64 - b).powi(2)).sum::<f64>().sqrt();
        let size: f64 = want.iter().map(|v| v * v).sum::<f64>().sqrt();
        if distance.is_nan() || distance > TRAJECTORY * size {
            failed.push(format!("{name}: {:.2e}", distance / size));
        }
    }
    assert!(failed.is_empty(), "{} of {} differ:\n{}", failed.len(), cases.len(), failed.join("\n"));
}
