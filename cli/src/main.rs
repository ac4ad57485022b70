//! The `san` command: what an operator and a script use of San Direct.
//!
//! This file parses the arguments and hands over; each command is a module of its own. What they
//! print for people goes to standard error where standard output carries data.
//!
//! The words that are the project's own are in `docs/glossary.md`.

#![forbid(unsafe_code)]

mod args;
mod attempts;
mod config;
mod connect;
mod demo;
mod destination;
mod devices;
mod doctor;
mod exporter;
mod generate;
mod listen;
mod log;
mod output;
mod perf;
mod problem;
mod relay;
mod reports;
mod run;
mod settings;
mod stat;
mod table;
mod top;

use args::{
    Arguments, Command, ConnectArguments, DemoArguments, DevicesArguments, ListenArguments,
};
use clap::Parser;
use output::tell;
use problem::Problem;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (filter, wrong) = log::filter(std::env::var("SAN_LOG").ok().as_deref());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(output::log_has_colours())
        .init();
    for line in wrong {
        tell!("san: {line}");
    }
    if tells_of_settings(&arguments.command) {
        settings::tell_unknown();
    }
    let outcome = match arguments.command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Devices(arguments) => devices::run(&arguments),
        Command::Listen(arguments) => listen::run(&arguments),
        Command::Connect(arguments) => connect::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Config(arguments) => config::run(&arguments),
        Command::Ping(arguments) => perf::ping(&arguments),
        Command::Perf(arguments) => perf::run(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Stat(arguments) => stat::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Man { directory } => generate::man(&directory),
        Command::Completions { shell } => generate::completions(shell),
    };
    outcome.unwrap_or_else(|problem: Problem| {
        if !problem.is_broken_pipe() {
            tell!("san: {problem}");
        }
        ExitCode::FAILURE
    })
}

/// Whether a command uses the settings, shows no list of them, and talks to people.
fn tells_of_settings(command: &Command) -> bool {
    match command {
        Command::Demo(DemoArguments { json, .. })
        | Command::Devices(DevicesArguments { json })
        | Command::Listen(ListenArguments { json, .. })
        | Command::Connect(ConnectArguments { json, .. }) => !json,
        Command::Ping(_) | Command::Perf(_) | Command::Run(_) => true,
        Command::Doctor(_)
        | Command::Config(_)
        | Command::Stat(_)
        | Command::Top(_)
        | Command::Man { .. }
        | Command::Completions { .. } => false,
    }
}
