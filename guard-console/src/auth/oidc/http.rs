//! Talking to an identity provider: HTTPS, no redirects, small answers, and not for long.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures::StreamExt as _;
use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse, http};

use crate::outgoing::{self, chain};

/// Of a document; Entra ID's key set is the largest seen, with a tenth of this.
const ANSWER_BYTES: usize = 512 * 1_024;
const CONNECT: Duration = Duration::from_secs(5);
const WHOLE: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("{0}")]
    Send(String),
    #[error("the answer has more than {ANSWER_BYTES} bytes")]
    Large,
    #[error("the answer cannot be read: {0}")]
    Answer(String),
}

/// Trusts the system's certificates, or only those that it is given.
#[derive(Debug)]
pub(super) struct Http {
    client: reqwest::Client,
}

impl Http {
    pub(super) fn new(ca_pem: Option<&[u8]>) -> Result<Self, HttpError> {
        let builder = outgoing::client(CONNECT, WHOLE).https_only(true);
        let client = outgoing::trusting(builder, ca_pem).map_err(|e| HttpError::Send(chain(&e)))?;
        Ok(Self { client })
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // Addresses may carry secrets of the protocol: they do not belong into errors, which are logged.
        let failed = |e: reqwest::Error| HttpError::Send(chain(&e.without_url()));
        let request = reqwest::Request::try_from(request).map_err(failed)?;
        let response = self.client.execute(request).await.map_err(failed)?;
        let mut answer = http::Response::builder().status(response.status());
        for (name, value) in response.headers() {
            answer = answer.header(name, value);
        }
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(failed)?;
            if body.len() + chunk.len() > ANSWER_BYTES {
                return Err(HttpError::Large);
            }
            body.extend_from_slice(&chunk);
        }
        answer.body(body).map_err(|e| HttpError::Answer(e.to_string()))
    }
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.send(request))
    }
}
