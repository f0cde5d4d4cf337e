//! Networks in ONNX files, run by [rten](https://docs.rs/rten), in Rust.

use super::planes::Planes;
use crate::error::Error;
use std::path::Path;

/// Largest file: what a protocol buffer can hold.
pub const MAX_FILE_BYTES: u64 = 2 << 30;
/// Longest side of a network's picture, in pixels; what is larger is a slip, or meant to take all memory.
#[cfg(feature = "onnx")]
const MAX_SIDE_PX: usize = 4096;
/// Most values of one output.
#[cfg(feature = "onnx")]
const MAX_VALUES: usize = 1 << 28;

/// Refuses what cannot be a network before it is read.
///
/// # Errors
/// If it is no file, or too large.
pub fn check_file(path: &Path) -> Result<(), Error> {
    let found = std::fs::metadata(path).map_err(|e| Error::file(path, e.to_string()))?;
    if !found.is_file() {
        return Err(Error::file(path, "is no file; name the network's .onnx file"));
    }
    if found.len() > MAX_FILE_BYTES {
        let message =
            format!("has {} bytes, more than an ONNX file can hold ({MAX_FILE_BYTES})", found.len());
        return Err(Error::file(path, message));
    }
    Ok(())
}

/// One output of a network.
pub struct Output {
    /// Without the first axis, which is 1.
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Output {
    /// As planes: [channels, height, width] or [height, width].
    pub fn planes(self) -> Option<Planes> {
        let (channels, height, width) = match self.shape[..] {
            [height, width] => (1, height, width),
            [channels, height, width] => (channels, height, width),
            _ => return None,
        };
        let some = channels * height * width > 0;
        some.then_some(Planes { channels, height, width, values: self.values })
    }
}

#[cfg(not(feature = "onnx"))]
mod runtime {
    use super::*;

    const ABSENT: &str = "this build cannot run networks for maps: build it with the feature onnx, or make the map elsewhere and give it with preprocess none";

    /// Stands for what this build does not have.
    pub struct Network;

    impl Network {
        pub fn open(_: &Path) -> Result<Self, Error> {
            Err(Error::Machine(ABSENT.into()))
        }
        pub fn size(&self) -> Option<(usize, usize)> {
            None
        }
        pub fn run(&self, _: &Planes) -> Result<Vec<Output>, Error> {
            Err(Error::Machine(ABSENT.into()))
        }
        pub fn error(&self, message: impl Into<String>) -> Error {
            Error::Machine(message.into())
        }
    }
}

#[cfg(feature = "onnx")]
mod runtime {
    use super::super::wire;
    use super::*;
    use rten::{DataType, Dimension, Model, NodeId, RunOptions, ThreadPool, Value, ValueType};
    use rten_tensor::Layout;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::PathBuf;
    use std::sync::Arc;

    /// A network that takes one picture, [1, 3, height, width].
    pub struct Network {
        path: PathBuf,
        model: Model,
        input: NodeId,
        size: Option<(usize, usize)>,
    }

    impl Network {
        /// Reads a file. Nothing else is read: weights in files beside it are refused.
        ///
        /// # Errors
        /// If it is no ONNX file, needs what the runtime does not have, or takes no picture.
        pub fn open(path: &Path) -> Result<Self, Error> {
            check_file(path)?;
            let bytes = std::fs::read(path).map_err(|e| Error::file(path, e.to_string()))?;
            let model = wire::check(&bytes)
                .map_err(str::to_owned)
                .and_then(|()| guarded(|| Model::load(bytes)))
                .and_then(|loaded| loaded.map_err(|e| said(e.to_string())))
                .map_err(|e| {
                    Error::file(path, format!("is no network that can be run here: {e}; give an ONNX file with its weights inside"))
                })?;
            let mut network =
                Network { path: path.to_owned(), model, input: NodeId::from_u32(0), size: None };
            let [input] = *network.model.input_ids() else {
                let n = network.model.input_ids().len();
                return Err(
                    network.error(format!("has {n} inputs, expected one: a picture [1, 3, height, width]"))
                );
            };
            network.input = input;
            let info = network.model.node_info(input);
            let float = ValueType::Tensor(DataType::Float);
            if let Some(found) = info.as_ref().and_then(|i| i.dtype()).filter(|t| *t != float) {
                return Err(network.error(format!("takes values of type {found}, expected float")));
            }
            if let Some(shape) = info.and_then(|i| i.shape()) {
                network.size = network.size_of(&shape)?;
            }
            if network.model.output_ids().is_empty() {
                return Err(network.error("has no output"));
            }
            Ok(network)
        }

        /// Width and height that the file fixes.
        fn size_of(&self, shape: &[Dimension]) -> Result<Option<(usize, usize)>, Error> {
            let shown: Vec<String> = shape
                .iter()
                .map(|d| match d {
                    Dimension::Fixed(n) => n.to_string(),
                    Dimension::Symbolic(name) => name.clone(),
                })
                .collect();
            let wrong = |why: &str| {
                self.error(format!(
                    "takes [{}], expected a picture [1, 3, height, width]{why}",
                    shown.join(", ")
                ))
            };
            let fits = |d: &Dimension, n: usize| !matches!(d, Dimension::Fixed(found) if *found != n);
            let [batch, channels, height, width] = shape else { return Err(wrong("")) };
            if !fits(batch, 1) || !fits(channels, 3) {
                return Err(wrong(""));
            }
            match (height, width) {
                (Dimension::Fixed(h), Dimension::Fixed(w)) => {
                    if [h, w].iter().any(|n| !(1..=MAX_SIDE_PX).contains(*n)) {
                        return Err(wrong(&format!(" of at most {MAX_SIDE_PX} pixels a side")));
                    }
                    Ok(Some((*w, *h)))
                }
                (Dimension::Symbolic(_), Dimension::Symbolic(_)) => Ok(None),
                _ => Err(wrong(", both sides fixed or both free")),
            }
        }

        /// Width and height of the picture that it takes, where the file fixes them.
        pub fn size(&self) -> Option<(usize, usize)> {
            self.size
        }

        /// All outputs, in the file's order, for a picture of three planes.
        ///
        /// # Errors
        /// If it cannot be run, or gives something other than finite numbers.
        pub fn run(&self, picture: &Planes) -> Result<Vec<Output>, Error> {
            let input = Value::from_shape([1, 3, picture.height, picture.width], picture.values.clone())
                .map_err(|e| Error::Internal(e.to_string()))?;
            // As many threads as the rest of the program; each sum is one thread's.
            let pool = Arc::new(ThreadPool::with_num_threads(rayon::current_num_threads()));
            let options = RunOptions::default().with_thread_pool(Some(pool));
            let run =
                || self.model.run(vec![(self.input, input.into())], self.model.output_ids(), Some(options));
            let values = guarded(run)
                .and_then(|done| done.map_err(|e| said(e.to_string())))
                .map_err(|e| self.error(format!("cannot be run: {e}")))?;
            values.into_iter().map(|v| self.output(v)).collect()
        }

        fn output(&self, value: Value) -> Result<Output, Error> {
            let Some(tensor) = value.into_tensor::<f32>() else {
                return Err(self.error("gives something other than float values"));
            };
            let shape = tensor.shape().to_vec();
            let [1, rest @ ..] = &shape[..] else {
                return Err(
                    self.error(format!("gives {shape:?}, expected 1 as the first number: one picture"))
                );
            };
            if tensor.len() > MAX_VALUES {
                return Err(self.error(format!("gives {shape:?}, more than {MAX_VALUES} values")));
            }
            let values = tensor.into_data();
            if values.iter().any(|v| !v.is_finite()) {
                return Err(self.error("gives values that are not finite; is it damaged?"));
            }
            Ok(Output { shape: rest.to_vec(), values })
        }

        /// A fault of the file.
        pub fn error(&self, message: impl Into<String>) -> Error {
            Error::file(&self.path, message)
        }
    }

    /// The runtime's own faults are errors of the file that led to them.
    fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
        catch_unwind(AssertUnwindSafe(run)).map_err(|_| "the runtime failed on it".into())
    }

    /// One line.
    fn said(message: String) -> String {
        message.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

pub use runtime::Network;
