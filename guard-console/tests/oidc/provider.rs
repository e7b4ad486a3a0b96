//! The identity provider: node runs it as long as the test does.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use guard_console::config::RawOidc;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};

use crate::support::Console;

pub(crate) struct Provider {
    child: Child,
    pub(crate) issuer: String,
    ca: String,
    dir: tempfile::TempDir,
}

impl Provider {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned()];
        let certificate = CertificateParams::new(names)
            .unwrap()
            .signed_by(&key, &authority)
            .unwrap();
        let ca = authority.pem();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        file("ca.pem", &ca);
        let secret = file("secret", "a secret of the test, long enough\n");
        std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let mut child = Command::new("node")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oidc/provider.mjs"))
            .env("OIDC_MODULES", std::env::var_os("GUARD_OIDC_MODULES").unwrap())
            .env("OIDC_CERT", file("cert.pem", &certificate.pem()))
            .env("OIDC_KEY", file("key.pem", &key.serialize_pem()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(if std::env::var_os("RUST_LOG").is_some() {
                Stdio::inherit()
            } else {
                Stdio::null()
            })
            .spawn()
            .unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut port)
            .unwrap();
        Self {
            child,
            issuer: format!("https://localhost:{}", port.trim()),
            ca,
            dir,
        }
    }

    /// As it would stand in `console.toml`.
    pub(crate) fn config(&self) -> RawOidc {
        let text = json!({
            "name": "okta",
            "label": "Example <Id>",
            "issuer": self.issuer,
            "client-id": "guard",
            "client-secret-file": self.dir.path().join("secret"),
            "ca-file": self.dir.path().join("ca.pem"),
            "scopes": ["profile", "email", "groups"],
            "roles": {"approvers": ["approver"], "auditors": ["auditor"], "admins": ["administrator"]},
            "approver-groups": {"secops": ["security"]},
        });
        serde_json::from_value(text).unwrap()
    }

    pub(crate) fn http(&self) -> reqwest::Client {
        let ca = reqwest::Certificate::from_pem(self.ca.as_bytes()).unwrap();
        let builder = reqwest::Client::builder()
            .tls_certs_only([ca])
            .redirect(reqwest::redirect::Policy::none());
        builder.build().unwrap()
    }

    /// Changes what it does; answers what it has seen.
    pub(crate) async fn control(&self, change: Value) -> Value {
        let request = self.http().post(format!("{}/control", self.issuer)).json(&change);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.json().await.unwrap()
    }

    /// Knows this console, and these people.
    pub(crate) async fn serve(&self, console: &Console, accounts: Value) {
        let back = console.url("/login/oidc/okta/callback");
        let change = json!({"redirects": [back], "accounts": accounts, "restart": true});
        self.control(change).await;
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
