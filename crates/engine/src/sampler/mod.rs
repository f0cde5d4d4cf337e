//! sampler/mod
