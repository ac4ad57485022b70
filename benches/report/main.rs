//! Puts the results of a run together: what `compare` recorded in the guest, what criterion measured
//! natively, and the versions of everything. Writes `report.json`, `report.md` and plots beside it.
//!
//! ```text
//! report --record FILE --criterion DIR --out DIR [--docs FILE] [--version NAME=VALUE]...
//! ```

#![forbid(unsafe_code)]

mod native;
mod plots;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use san_benches::Result;
use san_benches::record::{Record, table};

/// Between these lines of a document the tables are replaced.
const BEGIN: &str = "<!-- measured: begin -->";
const END: &str = "<!-- measured: end -->";

#[derive(Debug, Parser)]
#[command(about = "Writes the report of a bench run")]
struct Args {
    /// What `compare` wrote.
    #[arg(long)]
    record: Option<PathBuf>,
    /// Where criterion left its results.
    #[arg(long)]
    criterion: Option<PathBuf>,
    /// The folder for the report.
    #[arg(long)]
    out: PathBuf,
    /// A document whose tables are replaced by those of this run. Its plots go to `pictures/` beside it.
    #[arg(long)]
    docs: Option<PathBuf>,
    /// A version to note.
    #[arg(long, value_name = "NAME=VALUE")]
    version: Vec<String>,
    /// Something that did not run.
    #[arg(long, value_name = "NAME=WHY")]
    failed: Vec<String>,
}

fn main() -> ExitCode {
    match report(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("report: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything had run.
fn report(args: &Args) -> Result<bool> {
    let mut record = match &args.record {
        Some(path) => read(path)?,
        None => Record::default(),
    };
    for pair in &args.version {
        let (name, value) = split(pair)?;
        record.versions.insert(name.into(), value.into());
    }
    for pair in &args.failed {
        let (name, why) = split(pair)?;
        record.failure(name, why);
    }
    let native = match &args.criterion {
        Some(dir) => native::figures(dir)?,
        None => Vec::new(),
    };
    std::fs::create_dir_all(&args.out)?;
    let plots = plots::draw(&record, &args.out, "")?;
    let tables = tables(&record, &native);
    let mut whole = record.clone();
    whole.figures.extend(native);
    let json = serde_json::to_string_pretty(&whole)? + "\n";
    std::fs::write(args.out.join("report.json"), json)?;
    let mut text = String::from("# San Direct: benches\n\n");
    text.push_str(&tables);
    text.push_str(&plots::pictures(&plots, ""));
    std::fs::write(args.out.join("report.md"), text)?;
    // What is documented is not replaced by less.
    if let Some(docs) = &args.docs
        && whole.failures.is_empty()
    {
        let beside = docs.parent().unwrap_or(Path::new("")).join("pictures");
        let plots = plots::draw(&record, &beside, "bench-")?;
        let pictures = plots::pictures(&plots, "pictures/");
        replace(docs, &format!("{tables}{pictures}"))?;
    }
    Ok(whole.failures.is_empty())
}

fn split(pair: &str) -> Result<(&str, &str)> {
    pair.split_once('=')
        .ok_or_else(|| format!("{pair}: not NAME=VALUE").into())
}

fn read(path: &Path) -> Result<Record> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()).into())
}

fn tables(record: &Record, native: &[san_benches::record::Figure]) -> String {
    let mut text = String::new();
    let versions = record
        .versions
        .iter()
        .map(|(name, value)| vec![name.clone(), value.clone()]);
    text.push_str(&table(&["What", "Version"], versions.collect()));
    text.push('\n');
    text.push_str(&record.tables());
    if !native.is_empty() {
        let natively = Record {
            figures: native.to_vec(),
            ..Record::default()
        };
        let _ = write!(text, "\nNatively, on the host:\n\n{}", natively.tables());
    }
    text
}

/// Puts `tables` between the marks of the document.
fn replace(docs: &Path, tables: &str) -> Result<()> {
    let text = std::fs::read_to_string(docs).map_err(|e| format!("{}: {e}", docs.display()))?;
    let marks = text
        .find(BEGIN)
        .zip(text.find(END))
        .filter(|(begin, end)| begin < end);
    let (begin, end) = marks.ok_or_else(|| format!("{}: no marks", docs.display()))?;
    let (head, tail) = (&text[..begin + BEGIN.len()], &text[end..]);
    std::fs::write(docs, format!("{head}\n\n{tables}\n{tail}"))?;
    Ok(())
}
