//! The `instantstyle` program: command line to request, request to engine, pictures to files.

mod demo;
mod flags;
mod generate;
mod inspect;
mod output;
mod progress;
mod sheet;

use instantstyle_engine::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn main() -> ExitCode {
    let matches = flags::command().get_matches();
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    // A second Ctrl-C ends the program at once; everything that is written is written whole, by renaming.
    let handled = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
    if let Err(e) = handled {
        eprintln!("warning: Ctrl-C will stop the program at once ({e})");
    }
    let (name, arguments) = matches.subcommand().expect("a subcommand is required");
    let json = name == "generate" && arguments.get_flag("json");
    if let Some(n) = arguments.try_get_one::<u16>("threads").ok().flatten() {
        if let Err(e) = rayon::ThreadPoolBuilder::new().num_threads(*n as usize).build_global() {
            eprintln!("warning: {e}");
        }
    }
    let result = match name {
        "generate" => generate::run(arguments, stop),
        "demo" => demo::run(arguments, stop),
        "inspect" => return inspect::run(arguments),
        "completions" => {
            let shell = *arguments.get_one::<clap_complete::Shell>("shell").expect("required");
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut flags::command(), "instantstyle", &mut out);
            print(&out)
        }
        _ => {
            let mut out = Vec::new();
            clap_mangen::Man::new(flags::command())
                .render(&mut out)
                .map_err(|e| Error::Internal(e.to_string()))
                .and_then(|()| print(&out))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e, json),
    }
}

/// Writes to standard output; a reader that has gone away is no fault.
fn print(bytes: &[u8]) -> Result<(), Error> {
    match std::io::stdout().lock().write_all(bytes) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::Machine(format!("standard output: {e}")))
        }
        _ => Ok(()),
    }
}

fn fail(e: &Error, json: bool) -> ExitCode {
    if json {
        let (kind, place) = match e {
            Error::Request { field, .. } => ("request", serde_json::json!({ "field": field })),
            Error::File { path, .. } => ("file", serde_json::json!({ "path": path })),
            Error::Machine(_) => ("machine", serde_json::json!({})),
            Error::Internal(_) => ("internal", serde_json::json!({})),
            Error::Cancelled => ("cancelled", serde_json::json!({})),
        };
        let mut error = serde_json::json!({ "kind": kind, "message": e.to_string() });
        if let (Some(error), Some(place)) = (error.as_object_mut(), place.as_object()) {
            error.extend(place.clone());
        }
        let _ = print(format!("{}\n", serde_json::json!({ "error": error })).as_bytes());
    }
    eprintln!("error: {e}");
    ExitCode::from(e.exit_code())
}
