//! Files and directories that only root may see.
//!
//! Owns making them. It is given paths and bytes. It must never leave a secret readable by others, not even for a moment.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

pub(crate) use guard_evidence::files::replace;

/// Makes a directory that only root may enter, with its parents.
pub(crate) fn private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}
