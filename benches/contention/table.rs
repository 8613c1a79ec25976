//! A table of measured values, one row for each contender.

use crate::contenders::Kind;

/// The values of a contender, or the reason why there are none.
pub type Values = Result<Vec<f64>, String>;

pub struct Table {
    title: String,
    columns: Vec<Column>,
    pub rows: Vec<Row>,
}

pub struct Column {
    name: &'static str,
    decimals: usize,
}

pub struct Row {
    pub kind: Kind,
    pub values: Values,
}

impl Table {
    pub fn new(title: &str, columns: &[(&'static str, usize)]) -> Self {
        let columns = columns
            .iter()
            .map(|&(name, decimals)| Column { name, decimals })
            .collect();
        Self {
            title: title.to_owned(),
            columns,
            rows: Vec::new(),
        }
    }

    pub fn row(&mut self, kind: Kind, values: Values) {
        self.rows.push(Row { kind, values });
    }

    /// Returns the value of a contender in a column.
    pub fn value(&self, kind: Kind, column: usize) -> f64 {
        let row = self.rows.iter().find(|row| row.kind == kind);
        match row.map(|row| &row.values) {
            Some(Ok(values)) => values[column],
            _ => f64::NAN,
        }
    }

    pub fn print(&self) {
        println!("\n{}", self.title);
        print!("  {:24}", "");
        for column in &self.columns {
            print!("  {:>width$}", column.name, width = column.width());
        }
        println!();
        for row in &self.rows {
            print!("  {:24}", row.kind.name());
            match &row.values {
                Ok(values) => {
                    for (column, value) in self.columns.iter().zip(values) {
                        let (width, decimals) = (column.width(), column.decimals);
                        match value.is_nan() {
                            true => print!("  {:>width$}", "–"),
                            false => print!("  {value:>width$.decimals$}"),
                        }
                    }
                }
                Err(reason) => print!("  – ({reason})"),
            }
            println!();
        }
    }
}

impl Column {
    fn width(&self) -> usize {
        self.name.chars().count().max(8)
    }
}
