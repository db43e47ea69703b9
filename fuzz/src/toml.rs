//! Documents as TOML: one line for each thing at the top, with all that is in it.
#![forbid(unsafe_code)]

use serde_json::Value;

/// The text. What TOML has no word for is left out.
pub fn text(document: &Value) -> String {
    let mut out = String::new();
    if let Value::Object(map) = document {
        for (key, value) in map {
            if !value.is_null() {
                out.push_str(&quoted(key));
                out.push_str(" = ");
                write(value, &mut out);
                out.push('\n');
            }
        }
    }
    out
}

/// A basic string. Its escapes are those of JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("\"\""),
        Value::Bool(_) | Value::Number(_) => out.push_str(&value.to_string()),
        Value::String(text) => out.push_str(&quoted(text)),
        Value::Array(list) => {
            out.push('[');
            for value in list {
                write(value, out);
                out.push_str(", ");
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            let mut first = true;
            for (key, value) in map.iter().filter(|(_, value)| !value.is_null()) {
                out.push_str(if first { "" } else { ", " });
                first = false;
                out.push_str(&quoted(key));
                out.push_str(" = ");
                write(value, out);
            }
            out.push('}');
        }
    }
}
