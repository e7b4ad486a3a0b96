//! What an identity provider says of somebody, read once: who, which groups, how they proved it.
//!
//! Owns the shapes of claims as Okta, Entra ID, Keycloak and others write them. It is given claims whose signature holds.
//! It must never take an e-mail address for an identity, nor an absent list of groups for an empty one.

use guard_evidence::record::Authentication;
use serde_json::{Map, Value};

/// More groups than this are refused, not cut off: a role must not depend on the order of a list.
const MAX_GROUPS: usize = 5_000;
const GROUP_BYTES: usize = 256;
const SUBJECT_BYTES: usize = 255;
const WORDS_CHARACTERS: usize = 128;
const HANDLE_BYTES: usize = 64;
const MAX_METHODS: usize = 16;

/// Somebody, as their provider describes them now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// With the issuer: who they are, for ever.
    pub subject: String,
    /// What their account is called if it is made now: a-z 0-9 . _ - @ +
    pub handle: String,
    /// To be shown, never to be trusted.
    pub display_name: String,
    pub email: String,
    pub groups: Vec<String>,
    pub authentication: Authentication,
}

/// Why groups cannot be read, in words for whoever signs in and for their administrator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupsError {
    #[error(
        "the provider left your groups out because there are too many of them (Entra ID: groups overage). An administrator \
         can have it send only the groups that are assigned to this application, or use application roles with \
         groups-claim = \"roles\""
    )]
    Overage,
    #[error(
        "the provider says nothing about your groups: the claim {0:?} is missing. An administrator can add it to what this \
         application is sent, or set groups-claim and scopes"
    )]
    Missing(String),
    #[error("the claim {0:?} is not a list of groups")]
    Shape(String),
    #[error("the provider names more than {MAX_GROUPS} groups")]
    Many,
}

/// The groups that the claim lists. `None`: it is not there at all, and may stand elsewhere.
///
/// # Errors
/// Left out by the provider, or no list of names.
pub fn groups(claims: &Map<String, Value>, claim: &str) -> Result<Option<Vec<String>>, GroupsError> {
    let found = if claim.starts_with('/') {
        pointed(claims, claim)
    } else {
        claims.get(claim)
    };
    let Some(value) = found else {
        return if is_overage(claims, claim) {
            Err(GroupsError::Overage)
        } else {
            Ok(None)
        };
    };
    let shape = || GroupsError::Shape(claim.to_owned());
    let names: Vec<&str> = match value {
        Value::String(one) => vec![one],
        Value::Array(list) => list
            .iter()
            .map(|v| v.as_str().ok_or_else(shape))
            .collect::<Result<_, _>>()?,
        _ => return Err(shape()),
    };
    if names.len() > MAX_GROUPS {
        return Err(GroupsError::Many);
    }
    if names.iter().any(|name| name.is_empty() || name.len() > GROUP_BYTES) {
        return Err(shape());
    }
    Ok(Some(names.into_iter().map(str::to_owned).collect()))
}

/// A JSON pointer into the claims.
fn pointed<'v>(claims: &'v Map<String, Value>, pointer: &str) -> Option<&'v Value> {
    let mut parts = pointer
        .get(1..)?
        .split('/')
        .map(|p| p.replace("~1", "/").replace("~0", "~"));
    let first = claims.get(&parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(&part))
}

/// Entra ID beyond 200 groups: `_claim_names` says where they could be asked for, or `hasgroups` that there are some.
fn is_overage(claims: &Map<String, Value>, claim: &str) -> bool {
    let named = claims.get("_claim_names").and_then(|names| names.get(claim)).is_some();
    let has = claims
        .get("hasgroups")
        .is_some_and(|v| v.as_bool() == Some(true) || v.as_str() == Some("true"));
    named || has
}

/// A subject as it may stand in records.
#[must_use]
pub fn subject(text: &str) -> Option<String> {
    let good = (1..=SUBJECT_BYTES).contains(&text.len()) && text.chars().all(|c| !c.is_control() && c.is_ascii());
    good.then(|| text.to_owned())
}

/// The first of these claims that has words, made visible and short.
#[must_use]
pub fn words(claims: &[&Map<String, Value>], names: &[&str]) -> String {
    let given = names
        .iter()
        .flat_map(|name| claims.iter().filter_map(|claims| claims.get(*name)?.as_str()))
        .find(|text| !text.trim().is_empty())
        .unwrap_or_default();
    guard_evidence::text::visible_fold(given.trim(), WORDS_CHARACTERS)
}

/// What the account is called: a name that people know, reduced to what names of accounts may have.
#[must_use]
pub fn handle(claims: &[&Map<String, Value>], subject: &str) -> String {
    let given = ["preferred_username", "email", "upn"]
        .iter()
        .flat_map(|name| claims.iter().filter_map(|claims| claims.get(*name)?.as_str()))
        .find(|text| !text.trim().is_empty())
        .unwrap_or(subject);
    let reduced: String = given
        .trim()
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| {
            if c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-' | '@' | '+') {
                c
            } else {
                '-'
            }
        })
        .take(HANDLE_BYTES)
        .collect();
    let reduced = reduced.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    if reduced.is_empty() {
        "somebody".to_owned()
    } else {
        reduced.to_owned()
    }
}

/// How they proved who they are.
#[must_use]
pub fn authentication(at: Option<String>, class: Option<&str>, methods: &[&str]) -> Authentication {
    let shown = |text: &str| guard_evidence::text::visible_fold(text, WORDS_CHARACTERS);
    Authentication {
        at,
        class: class.map(shown),
        methods: methods.iter().take(MAX_METHODS).map(|method| shown(method)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OKTA: &str = include_str!("fixtures/okta.json");
    const ENTRA: &str = include_str!("fixtures/entra.json");
    const ENTRA_OVERAGE: &str = include_str!("fixtures/entra-overage.json");
    const ENTRA_HASGROUPS: &str = include_str!("fixtures/entra-hasgroups.json");
    const ENTRA_ROLES: &str = include_str!("fixtures/entra-roles.json");
    const KEYCLOAK: &str = include_str!("fixtures/keycloak.json");

    fn claims(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn okta() {
        let okta = claims(OKTA);
        assert_eq!(
            groups(&okta, "groups").unwrap().unwrap(),
            ["Everyone", "guard-approvers", "sec-ops"]
        );
        assert_eq!(handle(&[&okta], "00u1"), "isaac.brock@example.com");
        assert_eq!(words(&[&okta], &["name"]), "Isaac Brock");
        // Without the groups scope the claim is not there: not the same as being in no group.
        assert_eq!(groups(&okta, "teams").unwrap(), None);
    }

    #[test]
    fn entra_names_groups_by_id() {
        let entra = claims(ENTRA);
        assert_eq!(
            groups(&entra, "groups").unwrap().unwrap(),
            [
                "0d3b1d34-6a2c-4a8e-9c1f-1f6a1b0f2a01",
                "6b9b5f0e-2f5b-4a0b-8a51-3c8f3f6f7b02"
            ]
        );
        assert_eq!(handle(&[&entra], "x"), "abeli@contoso.example");
        // Application roles instead of groups.
        assert_eq!(
            groups(&claims(ENTRA_ROLES), "roles").unwrap().unwrap(),
            ["Guard.Approver"]
        );
    }

    #[test]
    fn an_overage_is_never_taken_for_no_groups() {
        for text in [ENTRA_OVERAGE, ENTRA_HASGROUPS] {
            assert_eq!(groups(&claims(text), "groups"), Err(GroupsError::Overage));
        }
        // The application roles of the same person are all there.
        assert_eq!(
            groups(&claims(ENTRA_OVERAGE), "roles").unwrap().unwrap(),
            ["Guard.Approver"]
        );
        let words = GroupsError::Overage.to_string();
        assert!(words.contains("groups-claim = \"roles\""), "{words}");
    }

    #[test]
    fn keycloak_nests_them() {
        let keycloak = claims(KEYCLOAK);
        assert_eq!(
            groups(&keycloak, "/realm_access/roles").unwrap().unwrap(),
            ["offline_access", "guard-approvers"]
        );
        assert_eq!(
            groups(&keycloak, "/resource_access/a~1b/roles").unwrap().unwrap(),
            ["x"]
        );
        assert_eq!(groups(&keycloak, "/realm_access/none").unwrap(), None);
    }

    #[test]
    fn odd_shapes_are_errors() {
        for (text, error) in [
            (r#"{"groups": {"a": 1}}"#, "is not a list"),
            (r#"{"groups": ["a", 1]}"#, "is not a list"),
            (r#"{"groups": [""]}"#, "is not a list"),
            (r#"{"groups": null}"#, "is not a list"),
        ] {
            let said = groups(&claims(text), "groups").unwrap_err().to_string();
            assert!(said.contains(error), "{text}: {said}");
        }
        let many = Value::Array(vec!["g".into(); MAX_GROUPS + 1]);
        let many = Map::from_iter([("groups".to_owned(), many)]);
        assert_eq!(groups(&many, "groups"), Err(GroupsError::Many));
        let one = claims(r#"{"groups": "only"}"#);
        assert_eq!(groups(&one, "groups").unwrap().unwrap(), ["only"]);
    }

    #[test]
    fn names_are_reduced_and_shown() {
        let evil = claims(r#"{"preferred_username": "  Ann\u202e/Bob  ", "name": "Ann\u202e\u001b[2J"}"#);
        assert_eq!(handle(&[&evil], "x"), "ann--bob");
        assert!(words(&[&evil], &["name"]).contains("⟨U+202E⟩"));
        assert_eq!(handle(&[&Map::new()], "00u/1"), "00u-1");
        assert_eq!(handle(&[&Map::new()], "///"), "somebody");
        assert_eq!(handle(&[&claims(r#"{"preferred_username": ""}"#)], "a"), "a");
        assert!(subject("00u1abc|x").is_some());
        for bad in ["", "a\nb", "ä", &"x".repeat(256)] {
            assert!(subject(bad).is_none(), "{bad}");
        }
    }
}
