//! Where the hub and the cache are: the variables of `huggingface_hub`.

use crate::cache::{Cache, home, path_of};
use crate::catalogue::DEFAULT_ENDPOINT;
use std::env;
use std::time::Duration;

/// Settings of a client.
#[derive(Clone)]
pub struct Settings {
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// Sent to the hub alone, and over HTTPS or to this machine only.
    pub token: Option<String>,
    /// Nothing is downloaded.
    pub offline: bool,
    /// Where files go.
    pub cache: Cache,
    /// Tries without a new byte before a file is given up.
    pub tries: u32,
    /// Wait before the second try; it doubles with each.
    pub wait: Duration,
    /// Longest silence of a connection.
    pub silence: Duration,
}

/// Largest token file, in bytes.
const MAX_TOKEN_BYTES: u64 = 4096;

impl Settings {
    /// For a hub and a cache; no token.
    pub fn new(endpoint: impl Into<String>, cache: Cache) -> Self {
        Settings {
            endpoint: endpoint.into(),
            token: None,
            offline: false,
            cache,
            tries: 6,
            wait: Duration::from_secs(1),
            silence: Duration::from_secs(30),
        }
    }

    /// What the environment says: `HF_ENDPOINT`, `HF_TOKEN` (or the file that `huggingface_hub` keeps it in),
    /// `HF_HUB_OFFLINE`, and the cache ([`Cache::from_env`]).
    pub fn from_env() -> Self {
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let mut settings = Settings::new(endpoint.trim_end_matches('/'), Cache::from_env());
        settings.offline = on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE");
        settings.token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(stored_token);
        settings
    }
}

fn stored_token() -> Option<String> {
    if on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return None;
    }
    let path = path_of("HF_TOKEN_PATH").unwrap_or_else(|| home().join("token"));
    let size = std::fs::metadata(&path).ok()?.len();
    let text = if size <= MAX_TOKEN_BYTES { std::fs::read_to_string(path).ok()? } else { return None };
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

fn text(name: &str) -> Option<String> {
    env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
}

fn on(name: &str) -> bool {
    text(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_uppercase().as_str()))
}
