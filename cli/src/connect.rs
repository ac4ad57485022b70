//! `san connect`: a connection over the SAN or TCP, joined to standard input and output.

use crate::args::ConnectArguments;
use crate::problem::Problem;
use crate::relay::{RouteReport, join_to_standard_streams};
use san_switch::{ConnectOptions, Switch, SwitchConfig};
use std::process::ExitCode;
use std::time::Duration;

/// Connects and moves bytes until the peer ends.
pub(crate) fn run(arguments: &ConnectArguments) -> Result<ExitCode, Problem> {
    let config = SwitchConfig::from_env().map_err(|error| Problem::new(error.to_string()))?;
    let switch = Switch::new(config)?;
    let options = ConnectOptions {
        local: arguments.local,
        timeout: arguments.timeout.map(Duration::from_millis),
        tcp_only: arguments.tcp,
        ..ConnectOptions::default()
    };
    let connection = switch.connect(arguments.address, &options)?;
    RouteReport::new("connected", &connection).tell(arguments.json);
    join_to_standard_streams(connection)
        .map_err(|error| Problem::new(format!("the connection broke: {error}")))?;
    Ok(ExitCode::SUCCESS)
}
