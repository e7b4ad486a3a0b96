//! People, as they call the REST API.

use guard_evidence::bundle::{Bundle, unpack};
use guard_evidence::trust::Trust;
use guard_evidence::verify::{Asked, Report, Status, TrustSource, verify};
use serde_json::{Value, json};

/// Somebody who calls the REST API.
#[derive(Clone)]
pub(crate) struct Person {
    pub(crate) http: reqwest::Client,
    pub(crate) base: String,
    pub(crate) token: Option<String>,
}

impl Person {
    pub(crate) fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let request = self
            .http
            .request(method.parse().unwrap(), format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let kind = response
            .headers()
            .get("content-type")
            .map(|v| v.to_str().unwrap().to_owned());
        let text = response.text().await.unwrap();
        if status >= 400 {
            assert_eq!(kind.as_deref(), Some("application/problem+json"), "{status} {text}");
        }
        (
            status,
            if text.is_empty() {
                Value::Null
            } else {
                serde_json::from_str(&text).unwrap()
            },
        )
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.send(self.request("GET", path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send(self.request("POST", path).json(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send(self.request("PUT", path).json(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> (u16, Value) {
        self.send(self.request("DELETE", path)).await
    }

    /// Answers as somebody would who was shown the request just now.
    pub(crate) async fn answer(&self, id: &str, verdict: &str, reason: &str) -> (u16, Value) {
        let (status, request) = self.get(&format!("/api/v1/requests/{id}")).await;
        assert_eq!(status, 200, "{request}");
        let body = json!({"reason": reason, "digest": request["digest"]});
        self.post(&format!("/api/v1/requests/{id}/{verdict}"), &body).await
    }

    /// The items of one page.
    pub(crate) async fn list(&self, path: &str) -> Vec<Value> {
        let (status, page) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {page}");
        page["items"].as_array().unwrap().clone()
    }

    /// Gives a label, made if need be, to an owner, or to nobody.
    pub(crate) async fn give(&self, label: &str, owner: Option<&str>) {
        let body = json!({"owner": owner});
        let (status, answer) = self.put(&format!("/api/v1/labels/{label}"), &body).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// A file as it is.
    pub(crate) async fn bytes(&self, path: &str) -> Vec<u8> {
        let response = self.request("GET", path).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.bytes().await.unwrap().to_vec()
    }

    /// An export of what `query` chooses, unpacked, and what the verifier says of it.
    pub(crate) async fn export(&self, query: &str, asked: Asked) -> (tempfile::TempDir, Report) {
        let trust = Trust::parse(&self.bytes("/api/v1/trust").await).unwrap();
        let tar = self.bytes(&format!("/api/v1/evidence/bundle{query}")).await;
        let outside = tempfile::tempdir().unwrap();
        let bundle = outside.path().join("bundle");
        unpack(&tar[..], &bundle).unwrap();
        let report = verify(&Bundle::open(&bundle).unwrap(), &trust, TrustSource::Given, asked);
        (outside, report)
    }

    /// The whole log is valid, as an outsider sees it.
    pub(crate) async fn valid_log(&self) -> Report {
        let (_, report) = self.export("", Asked::WholeLog).await;
        assert_eq!(report.status, Status::Valid, "{report:#?}");
        report
    }
}

/// What changes, or marks of them, say.
pub(crate) fn whats(changes: &[Value]) -> Vec<&str> {
    changes.iter().map(|change| change["what"].as_str().unwrap()).collect()
}
