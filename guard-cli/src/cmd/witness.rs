//! `guard witness serve`: cosigns heads of logs that continue what it has seen (C2SP tlog-witness).
//!
//! Owns the witness's folder and its HTTP endpoint. It is given whose logs to watch. It must never cosign for a log that
//! it was not told of; the rule itself is `guard_evidence::witness`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use guard_evidence::checkpoint::is_name;
use guard_evidence::cosign::{KeyKind, VerifierKey};
use guard_evidence::files;
use guard_evidence::key::{PublicKey, SigningKey};
use guard_evidence::text::visible_fold;
use guard_evidence::witness::{REQUEST_BYTES, Refusal};
use hyper_util::rt::TokioTimer;

use super::evidence::read_trust;
use crate::args::{Global, Output, Witness, WitnessServe};
use crate::failure::Failure;
use crate::output;

const KEY_FILE: &str = "witness.key";
/// Whoever trickles a request in is cut off.
const HEADER: Duration = Duration::from_secs(10);

pub(super) async fn run(global: &Global, command: Witness) -> Result<ExitCode, Failure> {
    match command {
        Witness::Serve(args) => serve(global, args).await,
    }
}

async fn serve(global: &Global, args: WitnessServe) -> Result<ExitCode, Failure> {
    if !is_name(&args.name) {
        let what = format!(
            "`{}` cannot name a witness: no spaces, no `+`",
            visible_fold(&args.name, 80)
        );
        return Err(Failure::usage(what).next("give a name such as witness.example.org with --name"));
    }
    let logs = logs(&args)?;
    let key = key(&args.dir)?;
    let verifier = VerifierKey {
        name: args.name.clone(),
        kind: KeyKind::Witness,
        key: key.public(),
    };
    let listen = args.listen;
    let tcp = TcpListener::bind(listen)
        .and_then(|tcp| tcp.set_nonblocking(true).map(|()| tcp))
        .map_err(|e| {
            Failure::unknown(format!("cannot listen on {listen}: {e}")).next("choose another with --listen")
        })?;
    let address = tcp.local_addr()?;
    let scheme = if args.certificate.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{address}");
    let witness = guard_evidence::witness::Witness::new(&args.dir, &args.name, key, logs);
    let router = Router::new()
        .route("/add-checkpoint", post(add_checkpoint))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES))
        .with_state(Arc::new(witness));

    match global.output {
        Output::Json => output::json(&serde_json::json!({ "key": verifier, "url": url }), true)?,
        Output::Table => {
            output::line(&verifier.to_string())?;
            output::note(&format!(
                "guard: a witness at {url}; in the console's console.toml:\n  [[log.witness]]\n  key = \"{verifier}\"\n  url = \"{url}\""
            ));
        }
    }
    let served = match (&args.certificate, &args.key) {
        (Some(certificate), Some(key)) => {
            // There is one provider; a second try to install it changes nothing.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            let tls = axum_server::tls_rustls::RustlsConfig::from_pem_file(certificate, key)
                .await
                .map_err(|e| Failure::usage(format!("{} and {}: {e}", certificate.display(), key.display())))?;
            let mut server = axum_server::from_tcp_rustls(tcp, tls)?;
            server
                .http_builder()
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER);
            until_stopped(server.serve(router.into_make_service())).await
        }
        _ => {
            let mut server = axum_server::from_tcp(tcp)?;
            server
                .http_builder()
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER);
            until_stopped(server.serve(router.into_make_service())).await
        }
    };
    served.map_err(|e| Failure::unknown(format!("{url}: {e}")))?;
    Ok(ExitCode::SUCCESS)
}

/// A request that is cut off has either been remembered or not: asking again settles it.
async fn until_stopped(serving: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = serving => result,
        result = tokio::signal::ctrl_c() => result,
        _ = terminate.recv() => Ok(()),
    }
}

async fn add_checkpoint(State(witness): State<Arc<guard_evidence::witness::Witness>>, body: Bytes) -> Response {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let result = tokio::task::spawn_blocking(move || witness.add_checkpoint(&body, now)).await;
    match result {
        Ok(Ok(line)) => line.into_response(),
        Ok(Err(refusal)) => {
            let text = visible_fold(&refusal.to_string(), 500);
            output::note(&format!("guard: refused: {text}"));
            let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            match refusal {
                Refusal::Conflict { known } => (
                    status,
                    [(header::CONTENT_TYPE, "text/x.tlog.size")],
                    format!("{known}\n"),
                )
                    .into_response(),
                _ => (status, format!("{text}\n")).into_response(),
            }
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Origins and keys, from verifier keys and trust files.
fn logs(args: &WitnessServe) -> Result<BTreeMap<String, Vec<PublicKey>>, Failure> {
    let mut logs: BTreeMap<String, Vec<PublicKey>> = BTreeMap::new();
    for text in &args.logs {
        let key = VerifierKey::parse(text).map_err(|e| Failure::usage(e.to_string()))?;
        if key.kind != KeyKind::Log {
            return Err(Failure::usage(format!("{key} is the key of a witness, not of a log")));
        }
        logs.entry(key.name).or_default().push(key.key);
    }
    for path in &args.trust {
        let console = read_trust(path)?.console;
        logs.entry(console.origin.clone())
            .or_default()
            .extend(console.log_public_keys());
    }
    if logs.is_empty() {
        return Err(Failure::usage("which log?")
            .next("give the console's trust file: --trust TRUST.json (guard evidence trust)"));
    }
    Ok(logs)
}

/// The witness's key, made at the first start.
fn key(dir: &Path) -> Result<SigningKey, Failure> {
    let at = |path: &Path, e: &dyn std::fmt::Display| Failure::unknown(format!("{}: {e}", path.display()));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| at(dir, &e))?;
    let mode = fs::metadata(dir).map_err(|e| at(dir, &e))?.permissions().mode();
    if mode & 0o022 != 0 {
        return Err(at(dir, &"others may write to it").next(format!("chmod go-w {}", dir.display())));
    }
    let path = dir.join(KEY_FILE);
    match fs::read_to_string(&path) {
        Ok(pem) => SigningKey::from_pkcs8_pem(&pem).map_err(|e| at(&path, &e)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = SigningKey::generate(&mut guard_evidence::rand_core::OsRng);
            let pem = key.to_pkcs8_pem().map_err(|e| at(&path, &e))?;
            files::replace(&path, pem.as_bytes(), 0o600).map_err(|e| at(&path, &e))?;
            Ok(key)
        }
        Err(error) => Err(at(&path, &error)),
    }
}
