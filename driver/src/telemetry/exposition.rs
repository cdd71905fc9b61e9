//! Writes metrics in Prometheus' text format where there may be thousands of series: the labels of a volume are written
//! down once and used for all its series, which keeps a scrape of a thousand volumes at some milliseconds.

use std::fmt::{Display, Write as _};

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It goes up and down.
    Gauge,
    /// It only grows, until what it belongs to is made anew.
    Counter,
}

/// Labels as they are written, without braces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(String);

impl Labels {
    /// These, in this order.
    #[must_use]
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        pairs.iter().fold(Self::default(), |labels, (name, value)| labels.with(name, value))
    }

    /// With one more.
    #[must_use]
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut text = String::with_capacity(self.0.len() + name.len() + value.len() + 4);
        text.push_str(&self.0);
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        escape(value, &mut text);
        text.push('"');
        Self(text)
    }
}

/// In a label's value a backslash, a quote and a line's end are escaped.
fn escape(value: &str, text: &mut String) {
    if !value.contains(['\\', '"', '\n']) {
        text.push_str(value);
        return;
    }
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

/// The text.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    name: &'static str,
}

impl Exposition {
    /// Begins a metric; its samples follow.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> &mut Self {
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        self.name = name;
        // Writing to a string does not fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self
    }

    /// A sample of the metric begun last.
    pub fn sample(&mut self, labels: &Labels, value: impl Display) -> &mut Self {
        let _ = writeln!(self.text, "{}{{{}}} {value}", self.name, labels.0);
        self
    }

    /// All of it.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_values_written_as_numbers() {
        let mut text = Exposition::default();
        let labels = Labels::of(&[("a", "x\"y\\z\n"), ("b", "")]);
        text.family("quarry_a_bytes", Kind::Gauge, "Some bytes.").sample(&labels, 3_u64).sample(&labels, 0.25);
        text.family("quarry_b_total", Kind::Counter, "Some.");
        let expected = "# HELP quarry_a_bytes Some bytes.\n# TYPE quarry_a_bytes gauge\n\
                        quarry_a_bytes{a=\"x\\\"y\\\\z\\n\",b=\"\"} 3\nquarry_a_bytes{a=\"x\\\"y\\\\z\\n\",b=\"\"} 0.25\n\
                        # HELP quarry_b_total Some.\n# TYPE quarry_b_total counter\n";
        assert_eq!(String::from_utf8(text.into_bytes()).unwrap(), expected);
    }
}
