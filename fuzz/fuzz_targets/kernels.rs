//! Kernels over random shapes: every level of instructions against scalar, no access out of bounds (with a sanitizer).
#![no_main]

#[path = "../../crates/kernels/tests/shapes/check.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
