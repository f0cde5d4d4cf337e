//! Every level of instructions against the scalar specification, over random shapes (`fuzz/fuzz_targets/kernels.rs` draws
//! more of them).

mod check;

#[test]
fn every_level_gives_what_scalar_gives_over_random_shapes() {
    let mut state = 0x0123_4567_89ab_cdefu64;
    for _ in 0..600 {
        let bytes: Vec<u8> = (0..48)
            .map(|_| {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                (state >> 56) as u8
            })
            .collect();
        check::check(&bytes);
    }
}
