//! The document of the API says what the router does.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::Console;

/// `(method, path, operation)` of every operation in a document, by path.
pub(crate) fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().iter();
        methods.map(move |(method, operation)| (method.to_ascii_uppercase(), path.clone(), operation.clone()))
    });
    let mut all: Vec<_> = all.collect();
    // The order of a JSON object is no one's promise.
    all.sort_by(|a, b| (&a.1, &a.0).cmp(&(&b.1, &b.0)));
    all
}

/// Every `$ref` below a value.
fn references<'v>(value: &'v Value, into: &mut BTreeSet<&'v str>) {
    match value {
        Value::Object(fields) => {
            into.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|field| references(field, into));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, into)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_in_the_document_and_every_entry_is_a_route() {
    let console = Console::start().await;
    let (status, document) = console.nobody().get("/api/v1/openapi.json").await;
    assert_eq!((status, &document["openapi"]), (200, &Value::from("3.1.0")));
    let operations = operations(&document);
    let documented: BTreeSet<_> = operations
        .iter()
        .map(|(method, path, _)| format!("{method} {path}"))
        .collect();
    let table = guard_console::endpoint_table();
    let routes: BTreeSet<_> = table
        .iter()
        .filter(|endpoint| endpoint.path.starts_with("/api/"))
        .map(|endpoint| format!("{} {}", endpoint.method, endpoint.path))
        .collect();
    assert_eq!(documented, routes);
    let mut ids = BTreeSet::new();
    for (method, path, operation) in &operations {
        let name = format!("{method} {path}");
        let id = operation["operationId"].as_str().unwrap();
        assert!(
            !id.is_empty() && ids.insert(id),
            "{name}: its id is missing or taken: {id:?}"
        );
        assert!(!operation["summary"].as_str().unwrap().is_empty(), "{name}");
        assert!(
            operation["responses"]
                .as_object()
                .unwrap()
                .keys()
                .any(|status| status.starts_with('2')),
            "{name}"
        );
        let braces = path.matches('{').count();
        let parameters = operation["parameters"].as_array().unwrap();
        assert_eq!(
            parameters.iter().filter(|p| p["in"] == "path").count(),
            braces,
            "{name}"
        );
        assert_eq!(
            operation.get("requestBody").is_some(),
            matches!(
                id,
                "setUp"
                    | "signIn"
                    | "addUser"
                    | "makeKey"
                    | "addServiceAccount"
                    | "approveRequest"
                    | "denyRequest"
                    | "makeToken"
                    | "putLabel"
            ),
            "{name}"
        );
        // Without the method in the table the router would say 405, without the path 404.
        let request = console.nobody().request(method, &path.replace(['{', '}'], ""));
        let status = request.send().await.unwrap().status().as_u16();
        assert!(!matches!(status, 404 | 405), "{name}: {status}");
    }
    let mut named = BTreeSet::new();
    references(&document, &mut named);
    assert!(named.len() > 20, "{named:?}");
    for reference in named {
        let there = document.pointer(reference.strip_prefix('#').unwrap());
        assert!(there.is_some_and(Value::is_object), "{reference} leads nowhere");
    }
    // A schema is made of the type that a handler reads: a field of the one is in the other.
    let body = &document["components"]["schemas"]["NewUser"];
    assert_eq!(body["additionalProperties"], false);
    assert_eq!(body["required"], serde_json::json!(["username", "password", "roles"]));
    assert!(body["examples"][0]["username"].is_string());
}
