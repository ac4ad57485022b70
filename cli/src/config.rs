//! `san config`: the settings in force, each with where it came from, and what is wrong with them.

use crate::args::ConfigArguments;
use crate::output::{self, Output, tell};
use crate::problem::Problem;
use crate::settings::{self, BadSetting, Setting, Settings};
use crate::table::Table;
use serde::Serialize;
use std::io::{self, Write};
use std::process::ExitCode;

#[derive(Debug, Serialize)]
struct SettingsInForce<'a> {
    ok: bool,
    settings: &'a [Setting],
    bad: &'a [BadSetting],
    bad_file: Option<&'a str>,
    /// Variables that nothing reads.
    unknown: &'a [String],
}

/// Shows them. The exit status is 1 when no program could start with them.
pub(crate) fn run(arguments: &ConfigArguments) -> Result<ExitCode, Problem> {
    let settings = Settings::read();
    let mut out = Output::stdout();
    let shown = match arguments.json {
        true => {
            let report = SettingsInForce {
                ok: settings.is_good(),
                settings: &settings.in_force,
                bad: &settings.bad,
                bad_file: settings.bad_file.as_deref(),
                unknown: &settings.unknown,
            };
            serde_json::to_writer_pretty(&mut out, &report)
                .map_err(io::Error::from)
                .and_then(|()| writeln!(out))
        }
        false => print(&mut out, &settings, arguments.allowed),
    };
    shown
        .and_then(|()| out.flush())
        .map_err(output::unwritten)?;
    for name in &settings.unknown {
        tell!("san: {}", settings::of_unknown(name));
    }
    if let Some(why) = &settings.bad_file {
        tell!(
            "san: SAN_CONFIG names a file that cannot be read: {why}\n     correct its name, or: unset SAN_CONFIG"
        );
    }
    for bad in &settings.bad {
        tell!("san: {bad}");
    }
    Ok(match settings.is_good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn print(out: &mut impl Write, settings: &Settings, allowed: bool) -> io::Result<()> {
    let mut heads = vec!["SETTING", "VALUE", "FROM"];
    if allowed {
        heads.push("ALLOWED");
    }
    let mut table = Table::new(&heads);
    for setting in &settings.in_force {
        let mut row = vec![
            setting.name.to_owned(),
            setting.value.clone(),
            setting.source.to_string(),
        ];
        if allowed {
            row.push(setting.allowed.to_owned());
        }
        table.row(&row);
    }
    table.print(out, output::table_width())
}
