//! A browser as far as signing in needs one: cookies by site, and where it is led.

use std::collections::HashMap;

use crate::provider::Provider;
use crate::support::{Console, Person};

pub(crate) struct Browser {
    console: reqwest::Client,
    provider: reqwest::Client,
    origin: String,
    issuer: String,
    /// By origin.
    pub(crate) cookies: HashMap<String, HashMap<String, String>>,
}

#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) url: String,
    pub(crate) status: u16,
    pub(crate) location: Option<String>,
    pub(crate) set_cookies: Vec<String>,
    pub(crate) text: String,
}

impl Browser {
    pub(crate) fn new(console: &Console, provider: &Provider) -> Self {
        Self {
            console: console.http(),
            provider: provider.http(),
            origin: console.url(""),
            issuer: provider.issuer.clone(),
            cookies: HashMap::new(),
        }
    }

    /// One request, without going on.
    pub(crate) async fn send(&mut self, method: &str, url: &str, form: &[(&str, &str)]) -> Got {
        let origin = if url.starts_with(&self.origin) {
            &self.origin
        } else {
            &self.issuer
        }
        .clone();
        assert!(url.starts_with(&origin), "led to somebody else: {url}");
        let http = if origin == self.origin {
            &self.console
        } else {
            &self.provider
        };
        let jar = self.cookies.entry(origin).or_default();
        let cookies: Vec<String> = jar.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut request = http.request(method.parse().unwrap(), url);
        if !cookies.is_empty() {
            request = request.header("cookie", cookies.join("; "));
        }
        if method == "POST" {
            request = request.form_body(form);
        }
        let response = request.send().await.unwrap();
        let headers = response.headers().clone();
        let strings = |name: &str| {
            let values = headers.get_all(name).iter();
            values.map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let set_cookies = strings("set-cookie");
        for cookie in &set_cookies {
            let (name, value) = cookie.split(';').next().unwrap().split_once('=').unwrap();
            if value.is_empty() || cookie.contains("Max-Age=0") {
                jar.remove(name);
            } else {
                jar.insert(name.to_owned(), value.to_owned());
            }
        }
        Got {
            url: url.to_owned(),
            status: response.status().as_u16(),
            location: strings("location").into_iter().next(),
            set_cookies,
            text: response.text().await.unwrap(),
        }
    }

    pub(crate) async fn get(&mut self, path: &str) -> Got {
        let url = format!("{}{path}", self.origin);
        self.send("GET", &url, &[]).await
    }

    /// Follows redirects while `on` says so; the first answer that does not redirect, or is not to be followed.
    pub(crate) async fn follow(&mut self, url: &str, on: impl Fn(&str) -> bool) -> Got {
        let mut got = self.send("GET", url, &[]).await;
        for _ in 0..10 {
            let Some(location) = got.location.clone() else {
                return got;
            };
            let to = url::Url::parse(&got.url).unwrap().join(&location).unwrap().to_string();
            if !on(&to) {
                got.location = Some(to);
                return got;
            }
            got = self.send("GET", &to, &[]).await;
        }
        panic!("led in circles: {got:?}");
    }

    /// The whole way, from the button to the page that comes back.
    pub(crate) async fn sign_in(&mut self, next: &str) -> Got {
        let begin = format!("{}/login/oidc/okta?next={next}", self.origin);
        self.follow(&begin, |_| true).await
    }

    /// As far as the provider's answer; where it leads to, not yet gone there.
    pub(crate) async fn answered(&mut self) -> String {
        let begin = format!("{}/login/oidc/okta?next=/", self.origin);
        let got = self.follow(&begin, |to| !to.contains("/callback")).await;
        got.location.unwrap_or_else(|| panic!("{}", got.text))
    }

    pub(crate) fn session(&self) -> Option<&str> {
        self.cookies.get(&self.origin)?.get("__Host-guard").map(String::as_str)
    }

    /// Calls the API with the cookie of the session.
    pub(crate) async fn api(&self, method: &str, path: &str, csrf: &str) -> (u16, serde_json::Value) {
        let person = Person {
            http: self.console.clone(),
            base: self.origin.clone(),
            token: None,
        };
        let cookie = format!("__Host-guard={}", self.session().unwrap());
        let request = person
            .request(method, path)
            .header("cookie", cookie)
            .header("x-csrf-token", csrf);
        person.send(request).await
    }

    /// The token that forms of this session send back.
    pub(crate) async fn csrf(&mut self) -> String {
        let page = self.get("/").await;
        let (_, rest) = page.text.split_once("data-csrf=\"").unwrap();
        rest.split('"').next().unwrap().to_owned()
    }
}

trait FormBody {
    fn form_body(self, fields: &[(&str, &str)]) -> Self;
}

impl FormBody for reqwest::RequestBuilder {
    fn form_body(self, fields: &[(&str, &str)]) -> Self {
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        self.header("content-type", "application/x-www-form-urlencoded")
            .body(body)
    }
}
