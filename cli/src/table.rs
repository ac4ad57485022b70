//! Tables for people: columns as wide as what is in them, or, where the terminal is too narrow for
//! that, each row as a block of lines.

use std::io::{self, Write};

/// A table. What is in it comes from other processes, perhaps: what a terminal would obey is taken out.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(heads: &[impl AsRef<str>]) -> Self {
        Table {
            rows: vec![heads.iter().map(|head| head.as_ref().to_owned()).collect()],
        }
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        self.rows
            .push(cells.iter().map(|cell| plain(cell)).collect());
    }

    /// Prints it into so many columns; numbers stand to the right.
    pub(crate) fn print(&self, out: &mut impl Write, width: usize) -> io::Result<()> {
        let columns = self.rows.first().map_or(0, Vec::len);
        let of = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                of(column)
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let needed = widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1);
        if needed > width {
            return self.print_blocks(out, width);
        }
        let right: Vec<bool> = (0..columns)
            .map(|column| of(column).skip(1).all(|cell| is_number(cell)))
            .collect();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&right) {
                let (width, right) = (*width, *right);
                let padded = match right {
                    true => format!("{cell:>width$}"),
                    false => format!("{cell:<width$}"),
                };
                line.push_str(&padded);
                line.push_str("  ");
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    /// Each row with the heads beside its cells, and an empty line behind it.
    fn print_blocks(&self, out: &mut impl Write, width: usize) -> io::Result<()> {
        let Some((heads, rows)) = self.rows.split_first() else {
            return Ok(());
        };
        for row in rows {
            for (head, cell) in heads.iter().zip(row) {
                let line = format!("{head} {cell}");
                writeln!(out, "{}", crate::output::wrap(&line, width, 0))?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

/// Text without what a terminal would obey.
pub(crate) fn plain(text: &str) -> String {
    let keep = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(keep).collect()
}

fn is_number(cell: &str) -> bool {
    let is_of_number = |byte: u8| byte.is_ascii_digit() || byte == b'.' || byte == b'-';
    cell.bytes().all(is_of_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(width: usize) -> String {
        let mut table = Table::new(&["PEER", "SENT"]);
        table.row(&["10.0.7.1:7000".to_owned(), "5".to_owned()]);
        table.row(&["a\x1b[2J".to_owned(), "12345".to_owned()]);
        let mut out = Vec::new();
        table.print(&mut out, width).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_as_wide_as_what_is_in_them_and_numbers_stand_to_the_right() {
        let wanted = "PEER            SENT\n10.0.7.1:7000      5\na?[2J          12345\n";
        assert_eq!(printed(80), wanted);
        assert_eq!(printed(20), wanted);
    }

    #[test]
    fn a_table_that_is_too_wide_becomes_blocks() {
        let wanted = "PEER 10.0.7.1:7000\nSENT 5\n\nPEER a?[2J\nSENT 12345\n\n";
        assert_eq!(printed(19), wanted);
    }
}
