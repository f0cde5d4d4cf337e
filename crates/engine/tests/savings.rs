//! Ways to spend less: what each must and must not change, on tiny models with random weights.

use instantstyle_engine::plan::Plan;
use instantstyle_engine::request::Request;
use instantstyle_engine::{Event, Observer, generate};
use serde_json::{Value, json};

struct Quiet;

impl Observer for Quiet {
    fn event(&mut self, _: Event) {}
}

/// The last latents of a case of the fixtures with some fields changed.
fn latents(case: &str, changes: Value) -> Vec<f32> {
    let base = testkit::fixtures().join("cases").join(case);
    let text = std::fs::read_to_string(base.join("job.json")).expect("a job");
    let mut job: Value = serde_json::from_str(&text).expect("JSON");
    for (key, value) in changes.as_object().expect("an object") {
        job[key] = value.clone();
    }
    let request = Request::from_json(&job.to_string(), &base).expect("a sound request");
    let plan = Plan::resolve(&request).expect("a plan");
    generate(&plan, &mut Quiet).expect("pictures").remove(0).latents
}

/// A case with image tokens for each family.
const CASES: [&str; 2] = ["sd15-a-base-and-plus", "sdxl-a-plus-style"];

#[test]
fn a_window_of_guidance_over_everything_is_plain_guidance_and_none_is_no_guidance() {
    for case in CASES {
        let plain = latents(case, json!({}));
        assert_eq!(latents(case, json!({ "guidance_start": 0.0, "guidance_end": 1.0 })), plain, "{case}");
        let off = latents(case, json!({ "guidance": 1.0 }));
        assert_eq!(latents(case, json!({ "guidance_end": 0.0 })), off, "{case}");
        let half = latents(case, json!({ "guidance_end": 0.5 }));
        let (near, far) = (testkit::distance(&half, &plain), testkit::distance(&half, &off));
        assert!(near > 1e-4 && far > 1e-4, "{case}: {near:.1e} {far:.1e}");
    }
}

#[test]
fn deep_features_kept_for_one_call_change_nothing_and_for_more_only_a_little() {
    for case in CASES {
        let steps = 12;
        let plain = latents(case, json!({ "steps": steps }));
        assert_eq!(latents(case, json!({ "steps": steps, "deep_cache": 1 })), plain, "{case}");
        let two = testkit::distance(&latents(case, json!({ "steps": steps, "deep_cache": 2 })), &plain);
        let all = testkit::distance(&latents(case, json!({ "steps": steps, "deep_cache": 100 })), &plain);
        assert!(two > 1e-6 && two < all, "{case}: {two:.1e} {all:.1e}");
        // With a window of guidance that ends or begins between full calls.
        for window in [json!([0.0, 0.5]), json!([0.5, 1.0])] {
            let changes = json!({ "steps": steps, "deep_cache": 3, "guidance_start": window[0], "guidance_end": window[1] });
            assert!(latents(case, changes).iter().all(|v| v.is_finite()), "{case}");
        }
    }
}
