//! Columns for people.

use crate::human::plain;

/// Rows under headings; a heading that begins with `>` has its column to the right.
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(headings: &[&'static str]) -> Table {
        Table { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row with a cell for every heading.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().map(|cell| plain(&cell)).collect();
        assert_eq!(cells.len(), self.headings.len(), "a cell for every heading");
        self.rows.push(cells);
    }

    /// The lines, or `otherwise` when there is no row.
    pub fn text_or(&self, otherwise: &str) -> String {
        if self.rows.is_empty() { format!("{otherwise}\n") } else { self.text() }
    }

    /// The lines.
    pub fn text(&self) -> String {
        let headings: Vec<String> =
            self.headings.iter().map(|h| h.trim_start_matches('>').to_string()).collect();
        let lines = || std::iter::once(&headings).chain(&self.rows);
        let widths: Vec<usize> = (0..headings.len())
            .map(|i| lines().map(|cells| cells[i].chars().count()).max().unwrap_or(0))
            .collect();
        let mut out = String::new();
        for cells in lines() {
            let mut line = String::new();
            for (i, cell) in cells.iter().enumerate() {
                let width = widths[i];
                match self.headings[i].starts_with('>') {
                    true => line.push_str(&format!("{cell:>width$}  ")),
                    false => line.push_str(&format!("{cell:<width$}  ")),
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// `name: value` lines, the values under each other.
pub fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let mut out = String::new();
    for (name, value) in fields {
        let name = format!("{name}:");
        out.push_str(format!("{name:<width$}  {}", plain(value)).trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", ">SIZE"]);
        assert_eq!(table.text_or("none"), "none\n");
        table.row(["a".into(), "1 GiB".into()]);
        table.row(["golden".into(), "10 GiB".into()]);
        assert_eq!(table.text_or("none"), "NAME      SIZE\na        1 GiB\ngolden  10 GiB\n");
        assert_eq!(fields(&[("a", "1".into()), ("long", "x\n".into())]), "a:     1\nlong:  x?\n");
    }
}
