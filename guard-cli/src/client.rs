//! The console's REST API as one signed-in person.
//!
//! Owns addresses, time-outs and the reading of answers. It is given a saved sign-in. It must never send the token to
//! another address than the one it is for, nor follow a redirect with it.

use std::time::Duration;

use guard_evidence::text::defuse;
use guard_proto::rest::{Page, Problem};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::{Failure, chain};
use crate::profile::{self, Credentials};
use crate::tls;

/// Most bytes of a JSON answer.
const ANSWER_BYTES: usize = 64 << 20;

/// A connection to one console.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    /// With the saved sign-in of this profile.
    pub(crate) fn signed_in(profile: &str) -> Result<Self, Failure> {
        let Some(credentials) = profile::load(profile)? else {
            let as_name = if profile == "default" {
                String::new()
            } else {
                format!(" --as {profile}")
            };
            return Err(Failure::unknown(match profile {
                "default" => "not signed in to a console".to_owned(),
                name => format!("not signed in as `{name}`"),
            })
            .next(format!(
                "guard login{as_name} --url https://CONSOLE:8443 --username NAME --ca ca.pem"
            )));
        };
        Self::with(&credentials)
    }

    /// With credentials that were loaded before.
    pub(crate) fn with(credentials: &Credentials) -> Result<Self, Failure> {
        if let Ok(url) = std::env::var("GUARD_URL")
            && !url.is_empty()
            && base_of(&url)? != base_of(&credentials.url)?
        {
            return Err(Failure::usage(format!(
                "GUARD_URL is {}, but this sign-in is for {}",
                defuse(&url),
                defuse(&credentials.url)
            ))
            .next("unset GUARD_URL, choose another sign-in with --as, or guard login"));
        }
        let config = tls::pinned_to_pem(&credentials.ca_pem)?;
        Self::new(&credentials.url, config, Some(&credentials.token.0))
    }

    /// For any TLS configuration; without a token nobody is signed in.
    pub(crate) fn new(url: &str, tls: rustls::ClientConfig, token: Option<&str>) -> Result<Self, Failure> {
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| Failure::unknown("the saved sign-in is damaged").next("guard login"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(60))
            .user_agent(concat!("guard/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .build()
            .map_err(|e| Failure::unknown(chain(&e)))?;
        Ok(Self {
            http,
            base: base_of(url)?,
        })
    }

    /// Where the console is.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<T, Failure> {
        self.json(self.request(Method::GET, path).query(query)).await
    }

    /// All pages of a list, up to `limit` items.
    pub(crate) async fn pages<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        limit: usize,
    ) -> Result<Vec<T>, Failure> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        while items.len() < limit {
            let mut query = query.to_vec();
            query.push(("limit", (limit - items.len()).min(100).to_string()));
            query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
            let page: Page<T> = self.get(path, &query).await?;
            let empty = page.items.is_empty();
            items.extend(page.items);
            match page.next {
                Some(next) if !empty => cursor = Some(next),
                _ => break,
            }
        }
        items.truncate(limit);
        Ok(items)
    }

    pub(crate) async fn bytes(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let response = self.send(self.request(Method::GET, path)).await?;
        self.body(response).await
    }

    /// An answer whose body is read as it comes.
    pub(crate) async fn stream(&self, path: &str, query: &[(&str, String)]) -> Result<Response, Failure> {
        self.send(self.request(Method::GET, path).query(query)).await
    }

    pub(crate) async fn send_json<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<T, Failure> {
        self.json(self.request(method, path).json(body)).await
    }

    /// For answers without a body.
    pub(crate) async fn send_empty(&self, method: Method, path: &str) -> Result<(), Failure> {
        self.send(self.request(method, path)).await.map(drop)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/api/v1{path}", self.base))
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failure> {
        let response = self.send(request).await?;
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|e| {
            Failure::unknown(format!(
                "{} answered something this version does not understand: {e}",
                self.base
            ))
        })
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.body(response).await.unwrap_or_default();
        let problem = serde_json::from_slice::<Problem>(&body).unwrap_or_else(|_| Problem {
            kind: String::new(),
            title: format!("{} answered {status}", self.base),
            status: status.as_u16(),
            detail: None,
        });
        Err(Failure::from_problem(&Problem {
            status: status.as_u16(),
            ..problem
        }))
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(&e))? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES {
                return Err(Failure::unknown(format!(
                    "{} answers more than {ANSWER_BYTES} bytes",
                    self.base
                )));
            }
        }
        Ok(body)
    }

    fn unreachable(&self, e: &reqwest::Error) -> Failure {
        let why = chain(&e.without_url_ref());
        let failure = Failure::unknown(format!("cannot reach the console at {}: {why}", self.base));
        if why.contains("certificate") {
            failure.next("guard login --ca FILE with the `ca.pem` of that console's data directory")
        } else {
            failure.next("guard status")
        }
    }
}

/// Errors without their address: it is named once, and a query stays out of logs.
trait WithoutUrl {
    fn without_url_ref(&self) -> Reason<'_>;
}

impl WithoutUrl for reqwest::Error {
    fn without_url_ref(&self) -> Reason<'_> {
        Reason(self)
    }
}

/// What lies below a [`reqwest::Error`], whose own text only repeats the address.
#[derive(Debug)]
struct Reason<'a>(&'a reqwest::Error);

impl std::fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_timeout() {
            "no answer in time"
        } else if self.0.is_connect() {
            "no connection"
        } else {
            "the connection broke"
        })
    }
}

impl std::error::Error for Reason<'_> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// `https://host[:port]` without a path.
pub(crate) fn base_of(url: &str) -> Result<String, Failure> {
    let bad = |why: &str| Failure::usage(format!("`{}` is not a console's address: {why}", defuse(url)));
    let parsed = reqwest::Url::parse(url).map_err(|_| bad("write https://HOST:PORT"))?;
    if parsed.scheme() != "https" {
        return Err(bad("it must begin with https://"));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() || parsed.query().is_some() || parsed.path() != "/"
    {
        return Err(bad("write only https://HOST:PORT"));
    }
    Ok(parsed.as_str().trim_end_matches('/').to_owned())
}

/// One segment of a path, so that an id cannot name another resource.
pub(crate) fn segment(text: &str) -> String {
    let mut url = reqwest::Url::parse("https://x").ok();
    if let Some(mut segments) = url.as_mut().and_then(|url| url.path_segments_mut().ok()) {
        segments.clear().push(text);
    }
    url.map_or_else(String::new, |url| url.path().trim_start_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(
            base_of("https://guard.example.org:8443/").unwrap(),
            "https://guard.example.org:8443"
        );
        for bad in [
            "http://guard.example.org",
            "guard.example.org",
            "https://a@b",
            "https://a/b",
            "https://a?x",
            "",
        ] {
            assert_eq!(base_of(bad).unwrap_err().code(), crate::failure::USAGE, "{bad}");
        }
    }

    #[test]
    fn ids_stay_in_their_segment() {
        assert_eq!(segment("01J"), "01J");
        assert_eq!(segment("../users"), "..%2Fusers");
        assert_eq!(segment("a?b#c"), "a%3Fb%23c");
    }
}
