//! The dashboards, the rule file and the documents.

use std::path::PathBuf;

use quarry_tests::cache;
use serde_json::Value;

/// A file of the sources.
pub fn path(of: &str) -> PathBuf {
    cache::workspace().join(of)
}

/// Its text.
pub fn text(of: &str) -> String {
    std::fs::read_to_string(path(of)).unwrap()
}

/// A dashboard.
#[derive(Debug)]
pub struct Dashboard {
    /// The name of its file.
    pub file: String,
    /// All of it.
    pub json: Value,
}

/// A query of a panel.
#[derive(Debug, Clone)]
pub struct Query {
    /// Dashboard and panel, for people.
    pub place: String,
    /// The query, with Grafana's variables in it.
    pub text: String,
    /// What its series are called.
    pub legend: String,
}

impl Query {
    /// As Grafana asks it with everything chosen, with rates over `interval` and a picture of `range`.
    pub fn filled_in(&self, interval: &str, range: &str) -> String {
        let mut text = self.text.clone();
        for (variable, value) in [
            ("$__rate_interval", interval),
            ("$__range", range),
            ("$window", range),
            ("$cluster", ".*"),
            ("$node", ".*"),
            ("$class", ".*"),
        ] {
            text = text.replace(variable, value);
        }
        assert!(!text.contains('$'), "{text}");
        text
    }

    /// The labels by which its series are called.
    pub fn labels(&self) -> Vec<String> {
        self.legend.split("{{").skip(1).map(|rest| rest.split_once("}}").unwrap().0.to_owned()).collect()
    }
}

/// All dashboards.
pub fn dashboards() -> Vec<Dashboard> {
    let entries = std::fs::read_dir(path("manifests/chart/dashboards")).unwrap();
    let mut found: Vec<Dashboard> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            let json = serde_json::from_str(&std::fs::read_to_string(entry.path()).unwrap()).unwrap();
            Dashboard { file: entry.file_name().into_string().unwrap(), json }
        })
        .collect();
    found.sort_by(|a, b| a.file.cmp(&b.file));
    found
}

impl Dashboard {
    /// Its panels.
    pub fn panels(&self) -> &Vec<Value> {
        self.json["panels"].as_array().unwrap()
    }

    /// The queries of its panels.
    pub fn queries(&self) -> Vec<Query> {
        let queries = self.panels().iter().flat_map(|panel| {
            let place = format!("{}: {}", self.file, panel["title"].as_str().unwrap());
            panel["targets"].as_array().unwrap().iter().map(move |target| Query {
                place: place.clone(),
                text: target["expr"].as_str().unwrap().to_owned(),
                legend: target["legendFormat"].as_str().unwrap().to_owned(),
            })
        });
        queries.collect()
    }

    /// The queries of its variables.
    pub fn variables(&self) -> Vec<String> {
        let variables = self.json["templating"]["list"].as_array().unwrap().iter();
        variables.filter(|v| v["type"] == "query").map(|v| v["query"]["query"].as_str().unwrap().to_owned()).collect()
    }
}

/// The rules, each as JSON.
pub fn rules() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(&text("manifests/chart/alerts/quarry.yaml")).unwrap();
    let groups = file["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}
