//! `instantstyle inspect`.

use crate::{print, say, shown};
use clap::ArgMatches;
use instantstyle_engine::Error;
use instantstyle_engine::inspect::inspect;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Runs the subcommand: ends with the worst status of its paths.
pub fn run(arguments: &ArgMatches) -> Result<u8, Error> {
    let as_json = arguments.get_flag("json");
    let mut status = 0;
    let mut reports: Vec<Value> = Vec::new();
    for path in arguments.get_many::<PathBuf>("path").expect("required") {
        match inspect(path) {
            Ok(report) => {
                if !report.problems.is_empty() {
                    status = status.max(3);
                }
                if as_json {
                    reports.push(report.to_json());
                } else {
                    print(report.to_string().as_bytes())?;
                }
            }
            Err(e) => {
                status = status.max(e.exit_code());
                reports.push(json!({ "path": shown(path), "error": e.to_string() }));
                say(&format!("error: {e}"));
            }
        }
    }
    if as_json {
        print(format!("{:#}\n", Value::from(reports)).as_bytes())?;
    }
    Ok(status)
}
