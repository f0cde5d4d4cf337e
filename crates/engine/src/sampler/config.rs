//! `scheduler/scheduler_config.json`.

use super::SamplerError;
use serde_json::Value;

/// What the network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// The velocity (Salimans & Ho, arXiv 2202.00512).
    V,
    /// The clean latents.
    Sample,
}

/// A checkpoint's scheduler configuration.
///
/// Only what the file says counts: for a key that it lacks, each sampler takes the default of its own class, as
/// diffusers' `Scheduler.from_config` does.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    json: Value,
    prediction: Prediction,
    train_timesteps: usize,
}

/// No schedule is longer.
const MOST_TIMESTEPS: u64 = 100_000;

impl SchedulerConfig {
    /// Checks what every sampler needs.
    ///
    /// # Errors
    /// Names the field that is out of range.
    pub fn from_json(json: &Value) -> Result<Self, SamplerError> {
        let mut json = json.clone();
        let defaults: Vec<String> = match json.get("_use_default_values") {
            Some(Value::Array(names)) => names.iter().filter_map(|n| n.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        };
        if let Value::Object(map) = &mut json {
            map.retain(|k, v| !v.is_null() && !defaults.contains(k));
        }
        let prediction = match json.get("prediction_type") {
            None => Prediction::Epsilon,
            Some(v) => match v.as_str() {
                Some("epsilon") => Prediction::Epsilon,
                Some("v_prediction") => Prediction::V,
                Some("sample" | "original_sample") => Prediction::Sample,
                _ => {
                    return Err(SamplerError::field("prediction_type", v, "epsilon, v_prediction or sample"));
                }
            },
        };
        let train_timesteps = match json.get("num_train_timesteps") {
            None => 1000,
            Some(v) => match v.as_u64() {
                Some(n) if (1..=MOST_TIMESTEPS).contains(&n) => n as usize,
                _ => return Err(SamplerError::field("num_train_timesteps", v, "1 to 100000")),
            },
        };
        for key in ["use_flow_sigmas", "use_beta_sigmas", "use_dynamic_shifting"] {
            if json.get(key).and_then(Value::as_bool) == Some(true) {
                return Err(SamplerError::field(
                    key,
                    &Value::Bool(true),
                    "false; this option is not supported",
                ));
            }
        }
        Ok(SchedulerConfig { json, prediction, train_timesteps })
    }

    /// The scheduler class that the checkpoint names.
    pub fn class_name(&self) -> Option<&str> {
        self.json.get("_class_name").and_then(Value::as_str)
    }

    /// What the network predicts.
    pub fn prediction_type(&self) -> Prediction {
        self.prediction
    }

    /// Timesteps of training.
    pub fn train_timesteps(&self) -> usize {
        self.train_timesteps
    }

    /// A number, or the class's default.
    pub(super) fn number(&self, key: &str, default: f64) -> Result<f64, SamplerError> {
        match self.json.get(key) {
            None => Ok(default),
            Some(v) => {
                v.as_f64().filter(|n| n.is_finite()).ok_or_else(|| SamplerError::field(key, v, "a number"))
            }
        }
    }

    /// A flag, or the class's default.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, SamplerError> {
        match self.json.get(key) {
            None => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| SamplerError::field(key, v, "true or false")),
        }
    }

    /// A word, or the class's default.
    pub(super) fn word<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str, SamplerError> {
        match self.json.get(key) {
            None => Ok(default),
            Some(v) => v.as_str().ok_or_else(|| SamplerError::field(key, v, "a word")),
        }
    }

    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.json.get(key)
    }

    /// The same with other values, as `from_config(config, key=value)`.
    pub(super) fn with(&self, changes: &[(&str, Value)]) -> Self {
        let mut out = self.clone();
        if let Value::Object(map) = &mut out.json {
            for (k, v) in changes {
                map.insert((*k).to_owned(), v.clone());
            }
        }
        out
    }
}
