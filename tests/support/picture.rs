//! Draws the dashboard from the data of a Prometheus. There is no Grafana in it: the panels, their
//! titles and their queries are those of the dashboard's file, and the drawing is this one's own.

use std::fmt::Write as _;
use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::prometheus::{Panel, Prometheus, panels};

/// Pixels: of the picture's width, of the heights of panels, and of the space between.
const WIDTH: f64 = 1260.0;
const STAT: f64 = 84.0;
const CHART: f64 = 210.0;
const GAP: f64 = 10.0;
/// Seconds between two points of a series that are joined, at most.
const LONGEST_STEP: f64 = 3.0;
/// Series of one panel that are drawn, at most.
const SERIES: usize = 8;
const COLOURS: [&str; SERIES] =
    ["#3274d9", "#37872d", "#e0b400", "#c4162a", "#8f3bb8", "#0f8a8a", "#fa6400", "#7f7f7f"];

/// Something that was broken on purpose.
pub struct Fault {
    pub name: &'static str,
    pub time: Range<Instant>,
}

/// What all panels show: the time up to now, and the faults in it.
struct TimeAxis<'a> {
    span: Duration,
    now: Instant,
    faults: &'a [Fault],
}

impl TimeAxis<'_> {
    /// Returns how far into the picture a moment is, 0 to 1.
    fn share(&self, moment: Instant) -> f64 {
        let ago = self.now.saturating_duration_since(moment).as_secs_f64();
        (1.0 - ago / self.span.as_secs_f64()).clamp(0.0, 1.0)
    }

    /// Returns a fault as a column between two heights, for a chart from `left` to `right`.
    fn column(
        &self,
        number: usize,
        fault: &Fault,
        (left, right): (f64, f64),
        (top, bottom): (f64, f64),
    ) -> String {
        let at = |moment| left + (right - left) * self.share(moment);
        let (begin, end) = (at(fault.time.start), at(fault.time.end));
        format!(
            "<rect x=\"{begin:.0}\" y=\"{top:.0}\" width=\"{:.0}\" height=\"{:.0}\" fill=\"#c4162a\" \
             opacity=\"0.12\"/><text x=\"{:.0}\" y=\"{:.0}\" class=\"fault\">{number}</text>",
            (end - begin).max(2.0),
            bottom - top,
            f64::midpoint(begin, end),
            top + 11.0
        )
    }
}

/// Returns the dashboard as SVG, over the last `span`, with the faults in it.
pub async fn draw(prometheus: &Prometheus, span: Duration, faults: &[Fault]) -> String {
    let axis = TimeAxis { span, now: Instant::now(), faults };
    let (mut body, mut y) = (legend_of(&axis), 2.0 * GAP + 16.0);
    let mut line: Vec<Panel> = Vec::new();
    let mut lines = Vec::new();
    for panel in panels("10s") {
        let is_full = panel.kind == "row"
            || line.len() == 3 && panel.kind == "timeseries"
            || line.first().is_some_and(|first| first.kind != panel.kind);
        if is_full && !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        line.push(panel);
    }
    lines.push(line);
    for line in &lines {
        if line[0].kind == "row" {
            let _ = write!(
                body,
                "<text x=\"{GAP}\" y=\"{}\" class=\"row\">{}</text>",
                y + 16.0,
                line[0].title
            );
            y += 26.0;
            continue;
        }
        let height = if line[0].kind == "stat" { STAT } else { CHART };
        let width = (WIDTH - GAP) / line.len() as f64 - GAP;
        for (number, panel) in line.iter().enumerate() {
            let x = GAP + number as f64 * (width + GAP);
            body += &draw_panel(prometheus, panel, &axis, (x, y, width, height)).await;
        }
        y += height + GAP;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<style>.row{{font-size:16px;font-weight:bold}}\
         .title{{font-weight:bold}}.stat{{font-size:26px}}.axis{{fill:#555;font-size:12px}}\
         .fault{{fill:#c4162a;font-size:11px;text-anchor:middle}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#f4f5f5\"/>\n{body}</svg>\n"
    )
}

/// Returns the line that says what the columns of the charts are.
fn legend_of(axis: &TimeAxis<'_>) -> String {
    let seconds = |moment| axis.share(moment) * axis.span.as_secs_f64();
    let faults = (1..).zip(axis.faults).map(|(number, Fault { name, time })| {
        format!("{number}: {name} from {:.0} to {:.0} s", seconds(time.start), seconds(time.end))
    });
    let text = faults.collect::<Vec<_>>().join(" · ");
    format!(
        "<text x=\"{GAP}\" y=\"{}\"><tspan fill=\"#c4162a\" opacity=\"0.4\">■</tspan> {text}</text>\n",
        GAP + 13.0
    )
}

async fn draw_panel(
    prometheus: &Prometheus,
    panel: &Panel,
    axis: &TimeAxis<'_>,
    (x, y, width, height): (f64, f64, f64, f64),
) -> String {
    let mut drawn = format!(
        "<rect x=\"{x:.0}\" y=\"{y:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" fill=\"#fff\" \
         stroke=\"#d8d9da\"/><text x=\"{:.0}\" y=\"{:.0}\" class=\"title\">{}</text>\n",
        x + 8.0,
        y + 16.0,
        panel.title
    );
    let mut series = Vec::new();
    for (legend, query) in &panel.queries {
        for (labels, points) in prometheus.range(query, axis.span).await {
            let points: Vec<_> =
                points.into_iter().filter(|(_, value)| value.is_finite()).collect();
            if !points.is_empty() {
                series.push((named(legend, &labels), points));
            }
        }
    }
    if panel.kind == "stat" {
        let last = series.first().and_then(|(_, points)| points.last());
        let value = last.map_or("–".to_owned(), |(_, value)| in_unit(*value, &panel.unit));
        let _ = writeln!(
            drawn,
            "<text x=\"{:.0}\" y=\"{:.0}\" class=\"stat\">{value}</text>",
            x + 8.0,
            y + 58.0
        );
        return drawn;
    }
    let most = series.iter().flat_map(|(_, points)| points).map(|(_, value)| *value);
    let most = most.fold(0.0_f64, f64::max);
    let scale = 2.0 * step(most / 2.0, &panel.unit);
    let (left, right, top, bottom) = (x + 72.0, x + width - 12.0, y + 28.0, y + height - 66.0);
    for (number, fault) in (1..).zip(axis.faults) {
        drawn += &axis.column(number, fault, (left, right), (top, bottom));
    }
    for share in [0.0, 0.5, 1.0] {
        let at = bottom - (bottom - top) * share;
        let _ = writeln!(
            drawn,
            "<path d=\"M{left:.0} {at:.0}H{right:.0}\" stroke=\"#e8e8e8\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\" class=\"axis\">{}</text>",
            x + 6.0,
            at + 4.0,
            in_unit(scale * share, &panel.unit)
        );
    }
    let _ = writeln!(
        drawn,
        "<text x=\"{left:.0}\" y=\"{0:.0}\" class=\"axis\">0 s</text><text x=\"{right:.0}\" y=\"{0:.0}\" \
         class=\"axis\" text-anchor=\"end\">{1} s</text>",
        bottom + 15.0,
        axis.span.as_secs()
    );
    let (mut legend_x, mut legend_y) = (x + 8.0, y + height - 24.0);
    for (number, (name, points)) in series.iter().take(SERIES).enumerate() {
        let colour = COLOURS[number];
        let point = |(second, value): &(f64, f64)| {
            let at = left + (right - left) * second / axis.span.as_secs_f64();
            format!("{at:.1},{:.1}", bottom - (bottom - top) * value / scale)
        };
        // Where there are no data, there is no line.
        for points in points.chunk_by(|(one, _), (next, _)| next - one <= LONGEST_STEP) {
            let points: Vec<_> = points.iter().map(point).collect();
            let _ = writeln!(
                drawn,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.3\" points=\"{}\"/>",
                points.join(" ")
            );
        }
        let wide = 22.0 + name.chars().count() as f64 * 7.4;
        if legend_x + wide > x + width && legend_x > x + 8.0 {
            (legend_x, legend_y) = (x + 8.0, legend_y + 15.0);
        }
        // In the last row the last name stands for those for which there is no room.
        let rest = series.len() - number - 1;
        if legend_y + 15.0 >= y + height && legend_x + 2.0 * wide > x + width && rest > 0 {
            let more = format!(
                "<text x=\"{legend_x:.0}\" y=\"{legend_y:.0}\" class=\"axis\">+ {} more</text>",
                rest + 1
            );
            drawn += &more;
            legend_y += height;
        }
        if legend_y < y + height {
            let _ = writeln!(
                drawn,
                "<text x=\"{legend_x:.0}\" y=\"{legend_y:.0}\" class=\"axis\"><tspan fill=\"{colour}\">\
                 ■</tspan> {name}</text>"
            );
        }
        legend_x += wide;
    }
    drawn
}

/// Returns the name of a series: its legend, with its labels filled in.
fn named(legend: &str, labels: &Value) -> String {
    let mut name = legend.to_owned();
    for (label, value) in labels.as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default().trim_start_matches("http://");
        name = name.replace(&format!("{{{{{label}}}}}"), value);
    }
    // A label that the series lacks.
    let name: Vec<_> = name.split(' ').filter(|word| !word.contains("{{")).collect();
    name.join(" ").replace('&', "and").replace('<', "")
}

/// Returns the least step of an axis that is 1, 2 or 5 times a power of ten, and a whole number where things are
/// counted.
fn step(least: f64, unit: &str) -> f64 {
    let base = match unit {
        "bytes" if least >= 1_048_576.0 => 1_048_576.0,
        "bytes" if least >= 1024.0 => 1024.0,
        "percentunit" => 0.01,
        _ => 1.0,
    };
    if least <= 0.0 {
        return base;
    }
    let power = 10_f64.powf((least / base).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power * base);
    let step = steps.into_iter().find(|step| *step >= least).unwrap_or(least);
    if unit == "short" { step.max(1.0) } else { step }
}

fn in_unit(value: f64, unit: &str) -> String {
    let short = |value: f64| {
        let digits = if value >= 100.0 {
            0
        } else if value >= 1.0 {
            1
        } else {
            2
        };
        let text = format!("{value:.digits$}");
        let whole = text.trim_end_matches('0').trim_end_matches('.');
        if digits == 0 { text } else { whole.to_owned() }
    };
    match unit {
        "percentunit" => format!("{} %", short(value * 100.0)),
        "s" if value < 1.0 => format!("{} ms", short(value * 1000.0)),
        "s" => format!("{} s", short(value)),
        "bytes" if value >= 1_048_576.0 => format!("{} MiB", short(value / 1_048_576.0)),
        "bytes" if value >= 1024.0 => format!("{} KiB", short(value / 1024.0)),
        "bytes" => format!("{} B", short(value)),
        "reqps" | "ops" => format!("{}/s", short(value)),
        _ => short(value),
    }
}
