//! What else a host knows of an action, in words.
//!
//! Owns which of it is a fact and which somebody's word. It is given a request record. It must never show a claim
//! without saying whose it is.

use crate::record::{Context, RequestRecord};
use crate::text::visible_fold;

const LINE: usize = 400;
/// Names of one address that are shown.
const LOOKED_UP: usize = 8;

/// A name for what it is, and its value, safe to show. In the order of the card.
#[must_use]
pub fn lines(record: &RequestRecord) -> Vec<(&'static str, String)> {
    let Some(context) = &record.context else {
        return container_only(record);
    };
    let mut lines = Vec::new();
    if let Some(held) = held(context) {
        lines.push(("Held", held));
    }
    let names = context.looked_up.iter().take(LOOKED_UP);
    lines.extend(names.map(|found| {
        let text = format!(
            "“{}”, as the resolver {} answered the workload {} s before; whoever runs that name chose the address",
            found.name.fold(LINE),
            found.resolver,
            found.seconds_ago
        );
        ("Looked up as", text)
    }));
    if let Some(path) = &context.path_inside {
        lines.push(("Path inside", format!("{}, as the workload sees it", path.fold(LINE))));
    }
    match &context.container {
        Some(container) => {
            let mut text = visible_fold(&container.id, 100);
            if let Some(runtime) = &container.runtime {
                text.push_str(&format!(" ({})", visible_fold(runtime, 40)));
            }
            if let Some(pod) = &container.pod {
                text.push_str(&format!(", pod {}", visible_fold(pod, 100)));
            }
            lines.push(("Container", text));
            let said = "as whoever started the container says";
            if let Some(image) = &container.image {
                lines.push(("Image", format!("“{}”, {said}", image.fold(LINE))));
            }
            if let Some(name) = &container.name {
                lines.push(("Container name", format!("“{}”, {said}", name.fold(LINE))));
            }
        }
        None => lines.extend(container_only(record)),
    }
    if let Some(unit) = &context.unit {
        lines.push(("Unit", unit.fold(LINE)));
    }
    lines
}

fn container_only(record: &RequestRecord) -> Vec<(&'static str, String)> {
    let id = record.workload.container_id.iter();
    id.map(|id| ("Container", visible_fold(id, 100))).collect()
}

fn held(context: &Context) -> Option<String> {
    let held = context.held.as_ref()?;
    let mut text = if held.thread_alone {
        String::new()
    } else {
        let why = held
            .why
            .as_deref()
            .map(|why| format!(": {}", visible_fold(why, LINE)))
            .unwrap_or_default();
        format!("its whole process is stopped{why}")
    };
    if let Some(tracer) = &held.tracer {
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(&format!(
            "traced by pid {}, which calls itself “{}” and can change what runs",
            tracer.pid,
            tracer.comm.fold(40)
        ));
    }
    (!text.is_empty()).then_some(text)
}

/// Whether the process at `index` of the ancestry is inside the workload; not known: inside.
#[must_use]
pub fn is_inside(record: &RequestRecord, index: usize) -> bool {
    record
        .context
        .as_ref()
        .is_none_or(|context| index < usize::try_from(context.ancestry_inside).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Container, HowHeld, LookedUp, TracerFacts};
    use crate::testing;
    use crate::text::Text;

    #[test]
    fn claims_are_quoted_and_escaped() {
        let mut request = testing::request(1, "coder", &["ls"]);
        request.workload.container_id = Some("ab12".to_owned());
        assert_eq!(lines(&request), [("Container", "ab12".to_owned())]);
        let evil = Text::from("x\u{202e}\u{1b}[2J");
        request.context = Some(Box::new(Context {
            held: Some(HowHeld {
                thread_alone: false,
                why: Some("another process traces it".to_owned()),
                tracer: Some(TracerFacts {
                    pid: 7,
                    comm: evil.clone(),
                }),
            }),
            path_inside: Some(evil.clone()),
            container: Some(Container {
                id: "ab12".to_owned(),
                runtime: Some("docker".to_owned()),
                pod: Some("pod-1".to_owned()),
                image: Some(evil.clone()),
                name: Some(evil.clone()),
            }),
            unit: Some(evil),
            ancestry_inside: 1,
            looked_up: vec![LookedUp {
                name: Text::from("api.example.org\u{202e}"),
                resolver: [127, 0, 0, 53].into(),
                seconds_ago: 3,
            }],
        }));
        let lines = lines(&request);
        for (name, value) in &lines {
            assert!(
                !value.chars().any(|c| c.is_control() || c == '\u{202e}'),
                "{name}: {value:?}"
            );
        }
        let text = format!("{lines:?}");
        for words in [
            "stopped: another process traces it; traced by pid 7",
            "ab12 (docker), pod pod-1",
            "as whoever started the container says",
            "as the workload sees it",
            "“api.example.org⟨U+202E⟩”, as the resolver 127.0.0.53 answered the workload 3 s before",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(is_inside(&request, 0) && !is_inside(&request, 1));
    }
}
