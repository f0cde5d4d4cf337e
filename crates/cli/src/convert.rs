//! `instantstyle convert`.

use crate::progress::bar;
use crate::{print, shown};
use clap::ArgMatches;
use instantstyle_engine::Error;
use instantstyle_engine::convert::{Conversion, TYPES, convert};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs the subcommand.
pub fn run(arguments: &ArgMatches, stop: Arc<AtomicBool>) -> Result<(), Error> {
    let path = |name: &str| arguments.get_one::<PathBuf>(name).expect("required");
    let (input, output) = (path("input"), path("output"));
    let name = arguments.get_one::<String>("type").expect("has a default");
    let dtype = TYPES.iter().find(|t| t.0 == name).and_then(|t| t.1);
    let wanted = Conversion { input, output, dtype, only_unet: arguments.get_flag("only-unet") };
    let hidden = arguments.get_flag("quiet") || !std::io::stderr().is_terminal();
    let bar = bar(hidden, 0, "converting [{bar:40}] {pos}/{len} tensors {elapsed} < {eta}");
    let done = convert(&wanted, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        !stop.load(Ordering::Relaxed)
    })?;
    bar.finish_and_clear();
    if arguments.get_flag("json") {
        let mut json = done.to_json();
        json["output"] = shown(output);
        return print(format!("{json:#}\n").as_bytes());
    }
    let mut text = format!("{}: {}\n", output.display(), done.family);
    for (part, tensors, bytes) in &done.parts {
        text.push_str(&format!("  {part:16} {tensors} tensors, {:.1} MB\n", *bytes as f64 / 1e6));
    }
    if let Some(first) = done.left_out.first() {
        text.push_str(&format!("  left out         {}, e.g. {first}\n", done.left_out.len()));
    }
    print(text.as_bytes())
}
