//! Sizes that both sides of a boundary enforce. A limit that only one side knows is a bug report from the other.

/// A gRPC message.
pub const GRPC_MESSAGE_BYTES: usize = 1 << 20;
/// An evidence record's envelope: a tile entry has a 16-bit length.
pub const RECORD_BYTES: usize = 65_535;
/// Records of one batch; the answer has a receipt for each.
pub const BATCH_RECORDS: usize = 512;
/// An HTTP request body.
pub const HTTP_BODY_BYTES: usize = 256 << 10;
/// A reason given by a person, in bytes of UTF-8.
pub const REASON_BYTES: usize = 2_000;
/// A label: `[a-z0-9]([a-z0-9._-]*[a-z0-9])?`.
pub const LABEL_BYTES: usize = 63;
/// A user name, a group name, a host name.
pub const NAME_BYTES: usize = 128;
/// One line on the agent's control socket.
pub const CONTROL_LINE_BYTES: usize = 64 << 10;
/// Requests that one host may have waiting at once.
pub const PENDING_PER_HOST: usize = 4_096;

/// Whether `name` may be a label: 1 to 63 characters of `a-z 0-9 . _ -`, with a letter or digit at both ends.
#[must_use]
pub fn is_label(name: &str) -> bool {
    let bytes = name.as_bytes();
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=LABEL_BYTES).contains(&bytes.len())
        && bytes.iter().all(|b| edge(b) || matches!(b, b'.' | b'_' | b'-'))
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for good in ["coder", "a", "build-7", "team.agent_2", "0"] {
            assert!(is_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "Coder", "a b", "a/b", "é", "a\n", &"a".repeat(64)] {
            assert!(!is_label(bad), "{bad}");
        }
    }
}
