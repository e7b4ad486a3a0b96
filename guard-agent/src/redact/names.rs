//! Names whose values are secrets.
//!
//! Owns that guess. It is given names of variables, options, headers and fields. It must rather call a name a secret's that
//! is none: what is hidden is only a word.

/// Said anywhere in a name, without what separates its parts.
const ANYWHERE: [&str; 11] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "credential",
    "apikey",
    "accesskey",
    "privatekey",
    "signingkey",
    "encryptionkey",
    "sessionkey",
];
/// Parts of a name.
const PARTS: [&str; 8] = ["token", "pass", "auth", "cookie", "cookies", "jwt", "bearer", "authkey"];
/// A name that ends so is of something about a secret, or of a place where one is.
const ABOUT: [&str; 38] = [
    "sock",
    "socket",
    "file",
    "path",
    "dir",
    "directory",
    "url",
    "uri",
    "endpoint",
    "type",
    "name",
    "id",
    "user",
    "username",
    "count",
    "length",
    "len",
    "size",
    "limit",
    "ttl",
    "expiry",
    "expires",
    "timeout",
    "stdin",
    "fd",
    "env",
    "command",
    "cmd",
    "helper",
    "method",
    "mode",
    "provider",
    "host",
    "server",
    "version",
    "prompt",
    "required",
    "enabled",
];
/// `…_KEY` that opens nothing.
const OPEN_KEYS: [&str; 14] = [
    "public",
    "primary",
    "foreign",
    "sort",
    "partition",
    "cache",
    "unique",
    "pub",
    "shard",
    "index",
    "map",
    "object",
    "row",
    "group",
];
/// Longer names are looked at from their end.
const NAME_BYTES: usize = 200;

/// Whether `name` says that what follows is a secret.
pub(super) fn says_secret(name: &[u8]) -> bool {
    let name = name.get(name.len().saturating_sub(NAME_BYTES)..).unwrap_or(name);
    let parts = parts(name);
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let Some(last) = parts.last() else { return false };
    // `--no-password`; `PWD` alone is the working directory.
    if ABOUT.contains(last) || parts.first() == Some(&"no") {
        return false;
    }
    let joined = parts.concat();
    if ANYWHERE.iter().any(|word| joined.contains(word)) || joined == "sshpass" {
        return true;
    }
    let before = parts.len().checked_sub(2).and_then(|at| parts.get(at));
    match (*last, before) {
        ("key" | "keys", Some(before)) => !OPEN_KEYS.contains(before),
        ("key", None) => name == b"KEY",
        ("pwd", before) => before.is_some_and(|before| *before != "old"),
        _ => parts.iter().any(|part| PARTS.contains(part) || part.ends_with("token")),
    }
}

/// The parts in lower case: divided by `_`, `-`, `.` and where lower case becomes upper case.
fn parts(name: &[u8]) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let (mut part, mut lower) = (String::new(), false);
    for byte in name {
        let divides = !byte.is_ascii_alphanumeric();
        if (divides || lower && byte.is_ascii_uppercase()) && !part.is_empty() {
            parts.push(std::mem::take(&mut part));
        }
        if !divides {
            part.push(char::from(byte.to_ascii_lowercase()));
        }
        lower = byte.is_ascii_lowercase();
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_it_or_do_not() {
        for name in [
            "PASSWORD",
            "PGPASSWORD",
            "MYSQL_PWD",
            "SSHPASS",
            "db.password",
            "clientSecret",
            "AWS_SECRET_ACCESS_KEY",
            "GITHUB_TOKEN",
            "GITHUB_TOKEN_2",
            "authToken",
            "_authToken",
            "accesstoken",
            "API_KEY",
            "apiKey",
            "x-api-key",
            "KEY",
            "AccountKey",
            "ssh-key",
            "PRIVATE-TOKEN",
            "Cookie",
            "DB_PASS",
            "_auth",
            "credentials",
            "encryption_key",
        ] {
            assert!(says_secret(name.as_bytes()), "{name}");
        }
        for name in [
            "",
            "PATH",
            "PWD",
            "OLDPWD",
            "MAX_TOKENS",
            "max-tokens",
            "TOKENIZERS_PARALLELISM",
            "tokenizer",
            "TOKEN_TYPE",
            "PASSWORD_FILE",
            "password-stdin",
            "SSH_AUTH_SOCK",
            "GIT_AUTHOR_NAME",
            "XAUTHORITY",
            "key",
            "KEYBOARD",
            "monkey",
            "primary_key",
            "PUBLIC_KEY",
            "sort-key",
            "no-password",
            "secret-name",
            "compass",
            "bypass",
            "keyserver",
            "AUTHOR",
        ] {
            assert!(!says_secret(name.as_bytes()), "{name}");
        }
    }
}
