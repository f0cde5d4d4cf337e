//! Ways to spend less: what each must and must not change, on tiny models with random weights.

use instantstyle_engine::plan::Plan;
use instantstyle_engine::request::Request;
use instantstyle_engine::{Error, Event, Observer, generate};
use serde_json::{Value, json};

struct Quiet;

impl Observer for Quiet {
    fn event(&mut self, _: Event) {}
}

/// The plan of a case of the fixtures with some fields changed.
fn plan(case: &str, changes: &Value) -> Result<Plan, Error> {
    let base = testkit::fixtures().join("cases").join(case);
    let text = std::fs::read_to_string(base.join("job.json")).expect("a job");
    let mut job: Value = serde_json::from_str(&text).expect("JSON");
    for (key, value) in changes.as_object().expect("an object") {
        job[key] = value.clone();
    }
    Plan::resolve(&Request::from_json(&job.to_string(), &base)?)
}

/// Its last latents.
fn latents(case: &str, changes: Value) -> Vec<f32> {
    let plan = plan(case, &changes).expect("a plan");
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

#[test]
fn cross_attention_frozen_never_changes_nothing_and_sooner_more() {
    for case in CASES {
        let steps = 8;
        let plain = latents(case, json!({ "steps": steps }));
        assert_eq!(latents(case, json!({ "steps": steps, "cross_freeze": 1.0 })), plain, "{case}");
        let far = |part: f64| {
            testkit::distance(&latents(case, json!({ "steps": steps, "cross_freeze": part })), &plain)
        };
        let (late, soon) = (far(0.9), far(0.25));
        assert!(late > 1e-6 && late < soon, "{case}: {late:.1e} {soon:.1e}");
        // At the earliest after the first call.
        let (none, one) = (
            json!({ "steps": steps, "cross_freeze": 0.0 }),
            json!({ "steps": steps, "cross_freeze": 0.125 }),
        );
        assert_eq!(latents(case, none), latents(case, one), "{case}");
        // Where guidance has ended before, the prompt's row alone is kept; deep features kept as well.
        for more in [json!({ "guidance_end": 0.25 }), json!({ "deep_cache": 3 }), json!({ "guidance": 1.0 })]
        {
            let mut changes = more;
            changes["steps"] = json!(steps);
            changes["cross_freeze"] = json!(0.5);
            assert!(latents(case, changes).iter().all(|v| v.is_finite()), "{case}");
        }
        let frozen = plan(case, &json!({ "steps": steps, "cross_freeze": 0.5 })).expect("a plan").to_json();
        assert_eq!(
            (&frozen["frozen_calls"], &frozen["guided_calls"]),
            (&json!([4, 8]), &json!([0, 4])),
            "{case}"
        );
    }
}

#[test]
fn merging_no_tokens_changes_nothing_and_threads_nothing_either() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    for case in CASES {
        let plain = latents(case, json!({}));
        assert_eq!(latents(case, json!({ "token_merging": 0.0 })), plain, "{case}");
        let few = latents(case, json!({ "token_merging": 0.1 }));
        let many = latents(case, json!({ "token_merging": 0.75 }));
        assert!(testkit::distance(&few, &plain) > 1e-6, "{case}");
        assert!(testkit::distance(&many, &few) > 1e-6, "{case}");
        assert_eq!(pool.install(|| latents(case, json!({ "token_merging": 0.75 }))), many, "{case}");
    }
}

#[test]
fn fast_without_a_distilled_model_is_what_it_says() {
    let case = CASES[0];
    let chosen = plan(case, &json!({ "fast": "safe" })).expect("a plan");
    let said = chosen.chosen().expect("a line");
    let mut by_hand = json!({});
    for part in said.trim_start_matches("fast: ").split(", ") {
        let (field, value) = part.split_once(' ').expect("a field and its value");
        by_hand[field] = serde_json::from_str(value).expect("a number");
    }
    assert!(by_hand.as_object().is_some_and(|o| !o.is_empty()), "{said}");
    assert_eq!(latents(case, json!({ "fast": "safe" })), latents(case, by_hand.clone()));
    let stored = serde_json::to_value(chosen.request()).expect("JSON");
    assert!(
        stored["fast"].is_null()
            && by_hand.as_object().expect("an object").iter().all(|(k, v)| &stored[k] == v)
    );
    // What the request gives itself holds, and what does not go with it is left out.
    for own in [
        json!({ "guidance_end": 0.5, "deep_cache": 1 }),
        json!({ "guidance_start": 0.9 }),
        json!({ "cross_freeze": 0.5, "deep_cache": 1 }),
    ] {
        let mut changes = own.clone();
        changes["fast"] = json!("safe");
        let stored = serde_json::to_value(plan(case, &changes).expect("a plan").request()).expect("JSON");
        assert!(own.as_object().expect("an object").iter().all(|(k, v)| &stored[k] == v), "{stored}");
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let case = CASES[0];
    for (changes, field, words) in [
        (json!({ "cross_freeze": 1.5 }), "cross_freeze", "0 to 1"),
        (json!({ "token_merging": 0.8 }), "token_merging", "0 to 0.75"),
        (json!({ "cross_freeze": 0.5, "guidance_end": 0.8 }), "guidance_end", "cross_freeze"),
        (json!({ "cross_freeze": 0.5, "guidance_start": 0.5 }), "guidance_start", "cross_freeze"),
        (
            json!({ "cross_freeze": 0.5, "hidiffusion": "on", "width": 256, "height": 256 }),
            "hidiffusion",
            "cross_freeze",
        ),
        (
            json!({ "token_merging": 0.5, "hidiffusion": "on", "width": 256, "height": 256 }),
            "hidiffusion",
            "token_merging",
        ),
    ] {
        let refused = plan(case, &changes).err().unwrap_or_else(|| panic!("{changes} is taken"));
        let text = refused.to_string();
        assert!(
            refused.exit_code() == 2 && text.starts_with(field) && text.contains(words),
            "{changes}: {text}"
        );
    }
}
