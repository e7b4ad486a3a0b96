//! Webhooks: a signed message to an address of the configuration (Standard Webhooks 1.0.0).
//!
//! Owns the message's shape and its signature. It is given what every channel is told. It must never take an answer
//! from the other side: who answers a request does so on the page, by the API or in a channel that knows people.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use hmac::{Hmac, Mac as _};
use reqwest::StatusCode;
use reqwest::header::CONTENT_TYPE;
use serde_json::json;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{Channel, Delivery, Event, Told, guarded};
use crate::app::requests::decision_view;
use crate::app::{App, Error, Result};
use crate::auth::secret;
use crate::config::WebhookConfig;
use crate::outgoing::retry_after;
use crate::store::MessageRow;
use crate::time::{Millis, rfc3339};

const SECRET_PREFIX: &str = "whsec_";
/// Bytes of a secret, as the specification has it.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// One receiver.
pub(super) struct Webhook {
    config: WebhookConfig,
    name: String,
    /// More than one while they are exchanged: each signs.
    secrets: Vec<Zeroizing<Vec<u8>>>,
    client: reqwest::Client,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Webhook({})", self.name)
    }
}

impl Webhook {
    pub(super) fn open(config: WebhookConfig) -> std::result::Result<Self, String> {
        let failed = |path: &std::path::Path, why: String| format!("{}: {why}", path.display());
        let text = secret::from_file(&config.secret_file).map_err(|why| failed(&config.secret_file, why))?;
        let secrets = text.split_ascii_whitespace().map(parse_secret);
        let secrets = secrets
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|why| failed(&config.secret_file, why))?;
        let ca = match &config.ca_file {
            Some(path) => Some(std::fs::read(path).map_err(|e| failed(path, e.to_string()))?),
            None => None,
        };
        Ok(Self {
            client: guarded::client(config.allow_private, ca.as_deref())?,
            name: format!("webhook:{}", config.name),
            secrets,
            config,
        })
    }

    /// The header `webhook-signature`: one for each secret.
    fn signatures(&self, id: &str, timestamp: i64, body: &str) -> String {
        let signed = self.secrets.iter().map(|secret| sign(secret, id, timestamp, body));
        signed.collect::<Vec<_>>().join(" ")
    }

    async fn post(&self, timestamp: i64, message: &MessageRow) -> Delivery {
        let sent = self
            .client
            .post(self.config.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &message.id)
            .header("webhook-timestamp", timestamp.to_string())
            .header(
                "webhook-signature",
                self.signatures(&message.id, timestamp, &message.body),
            )
            .body(message.body.clone())
            .send()
            .await;
        // The body of the answer is not read: nothing in it counts.
        match sent {
            Ok(response) => judge(response.status(), retry_after(&response)),
            Err(error) => Delivery::Later {
                why: guarded::words(&error),
                after: None,
            },
        }
    }
}

fn judge(status: StatusCode, after: Option<Duration>) -> Delivery {
    if status.is_success() {
        return Delivery::Done;
    }
    let why = format!("it answered {}", status.as_u16());
    if status == StatusCode::GONE {
        return Delivery::Never { why };
    }
    Delivery::Later { why, after }
}

fn parse_secret(text: &str) -> std::result::Result<Zeroizing<Vec<u8>>, String> {
    let wrong = || {
        format!(
            "a secret is {SECRET_PREFIX} and {} to {} bytes in base64; make one with: echo \"{SECRET_PREFIX}$(head -c 32 /dev/urandom | base64)\"",
            SECRET_BYTES.start(),
            SECRET_BYTES.end()
        )
    };
    let encoded = text.strip_prefix(SECRET_PREFIX).ok_or_else(wrong)?;
    let bytes = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| wrong())?);
    if SECRET_BYTES.contains(&bytes.len()) {
        Ok(bytes)
    } else {
        Err(wrong())
    }
}

fn sign(secret: &[u8], id: &str, timestamp: i64, body: &str) -> String {
    // A key of any length is a key.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else {
        return String::new();
    };
    mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

impl Channel for Webhook {
    fn name(&self) -> &str {
        &self.name
    }

    fn wants(&self, event: Event, told: &Told) -> bool {
        let config = &self.config;
        (config.events.is_empty() || config.events.contains(&event))
            && (config.labels.is_empty() || config.labels.contains(&told.row.label))
    }

    fn message(&self, event: Event, told: &Told, at: Millis) -> Result<String> {
        let row = &told.row;
        let decisions: Vec<_> = told.answers.iter().cloned().map(decision_view).collect();
        let body = json!({
            "type": format!("request.{}", event.as_str()),
            "timestamp": rfc3339(at),
            "data": {
                "id": row.id,
                "url": told.url,
                "state": row.state,
                "label": row.label,
                "owner": told.owner,
                "host_id": row.host_id,
                "host": row.host_name,
                "action": row.action,
                "what": row.what,
                "digest": row.digest,
                "asked_at": rfc3339(row.asked_at),
                "expires_at": row.expires_at.map(rfc3339),
                "approver_groups": row.approver_groups,
                "quorum": row.quorum,
                "approvals": told.approvals(),
                "decisions": decisions,
                "ended_at": row.ended_at.map(rfc3339),
                "ended_because": row.ended_because,
                "outcome": row.outcome,
                "outcome_detail": row.outcome_detail,
                "card": told.content,
            },
        });
        serde_json::to_string(&body).map_err(|e| Error::internal(e.to_string()))
    }

    fn deliver<'a>(&'a self, app: &'a App, message: &'a MessageRow) -> BoxFuture<'a, Delivery> {
        Box::pin(self.post(app.now() / 1_000, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_of_the_specification() {
        // The test vector of the reference implementations.
        let secret = parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = sign(
            &secret,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn secrets() {
        for bad in [
            "",
            "whsec_",
            "whsec_c2hvcnQ=",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_!",
        ] {
            assert!(parse_secret(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_answers_mean() {
        assert!(matches!(judge(StatusCode::NO_CONTENT, None), Delivery::Done));
        assert!(matches!(judge(StatusCode::GONE, None), Delivery::Never { .. }));
        for later in [301, 302, 307, 400, 404, 429, 500, 503] {
            let status = StatusCode::from_u16(later).unwrap();
            assert!(matches!(judge(status, None), Delivery::Later { .. }), "{later}");
        }
    }
}
