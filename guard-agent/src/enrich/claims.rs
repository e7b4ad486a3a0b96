//! What the workload says about itself, and the variables that records may show.
//!
//! Owns the names `GUARD_AGENT`, `GUARD_TASK`, `GUARD_TICKET`, `GUARD_TOOL_CALL`, `GUARD_SESSION` and the allow list. It
//! is given the environment of a held thread. It must never let out a variable that nobody chose, nor a secret in one.

use guard_evidence::record::Claims;
use guard_evidence::text::Text;

use crate::redact::Redactor;

/// Longest value of a claim, in bytes.
const CLAIM_BYTES: usize = 512;
/// Chosen variables in one record.
const CHOSEN: usize = 64;

/// The claims, or `None` when there is none.
pub(super) fn claims(environment: &[Vec<u8>], redactor: &Redactor) -> Option<Claims> {
    let of = |name: &str| {
        let value = environment
            .iter()
            .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
        // Before it is cut, or half a secret would be none.
        let value = redactor.text(value).into_bytes();
        let end = value.len().min(CLAIM_BYTES);
        (!value.is_empty()).then(|| Text::from(&value[..end]))
    };
    let claims = Claims {
        agent: of("GUARD_AGENT"),
        task: of("GUARD_TASK"),
        ticket: of("GUARD_TICKET"),
        tool_call: of("GUARD_TOOL_CALL"),
        session: of("GUARD_SESSION"),
    };
    (claims != Claims::default()).then_some(claims)
}

/// The `NAME=value` entries whose name is on the list, without secrets.
pub(super) fn chosen(environment: &[Vec<u8>], names: &[String], redactor: &Redactor) -> Vec<Text> {
    let on_the_list = |entry: &Vec<u8>| {
        let name = entry.split(|b| *b == b'=').next().unwrap_or_default();
        names.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning.as_bytes()),
            None => name == allowed.as_bytes(),
        })
    };
    environment
        .iter()
        .filter(|entry| on_the_list(entry))
        .take(CHOSEN)
        .map(|entry| redactor.variable(entry))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::redactor;

    fn environment(entries: &[&str]) -> Vec<Vec<u8>> {
        entries.iter().map(|entry| entry.as_bytes().to_vec()).collect()
    }

    #[test]
    fn claims_are_found_and_bounded() {
        assert_eq!(
            claims(
                &environment(&["PATH=/bin", "GUARD_AGENTS=x", "GUARD_TASK="]),
                &redactor()
            ),
            None
        );
        let entries = ["GUARD_AGENT=bot", "GUARD_AGENT=other", "GUARD_TICKET=\u{202E}1"];
        let found = claims(&environment(&entries), &redactor()).unwrap();
        assert_eq!(found.agent.unwrap().as_bytes(), b"bot");
        assert_eq!(found.ticket.unwrap().display(), "⟨U+202E⟩1");
        let long = claims(
            &environment(&[&format!("GUARD_TASK={}", "x".repeat(9_000))]),
            &redactor(),
        )
        .unwrap();
        assert_eq!(long.task.unwrap().as_bytes().len(), CLAIM_BYTES);
        // Cut in the middle of a token.
        let token = format!("GUARD_TASK={} ghp_{}", "x".repeat(CLAIM_BYTES - 9), "a1".repeat(18));
        let task = claims(&environment(&[&token]), &redactor()).unwrap().task.unwrap();
        assert!(!task.display().contains("ghp_"), "{task:?}");
    }

    #[test]
    fn nothing_is_shown_that_nobody_chose() {
        let all = environment(&[
            "AWS_SECRET_ACCESS_KEY=s",
            "GIT_DIR=/x",
            "GIT_=y",
            "HOME=/root",
            "HOMEX=1",
            "=odd",
            "",
        ]);
        assert!(chosen(&all, &[], &redactor()).is_empty());
        let names = ["GIT_*".to_owned(), "HOME".to_owned()];
        let shown: Vec<String> = chosen(&all, &names, &redactor()).iter().map(Text::display).collect();
        assert_eq!(shown, ["GIT_DIR=/x", "GIT_=y", "HOME=/root"]);
    }
}
