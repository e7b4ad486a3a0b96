"""Whether every line of a file is an event of the OCSF schema that it names, by the schema as others package it."""
import json
import sys

import jsonschema
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

schemas = {}
of_version = {}


def validator(event):
    version, profiles = event["metadata"]["version"], tuple(event["metadata"]["profiles"])
    key = version, event["class_uid"], profiles
    if key not in schemas:
        ocsf = of_version.setdefault(version, OcsfJsonSchemaEmbedded(get_ocsf_schema(version)))
        name = ocsf.lookup_class_name_from_uid(event["class_uid"])
        schemas[key] = jsonschema.Draft202012Validator(ocsf.get_class_schema(name, list(profiles)))
    return schemas[key]


def deprecated(value, schema, root, path="$"):
    """Attributes that the schema has given up."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    if isinstance(value, list):
        for one in value:
            yield from deprecated(one, schema.get("items", {}), root, f"{path}[]")
    elif isinstance(value, dict):
        for key, one in value.items():
            inner = schema.get("properties", {}).get(key, {})
            if inner.get("deprecated"):
                yield f"{path}.{key} is deprecated"
            yield from deprecated(one, inner, root, f"{path}.{key}")


wrong, kinds, uids = 0, {}, set()
with open(sys.argv[1], encoding="utf-8") as lines:
    for number, line in enumerate(lines, 1):
        event = json.loads(line)
        checker = validator(event)
        troubles = [f"{error.json_path}: {error.message}" for error in checker.iter_errors(event)]
        troubles += deprecated(event, checker.schema, checker.schema)
        if event["type_uid"] != event["class_uid"] * 100 + event["activity_id"]:
            troubles.append("type_uid does not follow from class and activity")
        if event["time"] <= 0:
            troubles.append("has no time")
        for trouble in troubles:
            print(f"line {number}, {event['type_uid']}: {trouble[:400]}")
        wrong += bool(troubles)
        kinds[event["type_uid"]] = kinds.get(event["type_uid"], 0) + 1
        uids.add(event["metadata"]["uid"])
print(json.dumps({"events": sum(kinds.values()), "wrong": wrong, "different": len(uids), "kinds": kinds}))
sys.exit(1 if wrong or not kinds else 0)
