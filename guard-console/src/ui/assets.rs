//! Static files, embedded; their addresses change with their content, so that browsers may keep them.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

/// Addresses for the templates.
#[derive(Debug)]
pub(super) struct Assets {
    pub(super) css: String,
    pub(super) js: String,
    pub(super) htmx: String,
    pub(super) icon: String,
}

struct File {
    name: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

const CSS: File = File {
    name: "style.css",
    kind: "text/css; charset=utf-8",
    bytes: include_bytes!("../../assets/style.css"),
};
const JS: File = File {
    name: "app.js",
    kind: "text/javascript; charset=utf-8",
    bytes: include_bytes!("../../assets/app.js"),
};
/// htmx 2.0.11, unchanged from its npm package; licence: assets/htmx-LICENSE.txt (0BSD).
const HTMX: File = File {
    name: "htmx.js",
    kind: "text/javascript; charset=utf-8",
    bytes: include_bytes!("../../assets/htmx-2.min.js"),
};
const ICON: File = File {
    name: "favicon.svg",
    kind: "image/svg+xml",
    bytes: include_bytes!("../../assets/favicon.svg"),
};

pub(super) static ASSETS: LazyLock<Assets> = LazyLock::new(|| Assets {
    css: address(&CSS),
    js: address(&JS),
    htmx: address(&HTMX),
    icon: address(&ICON),
});

fn address(file: &File) -> String {
    let digest = hex::encode(Sha256::digest(file.bytes));
    format!("/assets/{}?{}", file.name, &digest[..12])
}

pub(super) async fn asset(Path(name): Path<String>) -> Response {
    let Some(file) = [CSS, JS, HTMX, ICON].into_iter().find(|file| file.name == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, file.kind),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
    ];
    (headers, file.bytes).into_response()
}
