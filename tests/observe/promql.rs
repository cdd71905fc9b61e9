//! Which metrics and labels a query names. Not a parser of PromQL, Prometheus itself is that: it finds names.

use std::collections::BTreeSet;

/// A metric as a query selects it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Its name, as the query has it.
    pub name: String,
    /// The labels that are matched.
    pub labels: BTreeSet<String>,
}

fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_' || character == ':'
}

/// Every metric of Quarry's that a query selects.
pub fn selected(query: &str) -> Vec<Selected> {
    let mut found = Vec::new();
    let mut rest = query;
    while let Some(at) = rest.find("quarry") {
        let before = rest[..at].chars().last();
        let name: String = rest[at..].chars().take_while(|c| is_name(*c)).collect();
        let after = &rest[at + name.len()..];
        if !before.is_some_and(|c| is_name(c) || c == '"' || c == '-') {
            let matchers = after.strip_prefix('{').map_or("", |inside| &inside[..inside.find('}').unwrap()]);
            let labels = matchers.split(',').filter(|matcher| !matcher.is_empty());
            let labels = labels.map(|matcher| matcher.split(['=', '!']).next().unwrap().trim().to_owned()).collect();
            found.push(Selected { name, labels });
        }
        rest = after;
    }
    found
}

/// The labels that a query groups or joins by.
pub fn grouped(query: &str) -> BTreeSet<String> {
    let words = ["by (", "on (", "group_left (", "ignoring (", "without ("];
    let lists = words.iter().flat_map(|word| {
        query.match_indices(word).map(|(at, word)| {
            let inside = &query[at + word.len()..];
            &inside[..inside.find(')').unwrap()]
        })
    });
    lists.flat_map(|list| list.split(',')).map(|label| label.trim().to_owned()).filter(|l| !l.is_empty()).collect()
}

#[test]
fn names_and_labels_are_found() {
    let query = r#"sum by (node, le) (rate(quarry_a_total{node=~"$node",code!="OK"}[5m])) / on (node) group_left (x) quarry:b_c"#;
    let labels = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let expected = [
        Selected { name: "quarry_a_total".to_owned(), labels: labels(&["node", "code"]) },
        Selected { name: "quarry:b_c".to_owned(), labels: labels(&[]) },
    ];
    assert_eq!(selected(query), expected);
    assert_eq!(grouped(query), labels(&["node", "le", "x"]));
    assert_eq!(selected("vg{pool=\"quarry-pool\"}"), []);
}
