//! The metrics themselves: their names and documents.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quarry_tests::command::Command;
use quarry_tests::process;
use tokio_util::sync::CancellationToken;

use super::exposed::{self, Exposed};
use super::{files, prometheus};

/// The tables of docs/metrics.md: kind and labels by name.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let text = files::text("docs/metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `quarry_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, name, kind, labels, meaning, _] = cells[..] else { panic!("not four cells: {row}") };
        assert!(meaning.len() > 8, "{row}");
        let labels = labels.split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels: BTreeSet<String> = labels.filter(|label| !label.is_empty()).collect();
        (name.trim_matches('`').to_owned(), (kind.to_owned(), labels))
    })
    .collect()
}

#[tokio::test]
async fn every_metric_is_documented_with_its_kind_and_labels_and_none_that_does_not_exist() {
    let exposed = exposed::everything().await;
    // Every series has the node; the tables say so once.
    let own = |metric: &Exposed| metric.labels.iter().filter(|label| *label != "node").cloned().collect();
    let expected: BTreeMap<String, (String, BTreeSet<String>)> =
        exposed.iter().map(|(name, metric)| (name.clone(), (metric.kind.clone(), own(metric)))).collect();
    let documented = documented();
    for (name, described) in &expected {
        assert_eq!(documented.get(name), Some(described), "{name} in docs/metrics.md");
    }
    assert_eq!(documented.len(), expected.len(), "docs/metrics.md has metrics that do not exist");
}

#[tokio::test]
async fn every_series_has_its_node_and_no_metric_is_without_a_series() {
    for (name, metric) in exposed::everything().await {
        assert!(metric.labels.contains("node"), "{name}: {metric:?}");
        assert!(!metric.help.is_empty() && metric.help.ends_with('.'), "{name}: {metric:?}");
        assert!(!metric.help.contains("percent"), "{name}: ratios are from 0 to 1");
    }
}

#[tokio::test]
async fn promtool_finds_no_fault_with_what_is_exposed() {
    let end = CancellationToken::new();
    let (driver, reporter) = exposed::serve(&end).await;
    for address in [driver, reporter] {
        let text = prometheus::get(address, "/metrics").await;
        let check = Command::new("promtool").args(["check", "metrics"]).stdin(text.into_bytes());
        let said = process::run(&check, Duration::from_secs(30)).unwrap();
        assert!(said.exit.success(), "{}{}", said.stdout_text(), said.stderr_text());
    }
    end.cancel();
}

#[tokio::test]
async fn series_of_volumes_can_be_left_out_and_the_sums_stay() {
    let all = exposed::everything().await;
    let of_volumes = all.iter().filter(|(_, metric)| metric.labels.contains("volume"));
    let of_volumes: BTreeSet<&str> = of_volumes.map(|(name, _)| name.as_str()).collect();
    assert!(
        of_volumes.len() > 10 && of_volumes.iter().all(|name| name.starts_with("quarry_volume_")),
        "{of_volumes:?}"
    );
    for name in &of_volumes {
        assert!(all[*name].labels.contains("claim") && all[*name].labels.contains("claim_namespace"), "{name}");
    }
    let sums = exposed::without_volumes();
    assert!(of_volumes.iter().all(|name| !sums.contains_key(*name)));
    assert!(sums.contains_key("quarry_class_volumes") && sums.contains_key("quarry_volume_group_free_bytes"));
}
