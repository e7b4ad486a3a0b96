//! Where things are: the source tree, the target directory and the cache outside the tree.
//! Given the environment. Never creates anything by itself.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

/// The root of the source tree.
pub fn repo() -> PathBuf {
    // The manifest directory is fixed at build time; a moved tree rebuilds xtask anyway.
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Cargo's target directory for user space.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => {
            let dir = PathBuf::from(dir);
            if dir.is_absolute() { dir } else { repo().join(dir) }
        }
        _ => repo().join("target"),
    }
}

/// The cache for images, kernels, snapshots and tools: `$GUARD_CACHE`, else `$XDG_CACHE_HOME/guard`, else `~/.cache/guard`.
///
/// # Errors
/// When none of the three variables is set.
pub fn cache() -> Result<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let dir = set("GUARD_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("guard")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/guard")))
        .ok_or_else(|| anyhow!("no place for the cache: set GUARD_CACHE to a directory (HOME is not set either)"))?;
    Ok(std::path::absolute(dir)?)
}

/// Whether this process is root.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    // The owner of a process's own directory is its effective user.
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}
