//! Contact sheets: labelled pictures on a grid.

use font8x8::UnicodeFonts;
use instantstyle_engine::picture::Picture;

/// A picture being drawn on, white at first.
pub struct Sheet {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Sheet {
    /// A white sheet, in pixels.
    pub fn new(width: usize, height: usize) -> Self {
        Sheet { width, height, rgb: vec![255; width * height * 3] }
    }

    fn set(&mut self, x: usize, y: usize, colour: [u8; 3]) {
        if x < self.width && y < self.height {
            self.rgb[(y * self.width + x) * 3..][..3].copy_from_slice(&colour);
        }
    }

    /// Pastes a picture enlarged by a whole factor.
    pub fn paste(&mut self, picture: &Picture, x: usize, y: usize, scale: usize) {
        let (w, h) = (picture.width, picture.height);
        for py in 0..h * scale {
            for px in 0..w * scale {
                let at = (py / scale * w + px / scale) * 3;
                let c = &picture.rgb[at..at + 3];
                self.set(x + px, y + py, [c[0], c[1], c[2]]);
            }
        }
    }

    /// Writes a line of text, `scale` times 8 × 8 pixels a letter.
    pub fn text(&mut self, text: &str, x: usize, y: usize, scale: usize, colour: [u8; 3]) {
        for (i, letter) in text.chars().enumerate() {
            let Some(rows) = font8x8::BASIC_FONTS.get(letter) else { continue };
            for (row, bits) in rows.iter().enumerate() {
                for column in (0..8).filter(|c| bits >> c & 1 == 1) {
                    for d in 0..scale * scale {
                        self.set(
                            x + (i * 8 + column) * scale + d % scale,
                            y + row * scale + d / scale,
                            colour,
                        );
                    }
                }
            }
        }
    }

    /// The finished picture.
    pub fn into_picture(self) -> Option<Picture> {
        Picture::new(self.width, self.height, self.rgb)
    }
}
