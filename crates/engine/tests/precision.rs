//! Pictures of the embedded model with operands in bf16 and int8, beside those in f32.

use instantstyle_engine::plan::Plan;
use instantstyle_engine::request::{Precision, Request};
use instantstyle_engine::{Event, Observer, generate};
use testkit::{distance, levels, tolerance};

struct Quiet;

impl Observer for Quiet {
    fn event(&mut self, _: Event) {}
}

/// Latents and pixels of the same request in some precision.
fn picture(precision: &str, seed: u64) -> (Vec<f32>, Vec<u8>) {
    let text =
        format!(r#"{{"prompt": "a red circle", "seed": {seed}, "steps": 8, "precision": "{precision}"}}"#);
    let request = Request::from_json(&text, std::path::Path::new(".")).expect("a request");
    let plan = Plan::resolve(&request).expect("a plan");
    let mut outputs = generate(&plan, &mut Quiet).expect("a picture");
    let output = outputs.remove(0);
    (output.latents, output.picture.rgb)
}

#[test]
fn pictures_stay_near_those_in_f32() {
    for (precision, most) in [("bf16", tolerance::BF16_MEAN), ("int8", tolerance::INT8_MEAN)] {
        let mut worst = 0f64;
        for seed in 0..4 {
            let ((exact, plain), (near, rgb)) = (picture("f32", seed), picture(precision, seed));
            let (largest, mean) = levels(&rgb, &plain);
            println!(
                "{precision}, seed {seed}: latents {:.1e}, levels {mean:.2} on average, {largest} at most",
                distance(&near, &exact)
            );
            assert!(near != exact, "{precision} was not used");
            worst = worst.max(mean);
        }
        assert!(worst <= most, "{precision}: {worst} levels on average, more than {most}");
    }
}

#[test]
fn pictures_do_not_depend_on_threads_and_repeat_to_the_bit() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    for precision in ["bf16", "int8"] {
        let one = pool.install(|| picture(precision, 1));
        assert!(one == picture(precision, 1), "{precision}");
    }
}

#[test]
fn the_precision_is_resolved_and_stored() {
    for (asked, stored) in [("auto", Precision::F32), ("bf16", Precision::Bf16), ("int8", Precision::Int8)] {
        let text = format!(r#"{{"precision": "{asked}"}}"#);
        let request = Request::from_json(&text, std::path::Path::new(".")).expect("a request");
        assert_eq!(Plan::resolve(&request).expect("a plan").request().precision, Some(stored));
    }
    let request =
        Request::from_json(r#"{"precision": "f16"}"#, std::path::Path::new(".")).expect("a request");
    let refused = Plan::resolve(&request).err().expect("not built in").to_string();
    assert!(refused.contains("f16") && refused.contains("bf16"), "{refused}");
}
