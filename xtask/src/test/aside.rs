//! Checks that run beside the kernel cases, with the processor time that guests leave: emulated, they wait much.
//! Given names of steps. Never takes time from a guest, and never loses what such a check said.

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::Ran;
use crate::paths;

/// Where a run is to leave its results, beside printing them.
const RESULTS: &str = "GUARD_TEST_RESULTS";

/// A run of this program under way.
pub(super) struct Aside {
    child: Child,
    /// What it prints.
    output: PathBuf,
    results: PathBuf,
}

impl Aside {
    pub(super) fn start(steps: &[&str]) -> Result<Self> {
        let folder = paths::target().join("tmp");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let output = folder.join(format!("aside-{}.log", std::process::id()));
        let results = output.with_extension("json");
        let printed = create(&output)?;
        let child = Command::new("chrt")
            .args(["--idle", "0"])
            .arg(env::current_exe()?)
            .arg("test")
            .args(steps)
            // It would be built under the feet of what runs.
            .env("GUARD_BUILT", "1")
            .env(RESULTS, &results)
            .stdin(Stdio::null())
            .stdout(printed.try_clone()?)
            .stderr(printed)
            .spawn()
            .context("cannot run chrt (Debian: util-linux)")?;
        Ok(Self { child, output, results })
    }

    /// Waits for its end, prints what it printed, and gives what it found.
    pub(super) fn finish(mut self) -> Result<Vec<Ran>> {
        self.child.wait()?;
        std::io::stdout().write_all(&taken(&self.output)?)?;
        let ran: Vec<Ran> = serde_json::from_slice(&taken(&self.results)?)?;
        let asked_for = ran.into_iter().filter(|ran| !ran.base);
        Ok(asked_for
            .map(|mut ran| {
                if ran.note.is_empty() {
                    "beside the kernel cases".clone_into(&mut ran.note);
                }
                ran
            })
            .collect())
    }
}

fn create(file: &Path) -> Result<File> {
    File::create(file).with_context(|| format!("cannot create {}", file.display()))
}

/// A file's content; the file goes.
fn taken(file: &Path) -> Result<Vec<u8>> {
    let content =
        fs::read(file).with_context(|| format!("what ran beside the kernel cases left no {}", file.display()))?;
    fs::remove_file(file)?;
    Ok(content)
}

/// Whether this run is one beside another: that one sums up.
pub(super) fn is_one() -> bool {
    env::var_os(RESULTS).is_some()
}

/// Leaves the results for whoever started this run beside its own.
pub(super) fn leave(ran: &[Ran]) -> Result<()> {
    if let Some(file) = env::var_os(RESULTS) {
        fs::write(file, serde_json::to_vec(ran)?)?;
    }
    Ok(())
}
