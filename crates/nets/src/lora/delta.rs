//! The change of one layer's weight.

use super::keys::Role;
use crate::layers::Linear;
use crate::tensor::Tensor;
use crate::weights::Stored;
use std::collections::BTreeMap;

/// The tensors that change one layer.
#[derive(Default)]
pub(crate) struct Module {
    tensors: BTreeMap<Role, Stored>,
    /// alpha / rank where it is not said by a tensor of its own.
    pub(super) scale: Option<f32>,
}

/// The forms of a change.
enum Form<'a> {
    /// up · down, with a core for some convolutions.
    Low { down: &'a Stored, up: &'a Stored, mid: Option<&'a Stored> },
    /// The change itself.
    Whole(&'a Stored),
    /// Two products, multiplied element by element.
    Hada { pairs: [[&'a Stored; 2]; 2], cores: Option<[&'a Stored; 2]> },
    /// A Kronecker product.
    Lokr { first: Factor<'a>, second: Factor<'a> },
}

/// One factor of a Kronecker product.
enum Factor<'a> {
    Whole(&'a Stored),
    Product { a: &'a Stored, b: &'a Stored, core: Option<&'a Stored> },
}

impl Module {
    pub(crate) fn insert(&mut self, role: Role, tensor: Stored) {
        self.tensors.insert(role, tensor);
    }

    fn get(&self, role: Role) -> Option<&Stored> {
        self.tensors.get(&role)
    }

    /// The rank, where there is one.
    pub(super) fn rank(&self) -> Option<usize> {
        let of = |role, axis: usize| self.get(role).and_then(|t| t.shape().get(axis).copied());
        of(Role::Down, 0)
            .or_else(|| of(Role::Hada1B, 0))
            .or_else(|| of(Role::Lokr1B, 0))
            .or_else(|| of(Role::Lokr2B, 0))
    }

    /// The shape of the weights that it changes; None if its parts do not fit together.
    pub(super) fn shape(&self) -> Option<Vec<usize>> {
        self.form().ok()?.shape().ok()
    }

    fn form(&self) -> Result<Form<'_>, String> {
        let need =
            |role| self.get(role).ok_or_else(|| format!("its {role:?} is missing; the file is incomplete"));
        if let Some(whole) = self.get(Role::Diff) {
            return Ok(Form::Whole(whole));
        }
        if self.tensors.keys().any(|r| (Role::Hada1A..=Role::HadaCore2).contains(r)) {
            let pairs =
                [[need(Role::Hada1A)?, need(Role::Hada1B)?], [need(Role::Hada2A)?, need(Role::Hada2B)?]];
            let cores = match (self.get(Role::HadaCore1), self.get(Role::HadaCore2)) {
                (None, None) => None,
                _ => Some([need(Role::HadaCore1)?, need(Role::HadaCore2)?]),
            };
            return Ok(Form::Hada { pairs, cores });
        }
        if self.tensors.keys().any(|r| *r >= Role::Lokr1) {
            let first = match self.get(Role::Lokr1) {
                Some(whole) => Factor::Whole(whole),
                None => Factor::Product { a: need(Role::Lokr1A)?, b: need(Role::Lokr1B)?, core: None },
            };
            let second = match self.get(Role::Lokr2) {
                Some(whole) => Factor::Whole(whole),
                None => Factor::Product {
                    a: need(Role::Lokr2A)?,
                    b: need(Role::Lokr2B)?,
                    core: self.get(Role::LokrCore2),
                },
            };
            return Ok(Form::Lokr { first, second });
        }
        Ok(Form::Low { down: need(Role::Down)?, up: need(Role::Up)?, mid: self.get(Role::Mid) })
    }

    /// Whether the change has the shape of the layer's weight; what differs if not.
    pub(crate) fn check(&self, base: &[usize]) -> Result<(), String> {
        if let Some(t) = self.tensors.values().find(|t| t.is_empty()) {
            return Err(format!("holds a tensor without values, {t:?}"));
        }
        if base.is_empty() {
            return Err("changes a single number".into());
        }
        let found = self.form()?.shape()?;
        let squeezed = |s: &[usize]| s.iter().copied().filter(|d| *d != 1).collect::<Vec<_>>();
        // LyCORIS writes the factors of a convolution flat.
        let flat = [base[0], base[1..].iter().product()];
        if squeezed(&found) != squeezed(base) && found != flat {
            return Err(format!("changes a weight of shape {found:?}, but the model's has {base:?}"));
        }
        match self.magnitude(base) {
            Some((_, lanes, m)) if m.len() != lanes => {
                Err(format!("has {} magnitudes for a weight of shape {base:?}", m.len()))
            }
            _ => Ok(()),
        }
    }

    /// What is to be added to the weight `values` of shape `base`; [`Module::check`] must have passed.
    pub(crate) fn delta(&self, base: &[usize], values: &[f32], weight: f32) -> Vec<f32> {
        let form = self.form().expect("checked");
        let alpha = self.get(Role::Alpha).and_then(|t| t.to_f32().first().copied());
        let scale = match (alpha, self.rank(), &form) {
            (_, _, Form::Whole(_)) => 1.0,
            (Some(alpha), Some(rank), _) => alpha / rank as f32,
            _ => self.scale.unwrap_or(1.0),
        };
        let mut delta = form.values();
        delta.iter_mut().for_each(|v| *v *= scale * weight);
        if let Some((by_input, lanes, magnitude)) = self.magnitude(base) {
            let patch: usize = base.get(2..).unwrap_or(&[]).iter().product();
            let row = values.len() / base[0];
            let lane = |i: usize| if by_input { i % row / patch } else { i / row };
            dora(values, &magnitude.to_f32(), lanes, lane, &mut delta);
        }
        delta
    }

    /// DoRA's magnitudes: whether there is one for each input rather than each output, how many there must be, and they.
    /// peft's are of outputs; LyCORIS has both, `[outputs, 1, …]` and `[1, inputs, …]`.
    fn magnitude(&self, base: &[usize]) -> Option<(bool, usize, &Stored)> {
        if let Some(m) = self.get(Role::PeftMagnitude) {
            return Some((false, base[0], m));
        }
        let (m, inputs) = (self.get(Role::Magnitude)?, base.get(1).copied().unwrap_or(1));
        let across = m.shape().len() > 1 && m.shape()[0] == 1;
        let by_input = m.len() == inputs && (across || inputs != base[0]);
        Some((by_input, if by_input { inputs } else { base[0] }, m))
    }
}

/// DoRA: the changed weight gets the learnt norm in each lane.
fn dora(values: &[f32], wanted: &[f32], lanes: usize, lane: impl Fn(usize) -> usize, delta: &mut [f32]) {
    let mut squares = vec![0f64; lanes];
    for (i, (w, d)) in values.iter().zip(&*delta).enumerate() {
        squares[lane(i)] += f64::from(w + d).powi(2);
    }
    let factors: Vec<f32> = wanted.iter().zip(&squares).map(|(m, s)| m / s.sqrt() as f32).collect();
    for (i, (w, d)) in values.iter().zip(delta).enumerate() {
        *d = (w + *d) * factors[lane(i)] - w;
    }
}

impl Form<'_> {
    /// The shape of the change, or why its parts do not fit together.
    fn shape(&self) -> Result<Vec<usize>, String> {
        match self {
            Form::Whole(t) => Ok(t.shape().to_vec()),
            Form::Low { down, up, mid: None } => {
                let (up_rows, up_rank) = matrix(up)?;
                let (rank, _) = matrix(down)?;
                same(up_rank, rank)?;
                Ok([&[up_rows], &down.shape()[1..]].concat())
            }
            Form::Low { down, up, mid: Some(mid) } => {
                let ((o, a), (b, i), (ma, mb, patch)) = (matrix(up)?, matrix(down)?, core(mid)?);
                same(a, ma)?;
                same(b, mb)?;
                Ok([&[o, i], patch].concat())
            }
            Form::Hada { pairs, cores: None } => {
                let mut shapes = Vec::new();
                for [a, b] in pairs {
                    let ((o, r), (s, _)) = (matrix(a)?, matrix(b)?);
                    same(r, s)?;
                    shapes.push([&[o], &b.shape()[1..]].concat());
                }
                one_shape(shapes)
            }
            Form::Hada { pairs, cores: Some(cores) } => {
                let mut shapes = Vec::new();
                for ([a, b], t) in pairs.iter().zip(cores) {
                    let ((r, o), (s, i), (tr, ts, patch)) = (matrix(a)?, matrix(b)?, core(t)?);
                    same(r, tr)?;
                    same(s, ts)?;
                    shapes.push([&[o, i], patch].concat());
                }
                one_shape(shapes)
            }
            Form::Lokr { first, second } => {
                let ((a, b), mut shape) = (first.rows_columns()?, second.shape()?);
                let (Some(rows), Some(columns)) = (shape[0].checked_mul(a), shape[1].checked_mul(b)) else {
                    return Err("is too large".into());
                };
                (shape[0], shape[1]) = (rows, columns);
                Ok(shape)
            }
        }
    }

    /// The change, row-major.
    fn values(&self) -> Vec<f32> {
        match self {
            Form::Whole(t) => t.to_f32(),
            Form::Low { down, up, mid: None } => Matrix::of(up).times(&Matrix::of(down)).data,
            Form::Low { down, up, mid: Some(mid) } => {
                let patch: usize = mid.shape()[2..].iter().product();
                tucker(&Matrix::of(up), mid, &Matrix::of(down), patch)
            }
            Form::Hada { pairs, cores } => {
                let [first, second] = [0, 1].map(|n| {
                    let [a, b] = pairs[n].map(Matrix::of);
                    match cores {
                        None => a.times(&b).data,
                        Some(cores) => {
                            tucker(&a.transposed(), cores[n], &b, cores[n].shape()[2..].iter().product())
                        }
                    }
                });
                first.iter().zip(&second).map(|(a, b)| a * b).collect()
            }
            Form::Lokr { first, second } => {
                let ((rows, columns), shape) =
                    (first.rows_columns().expect("checked"), second.shape().expect("checked"));
                let (a, b) = (first.values(), second.values());
                let (inner_rows, inner_columns) = (shape[0], shape[1]);
                let patch: usize = shape[2..].iter().product();
                let mut out = Vec::with_capacity(a.len() * b.len());
                for i in 0..rows * inner_rows {
                    for j in 0..columns * inner_columns {
                        let factor = a[i / inner_rows * columns + j / inner_columns];
                        let at = (i % inner_rows * inner_columns + j % inner_columns) * patch;
                        out.extend(b[at..at + patch].iter().map(|v| factor * v));
                    }
                }
                out
            }
        }
    }
}

impl Factor<'_> {
    fn shape(&self) -> Result<Vec<usize>, String> {
        let shape = match self {
            Factor::Whole(t) => t.shape().to_vec(),
            Factor::Product { a, b, core: None } => {
                let ((rows, r), (s, _)) = (matrix(a)?, matrix(b)?);
                same(r, s)?;
                [&[rows], &b.shape()[1..]].concat()
            }
            Factor::Product { a, b, core: Some(t) } => {
                let ((r, rows), (s, columns), (tr, ts, patch)) = (matrix(a)?, matrix(b)?, core(t)?);
                same(r, tr)?;
                same(s, ts)?;
                [&[rows, columns], patch].concat()
            }
        };
        if shape.len() < 2 {
            Err(format!("a factor has shape {shape:?}, expected two axes"))
        } else {
            Ok(shape)
        }
    }

    fn rows_columns(&self) -> Result<(usize, usize), String> {
        match self.shape()?.as_slice() {
            &[rows, columns] | &[rows, columns, 1, 1] => Ok((rows, columns)),
            s => Err(format!("its first factor has shape {s:?}, expected two axes")),
        }
    }

    fn values(&self) -> Vec<f32> {
        match self {
            Factor::Whole(t) => t.to_f32(),
            Factor::Product { a, b, core: None } => Matrix::of(a).times(&Matrix::of(b)).data,
            Factor::Product { a, b, core: Some(t) } => {
                tucker(&Matrix::of(a).transposed(), t, &Matrix::of(b), t.shape()[2..].iter().product())
            }
        }
    }
}

/// Rows, and the product of the other axes.
fn matrix(t: &Stored) -> Result<(usize, usize), String> {
    match t.shape() {
        [rows, rest @ ..] if !rest.is_empty() => Ok((*rows, rest.iter().product())),
        s => Err(format!("a factor has shape {s:?}, expected two axes or more")),
    }
}

/// Both ranks of a core and its patch.
fn core(t: &Stored) -> Result<(usize, usize, &[usize]), String> {
    match t.shape() {
        [a, b, patch @ ..] if !patch.is_empty() => Ok((*a, *b, patch)),
        s => Err(format!("a core has shape {s:?}, expected three axes or more")),
    }
}

fn same(a: usize, b: usize) -> Result<(), String> {
    if a == b { Ok(()) } else { Err(format!("its factors have ranks {a} and {b}, which should agree")) }
}

fn one_shape(mut shapes: Vec<Vec<usize>>) -> Result<Vec<usize>, String> {
    let last = shapes.pop().unwrap_or_default();
    if shapes.iter().all(|s| *s == last) {
        Ok(last)
    } else {
        Err(format!("its halves have shapes {:?} and {last:?}, which should agree", shapes[0]))
    }
}

/// `out[o, i, p] = Σ_a Σ_b up[o, a] core[a, b, p] down[b, i]`.
fn tucker(up: &Matrix, core: &Stored, down: &Matrix, patch: usize) -> Vec<f32> {
    let (ranks_up, ranks_down, inputs) = (core.shape()[0], core.shape()[1], down.columns);
    let values = core.to_f32();
    // [a, p, b], so that one product takes away b.
    let mut turned = vec![0.0; values.len()];
    for a in 0..ranks_up {
        for b in 0..ranks_down {
            for p in 0..patch {
                turned[(a * patch + p) * ranks_down + b] = values[(a * ranks_down + b) * patch + p];
            }
        }
    }
    let inner = Matrix { rows: ranks_up * patch, columns: ranks_down, data: turned }.times(down);
    let outer = up.times(&Matrix { rows: ranks_up, columns: patch * inputs, data: inner.data });
    // [o, p, i] → [o, i, p].
    let mut out = vec![0.0; outer.data.len()];
    for o in 0..up.rows {
        for p in 0..patch {
            for i in 0..inputs {
                out[(o * inputs + i) * patch + p] = outer.data[(o * patch + p) * inputs + i];
            }
        }
    }
    out
}

struct Matrix {
    rows: usize,
    columns: usize,
    data: Vec<f32>,
}

impl Matrix {
    /// Of a tensor with two axes or more, the first of which are the rows.
    fn of(t: &Stored) -> Matrix {
        let rows = t.shape()[0];
        Matrix { rows, columns: t.len() / rows, data: t.to_f32() }
    }

    fn transposed(&self) -> Matrix {
        let mut data = Vec::with_capacity(self.data.len());
        for c in 0..self.columns {
            data.extend((0..self.rows).map(|r| self.data[r * self.columns + c]));
        }
        Matrix { rows: self.columns, columns: self.rows, data }
    }

    fn times(&self, other: &Matrix) -> Matrix {
        let right = other.transposed();
        let weight = Stored::from_f32([right.rows, right.columns], &right.data).expect("as many values");
        let layer = Linear::new(weight, None, other.rows, other.columns);
        let out = layer.forward(&Tensor::new([self.rows, self.columns], self.data.clone()));
        Matrix { rows: self.rows, columns: other.columns, data: out.into_data() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], seed: usize) -> Stored {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| ((i * 37 + seed * 101) % 23) as f32 / 11.0 - 1.0).collect();
        Stored::from_f32(shape, &values).unwrap()
    }

    fn module(tensors: &[(Role, Stored)]) -> Module {
        let mut module = Module::default();
        tensors.iter().for_each(|(role, t)| module.insert(*role, t.clone()));
        module
    }

    /// `Σ_ab core[a, b, p] left[a, o] right[b, i]`, as LyCORIS writes it (`i j ..., i p, j r -> p r ...`).
    fn rebuilt(core: &Stored, left: &Stored, right: &Stored) -> Vec<f32> {
        let (t, l, r) = (core.to_f32(), left.to_f32(), right.to_f32());
        let ([ranks, outputs], inputs) = ([left.shape()[0], left.shape()[1]], right.shape()[1]);
        let (other, patch) = (core.shape()[1], core.shape()[2] * core.shape()[3]);
        let mut out = Vec::new();
        for o in 0..outputs {
            for i in 0..inputs {
                for p in 0..patch {
                    let term = |a: usize, b: usize| {
                        t[(a * other + b) * patch + p] * l[a * outputs + o] * r[b * inputs + i]
                    };
                    out.push((0..ranks).map(|a| (0..other).map(|b| term(a, b)).sum::<f32>()).sum());
                }
            }
        }
        out
    }

    fn close(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 1e-4 * w.abs().max(1.0), "{g} for {w}");
        }
    }

    #[test]
    fn cores_of_convolutions() {
        let base = [6, 4, 3, 3];
        let (core, other) = (tensor(&[2, 3, 3, 3], 1), tensor(&[2, 3, 3, 3], 2));
        let (left, right) = (tensor(&[2, 6], 3), tensor(&[3, 4], 4));
        // LoCon keeps the left factor turned, [outputs, rank, 1, 1].
        let up = Matrix::of(&left).transposed();
        let up = Stored::from_f32([6, 2, 1, 1], &up.data).unwrap();
        let down = right.reshape([3, 4, 1, 1]).unwrap();
        let locon = module(&[(Role::Up, up), (Role::Down, down), (Role::Mid, core.clone())]);
        let zeros = vec![0.0; 6 * 4 * 9];
        locon.check(&base).unwrap();
        close(&locon.delta(&base, &zeros, 1.0), &rebuilt(&core, &left, &right));

        let (left2, right2) = (tensor(&[2, 6], 5), tensor(&[3, 4], 6));
        let hada = module(&[
            (Role::Hada1A, left.clone()),
            (Role::Hada1B, right.clone()),
            (Role::HadaCore1, core.clone()),
            (Role::Hada2A, left2.clone()),
            (Role::Hada2B, right2.clone()),
            (Role::HadaCore2, other.clone()),
        ]);
        hada.check(&base).unwrap();
        let (a, b) = (rebuilt(&core, &left, &right), rebuilt(&other, &left2, &right2));
        let product: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a * b).collect();
        close(&hada.delta(&base, &zeros, 1.0), &product);

        // The core's factor is half as wide on both axes; each of the four numbers of w1 repeats it.
        let (left, right) = (tensor(&[2, 3], 7), tensor(&[3, 2], 8));
        let w1 = tensor(&[2, 2], 9);
        let lokr = module(&[
            (Role::Lokr1, w1.clone()),
            (Role::Lokr2A, left.clone()),
            (Role::Lokr2B, right.clone()),
            (Role::LokrCore2, core.clone()),
        ]);
        lokr.check(&base).unwrap();
        let (small, w1) = (rebuilt(&core, &left, &right), w1.to_f32());
        let mut want = Vec::new();
        for (o, i, p) in (0..6).flat_map(|o| (0..4).flat_map(move |i| (0..9).map(move |p| (o, i, p)))) {
            want.push(w1[o / 3 * 2 + i / 2] * small[(o % 3 * 2 + i % 2) * 9 + p]);
        }
        close(&lokr.delta(&base, &zeros, 1.0), &want);
    }

    #[test]
    fn shapes_that_do_not_fit_are_told() {
        let lora = |up: &[usize], down: &[usize]| {
            module(&[(Role::Up, tensor(up, 1)), (Role::Down, tensor(down, 2))])
        };
        assert!(lora(&[8, 2], &[2, 4]).check(&[8, 4]).is_ok());
        assert!(lora(&[8, 2], &[2, 4]).check(&[8, 4, 1, 1]).is_ok());
        for (up, down, word) in [
            (&[8, 2][..], &[3, 4][..], "ranks 2 and 3"),
            (&[8, 2], &[2, 5], "[8, 5]"),
            (&[8], &[2, 4], "two axes"),
            (&[0, 2], &[2, 4], "without values"),
        ] {
            let error = lora(up, down).check(&[8, 4]).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        let mut few = lora(&[8, 2], &[2, 4]);
        few.insert(Role::Magnitude, tensor(&[3], 1));
        assert!(few.check(&[8, 4]).unwrap_err().contains("magnitudes"));
        few.insert(Role::Magnitude, tensor(&[1, 4], 1));
        assert_eq!(few.delta(&[8, 4], &[0.5; 32], 1.0).len(), 32);
        // A norm's weight has one axis.
        let mut norm = lora(&[8, 1], &[1, 1]);
        norm.insert(Role::Magnitude, tensor(&[8], 1));
        norm.check(&[8]).unwrap();
        assert_eq!(norm.delta(&[8], &[0.5; 8], 1.0).len(), 8);
    }
}
