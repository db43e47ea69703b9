//! What the documentation says, taken from its own files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;

use crate::judge;

/// A row of the tables in `docs/metrics.md`.
#[derive(Debug)]
pub struct Documented {
    pub kind: String,
    pub labels: BTreeSet<String>,
}

fn read(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Each documented metric, once.
pub fn documented() -> BTreeMap<String, Documented> {
    let mut all = BTreeMap::new();
    for line in read("metrics.md").lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", name, kind, labels, meaning, ""] = cells[..] else {
            continue;
        };
        let Some(name) = quoted(name).into_iter().next() else {
            continue;
        };
        assert!(meaning.len() > 10, "{name} has no meaning");
        let row = Documented {
            kind: kind.into(),
            labels: quoted(labels).into_iter().collect(),
        };
        assert!(all.insert(name.clone(), row).is_none(), "{name} twice");
    }
    assert!(all.len() > 30, "{all:?}");
    all
}

/// What stands in backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// The expressions of the alert rules, each of which has what it needs.
pub fn alert_expressions() -> Vec<String> {
    let rules = judge::yaml(&read("alerts.yml"));
    let mut names = BTreeSet::new();
    let groups = rules["groups"].as_array().unwrap();
    let rules = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap());
    let expression = |rule: &Value| {
        let name = rule["alert"].as_str().unwrap();
        assert!(names.insert(name.to_owned()), "{name} twice");
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(
            ["critical", "warning", "info"].contains(&severity),
            "{name}"
        );
        for text in ["summary", "description"] {
            assert!(rule["annotations"][text].is_string(), "{name}: {text}");
        }
        rule["expr"].as_str().unwrap().to_owned()
    };
    rules.map(expression).collect()
}

/// The expressions of the dashboard, with Grafana's variables filled in.
pub fn dashboard_expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("grafana/sealblk.json")).unwrap();
    let mut ids = BTreeSet::new();
    let mut expressions = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            expressions.push(
                expression
                    .replace("$__rate_interval", "5m")
                    .replace("$__range", "1h"),
            );
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        // label_values(SELECTOR, LABEL)
        let query = variable["definition"].as_str().unwrap_or_default();
        if let Some(inside) = query.strip_prefix("label_values(") {
            expressions.push(inside.rsplit_once(',').unwrap().0.into());
        }
    }
    expressions
}
