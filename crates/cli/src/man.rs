//! `instantstyle man`.

use crate::flags;
use clap::{ArgMatches, Command};
use clap_mangen::Man;
use instantstyle_engine::Error;
use std::path::PathBuf;

/// Runs the subcommand.
pub fn run(arguments: &ArgMatches) -> Result<(), Error> {
    let Some(folder) = arguments.get_one::<PathBuf>("out") else {
        return crate::print(&page().map_err(|e| Error::Internal(e.to_string()))?);
    };
    let refused = |e: std::io::Error| Error::Machine(format!("{}: cannot be written: {e}", folder.display()));
    std::fs::create_dir_all(folder).map_err(refused)?;
    clap_mangen::generate_to(flags::command(), folder).map_err(refused)
}

/// One page for the program and all its commands.
fn page() -> std::io::Result<Vec<u8>> {
    let mut command = flags::command();
    command.build();
    let commands: Vec<Command> =
        command.get_subcommands().filter(|c| c.get_name() != "help").cloned().collect();
    let man = Man::new(command);
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    for command in commands {
        let mut text = Vec::new();
        let name = command.get_name().to_uppercase();
        let man = Man::new(command);
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
        man.render_extra_section(&mut text)?;
        out.extend(format!(".SH {name}\n").bytes());
        // The command's sections become parts of this one.
        out.extend(String::from_utf8_lossy(&text).replace(".SH ", ".SS ").bytes());
    }
    man.render_extra_section(&mut out)?;
    man.render_version_section(&mut out)?;
    // Every part begins with the same two definitions: once is enough.
    let text = String::from_utf8_lossy(&out).into_owned();
    let is_preamble = |line: &&str| line.starts_with(".ie \\n(.g") || line.starts_with(".el .ds Aq");
    let (preamble, rest): (Vec<&str>, Vec<&str>) = text.lines().partition(is_preamble);
    let lines = preamble.into_iter().take(2).chain(rest);
    Ok(lines.flat_map(|l| [l, "\n"]).collect::<String>().into_bytes())
}
