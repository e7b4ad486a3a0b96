//! What unit tests share: a state directory, a cgroup tree of plain directories, a running evidence writer.

use std::path::PathBuf;

use guard_evidence::key::SigningKey;

use crate::evidence::{Evidence, EvidenceConfig};

pub(crate) const HOST: &str = "01J00000000000000000000000";

pub(crate) struct Rig {
    pub(crate) _directory: tempfile::TempDir,
    pub(crate) state: PathBuf,
    pub(crate) cgroups: PathBuf,
    pub(crate) evidence: Evidence,
}

pub(crate) fn key() -> SigningKey {
    SigningKey::from_seed(&[3; 32])
}

pub(crate) fn rig() -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let (state, cgroups) = (directory.path().join("state"), directory.path().join("cgroup"));
    std::fs::create_dir(&state).unwrap();
    std::fs::create_dir(&cgroups).unwrap();
    let evidence = Evidence::start(EvidenceConfig {
        host_id: HOST.to_owned(),
        key: key(),
        spool_directory: state.join("spool"),
        epoch_file: state.join("epoch"),
        max_bytes: 64 << 20,
    })
    .unwrap();
    Rig { _directory: directory, state, cgroups, evidence }
}
