//! The attention sites of a UNet, from its `config.json` alone:
//! `cargo run -p instantstyle-nets --example sites -- unet/config.json`

use instantstyle_nets::unet::{UNetConfig, sites};
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let Some(path) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("sites CONFIG.json");
        return Ok(());
    };
    let json = serde_json::from_slice(&std::fs::read(&path)?)?;
    let config = UNetConfig::from_json(&json, &path)?;
    for site in sites(&config) {
        println!("{}", site.path);
    }
    Ok(())
}
