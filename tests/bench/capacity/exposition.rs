//! Prometheus' text format, as far as it is needed to read single values.

/// One value.
#[derive(Debug)]
pub struct Line<'a> {
    /// The metric.
    pub name: &'a str,
    labels: &'a str,
    /// Its value.
    pub value: f64,
}

impl<'a> Line<'a> {
    /// The value of a label, empty where there is none. Values with quotes in them are not understood.
    #[must_use]
    pub fn label(&self, name: &str) -> &'a str {
        let mut rest = self.labels;
        while let Some((key, after)) = rest.split_once("=\"") {
            let Some((value, next)) = after.split_once('"') else { return "" };
            if key.trim_start_matches(',') == name {
                return value;
            }
            rest = next;
        }
        ""
    }
}

/// All values of a text.
pub fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (what, value) = line.rsplit_once(' ')?;
        let (name, labels) = what.split_once('{').map_or((what, ""), |(name, rest)| (name, rest.trim_end_matches('}')));
        Some(Line { name, labels, value: value.parse().ok()? })
    })
}
