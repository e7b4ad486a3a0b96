//! What every page has: the frame around it, who looks at it, and what happens when it cannot be shown.

use askama::Template;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{Html, IntoResponse, Redirect, Response};

use super::assets::{ASSETS, Assets};
use crate::api::identity::{Browser, Shared};
use crate::api::problem;
use crate::app::{Error, Permission};
use crate::time::{Millis, now};

/// The frame.
#[derive(Debug)]
pub(super) struct Shell {
    pub(super) title: String,
    /// Which entry of the menu is on.
    pub(super) page: &'static str,
    pub(super) me: Option<Me>,
    pub(super) pending: u64,
    /// Of the last day.
    pub(super) alarms: u64,
    pub(super) now: Millis,
    pub(super) assets: &'static Assets,
}

#[derive(Debug)]
pub(super) struct Me {
    pub(super) username: String,
    pub(super) roles: String,
    pub(super) csrf: String,
    pub(super) sees_hosts: bool,
    pub(super) sees_users: bool,
}

impl Shell {
    /// For somebody who has not signed in.
    pub(super) fn outside(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            page: "",
            me: None,
            pending: 0,
            alarms: 0,
            now: now(),
            assets: &ASSETS,
        }
    }

    pub(super) async fn of(app: &Shared, viewer: &Viewer, page: &'static str, title: &str) -> Result<Self, Failure> {
        let browser = &viewer.browser;
        let me = browser.actor.me();
        let roles: Vec<&str> = me.roles.iter().map(|role| role.as_str()).collect();
        Ok(Self {
            title: title.to_owned(),
            page,
            pending: app.count_pending(&browser.actor).await?,
            alarms: app.count_alarms(&browser.actor).await?,
            me: Some(Me {
                username: me.username,
                roles: roles.join(", "),
                csrf: browser.csrf.clone(),
                sees_hosts: browser.actor.may(Permission::SeeHosts),
                sees_users: browser.actor.may(Permission::SeeUsers),
            }),
            now: now(),
            assets: &ASSETS,
        })
    }
}

/// Somebody who looks at a page; whoever has not signed in is sent to do so.
#[derive(Debug)]
pub(super) struct Viewer {
    pub(super) browser: Browser,
}

impl FromRequestParts<Shared> for Viewer {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self, Response> {
        match Browser::from_request_parts(parts, app).await {
            Ok(browser) => Ok(Self { browser }),
            Err(Error::SignInFirst) => Err(to_sign_in(&parts.uri, &parts.headers)),
            Err(error) => Err(Failure(error).into_response()),
        }
    }
}

pub(super) fn is_htmx(headers: &HeaderMap) -> bool {
    headers.contains_key("hx-request")
}

fn to_sign_in(uri: &Uri, headers: &HeaderMap) -> Response {
    if is_htmx(headers) {
        let mut response = StatusCode::UNAUTHORIZED.into_response();
        response
            .headers_mut()
            .insert("hx-redirect", HeaderValue::from_static("/login"));
        return response;
    }
    let wanted = uri.path_and_query().map_or("/", |p| p.as_str());
    let next = form_urlencoded::Serializer::new(String::new())
        .append_pair("next", wanted)
        .finish();
    Redirect::to(&format!("/login?{next}")).into_response()
}

/// Where to go after signing in: a path of this site and nothing else.
pub(super) fn local_path(next: &str) -> &str {
    let local = next.starts_with('/')
        && !next.starts_with("//")
        && !next.starts_with("/\\")
        && next.bytes().all(|b| b.is_ascii_graphic());
    if local { next } else { "/" }
}

/// A page that cannot be shown, as a page.
#[derive(Debug)]
pub(super) struct Failure(pub(super) Error);

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl From<askama::Error> for Error {
    fn from(error: askama::Error) -> Self {
        Self::Internal(format!("template: {error}"))
    }
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage<'a> {
    shell: Shell,
    heading: &'a str,
    detail: String,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, _, heading) = problem::status(&self.0);
        let detail = match &self.0 {
            Error::Internal(why) => {
                tracing::error!(why, "a page failed");
                "The console's log says why.".to_owned()
            }
            error => error.to_string(),
        };
        let page = ErrorPage {
            shell: Shell::outside(heading),
            heading,
            detail,
        };
        match page.render() {
            Ok(html) => (status, Html(html)).into_response(),
            Err(_) => status.into_response(),
        }
    }
}

pub(super) type Page = Result<Html<String>, Failure>;

pub(super) fn html(template: &impl Template) -> Page {
    Ok(Html(template.render()?))
}

#[cfg(test)]
mod tests {
    use super::local_path;

    #[test]
    fn no_open_redirect() {
        assert_eq!(local_path("/history?state=denied"), "/history?state=denied");
        for bad in [
            "//evil.example.org",
            "/\\evil.example.org",
            "https://evil.example.org",
            "",
            "evil",
            "/a\r\nb",
        ] {
            assert_eq!(local_path(bad), "/", "{bad}");
        }
    }
}
