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
        let built =
            build(case["sampler"].as_str(), None, &config, case["steps"].as_u64().expect("steps") as usize);
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

#[test]
fn names_and_schedules_are_diffusers_settings() {
    let json: Value = serde_json::from_str(include_str!("../../tests/fixtures/schedules.json"))
        .expect("the fixture is JSON");
    let mut failed = Vec::new();
    let cases = json["cases"].as_array().expect("a list");
    assert!(cases.len() > 140, "the fixture covers every name");
    for case in cases {
        let (sampler, schedule) = (case["sampler"].as_str().expect("a name"), case["schedule"].as_str());
        let name = format!("{sampler} {schedule:?} {}", case["config"]);
        let config = &json["configs"][case["config"].as_str().expect("a name")];
        let config = SchedulerConfig::from_json(config).expect("a sound configuration");
        let steps = case["steps"].as_u64().expect("steps") as usize;
        let built = build(Some(sampler), schedule, &config, steps);
        if case.get("refused").is_some() {
            if built.is_ok() {
                failed.push(format!("{name}: diffusers ignores the schedule, we take it"));
            }
            continue;
        }
        let mut sampler = match built {
            Ok(sampler) => sampler,
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
        for i in 0..timesteps.len() {
            // The fixture's timesteps are rounded.
            let t = sampler.timesteps()[i];
            let mut input = x.clone();
            sampler.scale_model_input(i, &mut input);
            let output = fake_model(&input, t);
            sampler.step(i, &output, &mut x, &mut rng);
        }
        let want = numbers("last");
        let got: Vec<f32> = x.iter().step_by(8).copied().collect();
        let want: Vec<f32> = want.iter().map(|v| *v as f32).collect();
        let distance = testkit::distance(&got, &want);
        if distance > TRAJECTORY {
            failed.push(format!("{name}: {distance:.2e}"));
        }
    }
    assert!(failed.is_empty(), "{} of {} differ:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

#[test]
fn names_are_read_as_people_write_them() {
    let found = |name: &str| find(name).map(|(row, s)| (row.name, s.map(|s| s.name)));
    for (name, want) in [
        ("euler", ("euler", None)),
        ("Euler a", ("euler_a", None)),
        ("euler_ancestral", ("euler_a", None)),
        ("DPM++ 2M", ("dpmpp_2m", None)),
        ("DPM++ 2M Karras", ("dpmpp_2m_karras", None)),
        ("DPM++ 2M SDE Karras", ("dpmpp_2m_sde_karras", None)),
        ("DPM++ 2M SDE Exponential", ("dpmpp_2m_sde", Some("exponential"))),
        ("DPM2 a Karras", ("dpm2_a", Some("karras"))),
        ("LMS Karras", ("lms", Some("karras"))),
        ("Euler SGM Uniform", ("euler", Some("sgm_uniform"))),
        ("uni_pc", ("unipc", None)),
        ("UniPC", ("unipc", None)),
        ("dpm_2_ancestral", ("dpm2_a", None)),
        ("DDIM", ("ddim", None)),
    ] {
        assert_eq!(found(name).ok(), Some(want), "{name}");
    }
    for (name, near) in [("dpmpp_3m_sde", "dpmpp_2m_sde"), ("eulr", "euler"), ("", "lcm"), ("karras", "lms")]
    {
        let message = find(name).err().expect(name).to_string();
        assert!(
            message.contains(near) && message.contains("nearest") && !message.contains('\n'),
            "{message}"
        );
    }
    // No name stands for two rows.
    let names: Vec<&str> = SAMPLERS.iter().flat_map(|s| s.aliases.iter().copied().chain([s.name])).collect();
    for (i, name) in names.iter().enumerate() {
        assert!(!names[..i].contains(name), "{name} twice");
        assert!(find(name).is_ok_and(|(_, s)| s.is_none()), "{name}");
    }
}

#[test]
fn schedules_that_do_not_fit_are_refused() {
    let config = SchedulerConfig::from_json(&serde_json::json!({})).expect("defaults");
    for (name, schedule, want) in [
        (Some("DPM++ 2M SDE Exponential"), "karras", "leave one of them out"),
        (Some("dpmpp_2m_karras"), "sgm_uniform", "use dpmpp_2m with schedule sgm_uniform"),
        (Some("lcm"), "sgm_uniform", "it takes normal"),
        (Some("euler_a"), "karras", "it takes normal, sgm_uniform"),
        (None, "polyexponential", "known: normal, karras"),
    ] {
        let e = build(name, Some(schedule), &config, 5).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(e.contains(want), "{name:?} {schedule}: {e}");
    }
    assert!(build(Some("dpmpp_2m_karras"), Some("karras"), &config, 5).is_ok());
    assert!(build(Some("LMS Karras"), Some("karras"), &config, 5).is_ok());
}

/// The clean samples of previews against diffusers' `pred_original_sample` (`testkit/recipe/implied.py`).
#[test]
fn implied_samples_are_those_of_diffusers() {
    let json: Value =
        serde_json::from_str(include_str!("../../tests/fixtures/implied.json")).expect("the fixture is JSON");
    let cases = json.as_array().expect("a list");
    assert_eq!(cases.len(), 48);
    for case in cases {
        let name = format!("{} {}", case["sampler"], case["config_name"]);
        let config = SchedulerConfig::from_json(&case["config"]).expect("a sound configuration");
        let steps = case["steps"].as_u64().expect("steps") as usize;
        let sampler = build(case["sampler"].as_str(), None, &config, steps).expect("a sampler");
        let numbers = |key: &str| -> Vec<f32> {
            case[key].as_array().into_iter().flatten().filter_map(Value::as_f64).map(|v| v as f32).collect()
        };
        let (sample, output, want) = (numbers("sample"), numbers("output"), numbers("clean"));
        let call = case["call"].as_u64().expect("a call") as usize;
        let got = implied(sampler.as_ref(), config.prediction_type(), call, &output, &sample);
        let far: f32 = got.iter().zip(&want).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        let size: f32 = want.iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!(want.len() == 8 && far < 1e-4 * size, "{name}: {far} of {size}");
    }
}
