//! Draws terminals as SVG, still or moving, from what they really showed.

use std::fmt::Write as _;
use std::time::Duration;

use super::terminal::{Character, CharacterStyle};

/// Pixels: of a character, of a line, and around and between the terminals.
const CHARACTER: f64 = 8.0;
const LINE: f64 = 18.0;
const EDGE: f64 = 16.0;
/// The height of a terminal's title.
const TITLE: f64 = 30.0;
/// How long the last picture of a moving one stays.
const REST: f64 = 4.0;

const STYLE: &str = "\
svg{--ground:#fff;--bar:#f0f2f5;--edge:#d0d7de;--text:#1f2328;--red:#cf222e;--yellow:#8a5d00;\
--green:#1a7f37;--cyan:#0b7a8f}\
@media (prefers-color-scheme:dark){svg{--ground:#0d1117;--bar:#161b22;--edge:#30363d;--text:#e6edf3;\
--red:#ff7b72;--yellow:#d29922;--green:#3fb950;--cyan:#39c5cf}}\
text{font:13px ui-monospace,SFMono-Regular,Menlo,'DejaVu Sans Mono',Consolas,monospace;\
fill:var(--text);white-space:pre}\
.ground{fill:var(--ground);stroke:var(--edge)}.bar{fill:var(--bar);stroke:var(--edge)}\
.bold{font-weight:600}.dim{opacity:.6}.title{font-family:system-ui,sans-serif;opacity:.7}\
.c1{fill:var(--red)}.c2{fill:var(--green)}.c3{fill:var(--yellow)}.c6{fill:var(--cyan)}";

/// The pictures of one terminal over a time.
pub struct Film {
    pub title: String,
    pub columns: usize,
    pub lines: usize,
    /// Pictures with the time of each since the beginning.
    pub pictures: Vec<(Duration, Vec<Vec<Character>>)>,
}

/// Returns one picture of a terminal.
pub fn still(title: &str, rows: &[Vec<Character>], description: &str) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let mut body = window(title, 0.0, columns, rows.len());
    for (line, row) in rows.iter().enumerate() {
        body += &draw_row(row, EDGE / 2.0, baseline(0.0, line));
    }
    let (width, height) = (width(columns), height(rows.len()));
    document(width, height, "", description, &body)
}

/// Returns the pictures of terminals, one below the other, as they followed each other. Where the reader
/// wants no motion, the last ones stay.
pub fn moving(films: &[Film], description: &str) -> String {
    let ends = films.iter().filter_map(|film| film.pictures.last()).map(|(at, _)| at.as_secs_f64());
    let length = ends.fold(0.0, f64::max) + REST;
    let (mut body, mut rules, mut top) = (String::new(), String::new(), 0.0);
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for film in films {
        body += &window(&film.title, top, film.columns, film.lines);
        for line in 0..film.lines {
            for (row, from, to) in versions(film, line, length) {
                if row.iter().all(|cell| cell.character == ' ') {
                    continue;
                }
                let drawn = draw_row(&row, EDGE / 2.0, baseline(top, line));
                let span = (per_mille(from, length), per_mille(to, length));
                if span == (0, 100_000) {
                    body += &drawn;
                    continue;
                }
                let number = spans.iter().position(|known| *known == span).unwrap_or_else(|| {
                    spans.push(span);
                    spans.len() - 1
                });
                let last = if span.1 == 100_000 { " last" } else { "" };
                let _ = writeln!(body, "<g class=\"m m{number}{last}\">{drawn}</g>");
            }
        }
        top += height(film.lines) + EDGE / 2.0;
    }
    for (number, (from, to)) in spans.iter().enumerate() {
        let at = |share: u64| share as f64 / 1_000.0;
        let mut steps = String::new();
        if *from > 0 {
            steps += "0%{visibility:hidden}";
        }
        let _ = write!(steps, "{}%{{visibility:visible}}", at(*from));
        if *to < 100_000 {
            let _ = write!(steps, "{}%{{visibility:hidden}}", at(*to));
        }
        let _ = writeln!(
            rules,
            ".m{number}{{animation-name:m{number}}}@keyframes m{number}{{{steps}}}"
        );
    }
    let style = format!(
        ".m{{visibility:hidden;animation:{length:.2}s step-end infinite}}\n{rules}\
         @media (prefers-reduced-motion:reduce){{.m{{animation:none!important}}.last{{visibility:visible}}}}"
    );
    let widest = films.iter().map(|film| film.columns).max().unwrap_or_default();
    document(width(widest), top - EDGE / 2.0, &style, description, &body)
}

/// Returns what a line showed, with the seconds from which and until which it did.
fn versions(film: &Film, line: usize, length: f64) -> Vec<(Vec<Character>, f64, f64)> {
    let mut versions: Vec<(Vec<Character>, f64, f64)> = Vec::new();
    for (at, rows) in &film.pictures {
        let row = rows.get(line).cloned().unwrap_or_default();
        let at = if versions.is_empty() { 0.0 } else { at.as_secs_f64() };
        match versions.last_mut() {
            Some((last, ..)) if *last == row => {}
            Some((_, _, end)) => {
                *end = at;
                versions.push((row, at, length));
            }
            None => versions.push((row, at, length)),
        }
    }
    versions
}

/// Returns a time as a share of the whole, in thousandths of a percent.
fn per_mille(at: f64, length: f64) -> u64 {
    (at / length * 100_000.0).round() as u64
}

fn width(columns: usize) -> f64 {
    columns as f64 * CHARACTER + EDGE
}

fn height(lines: usize) -> f64 {
    TITLE + lines as f64 * LINE + EDGE
}

fn baseline(top: f64, line: usize) -> f64 {
    top + TITLE + EDGE / 2.0 + line as f64 * LINE + 13.0
}

fn document(width: f64, height: f64, style: &str, description: &str, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"-1 -1 {:.0} {:.0}\" role=\"img\">\n\
         <title>{}</title>\n<style>{STYLE}\n{style}</style>\n{body}</svg>\n",
        width + 2.0,
        height + 2.0,
        escaped(description)
    )
}

/// Returns the window of a terminal.
fn window(title: &str, top: f64, columns: usize, lines: usize) -> String {
    let (width, height) = (width(columns), height(lines));
    format!(
        "<rect y=\"{top:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" rx=\"8\" class=\"ground\"/>\
         <path d=\"M0 {:.0}v-{:.0}a8 8 0 0 1 8-8h{:.0}a8 8 0 0 1 8 8v{:.0}z\" class=\"bar\"/>\
         <text x=\"{:.0}\" y=\"{:.0}\" class=\"title\">{}</text>\n",
        top + TITLE,
        TITLE - 8.0,
        width - 16.0,
        TITLE - 8.0,
        EDGE,
        top + 20.0,
        escaped(title)
    )
}

/// Draws the characters of a row in runs of one look, each at its place whatever the font's width is.
fn draw_row(row: &[Character], left: f64, y: f64) -> String {
    let mut drawn = String::new();
    let mut at = 0;
    while at < row.len() {
        let look = row[at].look;
        let end = row[at..].iter().position(|cell| cell.look != look).map_or(row.len(), |n| at + n);
        let text: String = row[at..end].iter().map(|cell| cell.character).collect();
        let text_end = text.trim_end().chars().count();
        let skipped = text.chars().take_while(|character| *character == ' ').count();
        if text_end > skipped {
            let text: String = text.chars().take(text_end).skip(skipped).collect();
            let _ = write!(
                drawn,
                "<text x=\"{:.0}\" y=\"{y:.0}\" textLength=\"{:.0}\"{}>{}</text>",
                left + (at + skipped) as f64 * CHARACTER,
                (text_end - skipped) as f64 * CHARACTER,
                classes(look),
                escaped(&text)
            );
        }
        at = end;
    }
    drawn + "\n"
}

fn classes(look: CharacterStyle) -> String {
    let mut classes = Vec::new();
    if look.is_bold {
        classes.push("bold".to_owned());
    }
    if look.is_dim {
        classes.push("dim".to_owned());
    }
    if let Some(colour) = look.colour {
        classes.push(format!("c{}", colour % 8));
    }
    if classes.is_empty() { String::new() } else { format!(" class=\"{}\"", classes.join(" ")) }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
