//! Manual pages and completions, made from the command line's own description.

use crate::args::Arguments;
use crate::output;
use crate::problem::Problem;
use clap::CommandFactory;
use clap_complete::Shell;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// Writes `san.1` and one page for each command.
pub(crate) fn man(directory: &Path) -> Result<ExitCode, Problem> {
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Arguments::command(), directory))
        .map_err(|error| {
            Problem::of_file("cannot write the manual pages into", directory, &error)
        })?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the completions.
pub(crate) fn completions(shell: Shell) -> Result<ExitCode, Problem> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "san", &mut text);
    let mut out = std::io::stdout();
    out.write_all(&text)
        .and_then(|()| out.flush())
        .map_err(output::unwritten)?;
    Ok(ExitCode::SUCCESS)
}
