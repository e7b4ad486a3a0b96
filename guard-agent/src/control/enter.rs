//! `guard run`: puts the peer into a labelled cgroup of its own.
//!
//! Owns making that cgroup: a scope of systemd where it runs, a plain directory elsewhere. It is given the peer, which
//! waits for the answer. It must never answer before the label is in force for the peer.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zbus::zvariant::Value;

use super::peer::Peer;
use super::{Context, check_names, settled};
use crate::enrich::cgroup;
use crate::labels::Source;

const ROOT: &str = "/sys/fs/cgroup";
/// Runs without systemd are below this directory.
pub(crate) const PLAIN: &str = "/guard";
const SCOPE: Duration = Duration::from_secs(10);

/// Puts the peer into a new cgroup and gives its path.
pub(super) async fn enter(context: &Context, peer: &Peer, label: &str, run: &str) -> Result<String, String> {
    check_names(label, run)?;
    let path = if sd_notify::booted().unwrap_or(false) {
        match scope(peer.pid, label, run).await {
            Ok(path) => path,
            Err(error) => {
                tracing::warn!(error, "systemd did not make a scope; a plain cgroup is used");
                plain(label, run)?
            }
        }
    } else {
        plain(label, run)?
    };
    context
        .watchers
        .begin(run, peer.uid, &path)
        .map_err(|e| e.to_string())?;
    let (labels, name, target) = (context.labels.clone(), label.to_owned(), path.clone());
    let in_force =
        tokio::task::spawn_blocking(move || labels.add(&name, &target, Source::Run).map_err(|e| e.to_string()))
            .await
            .map_err(|e| e.to_string())??;
    settled(in_force).await?;
    if cgroup(peer.pid).as_deref() != Some(path.as_str()) {
        let procs = directory(&path).join("cgroup.procs");
        fs::write(&procs, peer.pid.to_string()).map_err(|e| format!("{}: {e}", procs.display()))?;
    }
    if cgroup(peer.pid).as_deref() == Some(path.as_str()) && peer.is_alive() {
        tracing::info!(
            label,
            run,
            pid = peer.pid,
            uid = peer.uid,
            cgroup = path,
            "a run begins"
        );
        Ok(path)
    } else {
        Err(format!("process {} could not be put into the cgroup {path}", peer.pid))
    }
}

/// A transient scope with the peer in it.
async fn scope(pid: u32, label: &str, run: &str) -> Result<String, String> {
    let name = format!("guard-run-{run}.scope");
    let failed = |error: zbus::Error| error.to_string();
    let bus = zbus::Connection::system().await.map_err(failed)?;
    let manager = zbus::Proxy::new(
        &bus,
        "org.freedesktop.systemd1",
        "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager",
    )
    .await
    .map_err(failed)?;
    let properties: Vec<(&str, Value<'_>)> = vec![
        ("PIDs", Value::from(vec![pid])),
        ("Slice", Value::from("guard.slice")),
        ("Description", Value::from(format!("Guard workload {label}"))),
        ("CollectMode", Value::from("inactive-or-failed")),
    ];
    let auxiliary: Vec<(&str, Vec<(&str, Value<'_>)>)> = Vec::new();
    let unit = (name.as_str(), "fail", properties, auxiliary);
    let starting = manager.call_method("StartTransientUnit", &unit);
    tokio::time::timeout(SCOPE, starting)
        .await
        .map_err(|_| "systemd did not answer".to_owned())?
        .map_err(failed)?;
    // The job is done when the process is there.
    let deadline = tokio::time::Instant::now() + SCOPE;
    let suffix = format!("/{name}");
    while tokio::time::Instant::now() < deadline {
        match cgroup(pid) {
            Some(path) if path.ends_with(&suffix) => return Ok(path),
            Some(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            None => return Err("the process is gone".to_owned()),
        }
    }
    Err(format!("systemd did not put the process into {name} within {SCOPE:?}"))
}

/// A directory of our own; the peer is moved later.
fn plain(label: &str, run: &str) -> Result<String, String> {
    let path = format!("{PLAIN}/{label}/{run}");
    let directory = directory(&path);
    let parent = directory.parent().unwrap_or(Path::new(ROOT));
    fs::create_dir_all(parent).map_err(|e| format!("{}: {e}", parent.display()))?;
    fs::create_dir(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    Ok(path)
}

fn directory(path: &str) -> PathBuf {
    Path::new(ROOT).join(path.trim_start_matches('/'))
}

/// Removes the directories of plain runs that have ended. Blocks.
pub(crate) fn tidy() {
    let Ok(labels) = fs::read_dir(directory(PLAIN)) else {
        return;
    };
    for label in labels
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    {
        let Ok(runs) = fs::read_dir(label.path()) else { continue };
        for run in runs
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        {
            let young = run
                .metadata()
                .and_then(|m| m.modified())
                .is_ok_and(|t| t.elapsed().unwrap_or_default() < YOUNG);
            let events = fs::read_to_string(run.path().join("cgroup.events")).unwrap_or_default();
            if !young && events.lines().any(|line| line == "populated 0") {
                // It may be in use again by now; then the kernel refuses.
                let _ = fs::remove_dir(run.path());
            }
        }
    }
}

/// A run that has just been made is empty until its process is moved.
const YOUNG: Duration = Duration::from_secs(60);
