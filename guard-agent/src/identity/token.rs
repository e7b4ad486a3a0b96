//! The enrolment token: `guard1.<host:port>.<SHA-256 of the CA, hex>.<secret>`.
//!
//! Owns its parsing. It is given text from a file or standard input. It must never show the secret.

use std::fmt;

/// Longest token, in bytes.
pub const TOKEN_BYTES: usize = 1_024;

/// A parsed token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Host name or address.
    pub host: String,
    pub port: u16,
    /// SHA-256 of the CA certificate (DER).
    pub ca_sha256: [u8; 32],
    secret: String,
}

/// Why a token is not one. Never quotes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is empty")]
    Empty,
    #[error("the token is longer than {TOKEN_BYTES} bytes")]
    TooLong,
    #[error("the token does not begin with `guard1.`")]
    Version,
    #[error("the token is cut short or has something added: it has four parts, separated by dots")]
    Parts,
    #[error("the token's address is not host:port")]
    Address,
    #[error("the token's CA digest is not 64 hexadecimal digits")]
    Digest,
    #[error("the token's secret is empty or has other characters than letters, digits, `-` and `_`")]
    Secret,
}

impl Token {
    /// Parses a token; white space around it is dropped.
    ///
    /// # Errors
    /// [`TokenError`], without the token in it.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.len() > TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let rest = text.strip_prefix("guard1.").ok_or(TokenError::Version)?;
        let (rest, secret) = rest.rsplit_once('.').ok_or(TokenError::Parts)?;
        let (address, digest) = rest.rsplit_once('.').ok_or(TokenError::Parts)?;
        let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if secret.is_empty() || !secret.bytes().all(fine) {
            return Err(TokenError::Secret);
        }
        let mut ca_sha256 = [0; 32];
        hex::decode_to_slice(digest, &mut ca_sha256).map_err(|_| TokenError::Digest)?;
        let (host, port) = parse_address(address).ok_or(TokenError::Address)?;
        Ok(Self {
            host,
            port,
            ca_sha256,
            secret: secret.to_owned(),
        })
    }

    /// As the console wants it: without address and pin.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// `host:port`, with brackets around an IPv6 address.
    #[must_use]
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// `example.org:8444`, `192.0.2.1:8444` or `[2001:db8::1]:8444`.
pub(crate) fn parse_address(address: &str) -> Option<(String, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().ok()?.to_string(),
        None => {
            rustls_pki_types::ServerName::try_from(host)
                .ok()
                .filter(|_| !host.contains(':'))?;
            host.to_owned()
        }
    };
    Some((host, port))
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.address())
    }
}

/// For the fuzzer.
pub fn fuzz_token(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Token::parse(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_tokens() {
        let digest = "ab".repeat(32);
        for (address, host) in [
            ("console.example.org:8444", "console.example.org"),
            ("192.0.2.7:8444", "192.0.2.7"),
            ("[2001:db8::1]:8444", "2001:db8::1"),
        ] {
            let token = Token::parse(&format!("  guard1.{address}.{digest}.s3cret_-\n")).unwrap();
            assert_eq!(
                (token.host.as_str(), token.port, token.secret()),
                (host, 8444, "s3cret_-")
            );
            assert_eq!(token.address(), address);
            assert!(!format!("{token:?}").contains("s3cret"));
        }
    }

    #[test]
    fn bad_tokens() {
        let d = "ab".repeat(32);
        for (text, error) in [
            (String::new(), TokenError::Empty),
            ("x".repeat(2000), TokenError::TooLong),
            (format!("guard2.a:1.{d}.s"), TokenError::Version),
            ("guard1.a".to_owned(), TokenError::Parts),
            (format!("guard1.{d}.s"), TokenError::Parts),
            (format!("guard1.a:1.{d}."), TokenError::Secret),
            (format!("guard1.a:1.{d}.s s"), TokenError::Secret),
            (format!("guard1.a:1.{}.s", &d[1..]), TokenError::Digest),
            (format!("guard1.a.{d}.s"), TokenError::Address),
            (format!("guard1.a:0.{d}.s"), TokenError::Address),
            (format!("guard1.a:99999.{d}.s"), TokenError::Address),
            (format!("guard1.2001:db8::1:1.{d}.s"), TokenError::Address),
            (format!("guard1.a b:1.{d}.s"), TokenError::Address),
            (format!("guard1.:1.{d}.s"), TokenError::Address),
        ] {
            assert_eq!(Token::parse(&text), Err(error), "{text}");
        }
    }
}
