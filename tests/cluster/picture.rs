//! Draws a dashboard from what Prometheus answers, as SVG: its panels where Grafana has them, their queries, units and
//! columns. No Grafana; whoever has one sees more.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::files::Dashboard;

/// Pixels of one column and one row of Grafana's grid, and between panels.
const CELL: (f64, f64) = (50.0, 34.0);
const GAP: f64 = 6.0;
/// Pixels of a line of text.
const LINE: f64 = 14.0;
/// Colours of series, told apart on a dark ground.
const COLOURS: [&str; 8] = ["#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#f2495c", "#b877d9", "#8ab8ff", "#96d98d"];

/// Who answers queries.
pub trait Answers {
    /// The series of a query at this moment.
    fn now(&self, query: &str) -> Result<Vec<Value>>;
    /// The series of a query over the time that is shown.
    fn over_time(&self, query: &str) -> Result<Vec<Value>>;
}

/// A series: what it is called, its labels, its points by time.
struct Series {
    legend: String,
    labels: BTreeMap<String, String>,
    points: Vec<(f64, f64)>,
}

/// The picture of a dashboard.
pub fn draw(dashboard: &Dashboard, answers: &impl Answers) -> Result<String> {
    let mut body = String::new();
    let mut bottom: f64 = 0.0;
    for panel in dashboard.panels() {
        let place = |key: &str| panel["gridPos"][key].as_f64().context("a panel without a place");
        let (x, y) = (place("x")? * CELL.0, place("y")? * CELL.1 + 40.0);
        let (w, h) = (place("w")? * CELL.0 - GAP, place("h")? * CELL.1 - GAP);
        bottom = bottom.max(y + h);
        writeln!(
            body,
            "<g transform='translate({x},{y})'><rect width='{w}' height='{h}' rx='3' fill='#181b1f' stroke='#2c3235'/>"
        )?;
        text(&mut body, 8.0, 17.0, "t", panel["title"].as_str().unwrap_or_default());
        let inside = match panel["type"].as_str() {
            Some("stat") => stat(panel, answers, w, h),
            Some("bargauge") => bars(panel, answers, w, h),
            Some("table") => table(panel, answers, w, h),
            _ => lines(panel, answers, w, h),
        };
        body.push_str(&inside.with_context(|| format!("panel {}", panel["title"]))?);
        body.push_str("</g>\n");
    }
    let width = 24.0 * CELL.0;
    let title = dashboard.json["title"].as_str().unwrap_or_default();
    let mut head = String::new();
    text(&mut head, 8.0, 26.0, "h", title);
    Ok(format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{0}' viewBox='0 0 {width} {0}' font-family='sans-serif'>\n\
         <style>text{{fill:#ccccdc;font-size:11px}}.t{{font-size:12px;font-weight:bold}}.h{{font-size:18px}}.b{{font-size:30px;fill:#73bf69}}.d{{fill:#8e8e9c}}</style>\n\
         <rect width='{width}' height='{0}' fill='#111217'/>\n{head}{body}</svg>\n",
        bottom + GAP
    ))
}

fn text(to: &mut String, x: f64, y: f64, class: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(to, "<text x='{x:.0}' y='{y:.0}' class='{class}'>{words}</text>").ok();
}

/// The series of all queries of a panel.
fn series(panel: &Value, ask: impl Fn(&str) -> Result<Vec<Value>>) -> Result<Vec<Vec<Series>>> {
    let targets = panel["targets"].as_array().context("a panel without queries")?;
    targets
        .iter()
        .map(|target| {
            let query = crate::files::Query {
                place: String::new(),
                text: target["expr"].as_str().unwrap_or_default().to_owned(),
                legend: target["legendFormat"].as_str().unwrap_or_default().to_owned(),
            };
            Ok(ask(&query.filled_in("30s", "2m"))?.iter().map(|one| read(one, &query.legend)).collect())
        })
        .collect()
}

fn read(one: &Value, legend: &str) -> Series {
    let labels: BTreeMap<String, String> = one["metric"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect();
    let mut called = legend.to_owned();
    for (key, value) in &labels {
        called = called.replace(&format!("{{{{{key}}}}}"), value);
    }
    let point = |pair: &Value| Some((pair[0].as_f64()?, pair[1].as_str()?.parse::<f64>().ok()?));
    let points = match one["values"].as_array() {
        Some(values) => values.iter().filter_map(point).collect(),
        None => point(&one["value"]).into_iter().collect(),
    };
    Series { legend: called, labels, points }
}

fn last(series: &Series) -> Option<f64> {
    series.points.last().map(|(_, value)| *value)
}

fn unit(panel: &Value) -> &str {
    panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or("none")
}

/// A number as a person reads it.
fn number(value: f64, unit: &str) -> String {
    let scaled = |factor: f64, units: &[&str]| {
        let mut units = units.iter();
        let (mut value, mut name) = (value, units.next().copied().unwrap_or_default());
        for next in units {
            if value.abs() < factor {
                break;
            }
            (value, name) = (value / factor, *next);
        }
        format!("{} {name}", short(value))
    };
    match unit {
        "percentunit" => format!("{} %", short(value * 100.0)),
        "bytes" => scaled(1024.0, &["B", "KiB", "MiB", "GiB", "TiB"]),
        "Bps" => scaled(1024.0, &["B/s", "KiB/s", "MiB/s", "GiB/s"]),
        "s" if value.abs() >= 172_800.0 => format!("{} days", short(value / 86_400.0)),
        "s" if value.abs() >= 7200.0 => format!("{} h", short(value / 3600.0)),
        "s" if value.abs() >= 120.0 => format!("{} min", short(value / 60.0)),
        "s" if value.abs() < 1.0 && value != 0.0 => format!("{} ms", short(value * 1000.0)),
        "s" => format!("{} s", short(value)),
        "reqps" | "ops" | "iops" => format!("{}/s", short(value)),
        _ => short(value),
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn stat(panel: &Value, answers: &impl Answers, w: f64, h: f64) -> Result<String> {
    let all = series(panel, |query| answers.now(query))?;
    let value = all.iter().flatten().find_map(last).map_or_else(|| "-".to_owned(), |value| number(value, unit(panel)));
    let mut to = String::new();
    text(&mut to, w / 2.0 - 9.0 * f64::from(u32::try_from(value.chars().count())?), h / 2.0 + 18.0, "b", &value);
    Ok(to)
}

fn bars(panel: &Value, answers: &impl Answers, w: f64, h: f64) -> Result<String> {
    let all = series(panel, |query| answers.now(query))?;
    let rows: Vec<&Series> = all.iter().flatten().collect();
    let largest = rows.iter().filter_map(|series| last(series)).fold(f64::MIN_POSITIVE, f64::max);
    let whole = panel["fieldConfig"]["defaults"]["max"].as_f64().unwrap_or(largest);
    let mut to = String::new();
    for (row, series) in (0_u32..).zip(rows.iter().take(12)) {
        let (y, value) = (34.0 + f64::from(row) * 24.0, last(series).unwrap_or_default());
        if y + 18.0 > h {
            break;
        }
        let length = (value / whole).clamp(0.0, 1.0) * (w - 270.0);
        text(&mut to, 8.0, y + 12.0, "", &series.legend);
        writeln!(
            to,
            "<rect x='170' y='{y}' width='{:.0}' height='16' fill='#22252b'/><rect x='170' y='{y}' width='{length:.0}' height='16' fill='{}'/>",
            w - 270.0,
            COLOURS[0]
        )?;
        text(&mut to, w - 90.0, y + 12.0, "", &number(value, unit(panel)));
    }
    if rows.is_empty() {
        text(&mut to, 8.0, 46.0, "d", panel["fieldConfig"]["defaults"]["noValue"].as_str().unwrap_or("no data"));
    }
    Ok(to)
}

/// Rows by labels, with a column for each query, called as the panel's own transformations say.
fn table(panel: &Value, answers: &impl Answers, w: f64, h: f64) -> Result<String> {
    let all = series(panel, |query| answers.now(query))?;
    let organize = panel["transformations"].as_array().into_iter().flatten().find(|one| one["id"] == "organize");
    let options = organize.map(|one| one["options"].clone()).unwrap_or_default();
    let hidden = |name: &str| options["excludeByName"][name] == true || name == "__name__";
    let called = |name: &str| options["renameByName"][name].as_str().unwrap_or(name).to_owned();
    let overridden = |name: &str| {
        let all = panel["fieldConfig"]["overrides"].as_array().into_iter().flatten();
        let fitting = all
            .filter(|one| one["matcher"]["options"].as_str().is_some_and(|is| is.split('|').any(|part| part == name)));
        let units = fitting
            .flat_map(|one| one["properties"].as_array().cloned().unwrap_or_default())
            .find(|one| one["id"] == "unit");
        units.and_then(|one| one["value"].as_str().map(str::to_owned)).unwrap_or_else(|| unit(panel).to_owned())
    };
    let mut rows: BTreeMap<BTreeMap<String, String>, BTreeMap<usize, f64>> = BTreeMap::new();
    for (column, series) in all.iter().enumerate() {
        for one in series {
            let labels =
                one.labels.iter().filter(|(name, _)| !hidden(name)).map(|(k, v)| (k.clone(), v.clone())).collect();
            rows.entry(labels).or_default().extend(last(one).map(|value| (column, value)));
        }
    }
    let names: BTreeSet<&String> = rows.keys().flat_map(BTreeMap::keys).collect();
    // Grafana calls the only query's column so, and several by their letters.
    let letters = (b'A'..=b'Z').map(|letter| match all.len() {
        1 => "Value".to_owned(),
        _ => format!("Value #{}", char::from(letter)),
    });
    let values: Vec<(usize, String)> =
        (0..all.len()).zip(letters).filter(|(_, name)| !hidden(name)).map(|(n, name)| (n, called(&name))).collect();
    let width = (w - 16.0) / f64::from(u32::try_from((names.len() + values.len()).max(1))?);
    let fits = |words: &str| words.chars().take((width / 6.2).floor() as usize).collect::<String>();
    let mut to = String::new();
    let heads = names.iter().map(|name| called(name)).chain(values.iter().map(|(_, name)| name.clone()));
    for (column, head) in (0_u32..).zip(heads) {
        text(&mut to, 8.0 + width * f64::from(column), 38.0, "t", &fits(&head));
    }
    for (row, (labels, figures)) in (0_u32..).zip(&rows) {
        let y = 58.0 + f64::from(row) * 18.0;
        if y > h - 4.0 {
            break;
        }
        let words = names.iter().map(|name| labels.get(*name).cloned().unwrap_or_default());
        let figures = values
            .iter()
            .map(|(n, name)| figures.get(n).map_or_else(String::new, |value| number(*value, &overridden(name))));
        for (column, cell) in (0_u32..).zip(words.chain(figures)) {
            text(&mut to, 8.0 + width * f64::from(column), y, "", &fits(&cell));
        }
    }
    Ok(to)
}

fn lines(panel: &Value, answers: &impl Answers, w: f64, h: f64) -> Result<String> {
    let all: Vec<Series> = series(panel, |query| answers.over_time(query))?.into_iter().flatten().collect();
    let shown = all.len().min(4);
    let (left, top, bottom) = (58.0, 30.0, h - 12.0 - LINE * f64::from(u32::try_from(shown)?));
    let points = || all.iter().flat_map(|one| &one.points);
    let (from, to) = points().fold((f64::MAX, f64::MIN), |(low, high), (at, _)| (low.min(*at), high.max(*at)));
    let high = points().fold(f64::MIN_POSITIVE, |high, (_, value)| high.max(*value));
    let high = panel["fieldConfig"]["defaults"]["max"].as_f64().unwrap_or(high * 1.1);
    let mut drawn = String::new();
    for part in [0.0, 0.5, 1.0] {
        let y = bottom - (bottom - top) * part;
        writeln!(drawn, "<line x1='{left}' x2='{:.0}' y1='{y:.0}' y2='{y:.0}' stroke='#2c3235'/>", w - 8.0)?;
        text(&mut drawn, 4.0, y + 4.0, "d", &number(high * part, unit(panel)));
    }
    for (one, colour) in all.iter().zip(COLOURS.iter().cycle()) {
        let place = |(at, value): &(f64, f64)| {
            let x = left + (at - from) / (to - from).max(1.0) * (w - left - 8.0);
            format!("{x:.1},{:.1}", bottom - (value / high).clamp(0.0, 1.0) * (bottom - top))
        };
        let path: Vec<String> = one.points.iter().map(place).collect();
        writeln!(drawn, "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='1.5'/>", path.join(" "))?;
    }
    for ((row, one), colour) in (0_u32..).zip(all.iter().take(shown)).zip(COLOURS) {
        let y = bottom + 12.0 + LINE * f64::from(row);
        writeln!(drawn, "<rect x='10' y='{:.0}' width='10' height='3' fill='{colour}'/>", y - 4.0)?;
        let more = if row == 3 && all.len() > 4 { format!("  … and {} more", all.len() - 4) } else { String::new() };
        let value = last(one).map(|value| number(value, unit(panel))).unwrap_or_default();
        text(&mut drawn, 26.0, y, "", &format!("{}   {value}{more}", one.legend));
    }
    if all.is_empty() {
        text(&mut drawn, left + 8.0, top + 20.0, "d", "no data");
    }
    Ok(drawn)
}
