//! The trust file: whose keys an auditor believes.
//!
//! Owns its JSON form and the questions asked of it. It is given by the auditor, by a way of its own; the copy inside a
//! bundle is a convenience and proves nothing. It must never answer for a key outside its window.

use serde::{Deserialize, Deserializer, Serialize};

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
    /// They sign people's decisions, and the console's own records.
    #[serde(deserialize_with = "ranged")]
    pub decision_keys: Vec<RangedKey>,
    /// They sign checkpoints: each those whose last record it may sign.
    #[serde(deserialize_with = "ranged")]
    pub log_keys: Vec<RangedKey>,
    /// Verifier keys of witnesses that the auditor believes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub witnesses: Vec<VerifierKey>,
    /// How many of them have to have cosigned a checkpoint.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub quorum: usize,
}

impl ConsoleTrust {
    /// Keys that sign checkpoints of the log, whenever.
    #[must_use]
    pub fn log_public_keys(&self) -> Vec<PublicKey> {
        self.log_keys.iter().map(|key| key.key.clone()).collect()
    }
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
    pub evidence_keys: Vec<RangedKey>,
}

/// A key and what it may sign: epochs of its signer, and places in the log. No clock has a say in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangedKey {
    pub key: PublicKey,
    pub from_epoch: u64,
    /// Absent: still in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through_epoch: Option<u64>,
    /// Of the log; absent: from its beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_index: Option<u64>,
    /// Absent: still in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through_index: Option<u64>,
}

impl RangedKey {
    /// In use from the epoch that begins at this index of the log.
    #[must_use]
    pub fn from(key: PublicKey, epoch: u64, index: u64) -> Self {
        Self {
            key,
            from_epoch: epoch,
            through_epoch: None,
            from_index: Some(index),
            through_index: None,
        }
    }

    /// A signer's only key, from the beginning.
    #[must_use]
    pub fn only(key: PublicKey) -> Self {
        Self {
            key,
            from_epoch: 1,
            through_epoch: None,
            from_index: None,
            through_index: None,
        }
    }

    /// Ends it before this epoch, which begins at this index of the log. An earlier end stays.
    pub fn end(&mut self, epoch: u64, index: u64) {
        let earlier = |end: Option<u64>, next: u64| Some(end.unwrap_or(u64::MAX).min(next.saturating_sub(1)));
        self.through_epoch = earlier(self.through_epoch, epoch);
        self.through_index = earlier(self.through_index, index);
    }

    #[must_use]
    pub fn signs_epoch(&self, epoch: u64) -> bool {
        self.from_epoch <= epoch && self.through_epoch.is_none_or(|through| epoch <= through)
    }

    #[must_use]
    pub fn signs_index(&self, index: u64) -> bool {
        self.from_index.is_none_or(|from| from <= index) && self.through_index.is_none_or(|through| index <= through)
    }
}

/// Keys with ranges; one that was written alone, as earlier consoles did, is good for everything.
fn ranged<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RangedKey>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Alone(PublicKey),
        Ranged(RangedKey),
    }
    let keys = Vec::<Written>::deserialize(deserializer)?.into_iter();
    Ok(keys
        .map(|key| match key {
            Written::Alone(key) => RangedKey::only(key),
            Written::Ranged(key) => key,
        })
        .collect())
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
            evidence_keys: vec![RangedKey {
                through_epoch: Some(3),
                ..RangedKey::from(key.clone(), 2, 7)
            }],
        };
        let console = ConsoleTrust {
            origin: "o".to_owned(),
            decision_keys: vec![RangedKey::only(key.clone())],
            log_keys: vec![RangedKey::only(key)],
            witnesses: vec![],
            quorum: 0,
        };
        let trust = Trust::new(console.clone(), vec![host.clone()]);
        let json = trust.to_json().unwrap();
        assert_eq!(Trust::parse(&json).unwrap(), trust);
        let range = &host.evidence_keys[0];
        assert_eq!(
            [1, 2, 3, 4].map(|epoch| range.signs_epoch(epoch)),
            [false, true, true, false]
        );
        assert_eq!([6, 7].map(|index| range.signs_index(index)), [false, true]);
        let mut ended = range.clone();
        ended.end(3, 9);
        ended.end(4, 20);
        assert_eq!(
            (ended.through_epoch, ended.through_index),
            (Some(2), Some(8)),
            "an end stays"
        );
        let text = String::from_utf8(json).unwrap();
        let mut alone: serde_json::Value = serde_json::from_str(&text).unwrap();
        alone["console"]["decision_keys"][0] = alone["console"]["log_keys"][0]["key"].clone();
        assert_eq!(
            Trust::parse(&serde_json::to_vec(&alone).unwrap()).unwrap(),
            trust,
            "as earlier consoles wrote it"
        );
        assert!(Trust::parse(text.replace("build-7\",", "build-7\",\"x\":1,").as_bytes()).is_err());
        assert!(matches!(
            Trust::parse(text.replace(":v1", ":v2").as_bytes()),
            Err(TrustError::Kind)
        ));
        let twice = Trust::new(console, vec![host.clone(), host]).to_json().unwrap();
        assert!(matches!(Trust::parse(&twice), Err(TrustError::Twice(_))));
    }
}
