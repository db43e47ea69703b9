//! The OpenAPI document.

use std::collections::BTreeSet;

use super::*;

fn document() -> Value {
    serde_json::from_str(&Asked::new().api.document().unwrap()).unwrap()
}

fn operations(document: &Value) -> Vec<(String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, item)| {
            let item = item.as_object().unwrap();
            item.iter().map(move |(method, operation)| {
                (format!("{} {path}", method.to_uppercase()), operation)
            })
        })
        .collect()
}

#[test]
fn every_operation_says_what_it_takes_and_gives() {
    let document = document();
    let mut ids = BTreeSet::new();
    for (what, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap();
        assert!(ids.insert(id.to_owned()), "{id} comes twice");
        assert!(!operation["summary"].as_str().unwrap().is_empty(), "{what}");
        let responses = operation["responses"].as_object().unwrap();
        let problem = &responses["default"]["content"][PROBLEM_TYPE]["schema"]["$ref"];
        assert_eq!(problem, "#/components/schemas/ProblemDetails", "{what}");
        let good = responses.keys().filter(|status| status.starts_with('2'));
        assert!(good.count() >= 1, "{what}");
        let takes = what.starts_with("POST /v1/disks") && !what.ends_with("/thaw")
            || what == "POST /v1/key-sets"
            || what.ends_with("/switch")
            || what.starts_with("POST /v1/volumes/")
            || what == "POST /v1/verifications"
            || what == "POST /v1/rekeys"
            || what == "POST /v1/upgrade"
            || what.starts_with("PATCH");
        assert_eq!(operation.get("requestBody").is_some(), takes, "{what}");
        let named = operation["parameters"].as_array().into_iter().flatten();
        let named = named.filter(|parameter| parameter["in"] == "path").count();
        assert_eq!(named, what.matches('{').count(), "{what}");
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let document = document();
    let mut references = BTreeSet::new();
    collect(&document, &mut references);
    assert!(references.len() > 10, "{references:?}");
    for reference in &references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for name in schemas.keys() {
        let used = references.contains(&format!("#/components/schemas/{name}"));
        assert!(used, "{name} is described and not used");
    }
}

fn collect(value: &Value, references: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                references.insert(reference.clone());
            }
            map.values().for_each(|inner| collect(inner, references));
        }
        Value::Array(list) => list.iter().for_each(|inner| collect(inner, references)),
        _ => {}
    }
}

#[test]
fn the_manual_names_every_operation_and_no_other() {
    let manual = include_str!("../../../../docs/api.md");
    let told: BTreeSet<String> = manual
        .lines()
        .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
        .map(str::to_owned)
        .collect();
    let document = document();
    let there: BTreeSet<String> = operations(&document)
        .into_iter()
        .map(|(what, _)| what)
        .collect();
    assert_eq!(told, there);
}

#[test]
fn the_manual_has_the_status_of_every_kind() {
    let manual = include_str!("../../../../docs/api.md");
    for kind in Kind::ALL {
        let name = serde_json::to_value(kind).unwrap();
        let row = format!(
            "| `{}` | {} | {} |",
            name.as_str().unwrap(),
            status_of(kind).as_u16(),
            kind.exit_status()
        );
        assert!(manual.contains(&row), "{row}");
    }
}
