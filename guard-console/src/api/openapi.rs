//! The document of the API, OpenAPI 3.1, made from the same table as the router.
//!
//! Owns what all operations share: errors, limits, how to sign in, who may call. It is given the table of endpoints. It must
//! never be written by hand.

use guard_proto::limits::HTTP_BODY_BYTES;
use guard_proto::rest::{Problem, Role};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::describe::Description;
use super::endpoint::{Access, Endpoint, Operation};
use super::identity::{COOKIE, CSRF_HEADER};

const ROLES: [Role; 4] = [Role::Administrator, Role::Approver, Role::Operator, Role::Auditor];

/// Every operation of `table`, with the schemas that they use.
#[must_use]
pub fn document(table: &[Endpoint]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut taken = settings.clone().for_deserialize().into_generator();
    let mut given = settings.for_serialize().into_generator();
    let mut paths = Map::new();
    for endpoint in table {
        if let Some(operation) = endpoint.operation {
            let described = describe(endpoint, operation, &mut taken, &mut given);
            let path = paths.entry(endpoint.path).or_insert_with(|| json!({}));
            if let Value::Object(path) = path {
                path.insert(endpoint.method.to_ascii_lowercase(), described);
            }
        }
    }
    let problem = given.subschema_for::<Problem>().to_value();
    let mut schemas = taken.take_definitions(true);
    schemas.extend(given.take_definitions(true));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Guard console",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": format!(
                "Everything that the pages of the console can do. Errors are problems (RFC 9457) with a stable `type`. Bodies have at \
                 most {HTTP_BODY_BYTES} bytes; unknown fields in them are an error, in answers they are to be ignored. Lists come in \
                 pages: `next` of one is the `cursor` of the following one. `x-guard-roles` are the roles that may call an operation."
            ),
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {"Problem": problem_response(&problem)},
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A session's token, or a key of a service account (`guardkey_…`).",
                },
                "browser": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": COOKIE,
                    "description": format!("A browser's session; whatever changes something also sends the header {CSRF_HEADER}."),
                },
            },
        },
    })
}

fn describe(
    endpoint: &Endpoint,
    operation: Operation,
    taken: &mut SchemaGenerator,
    given: &mut SchemaGenerator,
) -> Value {
    let mut about = Description {
        taken,
        given,
        parameters: parameters_of(endpoint.path),
        body: None,
        responses: Map::new(),
    };
    (operation.describe)(&mut about);
    if may_be_sent_again(endpoint) {
        about.header(
            "Idempotency-Key",
            "16 to 200 characters that nobody guesses, such as a UUID: the same call with the same key is carried out once within 24 \
             hours, and its answer given again (`Idempotency-Replayed: true`).",
        );
    }
    for (status, words) in errors(endpoint, &about) {
        // A reference may say what it means here.
        let problem = json!({"$ref": "#/components/responses/Problem", "description": words});
        about.responses.insert(status.to_owned(), problem);
    }
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [tag(endpoint.path)],
        "parameters": about.parameters,
        "responses": about.responses,
        "x-guard-roles": roles(endpoint.access),
        "security": match endpoint.access {
            Access::Anyone => json!([]),
            _ => json!([{"bearer": []}, {"browser": []}]),
        },
    });
    if let (Value::Object(described), Some(body)) = (&mut described, about.body) {
        described.insert("requestBody".to_owned(), body);
    }
    described
}

/// Who may call it: names of roles; `null` where nobody has to sign in.
fn roles(access: Access) -> Value {
    match access {
        Access::Anyone => Value::Null,
        _ => ROLES
            .iter()
            .filter(|role| access.allows(**role))
            .map(|role| role.as_str())
            .collect(),
    }
}

/// Which problems an operation can answer. What is not named is `default`.
fn errors(endpoint: &Endpoint, about: &Description<'_>) -> Vec<(&'static str, &'static str)> {
    let mut errors = vec![
        ("default", "What went wrong."),
        ("429", "Too many calls; `Retry-After` says how many seconds to wait."),
    ];
    let signed_in = endpoint.access != Access::Anyone;
    if signed_in || about.body.is_some() {
        errors.push(("401", "Not signed in, or signing in failed."));
    }
    if matches!(endpoint.access, Access::Needs(_)) {
        errors.push(("403", "Not permitted."));
    }
    if about.body.is_some() || !about.parameters.is_empty() {
        errors.push(("400", "Something that was sent is not valid; `detail` names it."));
    }
    if endpoint.path.contains('{') {
        errors.push(("404", "There is nothing of this name."));
    }
    if endpoint.method != "GET" {
        errors.push(("409", "Not possible as things stand."));
    }
    if may_be_sent_again(endpoint) {
        errors.push(("422", "The Idempotency-Key was used for another call."));
    }
    if about.body.is_some() {
        errors.push(("413", "The body is too large."));
        errors.push(("415", "The body is not JSON."));
    }
    errors
}

/// What makes or changes something and is nobody's signing in.
fn may_be_sent_again(endpoint: &Endpoint) -> bool {
    endpoint.method == "POST" && endpoint.access != Access::Anyone
}

fn problem_response(problem: &Value) -> Value {
    json!({
        "description": "What went wrong, and what to do about it.",
        "content": {"application/problem+json": {"schema": problem}},
    })
}

/// `/api/v1/hosts/{id}` is about hosts.
fn tag(path: &str) -> &str {
    path.split('/').nth(3).unwrap_or_default()
}

/// The parts of a path in braces.
fn parameters_of(path: &str) -> Vec<Value> {
    let names = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names
        .map(|name| {
            json!({
                "name": name,
                "in": "path",
                "required": true,
                "schema": {"type": "string", "minLength": 1},
            })
        })
        .collect()
}
