//! The names that `torch.save` refers to, and what they mean. Reference: torch `_utils.py`, `serialization.py`.

use super::super::{Bytes, Dtype, MAX_RANK, Stored, size_in_bytes};
use super::machine::{Fault, Id, Machine, Node, broken};
use std::ops::Range;

/// A name that a pickle may refer to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Function {
    OrderedDict,
    /// `_rebuild_tensor` and its later versions: storage, offset, size, stride, ….
    Tensor,
    /// The same with the number type as the seventh argument.
    TypedTensor,
    Parameter,
    Size,
    /// A storage class; no type for `UntypedStorage`.
    Storage(Option<Dtype>),
    /// `torch.float32` and the like.
    Dtype(Dtype),
    /// A class found beside the weights in trainers' checkpoints: read as an empty object.
    Inert,
}

impl Function {
    pub fn named(module: &str, name: &str) -> Result<Self, Fault> {
        let storage = |dtype| Ok(Function::Storage(Some(dtype)));
        match (module, name) {
            ("collections", "OrderedDict") => Ok(Function::OrderedDict),
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Ok(Function::Tensor),
            ("torch._utils", "_rebuild_tensor_v3") => Ok(Function::TypedTensor),
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                Ok(Function::Parameter)
            }
            ("torch", "Size") => Ok(Function::Size),
            ("torch", "FloatStorage") => storage(Dtype::F32),
            ("torch", "HalfStorage") => storage(Dtype::F16),
            ("torch", "BFloat16Storage") => storage(Dtype::BF16),
            ("torch", "DoubleStorage") => storage(Dtype::F64),
            ("torch", "LongStorage") => storage(Dtype::I64),
            ("torch", "IntStorage") => storage(Dtype::I32),
            ("torch", "ShortStorage") => storage(Dtype::I16),
            ("torch", "CharStorage") => storage(Dtype::I8),
            ("torch", "ByteStorage") => storage(Dtype::U8),
            ("torch", "BoolStorage") => storage(Dtype::Bool),
            ("torch" | "torch.storage", "UntypedStorage") => Ok(Function::Storage(None)),
            ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
            | ("numpy", "dtype")
            | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar")
            | ("_codecs", "encode") => Ok(Function::Inert),
            ("torch", name) if Dtype::from_torch(name).is_some() => {
                Dtype::from_torch(name).map(Function::Dtype).map_or_else(|| broken("a number type"), Ok)
            }
            // By the names under which people know them.
            ("posix" | "nt", name) => Err(Fault::Refused(format!("os.{name}"))),
            ("__builtin__", name) => Err(Fault::Refused(format!("builtins.{name}"))),
            _ => Err(Fault::Refused(format!("{module}.{name}"))),
        }
    }
}

/// A run of values in the file, by name.
#[derive(Debug)]
pub(super) struct Storage {
    /// `None`: the tensor says.
    pub dtype: Option<Dtype>,
    pub key: String,
    /// In values (bytes for untyped ones).
    offset: usize,
    /// In values (bytes for untyped ones).
    pub len: usize,
}

impl Storage {
    pub fn unit(&self) -> usize {
        self.dtype.map_or(1, |d| d.unit().1)
    }

    pub fn size_bytes(&self) -> usize {
        self.len.saturating_mul(self.unit())
    }

    /// In bytes of what is stored under the key.
    pub fn range(&self) -> Option<Range<usize>> {
        let start = self.offset.checked_mul(self.unit())?;
        Some(start..start.checked_add(self.len.checked_mul(self.unit())?)?)
    }
}

/// A view into a storage.
#[derive(Debug)]
pub(super) struct Tensor {
    pub storage: Id,
    dtype: Option<Dtype>,
    offset: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
}

/// `("storage", class, key, location, length[, view])`.
pub(super) fn storage(machine: &Machine, id: Id) -> Result<Storage, Fault> {
    let Node::Tuple(items) = machine.node(id) else { return broken("a storage that is not a tuple") };
    let &[tag, class, key, _, len, ref view @ ..] = items.as_slice() else {
        return broken("a storage with too few fields");
    };
    let (Node::Str(tag), Node::Function(Function::Storage(dtype)), Node::Str(key)) =
        (machine.node(tag), machine.node(class), machine.node(key))
    else {
        return broken("a storage of an unknown kind");
    };
    if tag != "storage" {
        return broken("a storage of an unknown kind");
    }
    let mut storage = Storage { dtype: *dtype, key: key.clone(), offset: 0, len: size(machine, len)? };
    // Old files have storages that are views of others: (key, offset, length).
    if let Some(Node::Tuple(view)) = view.first().map(|v| machine.node(*v)) {
        let &[_, offset, len] = view.as_slice() else { return broken("a damaged view") };
        storage.offset = size(machine, offset)?;
        storage.len = size(machine, len)?;
    }
    Ok(storage)
}

/// What a call of one of the names gives.
pub(super) fn call(machine: &Machine, function: Id, arguments: Id) -> Result<Node, Fault> {
    let Node::Function(function) = *machine.node(function) else {
        return broken("a call of something unknown");
    };
    let Node::Tuple(arguments) = machine.node(arguments) else { return broken("a call without arguments") };
    let argument =
        |i: usize| arguments.get(i).copied().map_or_else(|| broken("a call with too few arguments"), Ok);
    match function {
        Function::Inert => Ok(Node::Opaque),
        Function::OrderedDict => match arguments.first().map(|a| machine.node(*a)) {
            None => Ok(Node::Dict(Vec::new())),
            Some(Node::List(pairs)) => pairs
                .iter()
                .map(|pair| match machine.node(*pair) {
                    Node::List(p) | Node::Tuple(p) if p.len() == 2 => Ok((p[0], p[1])),
                    _ => broken("a damaged dictionary"),
                })
                .collect::<Result<_, _>>()
                .map(Node::Dict),
            Some(_) => broken("a damaged dictionary"),
        },
        Function::Size => Ok(Node::Tuple(sizes_of(machine, argument(0)?)?.to_vec())),
        Function::Parameter => match machine.node(argument(0)?) {
            Node::Tensor(t) => Ok(Node::Tensor(t.copy())),
            _ => broken("a parameter that is not a tensor"),
        },
        Function::Tensor | Function::TypedTensor => {
            let dtype = if function == Function::TypedTensor {
                match machine.node(argument(6)?) {
                    Node::Function(Function::Dtype(dtype)) => Some(*dtype),
                    _ => return broken("a tensor of an unknown number type"),
                }
            } else {
                None
            };
            let sizes = |i: usize| -> Result<Vec<usize>, Fault> {
                sizes_of(machine, argument(i)?)?.iter().map(|n| size(machine, *n)).collect()
            };
            let tensor = Tensor {
                storage: argument(0)?,
                dtype,
                offset: size(machine, argument(1)?)?,
                shape: sizes(2)?,
                stride: sizes(3)?,
            };
            if tensor.shape.len() != tensor.stride.len() {
                return broken("a tensor with more sizes than strides");
            }
            Ok(Node::Tensor(tensor))
        }
        Function::Storage(_) | Function::Dtype(_) => broken("a call of something that is not a function"),
    }
}

fn sizes_of(machine: &Machine, id: Id) -> Result<&[Id], Fault> {
    match machine.node(id) {
        Node::Tuple(items) | Node::List(items) if items.len() <= MAX_RANK => Ok(items),
        Node::Tuple(_) | Node::List(_) => broken(format!("a tensor of more than {MAX_RANK} axes")),
        _ => broken("sizes that are not a tuple"),
    }
}

fn size(machine: &Machine, id: Id) -> Result<usize, Fault> {
    match machine.node(id) {
        Node::Int(n) => usize::try_from(*n).or_else(|_| broken(format!("a size of {n}"))),
        _ => broken("a size that is not a number"),
    }
}

impl Tensor {
    fn copy(&self) -> Tensor {
        Tensor {
            storage: self.storage,
            dtype: self.dtype,
            offset: self.offset,
            shape: self.shape.clone(),
            stride: self.stride.clone(),
        }
    }

    /// The tensor over its storage's bytes; a view that is not contiguous is copied, within the allowance `copies`
    /// (bytes). The error is what was expected and what was found.
    pub fn place(
        &self,
        storage: Option<Dtype>,
        bytes: Bytes,
        copies: &mut usize,
    ) -> Result<Stored, (String, String)> {
        let Some(dtype) = self.dtype.or(storage) else {
            return Err(("a number type".into(), "none".into()));
        };
        let found = || format!("shape {:?}, strides {:?}, offset {}", self.shape, self.stride, self.offset);
        let unit = dtype.unit().1;
        let values = bytes.len() / unit;
        let too_large =
            || ("a view inside its storage".to_owned(), format!("{} of {values} values", found()));
        let Some(size) = size_in_bytes(dtype, &self.shape) else { return Err(too_large()) };
        if size == 0 {
            return Ok(Stored { dtype, shape: self.shape.clone(), bytes: Bytes::from(Vec::new()) });
        }
        let last = self
            .shape
            .iter()
            .zip(&self.stride)
            .try_fold(self.offset, |at, (size, stride)| at.checked_add((size - 1).checked_mul(*stride)?));
        if last.is_none_or(|last| last >= values) {
            return Err(too_large());
        }
        let mut dense = 1;
        let contiguous = self.shape.iter().zip(&self.stride).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == dense;
            dense *= size;
            fits
        });
        let bytes = if contiguous {
            let start = self.offset * unit;
            bytes.slice(start..start + size).ok_or_else(too_large)?
        } else {
            match copies.checked_sub(size) {
                Some(left) => *copies = left,
                None => return Err(("views not much larger than the file".into(), found())),
            }
            Bytes::from(self.gather(&bytes, unit, size))
        };
        Ok(Stored { dtype, shape: self.shape.clone(), bytes })
    }

    /// Row-major copy of a strided view; every index was checked.
    fn gather(&self, bytes: &[u8], unit: usize, size: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(size);
        let mut index = vec![0; self.shape.len()];
        let mut at = self.offset;
        while out.len() < size {
            out.extend_from_slice(&bytes[at * unit..(at + 1) * unit]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += self.stride[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= self.stride[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
        out
    }
}
