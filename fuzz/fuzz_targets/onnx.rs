//! Networks for maps: a file is refused, or gives a map of the picture's size. The runtime's panics are errors of the file
//! there, and no finding here.
#![no_main]

use instantstyle_engine::control::{MAPS, Map};
use instantstyle_engine::picture::Picture;
use instantstyle_engine::request::Control;
use std::path::PathBuf;
use std::sync::LazyLock;

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("fuzz-{}.onnx", std::process::id())));
static NETWORKS: LazyLock<Vec<&Map>> =
    LazyLock::new(|| MAPS.iter().filter(|m| m.make.expects().is_some()).collect());

/// libFuzzer's hook ends the process at every panic: here, at those outside the runtime.
fn mind_own_panics() {
    let end = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.location().is_none_or(|at| !at.file().contains("/rten")) {
            end(info);
        }
    }));
}

libfuzzer_sys::fuzz_target!(init: mind_own_panics(), |data: &[u8]| {
    std::fs::write(&*FILE, data).expect("a file to read again");
    let picture = Picture { width: 64, height: 64, rgb: (0..64 * 64 * 3).map(|i| (i * 7 % 256) as u8).collect() };
    let mut control = Control::new("", "picture.png");
    control.preprocess_model = Some(FILE.clone());
    // Each kind in its turn: whole files are good seeds.
    let map = NETWORKS[data.len() % NETWORKS.len()];
    if let Ok(made) = map.make.map(&picture, &control) {
        assert_eq!((made.width, made.height, made.rgb.len()), (64, 64, 64 * 64 * 3));
    }
});
