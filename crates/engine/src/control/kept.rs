//! How much of a map of edges a picture keeps.

use super::CANNY;
use super::canny::canny;
use crate::picture::Picture;

/// The share of the edges in a canny map (white on black) that have an edge of `picture`, by the same thresholds, within `reach_px`
/// in each direction; 1 for a map without edges.
///
/// # Panics
/// If the sizes differ.
pub fn edges_kept(map: &Picture, picture: &Picture, reach_px: usize) -> f64 {
    assert_eq!((map.width, map.height), (picture.width, picture.height), "pictures of one size");
    let drawn = canny(picture, CANNY.0, CANNY.1);
    let white = |p: &Picture, x: usize, y: usize| p.rgb[(y * p.width + x) * 3] > 127;
    let near = |x: usize, y: usize| {
        let rows = y.saturating_sub(reach_px)..(y + reach_px + 1).min(map.height);
        let columns = x.saturating_sub(reach_px)..(x + reach_px + 1).min(map.width);
        rows.into_iter().any(|y| columns.clone().any(|x| white(&drawn, x, y)))
    };
    let (mut edges, mut kept) = (0usize, 0usize);
    for (y, x) in (0..map.height).flat_map(|y| (0..map.width).map(move |x| (y, x))) {
        if white(map, x, y) {
            edges += 1;
            kept += usize::from(near(x, y));
        }
    }
    if edges == 0 { 1.0 } else { kept as f64 / edges as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A white square of 20 pixels on black, its corner at x, y.
    fn square(x: usize, y: usize) -> Picture {
        let inside = |i: usize| (x..x + 20).contains(&(i % 64)) && (y..y + 20).contains(&(i / 64));
        let rgb = (0..64 * 64).flat_map(|i| [if inside(i) { 255 } else { 0 }; 3]).collect();
        Picture::new(64, 64, rgb).expect("as many pixels")
    }

    #[test]
    fn edges_are_kept_within_reach() {
        let map = canny(&square(10, 10), 50.0, 200.0);
        assert_eq!(edges_kept(&map, &square(10, 10), 0), 1.0);
        assert_eq!(edges_kept(&map, &square(12, 12), 2), 1.0);
        // Two of four sides lie on the moved ones but for their ends.
        let half = edges_kept(&map, &square(10, 16), 2);
        assert!((0.4..0.8).contains(&half), "{half}");
        assert_eq!(edges_kept(&map, &square(40, 40), 2), 0.0);
        let empty = Picture::new(64, 64, vec![0; 64 * 64 * 3]).expect("black");
        assert_eq!(edges_kept(&empty, &square(10, 10), 2), 1.0);
    }
}
