//! The trust file: whose keys an auditor believes.
//!
//! Owns its JSON form and the questions asked of it. It is given by the auditor, by a way of its own; the copy inside a
//! bundle is a convenience and proves nothing. It must never answer for a key outside its window.

use serde::{Deserialize, Serialize};

use crate::cosign::VerifierKey;
use crate::key::PublicKey;

/// `kind` of a trust file.
pub const TRUST_KIND: &str = "urn:guard:trust:v1";
/// Most bytes of a trust file.
pub const TRUST_BYTES: u64 = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    pub kind: String,
    pub console: ConsoleTrust,
    pub hosts: Vec<HostTrust>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleTrust {
    /// The log's name, as in its checkpoints and in decisions.
    pub origin: String,
    /// PKIX PEM; they sign people's decisions.
    pub decision_keys: Vec<PublicKey>,
    /// PKIX PEM; they sign checkpoints.
    pub log_keys: Vec<PublicKey>,
    /// Verifier keys of witnesses that the auditor believes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub witnesses: Vec<VerifierKey>,
    /// How many of them have to have cosigned a checkpoint.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub quorum: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostTrust {
    /// ULID.
    pub id: String,
    pub name: String,
    pub evidence_keys: Vec<EvidenceKey>,
}

/// A host's key and the epochs that it may sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceKey {
    pub key: PublicKey,
    pub from_epoch: u64,
    /// Absent: still in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through_epoch: Option<u64>,
}

/// A trust file was refused.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("not a trust file: {0}")]
    Malformed(String),
    #[error("`kind` is not {TRUST_KIND}")]
    Kind,
    #[error("two hosts have the id {0}")]
    Twice(String),
}

impl From<serde_json::Error> for TrustError {
    fn from(error: serde_json::Error) -> Self {
        // It quotes the input.
        Self::Malformed(crate::text::visible_fold(&error.to_string(), 300))
    }
}

impl Trust {
    #[must_use]
    pub fn new(console: ConsoleTrust, hosts: Vec<HostTrust>) -> Self {
        Self {
            kind: TRUST_KIND.to_owned(),
            console,
            hosts,
        }
    }

    /// # Errors
    /// If the bytes are not a trust file, strictly.
    pub fn parse(bytes: &[u8]) -> Result<Self, TrustError> {
        let trust: Self = serde_json::from_slice(bytes)?;
        if trust.kind != TRUST_KIND {
            return Err(TrustError::Kind);
        }
        let mut ids: Vec<&str> = trust.hosts.iter().map(|h| h.id.as_str()).collect();
        ids.sort_unstable();
        match ids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(TrustError::Twice(crate::text::visible_fold(pair[0], 64))),
            None => Ok(trust),
        }
    }

    /// # Errors
    /// Never for keys of the supported kinds.
    pub fn to_json(&self) -> Result<Vec<u8>, TrustError> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    #[must_use]
    pub fn host(&self, id: &str) -> Option<&HostTrust> {
        self.hosts.iter().find(|h| h.id == id)
    }
}

impl HostTrust {
    /// The keys that may sign this epoch.
    pub fn keys_of_epoch(&self, epoch: u64) -> impl Iterator<Item = &PublicKey> {
        self.evidence_keys
            .iter()
            .filter(move |k| k.from_epoch <= epoch && k.through_epoch.is_none_or(|through| epoch <= through))
            .map(|k| &k.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SigningKey;

    #[test]
    fn trust_files_round_trip_and_are_strict() {
        let key = SigningKey::from_seed(&[1; 32]).public();
        let host = HostTrust {
            id: "H".to_owned(),
            name: "build-7".to_owned(),
            evidence_keys: vec![EvidenceKey {
                key: key.clone(),
                from_epoch: 2,
                through_epoch: Some(3),
            }],
        };
        let console = ConsoleTrust {
            origin: "o".to_owned(),
            decision_keys: vec![key.clone()],
            log_keys: vec![key],
            witnesses: vec![],
            quorum: 0,
        };
        let trust = Trust::new(console.clone(), vec![host.clone()]);
        let json = trust.to_json().unwrap();
        assert_eq!(Trust::parse(&json).unwrap(), trust);
        let counts: Vec<usize> = (1..=4).map(|epoch| host.keys_of_epoch(epoch).count()).collect();
        assert_eq!(counts, [0, 1, 1, 0]);
        let text = String::from_utf8(json).unwrap();
        assert!(Trust::parse(text.replace("build-7\",", "build-7\",\"x\":1,").as_bytes()).is_err());
        assert!(matches!(
            Trust::parse(text.replace(":v1", ":v2").as_bytes()),
            Err(TrustError::Kind)
        ));
        let twice = Trust::new(console, vec![host.clone(), host]).to_json().unwrap();
        assert!(matches!(Trust::parse(&twice), Err(TrustError::Twice(_))));
    }
}
