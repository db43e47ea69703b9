//! Independent parsers of OpenMetrics, the older text format, YAML and PromQL,
//! in a Python environment that `scripts/install-deps test` makes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// A metric with all its samples, as Prometheus names it: with `_total` at the
/// end of counters.
#[derive(Debug)]
pub struct Family {
    pub kind: String,
    pub samples: Vec<Sample>,
}

#[derive(Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

pub type Families = BTreeMap<String, Family>;

impl Family {
    /// The labels that its samples have, which are the same for all.
    pub fn labels(&self) -> BTreeSet<String> {
        let of = |sample: &Sample| {
            let labels = sample.labels.keys().filter(|label| *label != "le");
            labels.cloned().collect::<BTreeSet<_>>()
        };
        let mut each = self.samples.iter().map(of);
        let first = each.next().unwrap_or_default();
        assert!(each.all(|labels| labels == first), "{self:?}");
        first
    }
}

/// One time series that an expression asks for.
#[derive(Debug)]
pub struct Selector {
    pub name: String,
    pub labels: BTreeSet<String>,
}

fn run(script: &str, input: &str) -> Value {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let python = target.join("prometheus/bin/python");
    assert!(
        python.exists(),
        "there is no {}: run scripts/install-deps test",
        python.display()
    );
    let mut child = Command::new(python)
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It reads all before it writes anything.
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{input}");
    serde_json::from_slice(&output.stdout).unwrap()
}

const PARSE: &str = r#"
import json, sys
from prometheus_client import parser
from prometheus_client.openmetrics.parser import text_string_to_metric_families
text = sys.stdin.buffer.read().decode()
families = [
    {
        "name": family.name,
        "type": family.type,
        "help": family.documentation,
        "samples": [[sample.name, sample.labels, sample.value] for sample in family.samples],
    }
    for family in text_string_to_metric_families(text)
]
# Every sample is seen by readers of the older format, too.
older = [sample for family in parser.text_string_to_metric_families(text) for sample in family.samples]
assert len(older) == sum(len(family["samples"]) for family in families)
json.dump(families, sys.stdout)
"#;

/// Parses an exposition.
pub fn expose(text: &str) -> Families {
    let Value::Array(families) = run(PARSE, text) else {
        panic!("no list");
    };
    let mut all = Families::new();
    for family in families {
        let text = |key: &str| family[key].as_str().unwrap().to_owned();
        let (mut name, kind) = (text("name"), text("type"));
        let help = text("help");
        assert!(
            help.len() > 10 && help.ends_with('.') && !help.ends_with(".."),
            "{name}: {help}"
        );
        if kind == "counter" {
            name.push_str("_total");
        }
        let samples = family["samples"].as_array().unwrap();
        let samples = samples.iter().map(|sample| Sample {
            name: sample[0].as_str().unwrap().into(),
            labels: serde_json::from_value(sample[1].clone()).unwrap(),
            value: sample[2].as_f64().unwrap(),
        });
        let samples = samples.collect();
        let family = Family { kind, samples };
        assert!(all.insert(name.clone(), family).is_none(), "{name} twice");
    }
    all
}

/// YAML as JSON.
pub fn yaml(text: &str) -> Value {
    let script = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)";
    run(script, text)
}

const SELECTORS: &str = r#"
import json, sys
import promql_parser as promql

def walk(node):
    if isinstance(node, promql.VectorSelector):
        labels = [matcher.name for matcher in node.matchers.matchers]
        yield {"name": node.name, "labels": labels}
    modifier = getattr(node, "modifier", None)
    labels = getattr(modifier, "labels", None) or []
    below = [getattr(node, key, None) for key in ("lhs", "rhs", "expr", "vector_selector", "param")]
    for child in below + list(getattr(node, "args", None) or []):
        for selector in walk(child) if child is not None else ():
            if isinstance(node, promql.AggregateExpr):
                selector["labels"] += [label for label in labels if label != "le"]
            yield selector

json.dump([list(walk(promql.parse(text))) for text in json.load(sys.stdin)], sys.stdout)
"#;

/// The time series that each expression asks for, with the labels by which it
/// chooses or groups them.
pub fn selectors(expressions: &[String]) -> Vec<(String, Vec<Selector>)> {
    let found = run(SELECTORS, &serde_json::to_string(expressions).unwrap());
    let found = found.as_array().unwrap();
    assert_eq!(found.len(), expressions.len());
    let all = expressions.iter().zip(found).map(|(expression, list)| {
        let list = list.as_array().unwrap().iter();
        let list: Vec<_> = list
            .map(|selector| Selector {
                name: selector["name"].as_str().unwrap().into(),
                labels: serde_json::from_value(selector["labels"].clone()).unwrap(),
            })
            .collect();
        assert!(!list.is_empty(), "{expression}");
        (expression.clone(), list)
    });
    all.collect()
}
