//! Starting and stopping: binds both ports, runs the timers, and stops everything in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::Response;
use axum_server::tls_rustls::RustlsConfig;
use hyper_util::rt::TokioTimer;
use time::OffsetDateTime;
use tokio::task::JoinHandle;

use crate::api::endpoint::{Endpoint, Endpoints};
use crate::api::problem::problem;
use crate::api::{gate, grpc, log, rest};
use crate::app::{App, Error, Result};
use crate::ca::{Authority, ServerCertificate, host_tls, web_tls};
use crate::channel;
use crate::config::Config;
use crate::data_dir::{DATABASE_FILE, DataDir};
use crate::siem;
use crate::store::Store;
use crate::ui;

const TICK: Duration = Duration::from_secs(5);
const HEADER: Duration = Duration::from_secs(15);
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long answers that are being written may take when the console stops.
const GRACE: Duration = Duration::from_secs(5);

/// A console that serves.
#[derive(Debug)]
pub struct Server {
    pub app: Arc<App>,
    pub web: SocketAddr,
    pub hosts: SocketAddr,
    web_handle: axum_server::Handle<SocketAddr>,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Opens the data directory, binds both ports and serves.
    ///
    /// # Errors
    /// Whatever keeps it from serving, with what to do about it.
    pub async fn start(mut config: Config) -> Result<Self> {
        let web_tcp = bind(config.listen)?;
        let hosts_tcp = bind(config.listen_hosts)?;
        // Port 0 becomes the real one, for links and tokens.
        let address = |tcp: &std::net::TcpListener| tcp.local_addr().map_err(|e| Error::internal(e.to_string()));
        let (web, hosts) = (address(&web_tcp)?, address(&hosts_tcp)?);
        (config.listen, config.listen_hosts) = (web, hosts);

        let dir = DataDir::open_or_create(&config.data_dir)?;
        dir.make_private(DATABASE_FILE)?;
        let (store, applied) = Store::open(&dir.database()).await?;
        for migration in applied {
            tracing::info!(version = migration.version, name = migration.name, "schema migrated");
        }
        let now = OffsetDateTime::now_utc();
        let authority = Arc::new(Authority::load_or_create(&dir, now)?);
        let certificate = Arc::new(ServerCertificate::new(authority.clone(), config.names.clone(), now)?);
        let web_config = RustlsConfig::from_config(Arc::new(web_tls(certificate.clone())?));
        let host_config = Arc::new(host_tls(certificate.clone())?);
        let app = Arc::new(App::open(config, dir, store, authority).await?);

        let web_handle = axum_server::Handle::new();
        let service = router(app.clone()).into_make_service_with_connect_info::<SocketAddr>();
        let mut server = axum_server::from_tcp_rustls(web_tcp, web_config)
            .map_err(|e| Error::internal(format!("cannot serve the web port: {e}")))?
            .handle(web_handle.clone());
        // Without a timer the limits below would not count: a client that trickles its header in would stay for ever.
        let http = server.http_builder();
        http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(128)
            .keep_alive_interval(Some(KEEP_ALIVE))
            .keep_alive_timeout(KEEP_ALIVE);
        let web_task = tokio::spawn(async move {
            if let Err(error) = server.serve(service).await {
                tracing::error!(%error, "the web port failed");
            }
        });

        let hosts_tcp = tokio::net::TcpListener::from_std(hosts_tcp).map_err(|e| Error::internal(e.to_string()))?;
        let hosts_app = app.clone();
        let hosts_task = tokio::spawn(async move {
            if let Err(error) = grpc::serve(hosts_app, hosts_tcp, host_config).await {
                tracing::error!(%error, "the host port failed");
            }
        });
        let timers = tokio::spawn(run_timers(app.clone(), certificate));
        let log_app = app.clone();
        let sequencer = tokio::spawn(async move { log_app.log.run(log_app.stopping.clone()).await });
        let channels = tokio::spawn(channel::run(app.clone()));
        let outputs = tokio::spawn(siem::run(app.clone()));
        tracing::info!(%web, %hosts, ca_sha256 = app.authority.fingerprint(), "serving");
        Ok(Self {
            app,
            web,
            hosts,
            web_handle,
            tasks: vec![web_task, hosts_task, timers, sequencer, channels, outputs],
        })
    }

    /// Ends every stream, lets answers finish, and closes the database.
    pub async fn stop(self) {
        self.app.stopping.cancel();
        self.web_handle.graceful_shutdown(Some(GRACE));
        for task in self.tasks {
            // A task that panicked has logged it.
            let _ = tokio::time::timeout(GRACE + Duration::from_secs(1), task).await;
        }
        if let Err(error) = self.app.tick().await {
            tracing::warn!(%error, "could not write everything down");
        }
        self.app.store.close().await;
    }
}

fn bind(address: SocketAddr) -> Result<std::net::TcpListener> {
    let tcp = std::net::TcpListener::bind(address).map_err(|e| {
        Error::internal(format!(
            "cannot listen on {address}: {e}; choose another with --listen and --listen-hosts"
        ))
    })?;
    tcp.set_nonblocking(true).map_err(|e| Error::internal(e.to_string()))?;
    Ok(tcp)
}

async fn run_timers(app: Arc<App>, certificate: Arc<ServerCertificate>) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = app.stopping.cancelled() => return,
        }
        if let Err(error) = app.tick().await {
            tracing::error!(%error, "periodic work failed; it is tried again");
        }
        match certificate.renew_if_due(OffsetDateTime::now_utc()) {
            Ok(true) => tracing::info!("server certificate renewed"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "cannot renew the server certificate"),
        }
    }
}

/// Every HTTP endpoint, with who may call it.
#[must_use]
pub fn endpoint_table() -> Vec<Endpoint> {
    let Endpoints { mut table, .. } = rest::endpoints();
    table.extend(ui::endpoints().table);
    table.extend(log::endpoints().table);
    table
}

fn router(app: Arc<App>) -> Router {
    let api = rest::endpoints()
        .router
        .layer(middleware::from_fn_with_state(app.clone(), gate::rest));
    let pages = ui::endpoints().router;
    Router::new()
        .merge(api)
        .merge(pages)
        .merge(log::endpoints().router)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(app.clone(), gate::by_address))
        .layer(middleware::from_fn(rest::take_left_over))
        .layer(middleware::map_response(security_headers))
        .with_state(app)
}

async fn not_found(uri: axum::http::Uri) -> Response {
    let path = guard_evidence::text::visible_fold(uri.path(), 100);
    problem(
        StatusCode::NOT_FOUND,
        "not-found",
        "Not found",
        Some(format!("there is nothing at {path}")),
    )
}

async fn method_not_allowed(method: axum::http::Method) -> Response {
    let detail = format!("{method} is not possible here");
    problem(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "Not possible",
        Some(detail),
    )
}

/// On every answer, pages and API alike.
async fn security_headers(mut response: Response) -> Response {
    const HEADERS: [(HeaderName, &str); 8] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
        (header::STRICT_TRANSPORT_SECURITY, "max-age=31536000"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Other sites learn nothing; with `no-referrer` browsers would hide the origin of our own forms from us.
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (
            HeaderName::from_static("permissions-policy"),
            "camera=(), microphone=(), geolocation=()",
        ),
    ];
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    // What people see may not lie about in caches; static files say otherwise themselves.
    response
        .headers_mut()
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}
