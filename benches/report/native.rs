//! What criterion measured: it leaves a folder for each bench, with estimates in nanoseconds.

use std::path::Path;

use san_benches::Result;
use san_benches::record::Figure;
use serde_json::Value;

/// The figures of all benches under `dir`, by name.
pub(crate) fn figures(dir: &Path) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    walk(dir, &mut figures)?;
    figures.sort_by(|a, b| a.key.cmp(&b.key));
    match figures.is_empty() {
        true => Err(format!("{}: criterion left no results", dir.display()).into()),
        false => Ok(figures),
    }
}

fn walk(dir: &Path, figures: &mut Vec<Figure>) -> Result<()> {
    let (estimates, about) = (dir.join("estimates.json"), dir.join("benchmark.json"));
    if estimates.is_file() && about.is_file() {
        // `base` holds the run before this one.
        if dir.ends_with("new") {
            figures.push(figure(&json(&estimates)?, &json(&about)?)?);
        }
        return Ok(());
    }
    for entry in std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, figures)?;
        }
    }
    Ok(())
}

fn figure(estimates: &Value, about: &Value) -> Result<Figure> {
    let name = about["full_id"].as_str().ok_or("a bench without a name")?;
    let median = &estimates["median"]["point_estimate"];
    Ok(Figure {
        key: format!("native.{name}"),
        what: name.into(),
        unit: "ns".into(),
        value: median.as_f64().ok_or("a bench without a median")?,
        spread: None,
    })
}

fn json(path: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}
