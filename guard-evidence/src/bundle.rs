//! Bundles: everything an auditor needs, in one folder or tar file.
//!
//! Owns the names and limits of what is inside. The writer is given exact envelopes in log order; the reader is given
//! files that anybody may have made. It must never write or read outside the bundle's own folder.
//!
//! ```text
//! MANIFEST.json            SHA-256 of every other file; what was asked for
//! VERIFY.md                how to verify by hand
//! trust.json               keys as the console knows them (an auditor has his own copy)
//! checkpoint               signed head of the log
//! records/000000042.json   exact envelope, by its index in the log
//! proofs/000000042.proof   its place in the tree of that checkpoint (C2SP tlog-proof)
//! ocsf.ndjson              the records as events for other tools, made by whoever exported the bundle
//! report.html              a page for people about them, likewise
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::checkpoint::{CHECKPOINT_BYTES, PROOF_BYTES, Proof};
use crate::dsse::RECORD_BYTES;
use crate::merkle::Hash;
use crate::text::{visible, visible_fold};
use crate::trust::TRUST_BYTES;

#[cfg(test)]
mod tests;

/// `kind` of a manifest.
pub const BUNDLE_KIND: &str = "urn:guard:bundle:v1";
/// Most records of one bundle.
pub const MOST_RECORDS: usize = 1_000_000;
/// Files that are neither records nor proofs.
const MOST_OTHERS: usize = 6;
const MANIFEST_BYTES: u64 = 512 << 20;
const VERIFY_BYTES: u64 = 1 << 20;
const OCSF_BYTES: u64 = 16 << 30;
const REPORT_BYTES: u64 = 64 << 20;

const MANIFEST: &str = "MANIFEST.json";
const TRUST: &str = "trust.json";
const CHECKPOINT: &str = "checkpoint";
const VERIFY: &str = "VERIFY.md";
const OCSF: &str = "ocsf.ndjson";
const REPORT: &str = "report.html";

/// A bundle could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Write(io::Error),
    /// The library's words name the stream's files.
    #[error("not a tar file that can be read: {}", visible_fold(&.0.to_string(), 200))]
    Tar(io::Error),
    #[error("a bundle has no file `{0}`")]
    Name(String),
    #[error("`{0}` comes twice")]
    Twice(String),
    #[error("`{path}` is {bytes} bytes, more than {limit}")]
    TooLarge { path: String, bytes: u64, limit: u64 },
    #[error("more than {MOST_RECORDS} records")]
    TooMany,
    #[error("`{0}` is not a plain file")]
    NotAFile(String),
    #[error("{MANIFEST} is not a manifest: {0}")]
    Manifest(String),
}

/// What is in a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub kind: String,
    /// RFC 3339 UTC.
    pub created_at: String,
    /// Name of the log.
    pub origin: String,
    #[serde(default, skip_serializing_if = "Filter::is_all")]
    pub filter: Filter,
    pub records: u64,
    /// SHA-256 (hex) by name.
    pub files: BTreeMap<String, String>,
}

/// What was asked for. Nothing: the whole log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

impl Filter {
    /// Nothing was left out.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }
}

impl Manifest {
    /// # Errors
    /// If the bytes are not a manifest, strictly.
    pub fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        let manifest: Self = serde_json::from_slice(bytes)
            // It quotes the input.
            .map_err(|e| BundleError::Manifest(visible_fold(&e.to_string(), 300)))?;
        if manifest.kind != BUNDLE_KIND {
            return Err(BundleError::Manifest(format!("`kind` is not {BUNDLE_KIND}")));
        }
        for (name, digest) in &manifest.files {
            if Entry::parse(name).is_none_or(|entry| entry == Entry::Manifest) {
                return Err(BundleError::Name(visible_fold(name, 80)));
            }
            if digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
                return Err(BundleError::Manifest(format!(
                    "the digest of {name} is not SHA-256 in hex"
                )));
            }
        }
        Ok(manifest)
    }

    fn to_bytes(&self) -> Result<Vec<u8>, BundleError> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|e| BundleError::Manifest(e.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// A file that a bundle may have. Every other name is refused, which leaves no way out of the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Entry {
    Manifest,
    Verify,
    Trust,
    Checkpoint,
    Ocsf,
    Report,
    Record(u64),
    Proof(u64),
}

impl Entry {
    fn parse(name: &str) -> Option<Self> {
        let number = |name: &str| name.parse::<u64>().ok();
        let entry = match name {
            MANIFEST => Self::Manifest,
            VERIFY => Self::Verify,
            TRUST => Self::Trust,
            CHECKPOINT => Self::Checkpoint,
            OCSF => Self::Ocsf,
            REPORT => Self::Report,
            _ => match name.split_once('/')? {
                ("records", file) => Self::Record(number(file.strip_suffix(".json")?)?),
                ("proofs", file) => Self::Proof(number(file.strip_suffix(".proof")?)?),
                _ => return None,
            },
        };
        // One spelling only: no signs, no other number of zeros.
        (entry.name() == name).then_some(entry)
    }

    fn name(self) -> String {
        match self {
            Self::Manifest => MANIFEST.to_owned(),
            Self::Verify => VERIFY.to_owned(),
            Self::Trust => TRUST.to_owned(),
            Self::Checkpoint => CHECKPOINT.to_owned(),
            Self::Ocsf => OCSF.to_owned(),
            Self::Report => REPORT.to_owned(),
            Self::Record(index) => record_name(index),
            Self::Proof(index) => proof_name(index),
        }
    }

    fn limit(self) -> u64 {
        match self {
            Self::Manifest => MANIFEST_BYTES,
            Self::Verify => VERIFY_BYTES,
            Self::Trust => TRUST_BYTES,
            Self::Checkpoint => CHECKPOINT_BYTES as u64,
            Self::Ocsf => OCSF_BYTES,
            Self::Report => REPORT_BYTES,
            Self::Record(_) => RECORD_BYTES as u64,
            Self::Proof(_) => PROOF_BYTES as u64,
        }
    }
}

/// Name of a record's envelope in a bundle.
#[must_use]
pub fn record_name(index: u64) -> String {
    format!("records/{index:09}.json")
}

/// Name of a record's proof in a bundle.
#[must_use]
pub fn proof_name(index: u64) -> String {
    format!("proofs/{index:09}.proof")
}

/// Writes a bundle as a tar stream, file by file: memory for names and digests only.
pub struct Writer<W: Write> {
    tar: tar::Builder<W>,
    manifest: Manifest,
    checkpoint: String,
}

impl<W: Write> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("records", &self.manifest.records)
            .finish_non_exhaustive()
    }
}

impl<W: Write> Writer<W> {
    /// Begins a bundle.
    ///
    /// `trust` is a trust file, `checkpoint` the signed note of the tree that all proofs lead to; `created_at` is RFC
    /// 3339 UTC.
    ///
    /// # Errors
    /// If `out` cannot be written.
    pub fn new(
        out: W,
        trust: &[u8],
        checkpoint: &str,
        origin: &str,
        filter: Filter,
        created_at: &str,
    ) -> Result<Self, BundleError> {
        let manifest = Manifest {
            kind: BUNDLE_KIND.to_owned(),
            created_at: created_at.to_owned(),
            origin: origin.to_owned(),
            filter,
            records: 0,
            files: BTreeMap::new(),
        };
        let mut writer = Self {
            tar: tar::Builder::new(out),
            manifest,
            checkpoint: checkpoint.to_owned(),
        };
        writer.file(Entry::Verify, include_bytes!("VERIFY.md"))?;
        writer.file(Entry::Trust, trust)?;
        writer.file(Entry::Checkpoint, checkpoint.as_bytes())?;
        Ok(writer)
    }

    /// Adds a record: its index in the log, its exact envelope and its inclusion proof.
    ///
    /// # Errors
    /// If `out` cannot be written, or there are too many records.
    pub fn record(&mut self, index: u64, envelope: &[u8], inclusion: Vec<Hash>) -> Result<(), BundleError> {
        if self.manifest.records >= MOST_RECORDS as u64 {
            return Err(BundleError::TooMany);
        }
        let proof = Proof {
            index,
            hashes: inclusion,
            checkpoint: self.checkpoint.clone(),
        };
        self.file(Entry::Record(index), envelope)?;
        self.file(Entry::Proof(index), proof.to_text().as_bytes())?;
        self.manifest.records += 1;
        Ok(())
    }

    /// Writes the manifest and the end.
    ///
    /// # Errors
    /// If `out` cannot be written.
    pub fn finish(mut self) -> Result<W, BundleError> {
        let manifest = self.manifest.to_bytes()?;
        self.append(MANIFEST, &manifest)?;
        self.tar.into_inner().map_err(BundleError::Write)
    }

    fn file(&mut self, entry: Entry, bytes: &[u8]) -> Result<(), BundleError> {
        let name = entry.name();
        check_size(&name, bytes.len() as u64, entry.limit())?;
        let digest = hex::encode(Sha256::digest(bytes));
        if self.manifest.files.insert(name.clone(), digest).is_some() {
            return Err(BundleError::Twice(name));
        }
        self.append(&name, bytes)
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> Result<(), BundleError> {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        self.tar
            .append_data(&mut header, name, bytes)
            .map_err(BundleError::Write)
    }
}

/// Writes the files of a tar stream into `dir`, which must not exist.
///
/// # Errors
/// For anything in the stream that is not a file of a bundle, comes twice or is too large. What was written before
/// stays: give a temporary folder.
pub fn unpack(tar: impl Read, dir: &Path) -> Result<(), BundleError> {
    let io_at = |path: &Path| {
        let path = path.to_owned();
        move |source| BundleError::Io { path, source }
    };
    let make = |path: &Path| fs::DirBuilder::new().mode(0o700).create(path).map_err(io_at(path));
    make(dir)?;
    make(&dir.join("records"))?;
    make(&dir.join("proofs"))?;
    let mut archive = tar::Archive::new(tar);
    let mut files = 0;
    for file in archive.entries().map_err(BundleError::Tar)? {
        let mut file = file.map_err(BundleError::Tar)?;
        let name = String::from_utf8_lossy(&file.path_bytes()).into_owned();
        let name = name.strip_prefix("./").unwrap_or(&name);
        if file.header().entry_type().is_dir() && matches!(name.trim_end_matches('/'), "" | "." | "records" | "proofs")
        {
            continue;
        }
        let entry = Entry::parse(name).ok_or_else(|| BundleError::Name(visible_fold(name, 80)))?;
        if !file.header().entry_type().is_file() {
            return Err(BundleError::NotAFile(visible(name)));
        }
        check_size(name, file.size(), entry.limit())?;
        files += 1;
        if files > 2 * MOST_RECORDS + MOST_OTHERS {
            return Err(BundleError::TooMany);
        }
        let path = dir.join(name);
        let mut out = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => BundleError::Twice(visible(name)),
                _ => BundleError::Io {
                    path: path.clone(),
                    source,
                },
            })?;
        io::copy(&mut file, &mut out).map_err(io_at(&path))?;
    }
    Ok(())
}

fn check_size(path: &str, bytes: u64, limit: u64) -> Result<(), BundleError> {
    if bytes <= limit {
        Ok(())
    } else {
        Err(BundleError::TooLarge {
            path: visible(path),
            bytes,
            limit,
        })
    }
}

/// A bundle's folder, for reading.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
    pub manifest: Manifest,
    /// Indices of the records that are there or that the manifest names, ascending.
    pub indices: Vec<u64>,
    /// Files that are there but that the manifest does not name, and names that no bundle has.
    pub strangers: Vec<String>,
}

impl Bundle {
    /// Opens a folder: reads the manifest and lists what is there.
    ///
    /// # Errors
    /// If there is no readable manifest.
    pub fn open(dir: &Path) -> Result<Self, BundleError> {
        let mut bundle = Self {
            dir: dir.to_owned(),
            manifest: Manifest::parse(&read(dir, Entry::Manifest)?)?,
            indices: vec![],
            strangers: vec![],
        };
        let mut names: Vec<String> = bundle.manifest.files.keys().cloned().collect();
        for sub in ["", "records", "proofs"] {
            let folder = dir.join(sub);
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound && !sub.is_empty() => continue,
                Err(source) => return Err(BundleError::Io { path: folder, source }),
            };
            for entry in entries {
                let entry = entry.map_err(|source| BundleError::Io {
                    path: folder.clone(),
                    source,
                })?;
                let file = entry.file_name().to_string_lossy().into_owned();
                let name = if sub.is_empty() { file } else { format!("{sub}/{file}") };
                if name != MANIFEST
                    && name != "records"
                    && name != "proofs"
                    && !bundle.manifest.files.contains_key(&name)
                {
                    bundle.strangers.push(visible_fold(&name, 80));
                    names.push(name);
                }
            }
        }
        bundle.strangers.sort_unstable();
        bundle.indices = names
            .iter()
            .filter_map(|name| match Entry::parse(name) {
                Some(Entry::Record(index)) => Some(index),
                _ => None,
            })
            .collect();
        bundle.indices.sort_unstable();
        bundle.indices.dedup();
        if bundle.indices.len() > MOST_RECORDS {
            Err(BundleError::TooMany)
        } else {
            Ok(bundle)
        }
    }

    /// The trust file that came with the bundle.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn trust(&self) -> Result<Vec<u8>, BundleError> {
        read(&self.dir, Entry::Trust)
    }

    /// # Errors
    /// If it cannot be read.
    pub fn checkpoint(&self) -> Result<Vec<u8>, BundleError> {
        read(&self.dir, Entry::Checkpoint)
    }

    /// # Errors
    /// If it cannot be read.
    pub fn record(&self, index: u64) -> Result<Vec<u8>, BundleError> {
        read(&self.dir, Entry::Record(index))
    }

    /// # Errors
    /// If it cannot be read.
    pub fn proof(&self, index: u64) -> Result<Vec<u8>, BundleError> {
        read(&self.dir, Entry::Proof(index))
    }

    /// SHA-256 (hex) of a file that the manifest names.
    ///
    /// # Errors
    /// If it cannot be read, or a bundle has no such file.
    pub fn digest(&self, name: &str) -> Result<String, BundleError> {
        let entry = Entry::parse(name).ok_or_else(|| BundleError::Name(visible_fold(name, 80)))?;
        let mut hash = Hashed(io::sink(), Sha256::new());
        let read = io::copy(&mut open(&self.dir, entry)?, &mut hash).map_err(|source| BundleError::Io {
            path: self.dir.join(name),
            source,
        })?;
        check_size(name, read, entry.limit())?;
        Ok(hash.hex())
    }

    /// Adds the events that `write` makes of the records.
    ///
    /// # Errors
    /// If they cannot be written, or there are some already.
    pub fn add_ocsf(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<u64>) -> Result<u64, BundleError> {
        self.add(Entry::Ocsf, write)
    }

    /// Adds a page for people.
    ///
    /// # Errors
    /// If it cannot be written, or there is one already.
    pub fn add_report(&mut self, html: &str) -> Result<(), BundleError> {
        self.add(Entry::Report, |out| out.write_all(html.as_bytes()))
    }

    /// Adds a file, and says so in the manifest.
    fn add<T>(&mut self, entry: Entry, write: impl FnOnce(&mut dyn Write) -> io::Result<T>) -> Result<T, BundleError> {
        let name = entry.name();
        let path = self.dir.join(&name);
        let io_at = |path: &Path| {
            let path = path.to_owned();
            move |source| BundleError::Io { path, source }
        };
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let mut out = Hashed(io::BufWriter::new(file.map_err(io_at(&path))?), Sha256::new());
        let made = write(&mut out)
            .and_then(|made| out.flush().map(|()| made))
            .map_err(io_at(&path))?;
        self.manifest.files.insert(name, out.hex());
        let mut manifest = tempfile::NamedTempFile::new_in(&self.dir).map_err(io_at(&self.dir))?;
        let path = self.dir.join(MANIFEST);
        manifest.write_all(&self.manifest.to_bytes()?).map_err(io_at(&path))?;
        manifest.persist(&path).map_err(|e| io_at(&path)(e.error))?;
        Ok(made)
    }
}

/// Passes on what is written, and hashes it.
struct Hashed<W>(W, Sha256);

impl<W> Hashed<W> {
    fn hex(self) -> String {
        hex::encode(self.1.finalize())
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.0.write(bytes)?;
        self.1.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Opens one file, not through a link, that has no more than it may have; at most one byte more can be read of it.
fn open(dir: &Path, entry: Entry) -> Result<io::Take<fs::File>, BundleError> {
    let name = entry.name();
    let path = dir.join(&name);
    let io_at = |source| BundleError::Io {
        path: path.clone(),
        source,
    };
    let meta = fs::symlink_metadata(&path).map_err(io_at)?;
    if !meta.is_file() {
        return Err(BundleError::NotAFile(name));
    }
    check_size(&name, meta.len(), entry.limit())?;
    Ok(fs::File::open(&path).map_err(io_at)?.take(entry.limit() + 1))
}

/// Reads one file.
fn read(dir: &Path, entry: Entry) -> Result<Vec<u8>, BundleError> {
    let mut bytes = Vec::new();
    open(dir, entry)?
        .read_to_end(&mut bytes)
        .map_err(|source| BundleError::Io {
            path: dir.join(entry.name()),
            source,
        })?;
    check_size(&entry.name(), bytes.len() as u64, entry.limit())?;
    Ok(bytes)
}
