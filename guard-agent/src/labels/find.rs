//! Finds cgroups that are to be labelled: by the patterns of the configuration and by their attribute.
//!
//! Owns the walk of the tree. It is given new cgroups by the kernel side, and the tree now and then. It must never label
//! anything but through [`Labels::apply`].

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use guard_proto::limits::is_label;

use super::paths::DEPTH;
use super::{ATTRIBUTE, LabelError, Labels, Source};

impl Labels {
    /// A cgroup was made.
    pub fn made(&self, id: u64, path: &Path) {
        let Some(path) = path.to_str() else { return };
        if let Some(pattern) = self.rules.patterns.iter().find(|pattern| pattern.matches(path)) {
            self.apply_found(&pattern.name, id, path, Source::Pattern);
        }
    }

    /// Walks the whole tree: labels what patterns and attributes name, forgets what is gone. Blocks.
    pub fn scan(&self) {
        let known: Vec<(u64, String)> = self
            .table
            .lock()
            .cgroups
            .iter()
            .map(|(id, labelled)| (*id, labelled.path.clone()))
            .collect();
        for (id, path) in known {
            if self.inode(&path).ok() != Some(id) {
                self.forget(id);
            }
        }
        self.walk(&self.root, "", 0);
    }

    fn walk(&self, directory: &Path, path: &str, depth: usize) {
        let Ok(entries) = fs::read_dir(directory) else { return };
        for entry in entries.filter_map(Result::ok) {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let (Ok(metadata), Ok(name)) = (entry.metadata(), entry.file_name().into_string()) else {
                continue;
            };
            let directory = entry.path();
            let path = format!("{path}/{name}");
            if self.table.lock().cgroups.contains_key(&metadata.ino()) {
                continue;
            }
            let attribute = xattr::get(&directory, ATTRIBUTE).ok().flatten();
            let label = match attribute.as_deref().map(std::str::from_utf8) {
                Some(Ok(name)) if is_label(name) => Some((name.to_owned(), Source::Xattr)),
                Some(_) => {
                    tracing::error!(cgroup = path, "{ATTRIBUTE} is not a label; it is passed over");
                    None
                }
                None => None,
            };
            let label = label.or_else(|| {
                let pattern = self.rules.patterns.iter().find(|pattern| pattern.matches(&path))?;
                Some((pattern.name.clone(), Source::Pattern))
            });
            let labelled = label.is_some_and(|(name, source)| self.apply_found(&name, metadata.ino(), &path, source));
            if !labelled && depth < DEPTH {
                self.walk(&directory, &path, depth + 1);
            }
        }
    }

    fn apply_found(&self, name: &str, id: u64, path: &str, source: Source) -> bool {
        match self.apply(name, id, path, source) {
            Ok(_) => true,
            Err(LabelError::Inner { .. }) => false,
            // The patterns of a whole tree meet these every time.
            Err(error @ (LabelError::Own(_) | LabelError::Needed { .. })) => {
                tracing::debug!(%error, cgroup = path, label = name, "a cgroup was not labelled");
                false
            }
            Err(error) => {
                tracing::error!(%error, cgroup = path, label = name, source = source.as_str(), "a cgroup was not labelled");
                false
            }
        }
    }
}
