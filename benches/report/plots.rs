//! Bars of what belongs together.

use std::path::Path;

use plotters::prelude::*;
use san_benches::Result;
use san_benches::record::{Record, number};

/// A plot that was drawn.
pub(crate) struct Plot {
    file: String,
    title: &'static str,
}

/// Name of the file, title, unit, and which figures: beginning of the key.
const PLOTS: [(&str, &str, &str, &str); 7] = [
    (
        "message-64",
        "A message of 64 B, one way",
        "us",
        "message.64.",
    ),
    (
        "message-4096",
        "A message of 4 KiB, one way",
        "us",
        "message.4096.",
    ),
    ("connect", "Connect", "us", "connect."),
    (
        "rate",
        "Connects per second, one after the other",
        "1/s",
        "rate.",
    ),
    ("refusal", "Refusal", "us", "refusal."),
    (
        "bulk-4096",
        "Bulk by writes of 4 KiB",
        "MiB/s",
        "bulk.4096.",
    ),
    (
        "bulk-65536",
        "Bulk by writes of 64 KiB",
        "MiB/s",
        "bulk.65536.",
    ),
];

const BAR: RGBColor = RGBColor(70, 110, 160);

/// The pictures of these, for a document beside `folder`, which is where they are.
pub(crate) fn pictures(plots: &[Plot], folder: &str) -> String {
    let one = |plot: &Plot| format!("\n![{}]({folder}{})\n", plot.title, plot.file);
    plots.iter().map(one).collect()
}

/// Draws what there are figures for: one file for each plot, whose name begins with `begin`.
pub(crate) fn draw(record: &Record, out: &Path, begin: &str) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    for (name, title, unit, prefix) in PLOTS {
        let figures = record.figures.iter().filter(|f| f.key.starts_with(prefix));
        let bars: Vec<(String, f64)> = figures
            .map(|f| (f.key[prefix.len()..].to_owned(), f.value))
            .collect();
        if bars.is_empty() {
            continue;
        }
        let file = format!("{begin}{name}.svg");
        bar_chart(&out.join(&file), title, unit, &bars).map_err(|e| format!("{file}: {e}"))?;
        plots.push(Plot { file, title });
    }
    Ok(plots)
}

fn bar_chart(path: &Path, title: &str, unit: &str, bars: &[(String, f64)]) -> Result<()> {
    let rows = i32::try_from(bars.len())?;
    let most = bars.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let height = 90 + 28 * u32::try_from(rows)?;
    let root = SVGBackend::new(path, (760, height)).into_drawing_area();
    let failed = |e: &dyn std::fmt::Display| e.to_string();
    let better = match unit {
        "us" => "less is better",
        _ => "more is better",
    };
    root.fill(&WHITE).map_err(|e| failed(&e))?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(170)
        .build_cartesian_2d(0.0..most * 1.15, (0..rows - 1).into_segmented())
        .map_err(|e| failed(&e))?;
    // The first bar is to be on top, and rows are counted from below.
    let row = |n: i32| &bars[usize::try_from(rows - 1 - n).unwrap_or_default()];
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(bars.len())
        .x_desc(format!("{unit}, {better}"))
        .y_label_formatter(&|segment| match segment {
            SegmentValue::Exact(n) | SegmentValue::CenterOf(n) if (0..rows).contains(n) => {
                row(*n).0.clone()
            }
            _ => String::new(),
        })
        .draw()
        .map_err(|e| failed(&e))?;
    let shapes = (0..rows).map(|n| {
        let corners = [
            (0.0, SegmentValue::Exact(n)),
            (row(n).1, SegmentValue::Exact(n + 1)),
        ];
        let mut bar = Rectangle::new(corners, BAR.filled());
        bar.set_margin(3, 3, 0, 0);
        bar
    });
    chart.draw_series(shapes).map_err(|e| failed(&e))?;
    let labels = (0..rows).map(|n| {
        let at = (row(n).1 + most * 0.01, SegmentValue::CenterOf(n));
        Text::new(number(row(n).1), at, ("sans-serif", 13))
    });
    chart.draw_series(labels).map_err(|e| failed(&e))?;
    root.present().map_err(|e| failed(&e))?;
    Ok(())
}
