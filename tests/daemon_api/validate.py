"""Judges answers by the OpenAPI document that came with them.

Reads from standard input {"document": …, "answers": [{"method", "path",
"status", "type", "body"}, …]}, where a path is the pattern of the document,
and says what does not fit.
"""

import json
import sys

from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import OpenAPIV31SpecValidator

given = json.load(sys.stdin)
document = given["document"]
try:
    faults = [f"document: {error.message}" for error in OpenAPIV31SpecValidator(document).iter_errors()]
except KeyError as error:
    faults = [f"document: {error} is not as it must be"]
checked = 0
for answer in given["answers"]:
    what = f"{answer['method']} {answer['path']}: {answer['status']}"
    try:
        operation = document["paths"][answer["path"]][answer["method"].lower()]
    except KeyError:
        faults.append(f"{what}: not described")
        continue
    responses = operation["responses"]
    status = str(answer["status"])
    if status not in responses and int(status) < 400:
        faults.append(f"{what}: this status is not described")
        continue
    content = responses.get(status, responses["default"]).get("content")
    if not content:
        if answer["body"] is not None:
            faults.append(f"{what}: a body that is not described")
        checked += 1
        continue
    kind = (answer["type"] or "").split(";")[0]
    if kind not in content:
        faults.append(f"{what}: {kind} is not described")
        continue
    schema = dict(content[kind]["schema"], components=document["components"])
    validator = Draft202012Validator(schema, format_checker=FormatChecker())
    for error in validator.iter_errors(answer["body"]):
        faults.append(f"{what}: {error.json_path}: {error.message}")
    checked += 1
print("\n".join(faults) if faults else f"{checked} answers fit")
sys.exit(bool(faults))
