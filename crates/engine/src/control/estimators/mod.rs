//! Maps that networks of their own make: what each kind of network is given, and how its outputs become a map.
//!
//! The networks are ONNX files that the request names.

mod estimator;
mod network;
mod people;
mod planes;
mod pose;
mod skeleton;
#[cfg(all(test, feature = "onnx"))]
mod tests;
#[cfg(feature = "onnx")]
mod wire;

pub use estimator::Estimator;
pub(super) use estimator::{
    DEPTH, DEPTH_MIDAS, LINEART_REALISTIC, NORMAL_BAE, SOFTEDGE_HED, SOFTEDGE_PIDINET,
};
pub use network::check_file;
pub(super) use pose::pose;
