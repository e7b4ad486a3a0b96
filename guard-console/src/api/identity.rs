//! Who calls: the bearer token or cookie of a request, its CSRF token, and where it comes from.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use subtle::ConstantTimeEq as _;

use super::describe::Takes;
use crate::app::keys::KEY_PREFIX;
use crate::app::sessions::SessionKind;
use crate::app::{Actor, App, Error};
use crate::auth::rate::Standing;
use crate::auth::secret::Secret;

/// What every handler gets.
pub type Shared = Arc<App>;

/// `__Host-`: only over HTTPS, only this host, every path.
pub const COOKIE: &str = "__Host-guard";
pub const CSRF_HEADER: &str = "x-csrf-token";

/// A signed-in caller, whose request is really theirs.
#[derive(Debug, Clone)]
pub struct Caller {
    pub actor: Actor,
    /// How much of their limit is left.
    pub standing: Standing,
    /// `web`, `cli` or `api`.
    pub channel: &'static str,
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self, Error> {
        // Found out before, by the gate.
        if let Some(caller) = parts.extensions.get::<Self>() {
            return Ok(caller.clone());
        }
        if let Some(bearer) = bearer(&parts.headers) {
            let actor = match bearer.strip_prefix(KEY_PREFIX) {
                Some(key) => {
                    let secret = Secret::parse(key).ok_or(Error::SignInFirst)?;
                    app.authenticate_key(&secret).await?
                }
                None => {
                    let secret = Secret::parse(bearer).ok_or(Error::SignInFirst)?;
                    app.authenticate(&secret, SessionKind::Api).await?
                }
            };
            return Ok(Self {
                standing: app.call_by(&actor)?,
                actor,
                channel: program_channel(&parts.headers),
            });
        }
        let browser = Browser::from_request_parts(parts, app).await?;
        if !is_safe(&parts.method) {
            let given = parts
                .headers
                .get(CSRF_HEADER)
                .and_then(|v| v.to_str().ok())
                .unwrap_or_default();
            browser.check_csrf(given, parts)?;
        }
        Ok(Self {
            actor: browser.actor,
            standing: browser.standing,
            channel: "web",
        })
    }
}

impl Takes for Caller {}

/// A browser with a session. Whoever changes something through it calls [`Browser::check_csrf`] first.
#[derive(Debug)]
pub struct Browser {
    pub actor: Actor,
    pub standing: Standing,
    /// What its forms send back.
    pub csrf: String,
}

impl FromRequestParts<Shared> for Browser {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self, Error> {
        let secret = cookie(&parts.headers)
            .and_then(Secret::parse)
            .ok_or(Error::SignInFirst)?;
        let actor = app.authenticate(&secret, SessionKind::Web).await?;
        Ok(Self {
            standing: app.call_by(&actor)?,
            actor,
            csrf: secret.csrf(),
        })
    }
}

impl Browser {
    /// # Errors
    /// [`Error::Forbidden`] if the request was made by another site's page.
    pub fn check_csrf(&self, given: &str, parts: &Parts) -> Result<(), Error> {
        check_same_origin(parts)?;
        if bool::from(given.as_bytes().ct_eq(self.csrf.as_bytes())) {
            return Ok(());
        }
        Err(Error::Forbidden(
            "the CSRF token is missing or wrong: load the page again and repeat what you did".to_owned(),
        ))
    }
}

/// What browsers tell of where a request comes from, if they tell, must be this site.
///
/// # Errors
/// [`Error::Forbidden`] for another site.
pub fn check_same_origin(parts: &Parts) -> Result<(), Error> {
    let foreign = || Error::Forbidden("the request comes from another site's page".to_owned());
    let header = |name| {
        parts
            .headers
            .get(name)
            .map(|v: &axum::http::HeaderValue| v.to_str().map_err(|_| foreign()))
    };
    if let Some(site) = header("sec-fetch-site").transpose()?
        && !matches!(site, "same-origin" | "none")
    {
        return Err(foreign());
    }
    if let Some(origin) = header("origin").transpose()? {
        let host = parts
            .uri
            .authority()
            .map(|a| Ok(a.as_str()))
            .or_else(|| header("host"))
            .transpose()?;
        if origin.strip_prefix("https://") != host || host.is_none() {
            return Err(foreign());
        }
    }
    Ok(())
}

/// The other end of the connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let address = parts
            .extensions
            .get::<ConnectInfo<SocketAddr>>()
            .map(|ConnectInfo(address)| address.ip());
        Ok(Self(address.unwrap_or(Ipv4Addr::UNSPECIFIED.into())))
    }
}

impl Takes for Peer {}

#[must_use]
pub fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    cookie_named(headers, COOKIE)
}

#[must_use]
pub fn cookie_named<'h>(headers: &'h HeaderMap, wanted: &str) -> Option<&'h str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == wanted).then_some(value))
}

/// `guard` says so; everything else is a program.
fn program_channel(headers: &HeaderMap) -> &'static str {
    let agent = headers
        .get(header::USER_AGENT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    if agent.starts_with("guard/") { "cli" } else { "api" }
}
