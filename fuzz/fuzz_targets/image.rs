//! Pictures of every format, and the texts of PNG files.
#![no_main]

use instantstyle_engine::picture::{Limits, Picture, png_text};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let limits = Limits { max_pixels: 1 << 20, max_file_bytes: 1 << 20 };
    if let Ok(picture) = Picture::decode_within(data, "fuzz", &limits) {
        assert_eq!(picture.rgb.len(), picture.width * picture.height * 3);
    }
    let _ = png_text(data, "instantstyle");
});
