//! What the chart makes for Prometheus and Grafana: nothing unless asked to, and then what these take.

use std::collections::BTreeSet;

use clap::Parser as _;
use quarry_driver::args::{Cli, Command};
use serde_json::{Value, json};

use super::helm::{NAMESPACE, Objects, chart, render};

const HTTP: &str =
    "driver: {http: {host: 0.0.0.0, port: 9808}}\ncapacityReporter: {http: {host: 0.0.0.0, port: 9809}}\n";

fn with(monitoring: &str) -> Objects {
    Objects::with(&format!("{HTTP}monitoring: {monitoring}\n"))
}

/// The kinds that are only there for monitoring.
fn made(objects: &Objects) -> BTreeSet<String> {
    let kinds = objects.0.iter().map(|object| object["kind"].as_str().unwrap().to_owned());
    kinds.filter(|kind| ["PodMonitor", "PrometheusRule", "Service", "ConfigMap"].contains(&kind.as_str())).collect()
}

#[test]
fn each_part_is_made_only_where_it_is_asked_for() {
    for (asked, expected) in [
        ("{}", &[][..]),
        ("{podMonitor: {enabled: true}}", &["PodMonitor"]),
        ("{scrapeAnnotations: true}", &["Service"]),
        ("{rules: {enabled: true}}", &["PrometheusRule"]),
        ("{dashboards: {enabled: true}}", &["ConfigMap"]),
    ] {
        assert_eq!(made(&with(asked)), expected.iter().map(|kind| (*kind).to_owned()).collect(), "{asked}");
    }
}

/// The ports of the pods, by name.
fn ports(objects: &Objects) -> Vec<(String, u64)> {
    let containers = objects.pod()["containers"].as_array().unwrap();
    let ports = containers.iter().flat_map(|container| container["ports"].as_array().cloned().unwrap_or_default());
    ports.map(|port| (port["name"].as_str().unwrap().to_owned(), port["containerPort"].as_u64().unwrap())).collect()
}

#[test]
fn what_is_to_be_scraped_is_a_port_of_the_pods() {
    let objects =
        with("{podMonitor: {enabled: true, interval: 15s, labels: {release: prom}}, scrapeAnnotations: true}");
    assert_eq!(ports(&objects), [("driver-http".to_owned(), 9808), ("capacity-http".to_owned(), 9809)]);
    let (monitor, service) = (objects.only("PodMonitor"), objects.only("Service"));
    let labels = &objects.only("DaemonSet")["spec"]["template"]["metadata"]["labels"];
    for selector in [&monitor["spec"]["selector"]["matchLabels"], &service["spec"]["selector"]] {
        for (key, value) in selector.as_object().unwrap() {
            assert_eq!(labels[key], *value);
        }
    }
    assert_eq!(monitor["metadata"]["labels"]["release"], "prom");
    assert_eq!(monitor["spec"]["namespaceSelector"]["matchNames"], json!([NAMESPACE]));
    let endpoint = |port| json!({"port": port, "path": "/metrics", "interval": "15s"});
    assert_eq!(monitor["spec"]["podMetricsEndpoints"], json!([endpoint("driver-http"), endpoint("capacity-http")]));
    assert_eq!(service["metadata"]["annotations"]["prometheus.io/scrape"], "true");
    assert_eq!(
        (&service["spec"]["clusterIP"], &service["spec"]["publishNotReadyAddresses"]),
        (&json!("None"), &json!(true))
    );
    let port = |name: &str, port: u16| json!({"name": name, "port": port, "targetPort": name});
    assert_eq!(service["spec"]["ports"], json!([port("driver-http", 9808), port("capacity-http", 9809)]));
    // Without a port nothing is listed, and a reporter that serves nothing is not scraped.
    assert_eq!(ports(&Objects::with("")), []);
    let alone = Objects::with("driver: {http: {host: 0.0.0.0, port: 1}}\nmonitoring: {podMonitor: {enabled: true}}\n");
    assert_eq!(alone.only("PodMonitor")["spec"]["podMetricsEndpoints"].as_array().unwrap().len(), 1);
}

#[test]
fn what_prometheus_could_not_reach_is_refused() {
    for (values, named) in [
        ("monitoring: {podMonitor: {enabled: true}}", "driver.http.port is 0"),
        ("monitoring: {scrapeAnnotations: true}\ndriver: {http: {port: 9808}}", "driver.http.host 127.0.0.1"),
        (
            "monitoring: {scrapeAnnotations: true}\ndriver: {http: {host: 0.0.0.0, port: 9808}}\ncapacityReporter: {http: {port: 1}}",
            "capacityReporter.http.host 127.0.0.1",
        ),
        ("monitoring: {podMonitors: {}}", "additional properties 'podMonitors' not allowed"),
        ("monitoring: {podMonitor: {interval: 5}}", "at '/monitoring/podMonitor/interval'"),
    ] {
        let said = render(values);
        assert!(!said.exit.success(), "accepted: {values}");
        assert!(said.stderr_text().contains(named), "{values}: {}", said.stderr_text());
    }
}

#[test]
fn rules_and_dashboards_arrive_as_their_files_are() {
    let objects = with(
        "{rules: {enabled: true, labels: {role: alerts}}, dashboards: {enabled: true, annotations: {folder: Storage}}}",
    );
    let read = |file: &str| std::fs::read_to_string(chart().join(file)).unwrap();
    let rules: Value = serde_saphyr::from_str(&read("alerts/quarry.yaml")).unwrap();
    let rule = objects.only("PrometheusRule");
    assert_eq!((&rule["spec"], &rule["metadata"]["labels"]["role"]), (&rules, &json!("alerts")));
    let maps = objects.of_kind("ConfigMap");
    assert_eq!(maps.len(), 4);
    for map in maps {
        assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1", "what Grafana's sidecar looks for");
        assert_eq!(map["metadata"]["annotations"]["folder"], "Storage");
        let [(file, text)] = &map["data"].as_object().unwrap().iter().collect::<Vec<_>>()[..] else {
            panic!("not one file")
        };
        let json: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        assert_eq!(json, serde_json::from_str::<Value>(&read(&format!("dashboards/{file}"))).unwrap());
    }
}

#[test]
fn series_of_volumes_can_be_switched_off() {
    for (monitoring, expected) in [("{}", true), ("{volumeMetrics: false}", false)] {
        let objects = with(monitoring);
        let words = ["quarry-driver"].into_iter().chain(objects.arguments("driver")).chain(["--node-name=n"]);
        let Command::Run(run) = Cli::try_parse_from(words).unwrap().command else { panic!("not run") };
        assert_eq!(run.volume_metrics, expected, "{monitoring}");
    }
}
