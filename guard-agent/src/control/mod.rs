//! The control socket: what `guard` on the same host asks of the agent.
//!
//! Owns the socket and who may ask what. It is given lines of JSON by local processes. It must never read a line of a
//! labelled process, and never believe a line about who sent it.

mod enter;
mod peer;
mod status;

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use guard_evidence::key::Algorithm;
use guard_evidence::text::visible_fold;
use guard_proto::control::{ControlReply, ControlRequest, Finding, FindingState, RunEvent};
use guard_proto::limits::{CONTROL_LINE_BYTES, is_label};
use tokio::io::{AsyncWriteExt as _, BufWriter};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

use crate::console::ConsoleState;
use crate::engine::{Event, Stats};
use crate::evidence::Evidence;
use crate::kernel;
use crate::labels::{Labels, Source};
use crate::policy::InForce;
use crate::watch::Watchers;
pub(crate) use enter::tidy;
use peer::Peer;
pub use status::Recent;

const CONNECTIONS: usize = 256;
/// Between lines.
const SILENCE: Duration = Duration::from_secs(60);
/// A peer that does not read its answer.
const STUCK: Duration = Duration::from_secs(10);
/// To put a label in force, on a machine that is slow and busy.
const LABEL: Duration = Duration::from_secs(30);
const ENGINE: Duration = Duration::from_secs(5);

/// What answers are made from.
#[derive(Debug)]
pub struct Context {
    pub labels: Labels,
    pub watchers: Watchers,
    pub evidence: Evidence,
    /// Of the key that is to follow the one that signs evidence.
    pub key: Algorithm,
    pub events: mpsc::UnboundedSender<Event>,
    pub stats: Arc<Stats>,
    pub policy: InForce,
    pub host_id: String,
    /// Address and state; `None`: not enrolled.
    pub console: Option<(String, Arc<ConsoleState>)>,
    pub kernel_release: String,
    pub enforcing_since: Option<String>,
    /// Where the kernel's tables are pinned.
    pub pin_directory: PathBuf,
    pub recent: Recent,
}

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{path}: {source}\n  → run as root, and check that the directory can be written")]
    Io { path: PathBuf, source: io::Error },
    #[error("{0}: another guard-agent listens there\n  → stop it first: systemctl stop guard-agent")]
    InUse(PathBuf),
    #[error("{0} is there and is not a socket\n  → remove it, or set another `socket` in agent.toml")]
    NotASocket(PathBuf),
}

/// Makes the socket, replacing one that nobody listens on.
///
/// # Errors
/// [`ControlError`].
pub fn bind(path: &Path) -> Result<UnixListener, ControlError> {
    let at = |source| ControlError::Io {
        path: path.to_owned(),
        source,
    };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(at)?;
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(ControlError::NotASocket(path.to_owned())),
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(ControlError::InUse(path.to_owned()));
        }
        Ok(_) => std::fs::remove_file(path).map_err(at)?,
    }
    let listener = UnixListener::bind(path).map_err(at)?;
    // Anybody may ask; what they get is decided by who they are.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(at)?;
    Ok(listener)
}

/// Serves until the task is dropped.
pub async fn serve(listener: UnixListener, context: Arc<Context>) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(%error, "the control socket");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let (context, open) = (Arc::clone(&context), Arc::clone(&open));
        if open.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!(CONNECTIONS, "too many connections on the control socket");
            continue;
        }
        tokio::spawn(async move {
            connection(stream, &context).await;
            open.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

type Lines = FramedRead<OwnedReadHalf, LinesCodec>;
type Out = BufWriter<OwnedWriteHalf>;

async fn connection(stream: UnixStream, context: &Context) {
    let peer = Peer::of(&stream);
    let (read, write) = stream.into_split();
    let mut out = BufWriter::new(write);
    let peer = match peer.and_then(|peer| peer.refuse_labelled(&context.labels).map(|()| peer)) {
        Ok(peer) => peer,
        Err(error) => {
            tracing::warn!(error, "a connection to the control socket was refused");
            let _ = send(&mut out, &ControlReply::Refused { error }).await;
            return;
        }
    };
    let mut lines = FramedRead::new(read, LinesCodec::new_with_max_length(CONTROL_LINE_BYTES));
    while let Ok(Some(line)) = tokio::time::timeout(SILENCE, lines.next()).await {
        let reply = match line {
            Ok(line) => match parse(&line) {
                Ok(ControlRequest::Watch { run }) => {
                    watch(context, &peer, &run, &mut lines, &mut out).await;
                    return;
                }
                Ok(request) => answer(context, &peer, request).await,
                Err(error) => ControlReply::Refused { error },
            },
            Err(error) => {
                let error = match error {
                    LinesCodecError::MaxLineLengthExceeded => {
                        format!("the line is longer than {CONTROL_LINE_BYTES} bytes")
                    }
                    LinesCodecError::Io(error) => format!("the line cannot be read: {error}"),
                };
                let _ = send(&mut out, &ControlReply::Refused { error }).await;
                return;
            }
        };
        if send(&mut out, &reply).await.is_err() {
            return;
        }
    }
}

fn parse(line: &str) -> Result<ControlRequest, String> {
    serde_json::from_str(line).map_err(|e| {
        visible_fold(
            &format!("not a request that this agent knows: {e} (is `guard` of another version?)"),
            500,
        )
    })
}

/// For the fuzzer.
pub fn fuzz_control(data: &[u8]) {
    if let Ok(line) = std::str::from_utf8(data) {
        let _ = parse(line);
    }
}

async fn send(out: &mut Out, reply: &ControlReply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply).map_err(io::Error::other)?;
    line.push(b'\n');
    let writing = async {
        out.write_all(&line).await?;
        out.flush().await
    };
    tokio::time::timeout(STUCK, writing)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn watch(context: &Context, peer: &Peer, run: &str, lines: &mut Lines, out: &mut Out) {
    let mut events = match context.watchers.watch(run, peer.uid) {
        Ok(events) => events,
        Err(error) => {
            let _ = send(
                out,
                &ControlReply::Refused {
                    error: error.to_string(),
                },
            )
            .await;
            return;
        }
    };
    if send(out, &ControlReply::Event(RunEvent::Watching)).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => if send(out, &ControlReply::Event(event)).await.is_err() { return },
                // It did not read fast enough, or the run is over.
                None => return,
            },
            // Whatever it says now, it hangs up or has nothing to say.
            line = lines.next() => if !matches!(line, Some(Ok(_))) { return },
        }
    }
}

async fn answer(context: &Context, peer: &Peer, request: ControlRequest) -> ControlReply {
    match request {
        ControlRequest::Enter { label, run } => match enter::enter(context, peer, &label, &run).await {
            Ok(cgroup) => ControlReply::Entered { cgroup },
            Err(error) => ControlReply::Refused { error },
        },
        // Taken care of by the caller.
        ControlRequest::Watch { .. } => ControlReply::Refused {
            error: "watch is the only request of its connection".to_owned(),
        },
        ControlRequest::RotateKey {} => {
            let rotate = async {
                let key = context.evidence.replace_key(context.key).await?;
                Ok(ControlReply::NextKey { key })
            };
            root_only(peer, "replace the evidence key", rotate).await
        }
        ControlRequest::LabelAdd { label, cgroup } => {
            root_only(peer, "label a cgroup", label_add(context, label, cgroup)).await
        }
        ControlRequest::LabelRemove { cgroup } => {
            root_only(peer, "take a label away", label_remove(context, cgroup)).await
        }
        ControlRequest::LabelList {} => {
            let labels = context.labels.clone();
            blocking(move || ControlReply::Labels { items: labels.list() }).await
        }
        ControlRequest::Status {} => ControlReply::Status(Box::new(status::status(context).await)),
        ControlRequest::Doctor {} => blocking(|| ControlReply::Doctor { findings: findings() }).await,
        ControlRequest::Pending {} => pending(context, peer).await,
        ControlRequest::PolicyText {} => {
            let text = async {
                let text = context.policy.current().text().to_owned();
                Ok(ControlReply::Policy { text })
            };
            root_only(peer, "read the policy in force", text).await
        }
        ControlRequest::PolicyApply { text } => {
            root_only(peer, "change this host's policy", policy_apply(context, text)).await
        }
    }
}

async fn root_only(peer: &Peer, what: &str, work: impl Future<Output = Result<ControlReply, String>>) -> ControlReply {
    if peer.uid != 0 {
        return ControlReply::Refused {
            error: format!("only root may {what}: run it with sudo"),
        };
    }
    work.await.unwrap_or_else(|error| ControlReply::Refused { error })
}

async fn blocking(work: impl FnOnce() -> ControlReply + Send + 'static) -> ControlReply {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| ControlReply::Refused { error: e.to_string() })
}

async fn policy_apply(context: &Context, text: String) -> Result<ControlReply, String> {
    let policy = context.policy.clone();
    tokio::task::spawn_blocking(move || policy.replace(&text, "policy").map_err(|e| e.to_string()))
        .await
        .map_err(|e| e.to_string())??;
    Ok(ControlReply::Done)
}

async fn label_add(context: &Context, label: String, cgroup: String) -> Result<ControlReply, String> {
    let labels = context.labels.clone();
    let in_force =
        tokio::task::spawn_blocking(move || labels.add(&label, &cgroup, Source::Command).map_err(|e| e.to_string()))
            .await
            .map_err(|e| e.to_string())??;
    settled(in_force).await?;
    Ok(ControlReply::Done)
}

async fn label_remove(context: &Context, cgroup: String) -> Result<ControlReply, String> {
    let labels = context.labels.clone();
    tokio::task::spawn_blocking(move || labels.remove(&cgroup).map_err(|e| e.to_string()))
        .await
        .map_err(|e| e.to_string())??;
    Ok(ControlReply::Done)
}

/// Waits until the kernel has the label.
async fn settled(in_force: oneshot::Receiver<Result<(), String>>) -> Result<(), String> {
    match tokio::time::timeout(LABEL, in_force).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err("the label was taken away again".to_owned()),
        Err(_) => Err(format!(
            "the kernel side did not confirm the label within {LABEL:?}; try again"
        )),
    }
}

async fn pending(context: &Context, peer: &Peer) -> ControlReply {
    let (reply, wait) = oneshot::channel();
    let sent = context.events.send(Event::Pending { reply }).is_ok();
    match tokio::time::timeout(ENGINE, wait).await {
        Ok(Ok(waiting)) if sent => {
            let own = waiting
                .into_iter()
                .filter(|waiting| peer.uid == 0 || waiting.uid == peer.uid);
            ControlReply::Pending {
                items: own.map(|waiting| waiting.action).collect(),
            }
        }
        _ => ControlReply::Refused {
            error: "the agent is stopping".to_owned(),
        },
    }
}

fn findings() -> Vec<Finding> {
    kernel::doctor()
        .into_iter()
        .map(|found| Finding {
            name: found.name.to_owned(),
            state: match found.state {
                kernel::FindingState::Ok => FindingState::Ok,
                kernel::FindingState::Warn => FindingState::Warn,
                kernel::FindingState::Bad => FindingState::Bad,
            },
            text: found.text,
            remedy: found.remedy,
        })
        .collect()
}

/// Names that may become part of a cgroup's path.
fn check_names(label: &str, run: &str) -> Result<(), String> {
    if !is_label(label) {
        return Err(format!(
            "`{}` is not a label: use 1 to 63 of a-z 0-9 . _ - with a letter or digit at both ends",
            visible_fold(label, 80)
        ));
    }
    if crate::watch::is_run_id(run) {
        Ok(())
    } else {
        Err(crate::watch::WatchError::Id.to_string())
    }
}

#[cfg(test)]
mod tests;
