//! docs/measurements.md: a head and sections that are measured apart from each other.
//! Given sections. Never loses one that it did not measure.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const HEAD: &str = "# Measurements

Written by `cargo xtask bench`, section by section; not edited by hand. Every figure comes with its method and stands next to what
it is compared with, measured in the same run. Guests are software-emulated unless said otherwise: ratios and instruction
counts carry over to other machines, nanoseconds do not.
";

/// In this order in the file.
const ORDER: [&str; 8] = [
    "Round trip of an exec that user space always allows",
    "A thousand threads that wait",
    "Verdict to resume",
    "What is not labelled",
    "The agent's size and memory",
    "Evidence",
    "From a clean clone",
    "Fuzzing",
];

/// One section: its heading and what stands below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section {
    heading: String,
    body: String,
}

impl Section {
    pub(super) fn new(heading: &str, body: &str) -> Self {
        Self {
            heading: heading.to_owned(),
            body: body.trim().to_owned(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Document {
    path: PathBuf,
    sections: Vec<Section>,
}

impl Document {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        Ok(Self {
            path: path.to_owned(),
            sections: sections(&text),
        })
    }

    pub(super) fn set(&mut self, section: Section) {
        self.sections.retain(|old| old.heading != section.heading);
        self.sections.push(section);
        let place = |heading: &str| ORDER.iter().position(|known| *known == heading).unwrap_or(ORDER.len());
        self.sections.sort_by_key(|section| place(&section.heading));
    }

    fn text(&self) -> String {
        let mut text = HEAD.to_owned();
        for section in &self.sections {
            text.push_str(&format!("\n## {}\n\n{}\n", section.heading, section.body));
        }
        text
    }

    pub(super) fn write(&self) -> Result<()> {
        std::fs::write(&self.path, self.text()).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn sections(text: &str) -> Vec<Section> {
    format!("\n{text}")
        .split("\n## ")
        .skip(1)
        .filter_map(|part| part.split_once('\n'))
        .map(|(heading, body)| Section::new(heading.trim(), body))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_replaces_itself_and_leaves_the_others() {
        let mut document = Document {
            path: PathBuf::new(),
            sections: sections("# Measurements\n\nhead\n\n## From a clean clone\n\n12 minutes\n\n## Other\n\n- x\n"),
        };
        document.set(Section::new("Verdict to resume", "a\n\nb"));
        document.set(Section::new("From a clean clone", "11 minutes"));
        let text = document.text();
        assert!(
            text.ends_with(
                "\n## Verdict to resume\n\na\n\nb\n\n## From a clean clone\n\n11 minutes\n\n## Other\n\n- x\n"
            ),
            "{text}"
        );
        assert_eq!(sections(&text), document.sections);
    }
}
