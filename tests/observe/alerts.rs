//! The rule file: that alerts fire when they should, ask for what exists, and have a runbook.

use std::collections::BTreeSet;
use std::time::Duration;

use quarry_tests::command::Command;
use quarry_tests::process;
use serde_json::Value;

use super::exposed::{self, family};
use super::files;
use super::prometheus::Prometheus;
use super::promql::{grouped, selected};

const RULES: &str = "manifests/chart/alerts/quarry.yaml";
const TESTS: &str = "tests/observe/alerts.test.yaml";

fn promtool(arguments: &[&str]) {
    let said = process::run(&Command::new("promtool").args(arguments), Duration::from_secs(60)).unwrap();
    assert!(said.exit.success(), "{}{}", said.stdout_text(), said.stderr_text());
}

fn alerts() -> Vec<Value> {
    files::rules().into_iter().filter(|rule| rule.get("alert").is_some()).collect()
}

fn name(alert: &Value) -> &str {
    alert["alert"].as_str().unwrap()
}

#[test]
fn promtool_finds_no_fault_with_the_rules_and_every_alert_passes_its_tests() {
    promtool(&["check", "rules", files::path(RULES).to_str().unwrap()]);
    promtool(&["test", "rules", files::path(TESTS).to_str().unwrap()]);
}

#[test]
fn of_each_alert_it_is_tested_that_it_fires_and_that_it_does_not() {
    let tests: Value = serde_saphyr::from_str(&files::text(TESTS)).unwrap();
    let cases = tests["tests"].as_array().unwrap().iter();
    let cases: Vec<&Value> = cases.flat_map(|test| test["alert_rule_test"].as_array().unwrap()).collect();
    for alert in alerts() {
        let expected = cases.iter().filter(|case| case["alertname"] == alert["alert"]);
        let fires: BTreeSet<bool> = expected.map(|case| !case["exp_alerts"].as_array().unwrap().is_empty()).collect();
        assert_eq!(fires, BTreeSet::from([false, true]), "{}", name(&alert));
    }
}

#[test]
fn each_alert_has_a_runbook_that_says_what_to_look_at_and_what_to_do() {
    let runbooks = files::text("docs/runbooks.md");
    let sections: BTreeSet<&str> = runbooks.lines().filter_map(|line| line.strip_prefix("## Quarry")).collect();
    let names: BTreeSet<String> = alerts().iter().map(|alert| name(alert).replacen("Quarry", "", 1)).collect();
    assert_eq!(sections, names.iter().map(String::as_str).collect());
    for alert in alerts() {
        let (_, section) = runbooks.split_once(&format!("## {}\n", name(&alert))).unwrap();
        let section = section.split("\n## ").next().unwrap();
        for part in ["**What it means.**", "**Look.**", "**Do.**"] {
            assert!(section.contains(part), "{}: {part}", name(&alert));
        }
        let annotations = &alert["annotations"];
        assert_eq!(annotations["runbook"], format!("docs/runbooks.md#{}", name(&alert).to_lowercase()));
        assert!(annotations["summary"].as_str().unwrap().contains("$labels.node"), "{}", name(&alert));
        assert!(["warning", "critical"].contains(&alert["labels"]["severity"].as_str().unwrap()));
    }
}

#[tokio::test]
async fn rules_name_only_metrics_and_labels_that_exist() {
    let exposed = exposed::everything().await;
    let rules = files::rules();
    let recorded: BTreeSet<&str> = rules.iter().filter_map(|rule| rule["record"].as_str()).collect();
    for rule in &rules {
        let expression = rule["expr"].as_str().unwrap();
        let mut known: BTreeSet<String> =
            ["cluster", "instance", "node", "volume_group", "pool"].map(str::to_owned).into();
        for metric in selected(expression).into_iter().filter(|metric| !recorded.contains(metric.name.as_str())) {
            let name = family(&exposed, &metric.name).unwrap_or_else(|| panic!("there is no metric {}", metric.name));
            let labels = &exposed[&name].labels;
            assert!(metric.labels.is_subset(labels), "{rule}");
            known.extend(labels.iter().cloned());
        }
        assert!(grouped(expression).is_subset(&known), "{rule}");
    }
}

#[tokio::test]
async fn prometheus_evaluates_all_rules_and_those_that_should_fire_begin_to() {
    let prometheus = Prometheus::start().await;
    let answer = prometheus.rules().await;
    let groups = answer["data"]["groups"].as_array().unwrap();
    let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    assert_eq!(rules.len(), files::rules().len());
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    let fires = |rule: &&&Value| ["pending", "firing"].contains(&rule["state"].as_str().unwrap_or_default());
    let firing: BTreeSet<&str> = rules.iter().filter(fires).map(|rule| rule["name"].as_str().unwrap()).collect();
    // What the scraped driver says: a group out of reach, a lost and an orphaned volume, a share not enforced, requests
    // that fail, a pool of 100 MiB that has promised 1 GiB.
    for expected in [
        "QuarryVolumeGroupUnreadable",
        "QuarryVolumesLost",
        "QuarryVolumesOrphaned",
        "QuarryWeightNotEnforced",
        "QuarryRequestsFailing",
        "QuarryPoolOvercommitted",
    ] {
        assert!(firing.contains(expected), "{expected} does not fire: {firing:?}");
    }
    for quiet in ["QuarryDriverDown", "QuarryCapacityStale", "QuarryJournalRebuilt", "QuarryCommandStuck"] {
        assert!(!firing.contains(quiet), "{quiet} fires");
    }
}
