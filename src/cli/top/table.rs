//! Tables that fit a width: columns that matter less are left out first.

use ratatui_core::style::{Color, Modifier, Style};
use ratatui_core::text::{Line, Span};

/// Blanks between two columns.
const GAP: usize = 2;
/// The width of the last column below which others are left out for it.
const LAST: usize = 10;

/// A column.
pub(super) struct Column {
    title: &'static str,
    is_right: bool,
    /// 0: always shown. Of the others, the largest is left out first.
    rank: u8,
}

impl Column {
    /// Creates a column of texts that is always shown.
    pub(super) const fn text(title: &'static str) -> Self {
        Self { title, is_right: false, rank: 0 }
    }

    /// Creates a column of numbers that is always shown.
    pub(super) const fn number(title: &'static str) -> Self {
        Self { title, is_right: true, rank: 0 }
    }

    /// Leaves the column out where there is no room, the larger the rank, the earlier.
    pub(super) const fn rank(mut self, rank: u8) -> Self {
        self.rank = rank;
        self
    }
}

/// A cell: some spans in one line.
pub(super) type Cell = Vec<Span<'static>>;

/// Returns a cell of one text.
pub(super) fn cell(text: impl Into<String>) -> Cell {
    vec![Span::raw(text.into())]
}

/// Returns a cell of one coloured text.
pub(super) fn coloured(text: impl Into<String>, colour: Color) -> Cell {
    vec![Span::styled(text.into(), Style::new().fg(colour))]
}

/// Returns the style of what matters less.
pub(super) fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

/// Returns the style of what matters most.
pub(super) fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

/// Returns the line that counts rows without room.
pub(super) fn more(rows: usize) -> Line<'static> {
    Line::styled(format!("and {rows} more"), dim())
}

/// Returns the head and the rows as lines of at most this width. The last column that is shown takes what
/// is left, and is cut.
pub(super) fn lines(columns: &[Column], rows: Vec<Vec<Cell>>, width: usize) -> Vec<Line<'static>> {
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let cells = rows.iter().map(|row| cell_width(&row[at]));
            cells.chain([column.title.chars().count()]).max().unwrap_or_default()
        })
        .collect();
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    loop {
        let last = shown.last().copied();
        let needed = |at: usize| if Some(at) == last { widths[at].min(LAST) } else { widths[at] };
        let taken: usize = shown.iter().map(|at| needed(*at) + GAP).sum();
        let least_needed = shown.iter().copied().max_by_key(|at| columns[*at].rank);
        match least_needed {
            Some(at) if taken.saturating_sub(GAP) > width && columns[at].rank > 0 => {
                shown.retain(|other| *other != at);
            }
            _ => break,
        }
    }
    let place = |cells: Vec<Cell>| {
        let mut line = Line::default();
        for ((place, at), cell) in shown.iter().enumerate().zip(cells) {
            let is_last = place + 1 == shown.len();
            let blanks = widths[*at].saturating_sub(cell_width(&cell));
            let (before, after) = if columns[*at].is_right { (blanks, 0) } else { (0, blanks) };
            line.push_span(Span::raw(" ".repeat(before)));
            line.spans.extend(cell);
            line.push_span(Span::raw(" ".repeat(if is_last { 0 } else { after + GAP })));
        }
        cut(line, width)
    };
    let heads = shown.iter().map(|at| {
        let style = if *at == 0 { bold() } else { dim() };
        vec![Span::styled(columns[*at].title, style)]
    });
    let mut lines = vec![place(heads.collect())];
    for row in rows {
        let mut row: Vec<Option<Cell>> = row.into_iter().map(Some).collect();
        let cells = shown.iter().map(|at| row[*at].take().unwrap_or_default());
        lines.push(place(cells.collect()));
    }
    lines
}

fn cell_width(cell: &[Span]) -> usize {
    cell.iter().map(Span::width).sum()
}

/// Cuts a line that is wider.
pub(super) fn cut(line: Line<'static>, width: usize) -> Line<'static> {
    if line.width() <= width {
        return line;
    }
    if width == 0 {
        return Line::default();
    }
    let mut left = width.saturating_sub(1);
    let mut short = Line { spans: Vec::new(), ..line };
    for span in line.spans {
        let mut text = String::new();
        for character in span.content.chars() {
            let next = Span::raw(character.to_string()).width();
            if next > left {
                left = 0;
                break;
            }
            left -= next;
            text.push(character);
        }
        short.spans.push(Span::styled(text, span.style));
        if left == 0 {
            break;
        }
    }
    short.push_span(Span::raw("\u{2026}"));
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(width: usize) -> Vec<String> {
        let columns = [
            Column::text("NAME"),
            Column::number("N"),
            Column::text("MORE").rank(2),
            Column::text("END"),
        ];
        let row = |texts: [&str; 4]| texts.into_iter().map(cell).collect::<Vec<_>>();
        let rows = vec![row(["a", "10", "more", "the end"]), row(["bcd", "9", "m", "e"])];
        lines(&columns, rows, width).iter().map(Line::to_string).collect()
    }

    #[test]
    fn columns_are_as_wide_as_their_largest_cell_and_numbers_end_at_the_right() {
        let wide = table(40);
        assert_eq!(wide[0], "NAME   N  MORE  END");
        assert_eq!(wide[1], "a     10  more  the end");
        assert_eq!(wide[2], "bcd    9  m     e");
    }

    #[test]
    fn a_narrow_table_leaves_out_what_matters_less_and_then_cuts_its_end() {
        assert_eq!(table(17)[1], "a     10  the end");
        assert_eq!(table(14)[1], "a     10  the\u{2026}");
    }
}
