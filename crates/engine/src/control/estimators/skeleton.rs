//! Bodies as OpenPose draws them: limbs are ellipses, joints are discs (controlnet_aux `dwpose/util.py`, `draw_bodypose`).

use crate::picture::Picture;

/// Where a point of a body is, in pixels, and how sure that is.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    pub x: f64,
    pub y: f64,
    pub score: f32,
}

/// Scores above this are drawn.
const SURE: f32 = 0.3;
/// Half the width of a limb, and the radius of a joint, in pixels.
const LIMB_PX: f64 = 4.0;
const JOINT_PX: i64 = 4;
/// Limbs are this much darker than joints.
const LIMB_LIGHT: f64 = 0.6;
/// COCO's points in OpenPose's order; the neck, between the shoulders, is none of COCO's.
const ORDER: [Option<usize>; 18] = [
    Some(0),
    None,
    Some(6),
    Some(8),
    Some(10),
    Some(5),
    Some(7),
    Some(9),
    Some(12),
    Some(14),
    Some(16),
    Some(11),
    Some(13),
    Some(15),
    Some(2),
    Some(1),
    Some(4),
    Some(3),
];
const SHOULDERS: (usize, usize) = (5, 6);
/// Pairs of OpenPose's points.
const LIMBS: [(usize, usize); 17] = [
    (1, 2),
    (1, 5),
    (2, 3),
    (3, 4),
    (5, 6),
    (6, 7),
    (1, 8),
    (8, 9),
    (9, 10),
    (1, 11),
    (11, 12),
    (12, 13),
    (1, 0),
    (0, 14),
    (14, 16),
    (0, 15),
    (15, 17),
];
/// Of limbs and of joints, in their order.
const COLOURS: [[u8; 3]; 18] = [
    [255, 0, 0],
    [255, 85, 0],
    [255, 170, 0],
    [255, 255, 0],
    [170, 255, 0],
    [85, 255, 0],
    [0, 255, 0],
    [0, 255, 85],
    [0, 255, 170],
    [0, 255, 255],
    [0, 170, 255],
    [0, 85, 255],
    [0, 0, 255],
    [85, 0, 255],
    [170, 0, 255],
    [255, 0, 255],
    [255, 0, 170],
    [255, 0, 85],
];

/// Draws bodies, each COCO's 17 points, on black.
pub fn draw(bodies: &[Vec<Point>], width: usize, height: usize) -> Picture {
    let mut picture = Picture { width, height, rgb: vec![0; width * height * 3] };
    let bodies: Vec<[Option<Point>; 18]> = bodies.iter().map(|b| openpose(b)).collect();
    for ((from, to), colour) in LIMBS.iter().zip(COLOURS) {
        let colour = colour.map(|v| (f64::from(v) * LIMB_LIGHT) as u8);
        for body in &bodies {
            if let (Some(a), Some(b)) = (body[*from], body[*to]) {
                limb(&mut picture, a, b, colour);
            }
        }
    }
    for (i, colour) in COLOURS.into_iter().enumerate() {
        for joint in bodies.iter().filter_map(|b| b[i]) {
            let (x, y) = (joint.x as i64, joint.y as i64);
            let inside = |dx: f64, dy: f64| disc(dx, dy);
            let r = JOINT_PX;
            fill(&mut picture, (x - r, y - r), (x + r, y + r), colour, |px, py| {
                inside((px - x) as f64, (py - y) as f64)
            });
        }
    }
    picture
}

/// The points that are drawn.
fn openpose(coco: &[Point]) -> [Option<Point>; 18] {
    let sure = |p: &Point| p.score > SURE;
    let neck = || {
        let (a, b) = (coco.get(SHOULDERS.0)?, coco.get(SHOULDERS.1)?);
        let between = Point { x: (a.x + b.x) / 2.0, y: (a.y + b.y) / 2.0, score: 1.0 };
        (sure(a) && sure(b)).then_some(between)
    };
    ORDER.map(|i| match i {
        Some(i) => coco.get(i).copied().filter(sure),
        None => neck(),
    })
}

/// OpenCV's disc of this radius: its rows are as wide as a circle's through pixel centres.
fn disc(dx: f64, dy: f64) -> bool {
    let r = JOINT_PX as f64 + 0.25;
    dx * dx + dy * dy <= r * r
}

/// An ellipse from `a` to `b`. Its axes and angle are whole numbers, as OpenCV takes them.
fn limb(picture: &mut Picture, a: Point, b: Point, colour: [u8; 3]) {
    let (dx, dy) = (a.x - b.x, a.y - b.y);
    let middle = [((a.x + b.x) / 2.0).trunc(), ((a.y + b.y) / 2.0).trunc()];
    let long = (dx.hypot(dy) / 2.0).trunc();
    let (sin, cos) = dy.atan2(dx).to_degrees().trunc().to_radians().sin_cos();
    // Its outline goes through pixels, which are filled, too.
    let (long, wide) = (long + 0.5, LIMB_PX + 0.5);
    let reach = [(long * cos).hypot(wide * sin), (long * sin).hypot(wide * cos)];
    let low = (((middle[0] - reach[0]).floor()) as i64, ((middle[1] - reach[1]).floor()) as i64);
    let high = (((middle[0] + reach[0]).ceil()) as i64, ((middle[1] + reach[1]).ceil()) as i64);
    fill(picture, low, high, colour, |x, y| {
        let (x, y) = (x as f64 - middle[0], y as f64 - middle[1]);
        let (u, v) = ((x * cos + y * sin) / long, (y * cos - x * sin) / wide);
        u * u + v * v <= 1.0
    });
}

/// Colours the pixels of a rectangle, corners included, that are inside.
fn fill(
    picture: &mut Picture,
    low: (i64, i64),
    high: (i64, i64),
    colour: [u8; 3],
    inside: impl Fn(i64, i64) -> bool,
) {
    let within = |from: i64, to: i64, n: usize| from.max(0)..=to.min(n as i64 - 1);
    for y in within(low.1, high.1, picture.height) {
        for x in within(low.0, high.0, picture.width) {
            if inside(x, y) {
                picture.rgb[(y as usize * picture.width + x as usize) * 3..][..3].copy_from_slice(&colour);
            }
        }
    }
}
