//! A run as a picture: latency and throughput by size, both axes logarithmic, a line for each carrier.

use super::report::{Carrier, Direction, Run};
use super::units;
use plotters::coord::Shift;
use plotters::prelude::*;

const WIDTH: u32 = 820;
const HEIGHT: u32 = 860;
const SAN: RGBColor = RGBColor(20, 90, 170);
const TCP: RGBColor = RGBColor(200, 90, 20);

/// One line of a chart.
struct Curve {
    name: String,
    color: RGBColor,
    /// Lines from the server are drawn thinner.
    width: u32,
    points: Vec<(f64, f64)>,
}

/// The picture as SVG.
pub(crate) fn draw(run: &Run) -> Result<String, String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE).map_err(|error| error.to_string())?;
        let (upper, lower) = root.split_vertically(HEIGHT / 2);
        let latency = run.carriers.iter().map(latency).collect::<Vec<_>>();
        let title = format!("Round trip to {}, median", run.server);
        chart(&upper, &title, "microseconds", &latency)?;
        let throughput = run.carriers.iter().flat_map(throughput).collect::<Vec<_>>();
        let title = format!("Throughput by {}", units::connections(run.connections));
        chart(&lower, &title, "megabytes (10^6) a second", &throughput)?;
        root.present().map_err(|error| error.to_string())?;
    }
    Ok(svg)
}

fn color(carrier: &Carrier) -> RGBColor {
    match carrier.name.as_str() {
        "san" => SAN,
        _ => TCP,
    }
}

fn latency(carrier: &Carrier) -> Curve {
    let point = |one: &super::report::Latency| (one.size as f64, one.p50_ns as f64 / 1e3);
    Curve {
        name: carrier.name.to_uppercase(),
        color: color(carrier),
        width: 2,
        points: carrier.latency.iter().map(point).collect(),
    }
}

fn throughput(carrier: &Carrier) -> Vec<Curve> {
    let curve = |direction: Direction, width| {
        let mine = carrier.throughput.iter();
        let mine = mine.filter(|one| one.direction == direction);
        let point = |one: &super::report::Throughput| (one.size as f64, one.bytes_per_second / 1e6);
        Curve {
            name: format!("{}, {}", carrier.name.to_uppercase(), direction.word()),
            color: color(carrier),
            width,
            points: mine.map(point).collect(),
        }
    };
    vec![curve(Direction::Up, 2), curve(Direction::Down, 1)]
}

fn chart<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    title: &str,
    unit: &str,
    curves: &[Curve],
) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    // What is not above zero has no place on a logarithmic axis.
    let is_shown = |point: &&(f64, f64)| point.0 > 0.0 && point.1 > 0.0;
    let points = || {
        curves
            .iter()
            .flat_map(|curve| curve.points.iter().filter(is_shown))
    };
    if points().next().is_none() {
        return Ok(());
    }
    let xs = bounds(points().map(|point| point.0));
    let ys = bounds(points().map(|point| point.1));
    let mut sizes: Vec<f64> = points().map(|point| point.0).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(
            (xs.0..xs.1).log_scale().with_key_points(sizes),
            (ys.0..ys.1).log_scale(),
        )
        .map_err(|e| failed(&e))?;
    chart
        .configure_mesh()
        .light_line_style(RGBColor(240, 240, 240))
        .bold_line_style(RGBColor(210, 210, 210))
        .x_desc("bytes a message")
        .y_desc(unit)
        .x_label_formatter(&|size| units::size(*size as usize))
        .y_label_formatter(&|value| match *value {
            10.0.. => format!("{value:.0}"),
            _ => format!("{value:.1}"),
        })
        .draw()
        .map_err(|e| failed(&e))?;
    for curve in curves {
        let style = curve.color.stroke_width(curve.width);
        let points: Vec<_> = curve.points.iter().filter(is_shown).copied().collect();
        let dots = points
            .iter()
            .map(|point| Circle::new(*point, 3, curve.color.filled()))
            .collect::<Vec<_>>();
        chart
            .draw_series([PathElement::new(points, style)])
            .map_err(|e| failed(&e))?
            .label(curve.name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        chart.draw_series(dots).map_err(|e| failed(&e))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(180, 180, 180))
        .label_font(("sans-serif", 14))
        .draw()
        .map_err(|e| failed(&e))?;
    Ok(())
}

/// A range around the values, a little wider on both sides.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (least, most) = values.fold((f64::MAX, 0.0_f64), |(least, most), value| {
        (least.min(value), most.max(value))
    });
    (least / 1.3, most * 1.3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::report::tests::run;

    #[test]
    fn each_carrier_is_a_line_in_each_chart() {
        let svg = draw(&run()).unwrap();
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        for (color, lines) in [("#145AAA", 3), ("#C85A14", 3)] {
            // Of a curve, and of its mark in the legend.
            let stroke = format!("stroke=\"{color}\"");
            let drawn = svg
                .lines()
                .filter(|line| line.starts_with("<polyline") && line.contains(&stroke))
                .count();
            assert_eq!(drawn, 2 * lines, "{color}");
        }
        for word in ["1 MiB", "microseconds", "SAN, up", "TCP, down"] {
            assert!(svg.contains(word), "{word}");
        }
    }

    #[test]
    fn figures_of_nothing_are_left_out() {
        let mut none = run();
        none.carriers.remove(0);
        none.carriers[0].throughput[0].bytes_per_second = 0.0;
        none.carriers[0].latency.clear();
        let svg = draw(&none).unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        none.carriers.clear();
        draw(&none).unwrap();
    }
}
