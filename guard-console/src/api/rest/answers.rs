//! Answers that are not JSON of `guard_proto::rest`.

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::api::describe::{Description, Gives};

const ENVELOPE: &str = "application/vnd.dsse.envelope.v1+json";
const TAR: &str = "application/x-tar";
const EVENTS: &str = "text/event-stream";

/// A record's envelope, exact bytes.
#[derive(Debug)]
pub(super) struct Envelope(pub(super) Vec<u8>);

impl IntoResponse for Envelope {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, ENVELOPE)], self.0).into_response()
    }
}

impl Gives for Envelope {
    fn describe(about: &mut Description<'_>) {
        let schema = json!({"type": "object", "required": ["payload", "payloadType", "signatures"]});
        about.answer(200, "A DSSE envelope, exact bytes.", ENVELOPE, &schema);
    }
}

/// JSON whose bytes are ready.
#[derive(Debug)]
pub(super) struct ReadyJson<B>(pub(super) B);

impl<B: IntoResponse> IntoResponse for ReadyJson<B> {
    fn into_response(self) -> Response {
        let mut response = self.0.into_response();
        let kind = header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

impl<B> Gives for ReadyJson<B> {
    fn describe(about: &mut Description<'_>) {
        about.answer(200, "A JSON document.", "application/json", &json!({"type": "object"}));
    }
}

/// A bundle of evidence.
#[derive(Debug)]
pub(super) struct Bundle(pub(super) Body);

impl IntoResponse for Bundle {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, TAR),
            (
                header::CONTENT_DISPOSITION,
                "attachment; filename=\"guard-evidence.tar\"",
            ),
        ];
        (headers, self.0).into_response()
    }
}

impl Gives for Bundle {
    fn describe(about: &mut Description<'_>) {
        about.answer(200, "A bundle (docs/evidence-format.md).", TAR, &json!({}));
    }
}

/// Server-sent events.
#[derive(Debug)]
pub(super) struct Events(pub(super) Response);

impl IntoResponse for Events {
    fn into_response(self) -> Response {
        self.0
    }
}

impl Gives for Events {
    fn describe(about: &mut Description<'_>) {
        about.answer(
            200,
            "Server-sent events, until the session or key ends.",
            EVENTS,
            &json!({"type": "string"}),
        );
    }
}
