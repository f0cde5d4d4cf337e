//! Any text as a request: refused or accepted, never a panic; what is accepted survives the round trip.
#![no_main]

use instantstyle_engine::request::{Request, parse_inject};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|text: &str| {
    let _ = parse_inject("inject", text);
    if let Ok(request) = Request::from_json(text, Path::new("/base")) {
        let again = serde_json::to_string(&request).expect("a request is JSON");
        assert_eq!(Request::from_json(&again, Path::new("/base")).expect("accepted before"), request);
    }
});
