//! Questions that people may still see, and answers whose effect is not known yet, kept on disk.
//!
//! Owns one small file per question. It is given ids. After a restart it tells which questions nobody waits for any
//! more; it must never be used to decide anything.

use std::fs;
use std::path::{Path, PathBuf};

use guard_evidence::record::Verdict;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// What is needed to say that a question ended with the agent that asked it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenQuestion {
    pub request_id: String,
    pub request_digest: String,
    pub label: String,
    /// The answer is on disk, its effect is not known yet.
    #[serde(default)]
    pub decided: Option<OpenDecision>,
}

/// The answer to an [`OpenQuestion`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenDecision {
    pub digest: String,
    pub verdict: Verdict,
}

/// The directory.
#[derive(Debug, Clone)]
pub struct OpenQuestions {
    directory: PathBuf,
}

impl OpenQuestions {
    /// Opens the directory and gives the questions that an earlier agent left in it, which are removed from it.
    ///
    /// # Errors
    /// If it cannot be made or read.
    pub fn open(directory: &Path) -> std::io::Result<(Self, Vec<OpenQuestion>)> {
        crate::files::private_directory(directory)?;
        let mut left = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            // A file that a crash cut short names nothing that anybody was asked.
            if let Ok(bytes) = fs::read(&path)
                && let Ok(question) = serde_json::from_slice::<OpenQuestion>(&bytes)
            {
                left.push(question);
            }
            fs::remove_file(&path)?;
        }
        left.sort_by(|a, b| a.request_id.cmp(&b.request_id));
        Ok((
            Self {
                directory: directory.to_owned(),
            },
            left,
        ))
    }

    /// Before the question is sent, and again when it is answered.
    pub fn add(&self, id: Ulid, question: &OpenQuestion) {
        let path = self.directory.join(id.to_string());
        // Not made durable: after a crash of the machine there is nobody left who waits.
        let new = path.with_extension("new");
        let written = serde_json::to_vec(question)
            .map_err(std::io::Error::other)
            .and_then(|bytes| fs::write(&new, bytes))
            .and_then(|()| fs::rename(&new, &path));
        if let Err(error) = written {
            tracing::warn!(%error, request = %id, "an open question is not noted; after a restart people may see it for longer");
        }
    }

    /// After its end; of an answered one, once the record of what became of it is durable.
    pub fn remove(&self, id: Ulid) {
        let _ = fs::remove_file(self.directory.join(id.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_agent_left_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let question = |n: u8| OpenQuestion {
            request_id: n.to_string(),
            request_digest: "d".to_owned(),
            label: "coder".to_owned(),
            decided: None,
        };
        let (open, left) = OpenQuestions::open(dir.path()).unwrap();
        assert!(left.is_empty());
        let (a, b) = (Ulid::new(), Ulid::new());
        open.add(a, &question(1));
        open.add(b, &question(2));
        open.remove(a);
        fs::write(dir.path().join("cut"), "{\"request").unwrap();
        let (open, left) = OpenQuestions::open(dir.path()).unwrap();
        assert_eq!(left, [question(2)]);

        // Answered, and the agent died before it knew more.
        let answered = OpenQuestion {
            decided: Some(OpenDecision {
                digest: "e".to_owned(),
                verdict: Verdict::Allow,
            }),
            ..question(3)
        };
        open.add(a, &question(3));
        open.add(a, &answered);
        // As an agent before this version wrote it.
        fs::write(
            dir.path().join("old"),
            r#"{"request_id":"4","request_digest":"d","label":"coder"}"#,
        )
        .unwrap();
        let (_, left) = OpenQuestions::open(dir.path()).unwrap();
        assert_eq!(left, [answered, question(4)]);
        assert!(OpenQuestions::open(dir.path()).unwrap().1.is_empty());
    }
}
