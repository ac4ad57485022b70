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

use args::{Arguments, Command};
use clap::Parser;
use problem::Problem;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("SAN_LOG"))
        .with_writer(std::io::stderr)
        .with_ansi(output::log_has_colours())
        .init();
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
            eprintln!("san: {problem}");
        }
        ExitCode::FAILURE
    })
}
