//! Evidence: text, statements, envelopes.

use guard_evidence::dsse;
use guard_evidence::key::{SigningKey, TrustedKey};
use guard_evidence::record::{Predicate, Statement};
use guard_evidence::statement::{effect_words, plain_sentence, sentence, summary, what};
use guard_evidence::text::{Text, shell_words, visible, visible_fold};

/// Envelopes: what is accepted has one form only; what is signed verifies; what is changed does not.
pub fn envelope(data: &[u8]) {
    let key = SigningKey::from_seed(&[7; 32]);
    let trusted = [TrustedKey::from(key.public())];
    let parsed = dsse::parse(data);
    let verified = dsse::verify(data, &trusted);
    assert!(parsed.is_ok() || verified.is_err(), "verified, but does not parse");
    if let Err(error) = &verified {
        shown_safely(&error.to_string());
    }
    if parsed.is_ok() {
        // One form only, in whatever way JSON may say the same.
        let envelope: serde_json::Value = serde_json::from_slice(data).unwrap_or_default();
        let mut spaced = serde_json::to_vec_pretty(&envelope).unwrap_or_default();
        assert!(dsse::parse(&spaced).is_err(), "a second form is accepted");
        spaced.clear();
        spaced.extend_from_slice(data);
        spaced.push(b'\n');
        assert!(dsse::parse(&spaced).is_err(), "a newline is accepted");
    }
    if let Ok(verified) = verified {
        assert!(
            dsse::sign(&verified.payload, &key).is_ok_and(|again| again == data),
            "verified, but not as signed"
        );
    }

    match dsse::sign(data, &key) {
        Ok(bytes) => {
            assert!(bytes.len() <= dsse::RECORD_BYTES);
            let verified = dsse::verify(&bytes, &trusted);
            assert!(
                verified.is_ok_and(|v| v.payload == data),
                "what was signed does not verify"
            );
            // Any one byte changed, chosen by the data.
            if let [first, second, ..] = data {
                let at = (usize::from(*first) << 8 | usize::from(*second)) % bytes.len();
                let mut damaged = bytes;
                damaged[at] ^= 1 << (first % 8);
                assert!(
                    dsse::verify(&damaged, &trusted).is_err(),
                    "byte {at} changed, and it still verifies"
                );
            }
        }
        Err(error) => assert!(matches!(error, dsse::DsseError::TooLarge(_)), "{error}"),
    }
}

/// Statements: read, shown, written, read again.
pub fn statement(data: &[u8]) {
    let statement = match Statement::from_payload(data) {
        Ok(statement) => statement,
        Err(error) => {
            shown_safely(&error.to_string());
            return;
        }
    };
    shown_safely(&summary(&statement));
    shown_safely(statement.kind_name());
    match &statement.predicate {
        Predicate::Request(request) => {
            let parts = sentence(request);
            for part in &parts {
                shown_safely(&part.text);
            }
            shown_safely(&plain_sentence(&parts));
            for max in [0, 1, 80] {
                shown_safely(&what(&request.action, max));
            }
        }
        Predicate::Enforcement(enforcement) => shown_safely(&effect_words(&enforcement.effect)),
        _ => {}
    }
    let (_, _, _) = (statement.header(), statement.request_id(), statement.label());
    if let Ok(payload) = statement.to_payload() {
        let again = Statement::from_payload(&payload);
        assert!(
            again.is_ok_and(|again| again == statement),
            "not the same when written and read again"
        );
    }
}

/// Text that somebody else wrote.
pub fn text(data: &[u8]) {
    let text = Text::from(data);
    shown_safely(&text.display());
    shown_safely(&format!("{text:?}"));
    for max in [0, 1, 23, 24, 25, 60] {
        let folded = text.fold(max);
        shown_safely(&folded);
        // A cut escape would read as something else.
        assert_eq!(folded.matches('⟨').count(), folded.matches('⟩').count(), "{folded}");
        assert!(
            folded.chars().count() <= max.max(48),
            "{} for {max}",
            folded.chars().count()
        );
    }
    if let Ok(string) = std::str::from_utf8(data) {
        assert_eq!(visible(string), text.display());
        assert_eq!(visible_fold(string, 40), text.fold(40));
    }
    let words: Vec<&[u8]> = data.split(|byte| *byte == 0).collect();
    shown_safely(&shell_words(&words));
    let Ok(json) = serde_json::to_vec(&text) else {
        panic!("text cannot be written")
    };
    assert!(serde_json::from_slice::<Text>(&json).is_ok_and(|again| again == text));
    if let Ok(read) = serde_json::from_slice::<Text>(data) {
        let json = serde_json::to_vec(&read).unwrap_or_default();
        assert!(serde_json::from_slice::<Text>(&json).is_ok_and(|again| again == read));
    }
}

/// Nothing that a terminal or a browser acts on, or that hides or reorders what stands next to it.
pub(crate) fn shown_safely(text: &str) {
    for c in text.chars() {
        let acts = c.is_control()
            || matches!(u32::from(c),
                0xAD | 0x34F | 0x61C | 0x115F | 0x1160 | 0x17B4 | 0x17B5 | 0x180B..=0x180F | 0x200B..=0x200F
                | 0x2028..=0x202E | 0x2060..=0x206F | 0x3164 | 0xFE00..=0xFE0F | 0xFEFF | 0xFFA0 | 0xFFF0..=0xFFFB
                | 0x1D173..=0x1D17A | 0xE0000..=0xE0FFF);
        assert!(!acts, "{c:?} gets through in {text:?}");
    }
}
