//! A plot of bars on logarithmic scales, as SVG, for light and dark backgrounds.

use std::fmt::Write as _;

use crate::contenders::Kind;
use crate::table::Table;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 180.0;
const RIGHT: f64 = 90.0;
const BAR: f64 = 22.0;
const HEAD: f64 = 34.0;
const FOOT: f64 = 56.0;

const STYLE: &str = "<style>\
    text{font:13px system-ui,sans-serif;fill:#1f2328}\
    .title{font-weight:600;font-size:14px}\
    .small{font-size:12px;fill:#59636e}\
    .ground{fill:#ffffff}.grid{stroke:#d1d9e0}\
    .bar{fill:#8c959f}.ours{fill:#0969da}\
    @media (prefers-color-scheme:dark){\
    text{fill:#f0f6fc}.small{fill:#9198a1}.ground{fill:#0d1117}.grid{stroke:#3d444d}\
    .bar{fill:#6e7681}.ours{fill:#4493f8}}\
    </style>";

/// One value of every contender.
pub struct Panel {
    title: String,
    axis: String,
    bars: Vec<(Kind, f64)>,
}

impl Panel {
    pub fn new(title: &str, axis: &str, table: &Table, column: usize) -> Self {
        let bars = table
            .rows
            .iter()
            .map(|row| (row.kind, table.value(row.kind, column)))
            .filter(|(_, value)| value.is_nan() || *value >= 0.0)
            .collect();
        Self {
            title: title.to_owned(),
            axis: axis.to_owned(),
            bars,
        }
    }

    fn height(&self) -> f64 {
        HEAD + BAR * self.bars.len() as f64 + FOOT
    }

    /// Returns the decades that hold all values, with room for the smallest bar.
    fn scale(&self) -> Scale {
        let values = self.bars.iter().map(|(_, value)| *value);
        let values = values.filter(|value| *value > 0.0);
        let (least, most) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(least, most), value| {
            (least.min(value), most.max(value))
        });
        let low = (least.min(most).log10() - 0.2).floor();
        Scale {
            low,
            high: most.log10().ceil().max(low + 1.0),
        }
    }

    fn draw(&self, svg: &mut String, top: f64) {
        let scale = self.scale();
        let (first, last) = (top + HEAD, top + HEAD + BAR * self.bars.len() as f64);
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        let _ = write!(
            svg,
            r#"<text class="title" x="16" y="{:.0}">{}</text>"#,
            top + 20.0,
            self.title
        );
        for decade in scale.low as i32..=scale.high as i32 {
            let x = scale.x(10_f64.powi(decade));
            let _ = write!(
                svg,
                r#"<line class="grid" x1="{x:.1}" x2="{x:.1}" y1="{first:.0}" y2="{:.0}"/><text class="small" x="{x:.1}" y="{:.0}" text-anchor="middle">{}</text>"#,
                last + 4.0,
                last + 18.0,
                number(10_f64.powi(decade)),
            );
        }
        for (at, (kind, value)) in self.bars.iter().enumerate() {
            draw_bar(svg, &scale, first + BAR * at as f64, *kind, *value);
        }
        let _ = write!(
            svg,
            r#"<text class="small" x="{middle:.0}" y="{:.0}" text-anchor="middle">{} (logarithmic)</text>"#,
            last + 36.0,
            self.axis,
        );
    }
}

struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn x(&self, value: f64) -> f64 {
        let share = (value.log10() - self.low) / (self.high - self.low);
        LEFT + share.max(0.0) * (WIDTH - LEFT - RIGHT)
    }
}

fn draw_bar(svg: &mut String, scale: &Scale, y: f64, kind: Kind, value: f64) {
    let baseline = y + BAR * 0.7;
    let _ = write!(
        svg,
        r#"<text x="{:.0}" y="{baseline:.1}" text-anchor="end">{}</text>"#,
        LEFT - 8.0,
        kind.name(),
    );
    let (end, label) = match value.is_nan() {
        true => (LEFT, "–".to_owned()),
        false => (scale.x(value), number(value)),
    };
    let class = if kind == Kind::Ours { "ours" } else { "bar" };
    let _ = write!(
        svg,
        r#"<rect class="{class}" x="{LEFT}" y="{:.1}" width="{:.1}" height="{:.1}"/><text x="{:.1}" y="{baseline:.1}">{label}</text>"#,
        y + 3.0,
        end - LEFT,
        BAR - 6.0,
        end + 6.0,
    );
}

/// Writes three significant digits, with thin spaces between thousands.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.log10().floor() as i32;
    let step = 10_f64.powi(magnitude - 2);
    let rounded = (value / step).round() * step;
    if magnitude < 2 {
        let decimals = (2 - magnitude).unsigned_abs() as usize;
        let text = format!("{rounded:.decimals$}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{rounded:.0}");
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            grouped.push('\u{2009}');
        }
        grouped.push(digit);
    }
    grouped
}

pub fn svg(panels: &[Panel]) -> String {
    let height: f64 = panels.iter().map(Panel::height).sum();
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">"#
    );
    svg.push_str(STYLE);
    let _ = write!(
        svg,
        r#"<rect class="ground" width="{WIDTH}" height="{height}"/>"#
    );
    let mut top = 0.0;
    for panel in panels {
        panel.draw(&mut svg, top);
        top += panel.height();
    }
    svg.push_str("</svg>\n");
    svg
}
