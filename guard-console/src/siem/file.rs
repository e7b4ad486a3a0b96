//! A file of lines that others read, rename and take away.
//!
//! A line is whole or not there: what a crash or a full disk cut off is taken back. What is given back as written is on disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// How far back the end of the last whole line is looked for; far more than a line has.
const TAIL: u64 = 64 << 20;
const CHUNK: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    /// Away while a blocking thread has it.
    file: Option<File>,
}

impl Lines {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// The next line goes into whatever has the name then.
    pub(super) fn reopen(&mut self) {
        self.file = None;
    }

    /// Appends whole lines; when it comes back they are on disk. An error names the file.
    pub(super) async fn append(&mut self, lines: Vec<u8>) -> Result<(), String> {
        if lines.is_empty() {
            return Ok(());
        }
        let (path, file) = (self.path.clone(), self.file.take());
        let task = tokio::task::spawn_blocking(move || append(&path, file, &lines));
        let written = task.await.map_err(|e| e.to_string())?;
        self.file = Some(written.map_err(|e| format!("{}: {e}", self.path.display()))?);
        Ok(())
    }
}

fn append(path: &Path, file: Option<File>, lines: &[u8]) -> io::Result<File> {
    let mut file = match file.filter(|file| has_name(file, path)) {
        Some(file) => file,
        None => open(path)?,
    };
    let before = file.metadata()?.len();
    if let Err(error) = file.write_all(lines).and_then(|()| file.sync_data()) {
        // Whoever reads must not see half a line; if this fails too, the next opening does it.
        let _ = file.set_len(before);
        return Err(error);
    }
    Ok(file)
}

/// Nobody has given the name to another file, or taken it away.
fn has_name(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(own), Ok(named)) => (own.dev(), own.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn open(path: &Path) -> io::Result<File> {
    let new = !path.exists();
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a plain file"));
    }
    if new && let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    cut_torn(&mut file)?;
    Ok(file)
}

/// Takes back what follows the last whole line: we never wrote the rest of it, so its record is written again.
fn cut_torn(file: &mut File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut end = length;
    let mut chunk = Vec::new();
    while end > 0 {
        let from = end.saturating_sub(CHUNK);
        file.seek(SeekFrom::Start(from))?;
        chunk.clear();
        (&mut *file).take(end - from).read_to_end(&mut chunk)?;
        if let Some(at) = chunk.iter().rposition(|byte| *byte == b'\n') {
            end = from + at as u64 + 1;
            break;
        }
        end = from;
        if length - end > TAIL {
            return Err(io::Error::other("no file of lines: it has none in its last 64 MiB"));
        }
    }
    if end < length {
        file.set_len(end)?;
        file.sync_data()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn put(lines: &mut Lines, text: &str) {
        lines.append(text.as_bytes().to_vec()).await.unwrap();
    }

    #[tokio::test]
    async fn lines_are_whole_whatever_becomes_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("events"), dir.path().join("events.1"));
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        let mut lines = Lines::new(path.clone());
        put(&mut lines, "a\nb\n").await;
        // Renamed away, as by logrotate: the next line makes a new one.
        fs::rename(&path, &old).unwrap();
        put(&mut lines, "c\n").await;
        assert_eq!((read(&old), read(&path)), ("a\nb\n".to_owned(), "c\n".to_owned()));
        fs::remove_file(&path).unwrap();
        put(&mut lines, "d\n").await;
        assert_eq!(read(&path), "d\n");
        // Cut to nothing in its place.
        OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        put(&mut lines, "e\n").await;
        assert_eq!(read(&path), "e\n");
        lines.reopen();
        put(&mut lines, "f\n").await;
        assert_eq!(read(&path), "e\nf\n");

        // Half a line of a crash, longer than what is read at once.
        let torn = format!("e\nf\n{}", "x".repeat(200_000));
        fs::write(&path, &torn).unwrap();
        let mut lines = Lines::new(path.clone());
        put(&mut lines, "g\n").await;
        assert_eq!(read(&path), "e\nf\ng\n");
        fs::write(&path, "never a line").unwrap();
        put(&mut Lines::new(path.clone()), "h\n").await;
        assert_eq!(read(&path), "h\n");
        let mode = fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_full_disk_leaves_no_half_line() {
        // Every write to it fails with ENOSPC, and it is no plain file.
        let mut full = Lines::new(PathBuf::from("/dev/full"));
        assert!(full.append(b"a\n".to_vec()).await.unwrap_err().contains("/dev/full"));
        let dir = tempfile::tempdir().unwrap();
        let mut lines = Lines::new(dir.path().join("no/such/folder"));
        assert!(lines.append(b"a\n".to_vec()).await.is_err());
    }
}
