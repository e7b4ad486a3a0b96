//! What the HTTP clients of the console have in common, which call addresses of its configuration.
//!
//! Owns how such clients are made and how their errors and waits are read. Given limits of time and certificates. It must never
//! make a client that follows a redirect: an address is that of the configuration, or none.

use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use reqwest::{Client, ClientBuilder, Response};

/// A client that is to be made by [`trusting`].
pub(crate) fn client(connect: Duration, whole: Duration) -> ClientBuilder {
    // reqwest takes the provider of the process; whoever was first has set the same one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(connect)
        .timeout(whole)
        .user_agent(concat!("guard-console/", env!("CARGO_PKG_VERSION")))
}

/// Trusts the system's certificates, or only those that it is given.
///
/// # Errors
/// Certificates that are none.
pub(crate) fn trusting(mut builder: ClientBuilder, ca_pem: Option<&[u8]>) -> reqwest::Result<Client> {
    if let Some(pem) = ca_pem {
        builder = builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem)?);
    }
    builder.build()
}

/// How long the other side wants to be left alone.
pub(crate) fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    Some(Duration::from_secs(seconds.parse().ok()?))
}

/// With its causes, which say what really failed.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
