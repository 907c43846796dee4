//! A report as an SVG document: panels one below the other, over one axis of time.
//!
//! The library is plotters without its fonts and bitmaps: two small crates besides its own, which the benches have anyhow. Its file needs
//! nothing but itself: text is left to the reader's own fonts, colours follow its light or dark system ([`theme`](super::theme)).

use std::fmt::Display;
use std::ops::Range;

use plotters::backend::SVGBackend;
use plotters::chart::ChartBuilder;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{DashedPathElement, PathElement, Rectangle};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, FontTransform, IntoFont, TextStyle};

use super::axes::{Axis, moment};
use super::panels::{Mark, Panel, panels, range};
use super::theme::{Role, style};
use crate::control::model::GroupReport;
use crate::error::{Error, ErrorKind, Result};

const WIDTH: u32 = 1000;
const HEADER: u32 = 58;
const PANEL: u32 = 236;
const FOOTER: u32 = 26;
/// Between the edge and everything.
const MARGIN: i32 = 18;
/// Left of the data, for labels.
const LABELS: u32 = 76;
/// Above the data of a panel: title and legend.
const HEAD: u32 = 54;
/// Below the data of a panel: times.
const TIMES: u32 = 24;
/// How wide a character of a legend is about; no font is asked.
const CHARACTER: i32 = 7;
const FONT: &str = "system-ui, sans-serif";

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The document.
pub fn svg(report: &GroupReport) -> Result<String> {
    let panels = panels(report);
    let height = HEADER + PANEL * u32::try_from(panels.len()).unwrap_or(0) + FOOTER;
    let mut drawn = String::new();
    {
        let root = SVGBackend::with_string(&mut drawn, (WIDTH, height)).into_drawing_area();
        root.fill(&Role::Surface.color()).map_err(failed)?;
        let (header, below) = root.split_vertically(HEADER);
        head(&header, report)?;
        for (panel, area) in panels.iter().zip(below.split_evenly_by(PANEL, panels.len())) {
            draw(&area, panel, range(report))?;
        }
        root.present().map_err(failed)?;
    }
    Ok(with_style(&drawn, &format!("Report of {}", report.group)))
}

/// Rows of the same height.
trait Rows: Sized {
    fn split_evenly_by(&self, height: u32, count: usize) -> Vec<Self>;
}

impl Rows for Canvas<'_> {
    fn split_evenly_by(&self, height: u32, count: usize) -> Vec<Self> {
        let mut left = self.clone();
        let mut rows = Vec::with_capacity(count);
        for _ in 0..count {
            let (row, below) = left.split_vertically(height);
            rows.push(row);
            left = below;
        }
        rows
    }
}

/// What draws into memory fails for our own mistakes only; no plot is worth the process for that.
fn failed(error: impl Display) -> Error {
    Error::new(ErrorKind::Io, format!("drawing the plot: {error}"))
}

/// A title for those who read it aloud, and the style sheet, at the beginning of the document.
fn with_style(drawn: &str, title: &str) -> String {
    let (tag, rest) = drawn.split_once('\n').unwrap_or((drawn, ""));
    let tag = tag.replacen("<svg ", "<svg role=\"img\" ", 1);
    format!("{tag}\n<title>{title}</title>\n{}{rest}", style())
}

/// The library writes font sizes a little smaller.
fn text(size: f64, role: Role, bold: bool, across: HPos) -> TextStyle<'static> {
    let weight = if bold { FontStyle::Bold } else { FontStyle::Normal };
    let font = (FONT, size * 1.24, weight).into_font();
    let color = role.color().to_backend_color();
    TextStyle { font, color, pos: Pos::new(across, VPos::Center) }
}

fn head(area: &Canvas<'_>, report: &GroupReport) -> Result<()> {
    let time = |time: crate::units::WallNanos| {
        let time = jiff::Timestamp::from_nanosecond(i128::from(time.0)).unwrap_or_default();
        time.strftime("%Y-%m-%d %H:%M").to_string()
    };
    let title = format!("{}: churn, points, history, space", report.group);
    area.draw_text(&title, &text(19.0, Role::Ink, true, HPos::Left), (MARGIN, 24)).map_err(failed)?;
    let policy = report.retain.as_ref().map_or(String::new(), |retain| format!("; kept are {retain}"));
    let period = format!("{} to {}, UTC{policy}", time(report.from), time(report.to));
    area.draw_text(&period, &text(12.0, Role::Muted, false, HPos::Left), (MARGIN, 46)).map_err(failed)
}

fn draw(area: &Canvas<'_>, panel: &Panel, (from, to): (i64, i64)) -> Result<()> {
    let right = i32::try_from(WIDTH).unwrap_or(0) - MARGIN;
    area.draw_text(&panel.title, &text(15.0, Role::Ink, true, HPos::Left), (MARGIN, 16)).map_err(failed)?;
    area.draw_text(&panel.note, &text(12.0, Role::Muted, false, HPos::Right), (right, 16)).map_err(failed)?;
    legend(area, panel, right)?;
    let unit = text(11.0, Role::Muted, false, HPos::Center).transform(FontTransform::Rotate270);
    let middle = i32::try_from((HEAD + PANEL - TIMES) / 2).unwrap_or(0);
    area.draw_text(&panel.unit, &unit, (MARGIN, middle)).map_err(failed)?;
    let mut chart = ChartBuilder::on(area)
        .margin_top(HEAD)
        .margin_left(MARGIN)
        .margin_right(MARGIN)
        .x_label_area_size(TIMES)
        .y_label_area_size(LABELS)
        .build_cartesian_2d(Axis::times(from, to), panel.axis.clone())
        .map_err(failed)?;
    chart
        .configure_mesh()
        .bold_line_style(Role::Grid.color())
        .axis_style(Role::Axis.color())
        .label_style(text(11.0, Role::Muted, false, HPos::Center))
        .draw()
        .map_err(failed)?;
    for mark in &panel.marks {
        let drawn = match mark {
            Mark::Area { time, value, role } => {
                let corners = [(moment(time.0), value.1), (moment(time.1), value.0)];
                chart.draw_series([Rectangle::new(corners, role.color().filled())]).map(drop)
            }
            Mark::Line { points, role, dashed: false } => {
                let line = role.color().stroke_width(2);
                chart.draw_series([PathElement::new(path(points), line)]).map(drop)
            }
            Mark::Line { points, role, dashed: true } => {
                let line = role.color().stroke_width(1);
                chart.draw_series([DashedPathElement::new(path(points), 6, 4, line)]).map(drop)
            }
        };
        drawn.map_err(failed)?;
    }
    Ok(())
}

fn path(points: &[(i64, f64)]) -> Vec<(f64, f64)> {
    points.iter().map(|(time, value)| (moment(*time), *value)).collect()
}

/// The library's axes choose their own ticks; ours have them.
impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    #[allow(clippy::cast_possible_truncation)]
    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let part = (value - self.low) / (self.high - self.low);
        first + (f64::from(last - first) * part).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.ticks.iter().map(|(value, _)| *value).collect(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let tick = self.ticks.iter().find(|(tick, _)| tick.to_bits() == value.to_bits());
        tick.map_or(String::new(), |(_, label)| label.clone())
    }
}

/// What the colours mean, in one row; names that find no place in it are left out, the last ones first.
fn legend(area: &Canvas<'_>, panel: &Panel, right: i32) -> Result<()> {
    let mut x = MARGIN;
    for (role, name) in &panel.legend {
        let wide = 16 + CHARACTER * i32::try_from(name.chars().count()).unwrap_or(0);
        if x + wide > right {
            let more = text(11.0, Role::Muted, false, HPos::Left);
            return area.draw_text("…", &more, (x, 36)).map_err(failed);
        }
        let square = Rectangle::new([(x, 31), (x + 10, 41)], role.color().filled());
        area.draw(&square).map_err(failed)?;
        let style = text(11.0, Role::Muted, false, HPos::Left);
        area.draw_text(name, &style, (x + 15, 36)).map_err(failed)?;
        x += wide + 12;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::panels::tests::sample;
    use super::*;

    #[test]
    fn a_plot_is_one_document_with_a_title_four_panels_and_colours_for_the_dark() {
        let drawn = svg(&sample()).expect("drawn");
        for part in ["<title>Report of erp</title>", "prefers-color-scheme: dark", "Churn", "Recovery points"]
        {
            assert!(drawn.contains(part), "{part}: {drawn}");
        }
        assert!(drawn.starts_with("<svg ") && drawn.trim_end().ends_with("</svg>"));
        let other_files = ["href", "url(", "@import", "<script"];
        assert!(other_files.iter().all(|word| !drawn.contains(word)), "it needs nothing but itself");
    }

    #[test]
    fn names_of_any_length_have_a_place() {
        let mut report = sample();
        let long = "disk-".repeat(40);
        report.totals.disks.iter_mut().for_each(|disk| disk.disk.clone_from(&long));
        let drawn = svg(&report).expect("drawn");
        assert!(!drawn.contains(&long) && drawn.contains("disk-disk-disk-disk-disk…"));
    }

    #[test]
    fn a_report_of_nothing_can_be_drawn_too() {
        let mut report = sample();
        report.spans.clear();
        report.points.clear();
        report.retain_ms = None;
        assert!(svg(&report).is_ok());
    }
}
