//! The `instantstyle` program: command line to request, request to engine, pictures to files.

mod convert;
mod demo;
mod flags;
mod generate;
mod inspect;
mod man;
mod output;
mod overrides;
mod progress;
mod pull;
mod sheet;
mod threads;

use clap::ArgMatches;
use instantstyle_engine::Error;
use serde_json::json;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn main() -> ExitCode {
    let matches = match flags::command().try_get_matches() {
        Ok(matches) => matches,
        Err(e) => return usage(&e),
    };
    let (name, arguments) = matches.subcommand().expect("a subcommand is required");
    let asked = |name: &str| arguments.try_get_one::<bool>(name).ok().flatten() == Some(&true);
    match run(name, arguments) {
        Ok(code) => ExitCode::from(code),
        Err(e) => fail(&e, asked("json")),
    }
}

fn run(name: &str, arguments: &ArgMatches) -> Result<u8, Error> {
    instantstyle_engine::memory::return_large_blocks();
    let asked = arguments.try_get_one::<u16>("threads").ok().flatten().map(|n| usize::from(*n));
    // This thread is one of the pool: what it hands out it begins itself, at once. None is rayon's own choice.
    let n = asked.or_else(threads::usual).unwrap_or(0);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n).use_current_thread().build_global();
    pool.map_err(|e| Error::Machine(format!("{n} threads: {e}")))?;
    match name {
        "generate" => generate::run(arguments, on_interrupt())?,
        "demo" => demo::run(arguments, on_interrupt())?,
        "convert" => convert::run(arguments, on_interrupt())?,
        "inspect" => return inspect::run(arguments),
        "pull" => pull::run(arguments, on_interrupt())?,
        "completions" => {
            let shell = *arguments.get_one::<clap_complete::Shell>("shell").expect("required");
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut flags::command(), "instantstyle", &mut out);
            print(&out)?;
        }
        _ => man::run(arguments)?,
    }
    Ok(0)
}

/// A flag that Ctrl-C sets; the work sees it before its next step. A second Ctrl-C ends the program at once: files get
/// their names when they are whole.
fn on_interrupt() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let handled = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
    if let Err(e) = handled {
        say(&format!("note: Ctrl-C will stop the program at once ({e})"));
    }
    stop
}

/// Writes to standard output; a reader that has gone away is no fault.
fn print(bytes: &[u8]) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::Machine(format!("standard output: {e}"))),
        _ => Ok(()),
    }
}

/// A line on standard error. Unlike `eprintln!` it does not mind that nobody reads it.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// A path as JSON: names that are not Unicode are shown as well as they can be.
fn shown(path: &std::path::Path) -> serde_json::Value {
    serde_json::Value::from(path.to_string_lossy())
}

/// Help, version, or a command line that cannot be read.
fn usage(e: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !e.use_stderr() || e.kind() == DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = e.print();
        return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
    }
    let message = one_line(&e.render().to_string());
    if std::env::args_os().any(|a| a == "--json") {
        let _ =
            print(format!("{}\n", json!({ "error": { "kind": "usage", "message": message } })).as_bytes());
    }
    say(&format!("error: {message}"));
    ExitCode::from(2)
}

/// The message of the argument parser on one line, like all others.
fn one_line(rendered: &str) -> String {
    let lines = rendered.lines().map(str::trim).filter(|l| !l.is_empty());
    let told: Vec<&str> = lines.filter(|l| !l.starts_with("Usage:") && !l.starts_with("For more")).collect();
    let message = told.join("; ").replace(":; ", ": ");
    format!("{}; see --help", message.trim_start_matches("error: "))
}

fn fail(e: &Error, as_json: bool) -> ExitCode {
    if as_json {
        let error = match e {
            Error::Request { field, message } => {
                json!({ "kind": "request", "field": field, "message": message })
            }
            Error::File { path, message } => {
                json!({ "kind": "file", "path": shown(path), "message": message })
            }
            Error::Machine(message) => json!({ "kind": "machine", "message": message }),
            Error::Internal(message) => json!({ "kind": "internal", "message": message }),
            Error::Cancelled => json!({ "kind": "cancelled", "message": "cancelled" }),
        };
        let _ = print(format!("{}\n", json!({ "error": error })).as_bytes());
    }
    say(&format!("error: {e}"));
    ExitCode::from(e.exit_code())
}
