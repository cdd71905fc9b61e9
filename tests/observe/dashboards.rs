//! The dashboards: what they ask for exists, and every query has an answer.

use std::collections::BTreeSet;

use super::exposed::{self, family};
use super::files::{self, Query};
use super::prometheus::Prometheus;
use super::promql::{grouped, selected};

/// What Prometheus adds to every series; `le` is part of each histogram.
const ADDED: [&str; 3] = ["cluster", "instance", "le"];

#[tokio::test]
async fn a_query_names_only_metrics_and_labels_that_exist() {
    let exposed = exposed::everything().await;
    let mut queries: Vec<Query> = files::dashboards().iter().flat_map(files::Dashboard::queries).collect();
    for dashboard in files::dashboards() {
        let variables = dashboard.variables().into_iter().map(|text| {
            let label = text.trim_end_matches(')').rsplit(", ").next().unwrap().to_owned();
            // As a selection by that label.
            let text = format!("{text} by ({label})");
            Query { place: format!("{}: variables", dashboard.file), text, legend: String::new() }
        });
        queries.extend(variables);
    }
    for query in queries {
        let mut known: BTreeSet<String> = ADDED.iter().map(|label| (*label).to_owned()).collect();
        let metrics = selected(&query.text);
        for metric in &metrics {
            let name = family(&exposed, &metric.name);
            let name = name.unwrap_or_else(|| panic!("{}: there is no metric {}", query.place, metric.name));
            let labels = &exposed[&name].labels;
            let unknown: Vec<_> = metric
                .labels
                .iter()
                .filter(|label| !labels.contains(*label) && !ADDED.contains(&label.as_str()))
                .collect();
            assert!(unknown.is_empty(), "{}: {} has no labels {unknown:?}", query.place, metric.name);
            known.extend(labels.iter().cloned());
        }
        let unknown: Vec<String> = grouped(&query.text).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{}: nothing has the labels {unknown:?}", query.place);
    }
}

#[tokio::test]
async fn every_metric_of_which_people_ask_is_on_a_dashboard() {
    let exposed = exposed::everything().await;
    let dashboards = files::dashboards();
    let queries = dashboards.iter().flat_map(files::Dashboard::queries);
    let shown: BTreeSet<String> =
        queries.flat_map(|query| selected(&query.text)).filter_map(|metric| family(&exposed, &metric.name)).collect();
    let text = files::text("docs/metrics.md");
    let (_, without) = text.split_once("## On no dashboard\n").unwrap();
    for name in exposed.keys().filter(|name| !shown.contains(*name)) {
        assert!(
            without.contains(&format!("`{name}`")),
            "{name} is on no dashboard, and docs/metrics.md does not say so"
        );
    }
    for name in &shown {
        assert!(!without.contains(&format!("`{name}`")), "{name} is on a dashboard");
    }
}

#[test]
fn grafana_takes_them_as_they_are() {
    let dashboards = files::dashboards();
    assert_eq!(dashboards.len(), 4);
    let mut uids = BTreeSet::new();
    for dashboard in &dashboards {
        let (file, json) = (&dashboard.file, &dashboard.json);
        assert!(json.get("id").is_none(), "{file}: an id is of one Grafana");
        assert_eq!(format!("{}.json", json["uid"].as_str().unwrap()), *file);
        assert!(uids.insert(json["uid"].to_string()));
        let variables: Vec<&str> =
            json["templating"]["list"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
        assert_eq!(variables[..4], ["datasource", "cluster", "node", "class"], "{file}");
        let mut ids = BTreeSet::new();
        for panel in dashboard.panels() {
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{file}: {panel}");
            let place = &panel["gridPos"];
            assert!(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24, "{file}: {place}");
            let targets = panel["targets"].as_array().unwrap().iter().map(|target| &target["datasource"]["uid"]);
            assert!(targets.chain([&panel["datasource"]["uid"]]).all(|uid| uid == "${datasource}"), "{file}");
        }
        for query in dashboard.queries() {
            assert!(
                query.text.contains("cluster=~\"$cluster\"") && query.text.contains("node=~\"$node\""),
                "{}",
                query.place
            );
            let known = |word: &str| variables.contains(&word) || word.starts_with("__");
            let words = query.text.split('$').skip(1);
            let words = words.map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap());
            for word in words {
                assert!(known(word), "{}: there is no variable {word}", query.place);
            }
        }
    }
}

#[tokio::test]
async fn prometheus_answers_every_query_with_series_that_are_called_as_the_legend_says() {
    let prometheus = Prometheus::start().await;
    let mut wrong = Vec::new();
    for query in files::dashboards().iter().flat_map(files::Dashboard::queries) {
        match prometheus.query(&query.filled_in("10s", "15s")).await {
            Err(error) => wrong.push(format!("{}: {error}\n  {}", query.place, query.text)),
            Ok(series) if series.is_empty() => wrong.push(format!("{}: no data\n  {}", query.place, query.text)),
            Ok(series) => {
                for label in query.labels() {
                    if series.iter().any(|one| one["metric"].get(&label).is_none()) {
                        wrong.push(format!("{}: a series without {label:?}", query.place));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
