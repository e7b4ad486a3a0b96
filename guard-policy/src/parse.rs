//! From text to a checked [`Policy`].
//!
//! Owns errors with file, line, column and remedy. It is given the text of a policy file. It must never give a policy
//! of which a part was left out.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr as _;
use std::sync::LazyLock;

use cedar_policy::{
    Authorizer, Effect, EntityTypeName, EntityUid, PolicyId, PolicySet, Schema, ValidationMode, Validator,
};
use guard_evidence::record::MatchedRule;
use guard_evidence::statement::sha256_hex;
use guard_evidence::text::visible_fold;
use miette::Diagnostic;
use parking_lot::Mutex;
use serde_json::json;

use super::annotations::{self, Annotations};
use super::reads::{Reads, of_expression};
use super::{BUILTIN, Names, POLICY_BYTES, Policy, Rule, SCHEMA};

/// Everything that is wrong with a policy text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub file: String,
    /// From 1; 0 when it concerns the whole text.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub message: String,
    pub remedy: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message)?,
            _ => write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?,
        }
        self.remedy.iter().try_for_each(|remedy| write!(f, "\n  → {remedy}"))
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyError {}

static CHECKED_SCHEMA: LazyLock<Option<Schema>> =
    LazyLock::new(|| Schema::from_cedarschema_str(SCHEMA).ok().map(|(schema, _)| schema));

/// Reads a policy text; `file` is its name in errors.
///
/// # Errors
/// Every syntax error, or every schema, type and annotation error, with its place.
pub fn parse(text: &str, file: &str) -> Result<Policy, PolicyError> {
    let place = Place { text, file };
    if text.len() > POLICY_BYTES {
        let message = format!(
            "{} bytes are more than the {POLICY_BYTES} that a policy may have",
            text.len()
        );
        return Err(PolicyError {
            problems: vec![place.whole(message)],
        });
    }
    let set = PolicySet::from_str(text).map_err(|errors| {
        let problems = errors.iter().map(|error| place.problem(error, None)).collect();
        PolicyError { problems }
    })?;
    let schema = CHECKED_SCHEMA.clone().ok_or_else(|| PolicyError {
        problems: vec![place.whole("the built-in schema does not parse".to_owned())],
    })?;

    let mut problems: Vec<Problem> = set
        .templates()
        .map(|template| Problem {
            remedy: Some("name the entity itself instead of ?principal or ?resource".to_owned()),
            ..place.at(
                place.offset_of(&template.to_string()),
                "a template cannot be used in a policy file".to_owned(),
            )
        })
        .collect();
    let result = Validator::new(schema).validate(&set, ValidationMode::Strict);
    problems.extend(result.validation_errors().map(|error| {
        let fallback = set.policy(error.policy_id()).and_then(cedar_policy::Policy::to_cedar);
        place.problem(error, fallback.as_deref())
    }));

    let mut rules: HashMap<PolicyId, Rule> = HashMap::new();
    let mut ids: HashMap<String, PolicyId> = HashMap::new();
    let mut policies: Vec<&cedar_policy::Policy> = set.policies().collect();
    policies.sort_by_key(|policy| (policy.id().to_string().len(), policy.id().to_string()));
    let mut cursor = 0;
    for (n, policy) in policies.into_iter().enumerate() {
        let source = policy.to_cedar().unwrap_or_default();
        let offset = text
            .get(cursor..)
            .and_then(|rest| rest.find(&source))
            .map_or(0, |found| cursor + found);
        cursor = offset + source.len();
        let name = match annotations::parse(policy.annotations()) {
            Err(wrong) => {
                problems.push(Problem {
                    remedy: Some(wrong.remedy),
                    ..place.at(offset, wrong.message)
                });
                continue;
            }
            Ok(found) => found,
        };
        if name.asks && policy.effect() == Effect::Forbid {
            problems.push(Problem {
                remedy: Some("move @approvers, @quorum and @timeout to a permit rule with context.approved".to_owned()),
                ..place.at(offset, "a forbid asks nobody: nothing overrides it".to_owned())
            });
        }
        let shown_id = name.id.clone().unwrap_or_else(|| format!("rule-{}", n + 1));
        if ids.insert(shown_id.clone(), policy.id().clone()).is_some() {
            problems.push(Problem {
                remedy: Some("give every rule its own @id".to_owned()),
                ..place.at(offset, format!("two rules have the id `{shown_id}`"))
            });
        }
        match rule(policy, &shown_id, name, &source) {
            Ok(mut rule) => {
                rule.of_file = true;
                rule.line = place.at(offset, String::new()).line;
                rules.insert(policy.id().clone(), rule);
            }
            Err(message) => problems.push(place.at(offset, message)),
        }
    }
    if !problems.is_empty() {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        return Err(PolicyError { problems });
    }
    let names = names().map_err(|message| PolicyError {
        problems: vec![place.whole(message)],
    })?;
    let count = u32::try_from(rules.len()).unwrap_or(u32::MAX);
    rules.extend(builtin().map_err(|message| PolicyError {
        problems: vec![place.whole(message)],
    })?);
    Ok(Policy {
        digest: sha256_hex(text.as_bytes()),
        text: text.to_owned(),
        count,
        rules,
        authorizer: Authorizer::new(),
        names,
        without: Mutex::default(),
    })
}

/// The rules that stand beside those of every file. Their ids have a colon, which no id of a file has.
fn builtin() -> Result<Vec<(PolicyId, Rule)>, String> {
    let set = PolicySet::from_str(BUILTIN).map_err(|e| format!("the built-in rules do not parse: {e}"))?;
    set.policies()
        .map(|policy| {
            let annotations = annotations::parse(policy.annotations()).map_err(|wrong| wrong.message)?;
            let name = format!("builtin:{}", annotations.id.as_deref().unwrap_or_default());
            let id = PolicyId::new(&name);
            let rule = rule(&policy.new_id(id.clone()), &name, annotations, "")?;
            Ok((id, rule))
        })
        .collect()
}

fn names() -> Result<Names, String> {
    let kind = |name: &str| EntityTypeName::from_str(name).map_err(|e| e.to_string());
    let action = |name: &str| EntityUid::from_str(&format!("Action::\"{name}\"")).map_err(|e| e.to_string());
    Ok(Names {
        workload: kind("Workload")?,
        directory: kind("Directory")?,
        executable: kind("Executable")?,
        address: kind("Address")?,
        socket: kind("Socket")?,
        file: kind("File")?,
        exec: action("exec")?,
        connect: action("connect")?,
        listen: action("listen")?,
        connect_unix: action("connect_unix")?,
        write: action("write")?,
    })
}

/// Takes a rule apart into what can be evaluated with fewer facts.
fn rule(policy: &cedar_policy::Policy, id: &str, annotations: Annotations, source: &str) -> Result<Rule, String> {
    let whole = policy
        .to_json()
        .map_err(|e| format!("the rule cannot be analysed: {e}"))?;
    let part = |effect_scope: &serde_json::Value, conditions: serde_json::Value| {
        let mut part = effect_scope.clone();
        part["effect"] = json!("permit");
        part["conditions"] = conditions;
        part["annotations"] = json!({});
        let policy = cedar_policy::Policy::from_json(Some(PolicyId::new("part")), part)
            .map_err(|e| format!("the rule cannot be analysed: {e}"))?;
        PolicySet::from_policies([policy]).map_err(|e| format!("the rule cannot be analysed: {e}"))
    };
    let mut any_resource = whole.clone();
    any_resource["resource"] = json!({"op": "All"});
    let mut everything = any_resource.clone();
    everything["principal"] = json!({"op": "All"});
    everything["action"] = json!({"op": "All"});

    let mut clauses = Vec::new();
    let mut reads = Reads::NONE;
    for condition in whole["conditions"].as_array().into_iter().flatten() {
        let of = of_expression(condition);
        reads |= of;
        clauses.push((of, part(&everything, json!([condition]))?));
    }
    // `resource is Executable` says nothing; every other resource in a scope is a path.
    let resource = whole["resource"]["op"].as_str().unwrap_or_default();
    if resource != "All" && !(resource == "is" && whole["resource"].get("in").is_none()) {
        reads |= Reads::PATH;
    }
    let description = annotations.description.clone().unwrap_or_else(|| {
        let body = source.split_whitespace().collect::<Vec<_>>().join(" ");
        visible_fold(&body, 200)
    });
    Ok(Rule {
        policy: policy.clone(),
        of_file: false,
        source: source.to_owned(),
        line: 0,
        effect: policy.effect(),
        shown: MatchedRule {
            id: id.to_owned(),
            description,
        },
        annotations,
        reads,
        scope: part(&whole, json!([]))?,
        scope_any_resource: part(&any_resource, json!([]))?,
        clauses,
    })
}

/// Turns byte offsets into lines and columns.
struct Place<'a> {
    text: &'a str,
    file: &'a str,
}

impl Place<'_> {
    fn whole(&self, message: String) -> Problem {
        Problem {
            file: self.file.to_owned(),
            line: 0,
            column: 0,
            message,
            remedy: None,
        }
    }

    fn at(&self, offset: usize, message: String) -> Problem {
        let before = self.text.get(..offset).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Problem {
            file: self.file.to_owned(),
            line,
            column,
            message,
            remedy: None,
        }
    }

    fn offset_of(&self, source: &str) -> usize {
        self.text.find(source).unwrap_or(0)
    }

    /// From Cedar's own error: its first label is the place, its help the remedy.
    fn problem(&self, error: &(impl Diagnostic + ?Sized), fallback: Option<&str>) -> Problem {
        let offset = error
            .labels()
            .and_then(|mut labels| labels.next())
            .map(|label| label.offset())
            .or_else(|| fallback.map(|source| self.offset_of(source)));
        let message = error.to_string();
        let label = error
            .labels()
            .and_then(|mut labels| labels.next())
            .and_then(|l| l.label().map(str::to_owned));
        let message = match label {
            Some(label) if !message.contains(&label) => format!("{message} ({label})"),
            _ => message,
        };
        let remedy = error.help().map(|help| help.to_string());
        match offset {
            Some(offset) => Problem {
                remedy,
                ..self.at(offset, message)
            },
            None => Problem {
                remedy,
                ..self.whole(message)
            },
        }
    }
}
