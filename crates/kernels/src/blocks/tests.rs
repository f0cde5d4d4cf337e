use super::*;
use crate::Weight;

/// Values may begin and end anywhere; whole blocks agree with parts.
#[test]
fn parts_equal_the_whole() {
    for kind in Block::ALL {
        let (values, size) = kind.size();
        let bytes: Vec<u8> = (0..3 * size).map(|i| (i * 37 + i / 7) as u8 & 0x3b).collect();
        let weight = Weight::Blocks(kind, &bytes);
        assert_eq!(weight.len(), 3 * values);
        let mut whole = vec![0.0; weight.len()];
        weight.widen(0, &mut whole);
        for (start, n) in [
            (0, 1),
            (1, values),
            (values - 1, 2),
            (5, 2 * values),
            (2 * values, values),
            (3 * values - 1, 1),
            (7, 0),
        ] {
            let mut part = vec![f32::NAN; n];
            weight.widen(start, &mut part);
            assert_eq!(part, whole[start..start + n], "{kind:?} {start} {n}");
        }
    }
}

#[test]
fn only_whole_blocks_are_quantised() {
    assert_eq!(quantise(Block::Q8_0, &[0.5; 33]), None);
    assert_eq!(quantise(Block::Q4_K, &[0.5; 256]), None);
    assert_eq!(quantise(Block::Q8_0, &[1.0; 32]).unwrap()[2..], [127; 32]);
}
