//! Values that look like secrets.
//!
//! Owns the guess. It is given one entry of an environment. It must rather hide what is none: what is hidden is still in
//! the digest of the environment.

/// Parts of names whose values are secrets.
const NAMES: [&str; 12] = [
    "TOKEN",
    "SECRET",
    "PASSW",
    "PASSPHRASE",
    "CREDENTIAL",
    "APIKEY",
    "API_KEY",
    "ACCESS_KEY",
    "PRIVATE",
    "COOKIE",
    "SESSION_KEY",
    "AUTH",
];
/// How well-known tokens begin.
const BEGINNINGS: [&str; 16] = [
    "ghp_",
    "gho_",
    "ghs_",
    "ghu_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "xapp-",
    "sk-",
    "AKIA",
    "ASIA",
    "AIza",
    "eyJ",
    "-----BEGIN",
];
/// The shortest run of letters and digits that may be a key.
const KEY: usize = 24;

/// `NAME=value`, or what stands for it.
pub(super) fn entry(entry: &[u8]) -> Vec<u8> {
    let at = entry.iter().position(|b| *b == b'=').unwrap_or(entry.len());
    let (name, value) = entry.split_at(at);
    let value = value.get(1..).unwrap_or_default();
    if value.is_empty() || !(by_name(name) || looks_secret(value)) {
        return entry.to_vec();
    }
    let mut shown = name.to_vec();
    shown.extend_from_slice(format!("=<hidden: looks like a secret, {} bytes>", value.len()).as_bytes());
    shown
}

fn by_name(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name).to_ascii_uppercase();
    // Paths to sockets and switches are none.
    let harmless = ["_SOCK", "_FILE", "_PATH", "_DIR"]
        .iter()
        .any(|end| name.ends_with(end));
    !harmless && NAMES.iter().any(|part| name.contains(part))
}

fn looks_secret(value: &[u8]) -> bool {
    let text = String::from_utf8_lossy(value);
    // user:password@ in a URL.
    let in_url = text.split("://").skip(1).any(|rest| {
        rest.split(['/', '?', '#', ' '])
            .next()
            .is_some_and(|host| host.contains('@'))
    });
    in_url
        || text
            .split(|c: char| c.is_whitespace() || "\"'=,;:&?".contains(c))
            .any(|word| {
                BEGINNINGS
                    .iter()
                    .any(|beginning| word.starts_with(beginning) && word.len() > beginning.len() + 8)
                    || is_key(word)
            })
        || text.contains("-----BEGIN")
}

/// A long run that no person wrote: letters and digits mixed, and no path.
fn is_key(word: &str) -> bool {
    if word.starts_with(['/', '.', '~']) {
        return false;
    }
    word.split(|c: char| !(c.is_ascii_alphanumeric() || "+/_-".contains(c)))
        .filter(|run| run.len() >= KEY)
        .any(|run| {
            let digits = run.bytes().filter(u8::is_ascii_digit).count();
            let letters = run.bytes().filter(u8::is_ascii_alphabetic).count();
            let separators = run.len() - digits - letters;
            digits >= 3 && letters >= 3 && separators * 8 <= run.len()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_and_others_are_not() {
        for hidden in [
            "GITHUB_TOKEN=x",
            "DB_PASSWORD=hunter2",
            "aws_secret_access_key=abc",
            "URL=https://bob:pw@example.org/x",
            "http_proxy=http://u:p@10.0.0.1:3128",
            "X=ghp_0123456789abcdefghij",
            "Y=Bearer eyJhbGciOiJIUzI1NiJ9.e30.abc",
            "Z=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
            "K=-----BEGIN OPENSSH PRIVATE KEY-----",
        ] {
            let shown = String::from_utf8(entry(hidden.as_bytes())).unwrap();
            let name = hidden.split('=').next().unwrap();
            assert!(shown.starts_with(&format!("{name}=<hidden: ")), "{hidden}: {shown}");
        }
        for shown in [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
            "LD_PRELOAD=/opt/lib/x86_64-linux-gnu/libfoo.so.1",
            "GIT_SSH_COMMAND=ssh -i /home/a/.ssh/id_ed25519",
            "SSH_AUTH_SOCK=/run/user/1000/agent",
            "NODE_OPTIONS=--max-old-space-size=4096",
            "http_proxy=http://10.0.0.1:3128",
            "LANG=C.UTF-8",
            "TOKEN=",
            "odd",
            "",
        ] {
            assert_eq!(entry(shown.as_bytes()), shown.as_bytes(), "{shown}");
        }
    }
}
