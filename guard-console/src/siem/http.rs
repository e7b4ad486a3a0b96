//! POST of batches to an endpoint, and what its answer means.

use std::time::Duration;

use futures::StreamExt as _;
use guard_evidence::text::visible_fold;
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Client, Response, StatusCode};

use super::feed::Told;
use super::{Refusal, otlp};
use crate::auth::secret;
use crate::config::{SiemEndpoint, SiemKind};
use crate::outgoing;

const CONNECT: Duration = Duration::from_secs(10);
const WHOLE: Duration = Duration::from_secs(30);
/// Of an answer.
const ANSWER_BYTES: usize = 16 << 10;
/// Of the other side's words.
const WORDS: usize = 300;

#[derive(Debug)]
pub(super) struct Endpoint {
    kind: SiemKind,
    config: SiemEndpoint,
    /// Made when it is first needed, so that a file that is not there yet is an error that passes.
    client: Option<Client>,
}

impl Endpoint {
    pub(super) fn new(kind: SiemKind, config: SiemEndpoint) -> Self {
        Self {
            kind,
            config,
            client: None,
        }
    }

    /// Hands over a batch; when it comes back the other side has it.
    pub(super) async fn post(&mut self, told: &[Told]) -> Result<(), Refusal> {
        let later = |why: String| Refusal::Later(why, None);
        let (content, body) = match self.kind {
            SiemKind::Otlp => ("application/json", otlp::request(told)),
            _ => ("application/x-ndjson", told.iter().flat_map(Told::lines).collect()),
        };
        if body.is_empty() {
            return Ok(());
        }
        let header = self.header().map_err(later)?;
        let client = self.client().map_err(later)?;
        let mut request = client
            .post(self.config.url.clone())
            .header(CONTENT_TYPE, content)
            .body(body);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let response = request.send().await.map_err(|e| later(words(&e.without_url())))?;
        self.judge(response).await
    }

    async fn judge(&self, response: Response) -> Result<(), Refusal> {
        let status = response.status();
        let after = outgoing::retry_after(&response);
        let body = match read(response).await {
            Ok(body) => body,
            // What was taken may be taken twice.
            Err(why) => return Err(Refusal::Later(why, None)),
        };
        let answer = || {
            let said = visible_fold(String::from_utf8_lossy(&body).trim(), WORDS);
            format!("HTTP {}: {said}", status.as_u16())
        };
        match status {
            status if status.is_success() && self.kind == SiemKind::Otlp => match otlp::rejected(&body) {
                Some(why) => Err(Refusal::Partly(why)),
                None => Ok(()),
            },
            status if status.is_success() => Ok(()),
            // About what was sent. Anything else, a wrong secret or address too, is somebody's to repair: nothing is given up for it.
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
                Err(Refusal::Never(answer()))
            }
            _ => Err(Refusal::Later(answer(), after)),
        }
    }

    fn client(&mut self) -> Result<Client, String> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let ca = match &self.config.ca_file {
            Some(path) => Some(std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?),
            None => None,
        };
        let builder = outgoing::client(CONNECT, WHOLE).no_proxy();
        let client = outgoing::trusting(builder, ca.as_deref()).map_err(|e| words(&e))?;
        self.client = Some(client.clone());
        Ok(client)
    }

    /// Read anew each time: whoever changes the secret need not restart the console. Its text stands in no error.
    fn header(&self) -> Result<Option<(HeaderName, HeaderValue)>, String> {
        let Some(path) = &self.config.header_file else {
            return Ok(None);
        };
        let line = secret::from_file(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let wrong = || format!("{}: not one line `Name: value`", path.display());
        let (name, value) = line.split_once(':').ok_or_else(wrong)?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| wrong())?;
        let mut value = HeaderValue::from_str(value.trim()).map_err(|_| wrong())?;
        value.set_sensitive(true);
        Ok(Some((name, value)))
    }
}

/// The beginning of an answer.
async fn read(response: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while body.len() < ANSWER_BYTES
        && let Some(chunk) = chunks.next().await
    {
        body.extend_from_slice(&chunk.map_err(|e| words(&e.without_url()))?);
    }
    body.truncate(ANSWER_BYTES);
    Ok(body)
}

/// An error in the words of an output's state.
fn words(error: &dyn std::error::Error) -> String {
    visible_fold(&outgoing::chain(error), WORDS)
}
