//! Tokens that are much alike attend as one: of each 2 × 2 tokens one is a place to merge into, and those of the others that
//! are nearest to such a place, by the cosine of what enters the block, are averaged with it before self-attention and get its
//! output after (Bolya & Hoffman, "Token Merging for Fast Stable Diffusion", arXiv 2303.17604; the settings of the authors'
//! package, tomesd 0.1.3: self-attention alone).

use crate::layers::products;
use crate::tensor::Tensor;
use rayon::prelude::*;

/// Side of the squares of which one token is a place to merge into.
const SIDE: usize = 2;
/// Rows whose cosines are in memory at a time.
const ROWS: usize = 256;

/// What a model call merges.
pub struct Merging {
    /// Part of the tokens that disappears, up to 1 − 1 / 4.
    pub ratio: f64,
    /// For each site which token of each square is the place, 0 to 3 row by row; None where nothing is merged.
    pub places: Vec<Option<Vec<u8>>>,
}

impl Merging {
    /// Squares of a grid [height, width]: an odd last row or column belongs to none.
    pub fn squares([height, width]: [usize; 2]) -> usize {
        (height / SIDE) * (width / SIDE)
    }

    /// What goes with what among tokens [batch, tokens, width] in a grid [height, width]; None where nothing is merged.
    pub(super) fn of(&self, site: usize, x: &Tensor, grid: [usize; 2]) -> Option<Merged> {
        let places = self.places.get(site)?.as_ref()?;
        let tokens = grid[0] * grid[1];
        let columns = grid[1] / SIDE;
        assert_eq!(places.len(), Merging::squares(grid));
        let mut to: Vec<usize> = places
            .iter()
            .enumerate()
            .map(|(i, place)| {
                let (row, column) = (usize::from(*place) / SIDE, usize::from(*place) % SIDE);
                (i / columns * SIDE + row) * grid[1] + i % columns * SIDE + column
            })
            .collect();
        to.sort_unstable();
        let mut is_place = vec![false; tokens];
        to.iter().for_each(|t| is_place[*t] = true);
        let from: Vec<usize> = (0..tokens).filter(|t| !is_place[*t]).collect();
        let gone = ((tokens as f64 * self.ratio) as usize).min(from.len());
        if gone == 0 || to.is_empty() {
            return None;
        }
        let rows = (0..x.dim(0)).map(|b| Row::of(&x.row(b), &from, &to, gone)).collect();
        Some(Merged { rows, tokens })
    }
}

/// Which tokens attend as one, row by row of the batch.
pub(super) struct Merged {
    rows: Vec<Row>,
    tokens: usize,
}

/// Of one row: for each token the merged token that it belongs to, and how many each has.
struct Row {
    belongs: Vec<usize>,
    sizes: Vec<usize>,
}

impl Row {
    fn of(x: &Tensor, from: &[usize], to: &[usize], gone: usize) -> Self {
        let width = x.channels();
        let unit = |list: &[usize]| {
            let mut out = Tensor::zeros([list.len(), width]);
            let rows = out.data_mut().par_chunks_exact_mut(width).zip(list);
            rows.for_each(|(row, t)| {
                row.copy_from_slice(&x.data()[t * width..][..width]);
                let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
                row.iter_mut().for_each(|v| *v /= norm);
            });
            out
        };
        let (a, b) = (unit(from), unit(to));
        // For each token its nearest place, the first of equals.
        let mut nearest: Vec<(f32, usize)> = Vec::with_capacity(from.len());
        for part in a.data().chunks(ROWS * width) {
            let part = Tensor::new([part.len() / width, width], part.to_vec());
            let cosines = products(&part, &b);
            nearest.par_extend(cosines.data().par_chunks_exact(to.len()).map(|row| {
                row.iter()
                    .enumerate()
                    .fold((f32::NEG_INFINITY, 0), |best, (i, v)| if *v > best.0 { (*v, i) } else { best })
            }));
        }
        let mut order: Vec<usize> = (0..from.len()).collect();
        order.sort_by(|i, j| nearest[*j].0.total_cmp(&nearest[*i].0));
        // Those that stay come first, in their own order, then the places.
        let (merged, kept) = order.split_at_mut(gone);
        kept.sort_unstable();
        let mut belongs = vec![0; from.len() + to.len()];
        kept.iter().enumerate().for_each(|(i, t)| belongs[from[*t]] = i);
        to.iter().enumerate().for_each(|(i, t)| belongs[*t] = kept.len() + i);
        merged.iter().for_each(|t| belongs[from[*t]] = kept.len() + nearest[*t].1);
        let mut sizes = vec![0; kept.len() + to.len()];
        belongs.iter().for_each(|i| sizes[*i] += 1);
        Row { belongs, sizes }
    }
}

impl Merged {
    /// [batch, tokens, width] → [batch, fewer, width]: means.
    pub(super) fn merge(&self, x: &Tensor) -> Tensor {
        let (width, fewer) = (x.channels(), self.rows[0].sizes.len());
        let mut out = Tensor::zeros([x.dim(0), fewer, width]);
        let inputs = x.data().par_chunks_exact(self.tokens * width);
        let outputs = out.data_mut().par_chunks_exact_mut(fewer * width);
        outputs.zip(inputs).zip(&self.rows).for_each(|((out, x), row)| {
            for (token, to) in x.chunks_exact(width).zip(&row.belongs) {
                out[to * width..][..width].iter_mut().zip(token).for_each(|(o, v)| *o += v);
            }
            for (token, size) in out.chunks_exact_mut(width).zip(&row.sizes).filter(|(_, size)| **size > 1) {
                token.iter_mut().for_each(|v| *v /= *size as f32);
            }
        });
        out
    }

    /// Adds to each token of `x` [batch, tokens, width] the output of the one that it belongs to.
    pub(super) fn add(&self, out: &Tensor, mut x: Tensor) -> Tensor {
        let (width, fewer) = (x.channels(), self.rows[0].sizes.len());
        let tokens = x.data_mut().par_chunks_exact_mut(width).enumerate();
        tokens.with_min_len(64).for_each(|(i, token)| {
            let (b, t) = (i / self.tokens, i % self.tokens);
            let from = b * fewer + self.rows[b].belongs[t];
            token.iter_mut().zip(&out.data()[from * width..][..width]).for_each(|(x, v)| *x += v);
        });
        x
    }
}
