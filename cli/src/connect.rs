//! `san connect`: a connection over the SAN or TCP, joined to standard input and output.

use crate::args::ConnectArguments;
use crate::attempts::connect_to_any;
use crate::problem::Problem;
use crate::relay::{RouteReport, join_to_standard_streams};
use san_switch::{ConnectOptions, Switch, SwitchConfig};
use std::process::ExitCode;
use std::time::Duration;

/// Connects and moves bytes until the peer ends.
pub(crate) fn run(arguments: &ConnectArguments) -> Result<ExitCode, Problem> {
    let config = SwitchConfig::from_env()?;
    let switch = Switch::new(config)?;
    let mut options = ConnectOptions::default().tcp_only(arguments.tcp);
    options.route = arguments.route;
    options.local = arguments.local;
    options.timeout = arguments.timeout.map(Duration::from_millis);
    let connection = connect_to_any(&switch, &arguments.destination.resolve()?, &options)?;
    let mut report = RouteReport::new("connected", &connection);
    if arguments.tcp {
        // It was asked for.
        report.remedy = None;
    }
    report.tell(arguments.json);
    join_to_standard_streams(connection)?;
    Ok(ExitCode::SUCCESS)
}
