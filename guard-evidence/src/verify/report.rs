//! What the verifier says: sections, findings, and the result.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Record;
use crate::bundle::record_name;
use crate::enforcement::Enforcement;

/// Most findings that one section keeps; the rest is counted.
const MOST_FINDINGS: usize = 1000;

/// Name of the section on people's decisions.
pub(super) const DECISIONS: &str = "decisions";

/// The result, worst finding first to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Everything that was claimed is proved.
    Valid,
    /// Nothing is wrong, but something is missing.
    Incomplete,
    /// Something is wrong.
    Invalid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Note,
    Incomplete,
    Invalid,
}

/// One thing that somebody should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// Safe to show.
    pub text: String,
    /// Which record, when it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

/// One kind of check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Section {
    pub name: &'static str,
    /// What was checked, in a line.
    pub summary: String,
    pub findings: Vec<Finding>,
    /// Findings beyond the first thousand.
    pub more_findings: u64,
    pub status: Status,
    /// The first that speaks against each record, by its index; of all records, however many. What is missing speaks against a
    /// decision alone: it cannot be judged then.
    #[serde(skip)]
    pub(super) wrong: BTreeMap<u64, String>,
}

impl Section {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            summary: String::new(),
            findings: Vec::new(),
            more_findings: 0,
            status: Status::Valid,
            wrong: BTreeMap::new(),
        }
    }

    /// A finding about the bundle, or about a record whose signature holds.
    pub(super) fn add(&mut self, level: Level, text: impl Into<String>, record: Option<&Record>) {
        self.push(Finding {
            level,
            text: text.into(),
            file: record.map(|r| r.file.clone()),
            index: record.map(|r| r.index),
            epoch: record.map(|r| r.header.epoch),
            sequence: record.map(|r| r.header.sequence),
        });
    }

    /// A finding about a file of which no more is known than its place.
    pub(super) fn add_at(&mut self, level: Level, text: impl Into<String>, index: u64) {
        self.push(Finding {
            level,
            text: text.into(),
            file: Some(record_name(index)),
            index: Some(index),
            epoch: None,
            sequence: None,
        });
    }

    fn push(&mut self, finding: Finding) {
        self.status = self.status.max(match finding.level {
            Level::Note => Status::Valid,
            Level::Incomplete => Status::Incomplete,
            Level::Invalid => Status::Invalid,
        });
        let against = match finding.level {
            Level::Invalid => true,
            Level::Incomplete => self.name == DECISIONS,
            Level::Note => false,
        };
        if let Some(index) = finding.index.filter(|_| against) {
            self.wrong.entry(index).or_insert_with(|| finding.text.clone());
        }
        if self.findings.len() < MOST_FINDINGS {
            self.findings.push(finding);
        } else {
            self.more_findings += 1;
        }
    }
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub status: Status,
    pub sections: Vec<Section>,
    /// From when to when enforcement was on, by host id.
    pub enforcement: BTreeMap<String, Enforcement>,
}

impl Report {
    pub(super) fn new(sections: Vec<Section>) -> Self {
        let status = sections.iter().map(|s| s.status).max().unwrap_or(Status::Invalid);
        Self {
            status,
            sections,
            enforcement: BTreeMap::new(),
        }
    }
}
