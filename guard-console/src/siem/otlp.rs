//! OpenTelemetry logs over HTTP (OTLP 1.x), in JSON: what is sent, and what a partial success says.
//!
//! Each event is the body of a log record, as a map. 64-bit numbers are strings there, as protobuf's JSON has them.

use guard_evidence::text::visible_fold;
use serde_json::{Value, json};

use super::feed::Told;

const NAME: &str = "guard-console";
const WORDS: usize = 300;

/// An `ExportLogsServiceRequest`; nothing when there are no events.
pub(super) fn request(told: &[Told]) -> Vec<u8> {
    let records: Vec<Value> = told.iter().flat_map(|told| &told.events).map(record).collect();
    if records.is_empty() {
        return Vec::new();
    }
    let version = env!("CARGO_PKG_VERSION");
    let resource = [
        attribute("service.name", &json!(NAME)),
        attribute("service.version", &json!(version)),
    ];
    json!({"resourceLogs": [{
        "resource": {"attributes": resource},
        "scopeLogs": [{"scope": {"name": "guard.ocsf", "version": version}, "logRecords": records}],
    }]})
    .to_string()
    .into_bytes()
}

fn record(event: &Value) -> Value {
    let millis = event.get("time").and_then(Value::as_u64).unwrap_or_default();
    // OCSF's severities against OpenTelemetry's.
    let (number, text) = match event.get("severity_id").and_then(Value::as_u64) {
        Some(2) => (10, "INFO2"),
        Some(3) => (13, "WARN"),
        Some(4) => (17, "ERROR"),
        Some(5 | 6) => (21, "FATAL"),
        _ => (9, "INFO"),
    };
    let at = |path: &str| event.pointer(path).cloned().unwrap_or_default();
    json!({
        "timeUnixNano": millis.saturating_mul(1_000_000).to_string(),
        "severityNumber": number,
        "severityText": text,
        "eventName": format!("ocsf.{}", event.get("type_uid").cloned().unwrap_or_default()),
        "attributes": [
            attribute("log.record.uid", &at("/metadata/uid")),
            attribute("guard.index", &at("/metadata/sequence")),
            attribute("guard.label", &at("/unmapped/guard/label")),
        ],
        "body": any(event),
    })
}

fn attribute(key: &str, value: &Value) -> Value {
    json!({"key": key, "value": any(value)})
}

/// An `AnyValue`; null is one without anything.
fn any(value: &Value) -> Value {
    match value {
        Value::Null => json!({}),
        Value::Bool(bool) => json!({ "boolValue": bool }),
        Value::Number(number) => match number.as_i64() {
            Some(int) => json!({"intValue": int.to_string()}),
            // More than protobuf's integers hold; as text it stays exact.
            None if number.is_u64() => json!({"stringValue": number.to_string()}),
            None => json!({"doubleValue": number}),
        },
        Value::String(text) => json!({ "stringValue": text }),
        Value::Array(all) => json!({"arrayValue": {"values": all.iter().map(any).collect::<Vec<_>>()}}),
        Value::Object(map) => {
            let values: Vec<Value> = map.iter().map(|(key, value)| attribute(key, value)).collect();
            json!({"kvlistValue": {"values": values}})
        }
    }
}

/// Why a part of what was sent was not taken; it must not be sent again.
pub(super) fn rejected(answer: &[u8]) -> Option<String> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let partial = answer.get("partialSuccess")?;
    let count = partial.get("rejectedLogRecords")?;
    let count = count.as_u64().or_else(|| count.as_str()?.parse().ok())?;
    let why = partial.get("errorMessage").and_then(Value::as_str).unwrap_or_default();
    (count > 0).then(|| format!("{count} log records rejected: {}", visible_fold(why, WORDS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_bodies_and_partial_success_is_a_refusal() {
        let event = json!({"time": 1_700_000_000_123_u64, "severity_id": 4, "type_uid": 100_701, "ok": true, "none": null,
            "count": u64::MAX, "metadata": {"uid": "ab", "sequence": 7}, "list": ["x", -1]});
        let told = Told {
            position: 7,
            events: vec![event],
        };
        let sent: Value = serde_json::from_slice(&request(&[told])).unwrap();
        let record = &sent["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0];
        assert_eq!(record["timeUnixNano"], "1700000000123000000");
        assert_eq!(
            (&record["severityNumber"], &record["eventName"]),
            (&json!(17), &json!("ocsf.100701"))
        );
        assert_eq!(
            record["attributes"][1],
            json!({"key": "guard.index", "value": {"intValue": "7"}})
        );
        let body = record["body"]["kvlistValue"]["values"].as_array().unwrap();
        let of = |key: &str| &body.iter().find(|one| one["key"] == key).unwrap()["value"];
        assert_eq!(of("count"), &json!({"stringValue": u64::MAX.to_string()}));
        assert_eq!(of("list")["arrayValue"]["values"][1], json!({"intValue": "-1"}));
        assert_eq!((of("ok"), of("none")), (&json!({"boolValue": true}), &json!({})));
        assert!(request(&[]).is_empty());

        assert_eq!(rejected(b"{}"), None);
        assert_eq!(rejected(br#"{"partialSuccess":{"rejectedLogRecords":"0"}}"#), None);
        let answer = br#"{"partialSuccess":{"rejectedLogRecords":"2","errorMessage":"too old\u001b"}}"#;
        assert_eq!(rejected(answer).unwrap(), "2 log records rejected: too old⟨U+001B⟩");
    }
}
