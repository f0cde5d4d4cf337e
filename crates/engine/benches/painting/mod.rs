//! What the benches of the embedded model share: painting a request, and its names and judge.

#[path = "../../tests/behaviour/judge.rs"]
#[allow(dead_code)]
mod judge;

pub use judge::Judge;

use instantstyle_engine::plan::Plan;
use instantstyle_engine::request::Request;
use instantstyle_engine::{Event, Observer, Output, embedded, generate};
use serde_json::{Value, json};
use std::path::Path;

/// Notes the thread's time when denoising begins and when it ends.
#[derive(Default)]
struct Clock {
    started: Option<f64>,
    denoised_s: f64,
}

impl Observer for Clock {
    fn event(&mut self, event: Event) {
        match (event, self.started) {
            (Event::Stage("denoising"), _) => self.started = Some(thread_s()),
            (Event::Stage(_), Some(started)) => {
                self.denoised_s += thread_s() - started;
                self.started = None;
            }
            _ => {}
        }
    }
}

/// Seconds that this thread was on a processor; 0 where the system does not say (only Linux does).
fn thread_s() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

/// One picture and the seconds of its denoising: of this thread, which does all of it in a pool of one.
pub fn paint(prompt: &str, seed: u64, changes: &Value) -> (Output, f64) {
    let mut job = json!({ "prompt": prompt, "seed": seed });
    for (key, value) in changes.as_object().expect("an object") {
        job[key] = value.clone();
    }
    let request = Request::from_json(&job.to_string(), Path::new(".")).expect("a sound request");
    let plan = Plan::resolve(&request).expect("a plan");
    let mut clock = Clock::default();
    let mut outputs = generate(&plan, &mut clock).expect("a picture");
    (outputs.remove(0), clock.denoised_s)
}

/// The names in a list of the card, in the judge's order.
pub fn names(list: &str) -> Vec<String> {
    let card = embedded::card();
    let list = card[list].as_array().expect("a list of the card");
    list.iter().map(|v| v.as_str().expect("a name").to_owned()).collect()
}
