//! Contact sheets: labelled pictures on a grid.

use font8x8::UnicodeFonts;
use instantstyle_engine::picture::{Filter, Picture, resize};

/// A column of a part.
#[derive(Clone)]
pub struct Column {
    /// Its name.
    pub heading: String,
    /// What it does, in a few words.
    pub about: String,
}

/// Rows of the same columns.
pub struct Part {
    /// Above its headings.
    pub title: String,
    /// What the first pictures of its rows are.
    pub first: &'static str,
    /// Of the other pictures.
    pub columns: Vec<Column>,
    /// The pictures.
    pub rows: Vec<Row>,
}

/// A row of pictures.
pub struct Row {
    /// Below the first picture.
    pub caption: String,
    /// What is given, then one for each column.
    pub pictures: Vec<Picture>,
}

/// Side that pictures are enlarged to, by a whole factor.
const SIDE: usize = 256;
/// Between pictures, in pixels.
const GAP: usize = 16;
/// Pixels of one dot of a letter.
const DOT: usize = 2;
const LETTER: usize = 8 * DOT;
const LINE: usize = LETTER + 6;
const BLACK: [u8; 3] = [24, 24, 24];
const GREY: [u8; 3] = [112, 112, 112];
const WHITE: u8 = 255;

/// Draws a sheet, its parts one below the other. `None` without pictures.
pub fn sheet(parts: &[Part]) -> Option<Picture> {
    let drawn = parts.iter().map(part).collect::<Option<Vec<_>>>()?;
    let width = drawn.iter().map(|p| p.width).max()?;
    let mut canvas = Canvas::new(width, drawn.iter().map(|p| p.height).sum());
    let mut y = 0;
    for picture in &drawn {
        canvas.paste(picture, 0, y);
        y += picture.height;
    }
    Picture::new(canvas.width, canvas.height, canvas.rgb)
}

/// A title, the columns' headings, and the rows.
fn part(part: &Part) -> Option<Picture> {
    let Part { title, columns, rows, .. } = part;
    let first = rows.first()?.pictures.first()?;
    let factor = (SIDE / first.width.max(first.height)).max(1);
    let (w, h) = (first.width * factor, first.height * factor);
    let letters = w / LETTER;
    let abouts: Vec<Vec<String>> = columns.iter().map(|c| wrapped(&c.about, letters)).collect();
    let captions: Vec<Vec<String>> = rows.iter().map(|r| wrapped(&r.caption, letters)).collect();
    let lines = |texts: &[Vec<String>]| texts.iter().map(Vec::len).max().unwrap_or(0);
    let heading = GAP + LINE + lines(&abouts) * LINE;
    let row_height = h + 4 + lines(&captions) * LINE + GAP / 2;
    let title_height = GAP + LINE * 2;
    let width = GAP + (w + GAP) * (columns.len() + 1);
    let mut canvas = Canvas::new(width, title_height + heading + row_height * rows.len() + GAP / 2);

    canvas.text(title, GAP, GAP + LINE / 2, BLACK);
    canvas.text(part.first, GAP, title_height + GAP, BLACK);
    for (i, (column, about)) in columns.iter().zip(&abouts).enumerate() {
        let x = GAP + (w + GAP) * (i + 1);
        canvas.text(&column.heading, x, title_height + GAP, BLACK);
        for (l, line) in about.iter().enumerate() {
            canvas.text(line, x, title_height + GAP + LINE * (l + 1), GREY);
        }
    }
    for (r, (row, caption)) in rows.iter().zip(&captions).enumerate() {
        let y = title_height + heading + row_height * r;
        for (i, picture) in row.pictures.iter().enumerate() {
            canvas.paste(&resize(picture, w, h, Filter::Lanczos), GAP + (w + GAP) * i, y);
        }
        for (l, line) in caption.iter().enumerate() {
            canvas.text(line, GAP, y + h + 4 + LINE * l, GREY);
        }
    }
    Picture::new(canvas.width, canvas.height, canvas.rgb)
}

/// Lines of at most so many letters, broken between words.
fn wrapped(text: &str, letters: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= letters => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A picture being drawn on; what lies outside is not drawn.
struct Canvas {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Canvas {
    fn new(width: usize, height: usize) -> Self {
        Canvas { width, height, rgb: vec![WHITE; width * height * 3] }
    }

    fn set(&mut self, x: usize, y: usize, colour: [u8; 3]) {
        if x < self.width && y < self.height {
            self.rgb[(y * self.width + x) * 3..][..3].copy_from_slice(&colour);
        }
    }

    fn paste(&mut self, picture: &Picture, x: usize, y: usize) {
        for (i, pixel) in picture.rgb.as_chunks::<3>().0.iter().enumerate() {
            self.set(x + i % picture.width, y + i / picture.width, *pixel);
        }
    }

    fn text(&mut self, text: &str, x: usize, y: usize, colour: [u8; 3]) {
        for (i, letter) in text.chars().enumerate() {
            let Some(rows) = font8x8::BASIC_FONTS.get(letter) else { continue };
            for (row, bits) in rows.iter().enumerate() {
                for column in (0..8).filter(|c| bits >> c & 1 == 1) {
                    for d in 0..DOT * DOT {
                        self.set(x + i * LETTER + column * DOT + d % DOT, y + row * DOT + d / DOT, colour);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_whole() {
        assert_eq!(wrapped("every block: the content", 12), ["every block:", "the content"]);
        assert_eq!(wrapped("incomprehensibility", 4), ["incomprehensibility"]);
        assert!(wrapped("", 4).is_empty());
    }

    #[test]
    fn a_sheet_holds_every_picture() {
        let grey = |v: u8| Picture::new(64, 64, vec![v; 64 * 64 * 3]).unwrap();
        let column = |heading: &str, about: &str| Column { heading: heading.into(), about: about.into() };
        let part = |values: &[u8]| Part {
            title: "title".into(),
            first: "reference",
            columns: vec![column("one", "the first"), column("two", "")],
            rows: vec![Row { caption: "a cat".into(), pictures: values.iter().map(|v| grey(*v)).collect() }],
        };
        let sheet = sheet(&[part(&[10, 100, 200]), part(&[50, 60])]).unwrap();
        for v in [10, 100, 200, 50, 60] {
            let n = sheet.rgb.as_chunks::<3>().0.iter().filter(|p| **p == [v; 3]).count();
            assert_eq!(n, 256 * 256, "{v}");
        }
        assert!(super::sheet(&[Part { rows: Vec::new(), ..part(&[]) }]).is_none());
    }
}
