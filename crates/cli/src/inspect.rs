//! `instantstyle inspect`.

use clap::ArgMatches;
use instantstyle_engine::inspect::inspect;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs the subcommand: ends with the worst status of its paths.
pub fn run(arguments: &ArgMatches) -> ExitCode {
    let mut status = 0;
    let mut reports = Vec::new();
    for path in arguments.get_many::<PathBuf>("path").expect("required") {
        match inspect(path) {
            Ok(report) => {
                if !report.problems.is_empty() {
                    status = status.max(3);
                }
                if arguments.get_flag("json") {
                    reports.push(report.to_json());
                } else if crate::print(report.to_string().as_bytes()).is_err() {
                    return ExitCode::from(4);
                }
            }
            Err(e) => {
                status = status.max(e.exit_code());
                reports.push(json!({ "path": path, "error": e.to_string() }));
                eprintln!("error: {e}");
            }
        }
    }
    if arguments.get_flag("json") && crate::print(format!("{:#}\n", json!(reports)).as_bytes()).is_err() {
        return ExitCode::from(4);
    }
    ExitCode::from(status)
}
