//! A dense f32 array: what flows between layers on the CPU.

use instantstyle_kernels::buffer::Buffer;

/// Row-major f32 values with a shape. Activations are channels-last.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Buffer,
}

impl Tensor {
    /// Wraps values.
    ///
    /// # Panics
    /// If the shape's product is not the number of values.
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Self {
        Tensor::of(shape.into(), data.into())
    }

    fn of(shape: Vec<usize>, data: Buffer) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?}");
        Tensor { shape, data }
    }

    /// All zeros.
    pub fn zeros(shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let data = Buffer::zeros(shape.iter().product());
        Tensor { shape, data }
    }

    /// Values of any kind, all of which the caller is about to write.
    pub(crate) fn stale(shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let data = Buffer::stale(shape.iter().product());
        Tensor { shape, data }
    }

    /// Length of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Length of axis `i`.
    pub fn dim(&self, i: usize) -> usize {
        self.shape[i]
    }

    /// Length of the last axis (the channels).
    pub fn channels(&self) -> usize {
        *self.shape.last().expect("a tensor has at least one axis")
    }

    /// The values.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The values, to change in place.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// Gives the values away.
    pub fn into_data(self) -> Vec<f32> {
        self.data.into_vec()
    }

    /// The same values under another shape.
    ///
    /// # Panics
    /// If the products differ.
    pub fn reshape(self, shape: impl Into<Vec<usize>>) -> Self {
        Tensor::of(shape.into(), self.data)
    }

    /// Index `i` of axis 0, which stays, with length 1.
    ///
    /// # Panics
    /// If there is no such index.
    pub fn row(&self, i: usize) -> Self {
        let mut shape = self.shape.clone();
        let n = self.data.len() / shape[0];
        shape[0] = 1;
        Tensor { shape, data: self.data[i * n..(i + 1) * n].to_vec().into() }
    }

    /// The only row of axis 0 so many times; where there are as many already, they are left as they are.
    ///
    /// # Panics
    /// If there are several rows, of another number.
    pub fn repeated(self, rows: usize) -> Self {
        use rayon::prelude::*;
        if self.shape[0] == rows {
            return self;
        }
        assert_eq!(self.shape[0], 1, "one row stands for {rows}");
        let mut shape = self.shape.clone();
        shape[0] = rows;
        let mut out = Tensor::stale(shape);
        out.data.par_chunks_mut(self.data.len().max(1)).for_each(|row| row.copy_from_slice(&self.data));
        out
    }

    /// Joins along the last axis.
    ///
    /// # Panics
    /// If the other axes differ.
    pub fn concat_channels(&self, other: &Tensor) -> Self {
        use rayon::prelude::*;
        let (a, b) = (self.channels(), other.channels());
        let mut shape = self.shape.clone();
        *shape.last_mut().expect("checked by channels()") = a + b;
        assert_eq!(self.data.len() / a, other.data.len() / b);
        let mut data = Buffer::stale(self.data.len() + other.data.len());
        data.par_chunks_mut(a + b)
            .zip(self.data.par_chunks(a))
            .zip(other.data.par_chunks(b))
            .with_min_len(64)
            .for_each(|((out, x), y)| {
                out[..a].copy_from_slice(x);
                out[a..].copy_from_slice(y);
            });
        Tensor { shape, data }
    }

    /// Joins along axis 0.
    ///
    /// # Panics
    /// If there are no parts or their other axes differ.
    pub fn stack(parts: &[&Tensor]) -> Self {
        let mut shape = parts[0].shape.clone();
        shape[0] = parts.iter().map(|p| p.shape[0]).sum();
        assert!(parts.iter().all(|p| p.shape[1..] == shape[1..]));
        Tensor { shape, data: parts.iter().flat_map(|p| p.data.iter().copied()).collect::<Vec<_>>().into() }
    }

    /// Joins `[batch, tokens, channels]` along the tokens.
    ///
    /// # Panics
    /// If there are no parts, or batch or channels differ.
    pub fn concat_tokens(parts: &[&Tensor]) -> Self {
        let (batch, channels) = (parts[0].dim(0), parts[0].dim(2));
        assert!(parts.iter().all(|p| p.dim(0) == batch && p.dim(2) == channels));
        let tokens = parts.iter().map(|p| p.dim(1)).sum();
        let mut data = Vec::with_capacity(batch * tokens * channels);
        for b in 0..batch {
            for p in parts {
                let row = p.dim(1) * channels;
                data.extend_from_slice(&p.data[b * row..(b + 1) * row]);
            }
        }
        Tensor::new([batch, tokens, channels], data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_keep_every_row_in_place() {
        let a = Tensor::new([2, 1, 2], vec![1., 2., 3., 4.]);
        let b = Tensor::new([2, 1, 1], vec![5., 6.]);
        assert_eq!(a.concat_channels(&b).data(), [1., 2., 5., 3., 4., 6.]);
        let c = Tensor::new([2, 2, 2], (0..8).map(|v| v as f32).collect());
        let joined = Tensor::concat_tokens(&[&a, &c]);
        assert_eq!(joined.shape(), [2, 3, 2]);
        assert_eq!(joined.data(), [1., 2., 0., 1., 2., 3., 3., 4., 4., 5., 6., 7.]);
        assert_eq!(Tensor::stack(&[&b, &b]).shape(), [4, 1, 1]);
        let row = joined.row(1);
        assert_eq!(row, Tensor::new([1, 3, 2], vec![3., 4., 4., 5., 6., 7.]));
        assert_eq!(row.clone().repeated(3), Tensor::stack(&[&row, &row, &row]));
        assert_eq!(joined.clone().repeated(2), joined);
    }
}
