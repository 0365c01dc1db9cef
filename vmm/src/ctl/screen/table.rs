//! Rows under headings. A table that is too wide goes on below, with its first column again: nothing is left out.

use super::{GAP, width_of};

/// To which side the cells of a column go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

/// One column: its heading, and a cell for each row.
#[derive(Clone, Debug)]
pub struct Column {
    head: &'static str,
    align: Align,
    cells: Vec<String>,
}

impl Column {
    /// A column of words.
    pub fn words<T>(head: &'static str, rows: &[T], cell: impl Fn(&T) -> String) -> Column {
        Column { head, align: Align::Left, cells: rows.iter().map(cell).collect() }
    }

    /// A column of numbers.
    pub fn numbers<T>(head: &'static str, rows: &[T], cell: impl Fn(&T) -> String) -> Column {
        Column { head, align: Align::Right, cells: rows.iter().map(cell).collect() }
    }

    fn width(&self) -> usize {
        self.cells.iter().map(|cell| width_of(cell)).max().unwrap_or(0).max(width_of(self.head))
    }

    /// A cell, or the heading for row 0, with its blanks.
    fn padded(&self, row: usize, width: usize) -> String {
        let text = row.checked_sub(1).map_or(self.head, |row| self.cells.get(row).map_or("", String::as_str));
        match self.align {
            Align::Left => format!("{text:<width$}"),
            Align::Right => format!("{text:>width$}"),
        }
    }
}

/// Columns of equal length, of which the first names the rows.
#[derive(Clone, Debug, Default)]
pub struct Table(pub Vec<Column>);

impl Table {
    /// The lines, each with its end.
    pub fn render(&self, width: Option<usize>) -> String {
        let Some((key, others)) = self.0.split_first() else { return String::new() };
        let blocks = blocks(key, others, width.unwrap_or(usize::MAX));
        let blocks: Vec<String> = blocks.iter().map(|block| lines(block)).collect();
        blocks.join("\n")
    }
}

/// Columns side by side as far as there is room for them, the key before each of them.
fn blocks<'a>(key: &'a Column, others: &'a [Column], width: usize) -> Vec<Vec<&'a Column>> {
    let mut blocks = vec![vec![key]];
    let mut used = key.width();
    for column in others {
        let more = GAP.len() + column.width();
        let block = blocks.last_mut().filter(|block| block.len() == 1 || used + more <= width);
        match block {
            Some(block) => {
                block.push(column);
                used += more;
            }
            None => {
                blocks.push(vec![key, column]);
                used = key.width() + more;
            }
        }
    }
    blocks
}

fn lines(columns: &[&Column]) -> String {
    let rows = columns.iter().map(|column| column.cells.len()).max().unwrap_or(0);
    let mut text = String::new();
    for row in 0..=rows {
        let cells: Vec<String> = columns.iter().map(|column| column.padded(row, column.width())).collect();
        text.push_str(cells.join(GAP).trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let rows = [("root", 12, "running"), ("swap", 3, "stopped")];
        Table(vec![
            Column::words("NAME", &rows, |row| row.0.to_owned()),
            Column::numbers("COUNT", &rows, |row| row.1.to_string()),
            Column::words("STATE", &rows, |row| row.2.to_owned()),
            Column::numbers("µs", &rows, |row| row.1.to_string()),
        ])
    }

    #[test]
    fn words_stand_left_and_numbers_right() {
        let wide = "NAME  COUNT  STATE    µs\nroot     12  running  12\nswap      3  stopped   3\n";
        for width in [None, Some(120), Some(24)] {
            assert_eq!(table().render(width), wide);
        }
    }

    #[test]
    fn what_finds_no_room_stands_below_with_the_name_of_its_row() {
        let narrow = "NAME  COUNT  STATE\nroot     12  running\nswap      3  stopped\n\n\
                      NAME  µs\nroot  12\nswap   3\n";
        assert_eq!(table().render(Some(23)), narrow);
        assert_eq!(table().render(Some(1)).matches("NAME").count(), 3, "one column a block is the least");
    }

    #[test]
    fn no_rows_leave_the_headings() {
        assert_eq!(Table(vec![Column::words("NAME", &[] as &[u8], u8::to_string)]).render(None), "NAME\n");
        assert_eq!(Table::default().render(None), "");
    }
}
