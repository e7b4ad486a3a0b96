//! Use-cases: what people, hosts and timers may do, whatever transport they came by.
//!
//! Owns the rules: who may do what ([`actor`]), who may answer ([`answer`]), what a host may say ([`asks`]). It is
//! given typed input and an [`actor::Actor`] or a host's verified identity. It must never see HTTP, gRPC or HTML.

pub mod actor;
pub mod alarms;
pub mod answer;
pub mod asks;
pub mod card;
pub mod changes;
pub mod channels;
pub mod content;
pub mod error;
pub mod evidence;
pub mod grants;
pub mod hosts;
pub mod idempotency;
pub mod keys;
pub mod labels;
pub mod names;
pub mod paging;
pub mod receipts;
pub mod requests;
pub mod sessions;
pub mod sign_on;
pub mod signed_in;
pub mod users;

use std::sync::Arc;

use guard_evidence::key::SigningKey;
use rand::rngs::OsRng;
use tokio_util::sync::CancellationToken;

use crate::auth::oidc::Provider;
use crate::auth::password::Passwords;
use crate::auth::rate::Rates;
use crate::auth::throttle::Throttle;
use crate::ca::Authority;
use crate::channel::Channels;
use crate::config::Config;
use crate::data_dir::{DataDir, Readers};
use crate::log::Log;
use crate::notify::Notify;
use crate::siem::Outputs;
use crate::store::{self, Purpose, Store};
use crate::time;

pub use actor::{Actor, Permission};
pub use error::{Error, Result};

const DECISION_KEY_FILE: &str = "decision.key";
const NEXT_DECISION_KEY_FILE: &str = "decision-next.key";
const LOG_KEY_FILE: &str = "log.key";
const NEXT_LOG_KEY_FILE: &str = "log-next.key";
const ORIGIN_FILE: &str = "log-origin";
const LOG_FOLDER: &str = "log";

/// Everything the use-cases share.
#[derive(Debug)]
pub struct App {
    pub(crate) store: Store,
    pub(crate) dir: DataDir,
    pub(crate) config: Config,
    pub(crate) authority: Arc<Authority>,
    pub(crate) decision_key: SigningKey,
    pub(crate) log: Log,
    pub(crate) passwords: Passwords,
    pub(crate) throttle: Throttle,
    pub(crate) rates: Rates,
    /// Identity providers, in the order of the configuration.
    pub(crate) providers: Vec<Provider>,
    pub(crate) channels: Channels,
    pub notify: Notify,
    /// Events for other systems.
    pub(crate) outputs: Outputs,
    /// Ends streams when the console stops.
    pub stopping: CancellationToken,
}

impl App {
    /// Loads what the data directory has and makes what is missing.
    pub async fn open(config: Config, dir: DataDir, store: Store, authority: Arc<Authority>) -> Result<Self> {
        let origin = load_or_create_origin(&dir, &config)?;
        let decision = OwnKeys::load(&dir, &store, &origin, Purpose::Decision).await?;
        let log_keys = OwnKeys::load(&dir, &store, &origin, Purpose::Log).await?;
        let earlier = store
            .console_keys(Purpose::Log)
            .await?
            .into_iter()
            .map(|earlier| earlier.key);
        let log = Log::open(
            log_keys.current,
            earlier.collect(),
            origin,
            dir.path(LOG_FOLDER),
            store.clone(),
            config.log.clone(),
        )
        .await
        .map_err(|e| Error::internal(e.to_string()))?;
        let notify = Notify::new();
        let console = config.web_url();
        let providers = config.oidc.iter().cloned().map(|one| Provider::open(one, &console));
        let providers = providers
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|e| Error::internal(format!("identity provider {e}")))?;
        let channels = Channels::open(&config)?;
        let outputs = Outputs::open(&config.siem, &store).await?;
        let rates = Rates::new(config.limits);
        let mut app = Self {
            store,
            dir,
            config,
            authority,
            decision_key: decision.current,
            log,
            passwords: Passwords::default(),
            throttle: Throttle::default(),
            rates,
            providers,
            channels,
            notify,
            outputs,
            stopping: CancellationToken::new(),
        };
        app.begin_changes().await?;
        if let Some(next) = decision.next {
            app.replace_key(Purpose::Decision, &app.decision_key, &next).await?;
            app.decision_key = next;
            OwnKeys::replaced(&app.dir, Purpose::Decision)?;
        }
        if let Some(next) = log_keys.next {
            app.replace_key(Purpose::Log, app.log.key(), &next).await?;
            app.log.replace_key(next);
            OwnKeys::replaced(&app.dir, Purpose::Log)?;
        }
        app.record_providers().await?;
        app.keep_channels().await?;
        app.keep_setup_link().await?;
        Ok(app)
    }

    /// What time alone changes: overdue requests, stale sessions, the set-up link. Called every few seconds.
    pub async fn tick(&self) -> Result<()> {
        self.keep_setup_link().await?;
        self.forget_stale_sessions().await?;
        self.forget_answers().await?;
        self.end_overdue_requests().await?;
        self.write_down_presence().await
    }

    pub(crate) fn now(&self) -> time::Millis {
        time::now()
    }
}

/// The key of a purpose, and the one that is to follow it now.
struct OwnKeys {
    current: SigningKey,
    next: Option<SigningKey>,
}

/// Files of a purpose: its key, and the next one.
fn key_files(purpose: Purpose) -> (&'static str, &'static str) {
    match purpose {
        Purpose::Decision => (DECISION_KEY_FILE, NEXT_DECISION_KEY_FILE),
        Purpose::Log => (LOG_KEY_FILE, NEXT_LOG_KEY_FILE),
    }
}

impl OwnKeys {
    /// A console that ended between the two steps of a replacement finds the next key's record in its chain: then that is
    /// the key.
    async fn load(dir: &DataDir, store: &Store, origin: &str, purpose: Purpose) -> Result<Self> {
        let (current, next) = key_files(purpose);
        let mut following = load_key(dir, next)?;
        if let Some(key) = &following {
            let mut tx = store.change().await?;
            let last = store::last_envelope(&mut tx, &purpose.signer(origin)).await?;
            tx.rollback().await?;
            if last.map(|envelope| changes::signed_by(&envelope)).transpose()? == Some(key.public().id()) {
                Self::replaced(dir, purpose)?;
                following = None;
            }
        }
        Ok(Self {
            current: load_or_create_key(dir, current)?,
            next: following,
        })
    }

    /// The next key's file takes the old one's place.
    fn replaced(dir: &DataDir, purpose: Purpose) -> Result<()> {
        let (current, next) = key_files(purpose);
        Ok(dir.rename(next, current)?)
    }
}

/// Makes the key that is to follow at the next start; one that waits already stays. Gives its id.
///
/// # Errors
/// If the directory is none of a console, or cannot be written.
pub fn prepare_key(dir: &DataDir, purpose: Purpose) -> Result<String> {
    let (current, next) = key_files(purpose);
    if load_key(dir, current)?.is_none() {
        let path = dir.path(current);
        return Err(Error::internal(format!(
            "{}: there is no key to be replaced",
            path.display()
        )));
    }
    Ok(load_or_create_key(dir, next)?.public().id())
}

fn load_key(dir: &DataDir, name: &'static str) -> Result<Option<SigningKey>> {
    let Some(pem) = dir.read(name)? else { return Ok(None) };
    let damaged = || {
        Error::internal(format!(
            "{}: not a PKCS#8 key; restore it from a backup",
            dir.path(name).display()
        ))
    };
    let pem = std::str::from_utf8(&pem).map_err(|_| damaged())?;
    SigningKey::from_pkcs8_pem(pem).map(Some).map_err(|_| damaged())
}

fn load_or_create_key(dir: &DataDir, name: &'static str) -> Result<SigningKey> {
    if let Some(key) = load_key(dir, name)? {
        return Ok(key);
    }
    let key = SigningKey::generate(&mut OsRng);
    let pem = key.to_pkcs8_pem().map_err(|e| Error::internal(e.to_string()))?;
    dir.write(name, Readers::Owner, pem.as_bytes())?;
    Ok(key)
}

/// What the log and every decision are signed as. Chosen at the first start; another name of the console later is no
/// other log.
fn load_or_create_origin(dir: &DataDir, config: &Config) -> Result<String> {
    if let Some(bytes) = dir.read(ORIGIN_FILE)? {
        let text = String::from_utf8(bytes).unwrap_or_default();
        let origin = text.trim_end_matches('\n');
        if !guard_evidence::checkpoint::is_name(origin) {
            return Err(Error::internal(format!(
                "{}: not a log origin; restore it from a backup",
                dir.path(ORIGIN_FILE).display()
            )));
        }
        return Ok(origin.to_owned());
    }
    let origin = format!("{}/guard", config.first_name());
    dir.write(ORIGIN_FILE, Readers::Anyone, format!("{origin}\n").as_bytes())?;
    Ok(origin)
}
