//! Edges by Canny ("A Computational Approach to Edge Detection", 1986), equal to OpenCV's `Canny` with aperture 3 and the
//! L1 gradient on a picture of three channels, pixel for pixel.

use crate::picture::Picture;

/// tan(22.5°) in units of 1 / 2^15, as OpenCV rounds it.
const TAN_22: i32 = 13573;

/// White edges, one pixel wide, on black. A pixel whose gradient |dx| + |dy| is above `high` begins an edge, which goes on
/// over neighbours above `low`; both are rounded down.
pub(super) fn canny(picture: &Picture, low: f64, high: f64) -> Picture {
    let (width, height) = (picture.width, picture.height);
    let (low, high) = (low.floor() as i32, high.floor() as i32);
    let gradient = Gradient::of(picture);
    let mut map = vec![Pixel::None; width * height];
    let mut open = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let size = gradient.size(x as isize, y as isize);
            if size > low && gradient.is_ridge(x, y, size) {
                let at = y * width + x;
                map[at] = if size > high { Pixel::Edge } else { Pixel::Weak };
                if size > high {
                    open.push(at);
                }
            }
        }
    }
    while let Some(at) = open.pop() {
        let (x, y) = (at % width, at / width);
        for y in y.saturating_sub(1)..(y + 2).min(height) {
            for x in x.saturating_sub(1)..(x + 2).min(width) {
                let next = y * width + x;
                if map[next] == Pixel::Weak {
                    map[next] = Pixel::Edge;
                    open.push(next);
                }
            }
        }
    }
    let rgb = map.iter().flat_map(|p| [if *p == Pixel::Edge { 255 } else { 0 }; 3]).collect();
    Picture { width, height, rgb }
}

#[derive(Clone, Copy, PartialEq)]
enum Pixel {
    None,
    Weak,
    Edge,
}

/// Sobel's derivatives of the channel in which they are largest.
struct Gradient {
    width: usize,
    height: usize,
    /// dx, dy.
    sides: Vec<[i16; 2]>,
}

impl Gradient {
    fn of(picture: &Picture) -> Self {
        let (width, height) = (picture.width, picture.height);
        let mut sides = Vec::with_capacity(width * height);
        for y in 0..height {
            // The picture's edge is repeated outside it.
            let rows = [y.saturating_sub(1), y, (y + 1).min(height - 1)].map(|y| y * width);
            for x in 0..width {
                let columns = [x.saturating_sub(1), x, (x + 1).min(width - 1)];
                let derivative = |channel: usize| {
                    let p = rows.map(|row| columns.map(|x| i16::from(picture.rgb[(row + x) * 3 + channel])));
                    let across = |y: usize| p[y][2] - p[y][0];
                    let along = |x: usize| p[2][x] - p[0][x];
                    [across(0) + 2 * across(1) + across(2), along(0) + 2 * along(1) + along(2)]
                };
                // Among equals the first counts, and OpenCV's pictures have blue first.
                let mut best = derivative(2);
                for other in [derivative(1), derivative(0)] {
                    if size(other) > size(best) {
                        best = other;
                    }
                }
                sides.push(best);
            }
        }
        Gradient { width, height, sides }
    }

    /// |dx| + |dy|; 0 outside the picture.
    fn size(&self, x: isize, y: isize) -> i32 {
        match (usize::try_from(x), usize::try_from(y)) {
            (Ok(x), Ok(y)) if x < self.width && y < self.height => size(self.sides[y * self.width + x]),
            _ => 0,
        }
    }

    /// True if no neighbour along the gradient, which is rounded to 45°, is larger.
    fn is_ridge(&self, x: usize, y: usize, size: i32) -> bool {
        let [dx, dy] = self.sides[y * self.width + x];
        let (across, along) = (i32::from(dx).abs(), i32::from(dy).abs() << 15);
        let tan_22 = across * TAN_22;
        // tan(67.5°) = tan(22.5°) + 2.
        let tan_67 = tan_22 + (across << 16);
        let at = |dx: isize, dy: isize| self.size(x as isize + dx, y as isize + dy);
        if along < tan_22 {
            size > at(-1, 0) && size >= at(1, 0)
        } else if along > tan_67 {
            size > at(0, -1) && size >= at(0, 1)
        } else {
            let side = if (dx < 0) != (dy < 0) { -1 } else { 1 };
            size > at(-side, -1) && size > at(side, 1)
        }
    }
}

fn size([dx, dy]: [i16; 2]) -> i32 {
    i32::from(dx).abs() + i32::from(dy).abs()
}
