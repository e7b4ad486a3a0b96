//! HTTP to addresses that somebody configured: never to where only this machine or its network can reach.
//!
//! Owns which addresses those are, judged on what a name resolves to in the moment of connecting. It is given a URL of
//! the configuration. It must never follow a redirect, use a proxy, wait long, or put an address's path into words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::outgoing;

const CONNECT: Duration = Duration::from_secs(5);
const WHOLE: Duration = Duration::from_secs(15);

/// Where an address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The Internet.
    Public,
    /// This machine or a network of one's own: reached if that is allowed.
    Private,
    /// Link-local, a cloud's metadata, several receivers, or nothing at all: never reached.
    Never,
}

fn place(address: IpAddr) -> Place {
    match address {
        IpAddr::V4(address) => place_v4(address),
        IpAddr::V6(address) => place_v6(address),
    }
}

fn place_v4(address: Ipv4Addr) -> Place {
    match address.octets() {
        // Metadata of a cloud, amid addresses of carriers.
        [100, 100, 100, 200] => Place::Never,
        [10 | 127, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Place::Private,
        [0 | 224..=255, ..]
        | [169, 254, ..]
        | [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _] => Place::Never,
        _ => Place::Public,
    }
}

fn place_v6(address: Ipv6Addr) -> Place {
    if let Some(mapped) = address.to_ipv4_mapped() {
        return place_v4(mapped);
    }
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Place::Private,
        // Metadata of a cloud, amid addresses of one's own.
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] => Place::Never,
        [0xfc00..=0xfdff, ..] => Place::Private,
        // Tunnels that lead to any IPv4 address, examples, and what is no destination.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => Place::Never,
        [0x2000..=0x3fff, ..] => Place::Public,
        _ => Place::Never,
    }
}

fn may_reach(address: IpAddr, private: bool) -> bool {
    match place(address) {
        Place::Public => true,
        Place::Private => private,
        Place::Never => false,
    }
}

/// Whether a URL of the configuration may be used: https; http only to this machine itself, and only if private
/// addresses are allowed.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(url: &Url, private: bool) -> Result<(), String> {
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err("an address without user name and #".to_owned());
    }
    let literal = match url.host() {
        Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        Some(Host::Domain(_)) => None,
        None => return Err("an address with a host".to_owned()),
    };
    // A literal is never resolved, so it is judged here.
    if let Some(address) = literal
        && !may_reach(address, private)
    {
        return Err(format!(
            "{address} is not on the Internet{}",
            if place(address) == Place::Private {
                "; allow-private = true allows it"
            } else {
                ""
            }
        ));
    }
    match url.scheme() {
        "https" => Ok(()),
        "http" if private && literal.is_some_and(|address| address.is_loopback()) => Ok(()),
        _ => Err("an https address".to_owned()),
    }
}

/// Resolves names to addresses that may be reached, and no others.
#[derive(Debug)]
struct Resolver {
    private: bool,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(addresses(name.as_str().to_owned(), self.private))
    }
}

async fn addresses(name: String, private: bool) -> Result<Addrs, Box<dyn std::error::Error + Send + Sync>> {
    let all = tokio::net::lookup_host((name, 0)).await?;
    let good: Vec<SocketAddr> = all.filter(|address| may_reach(address.ip(), private)).collect();
    if good.is_empty() {
        return Err("its name leads to no address that may be reached".into());
    }
    Ok(Box::new(good.into_iter()))
}

/// Trusts the system's certificates, or only those that it is given.
///
/// # Errors
/// Certificates that are none.
pub(super) fn client(private: bool, ca_pem: Option<&[u8]>) -> Result<reqwest::Client, String> {
    let builder = outgoing::client(CONNECT, WHOLE)
        .dns_resolver(Resolver { private })
        .no_proxy();
    outgoing::trusting(builder, ca_pem).map_err(|e| words(&e))
}

/// The last cause says what happened, and never where: paths of such addresses are secrets.
pub(super) fn words(error: &reqwest::Error) -> String {
    let Some(mut cause) = std::error::Error::source(error) else {
        return "the request failed".to_owned();
    };
    while let Some(source) = cause.source() {
        cause = source;
    }
    guard_evidence::text::visible_fold(&cause.to_string(), 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_address() {
        for (text, expected) in [
            ("8.8.8.8", Place::Public),
            ("172.32.0.1", Place::Public),
            ("2606:4700::1111", Place::Public),
            ("::ffff:8.8.8.8", Place::Public),
            ("127.0.0.1", Place::Private),
            ("127.8.9.1", Place::Private),
            ("10.1.2.3", Place::Private),
            ("172.16.0.1", Place::Private),
            ("172.31.255.255", Place::Private),
            ("192.168.1.1", Place::Private),
            ("100.64.0.1", Place::Private),
            ("::1", Place::Private),
            ("fd12::1", Place::Private),
            ("::ffff:127.0.0.1", Place::Private),
            ("::ffff:10.0.0.1", Place::Private),
            ("0.0.0.0", Place::Never),
            ("0.1.2.3", Place::Never),
            ("169.254.169.254", Place::Never),
            ("::ffff:169.254.169.254", Place::Never),
            ("fd00:ec2::254", Place::Never),
            ("100.100.100.200", Place::Never),
            ("192.0.0.170", Place::Never),
            ("198.18.0.1", Place::Never),
            ("203.0.113.1", Place::Never),
            ("224.0.0.1", Place::Never),
            ("255.255.255.255", Place::Never),
            ("::", Place::Never),
            ("fe80::1", Place::Never),
            ("fec0::1", Place::Never),
            ("ff02::1", Place::Never),
            // IPv4 inside IPv6: compatible, NAT64, 6to4, Teredo.
            ("::7f00:1", Place::Never),
            ("64:ff9b::a9fe:a9fe", Place::Never),
            ("2002:7f00:1::", Place::Never),
            ("2001::1", Place::Never),
            ("2001:db8::1", Place::Never),
        ] {
            assert_eq!(place(text.parse().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn which_urls() {
        for (text, private, good) in [
            ("https://hooks.example.org/x?y=1", false, true),
            ("http://hooks.example.org/x", true, false),
            ("http://127.0.0.1:8080/x", true, true),
            ("http://127.0.0.1:8080/x", false, false),
            ("http://[::1]/x", true, true),
            // A name can lead anywhere, so it says nothing of this machine.
            ("http://localhost/x", true, false),
            ("http://10.0.0.1/x", true, false),
            ("https://10.0.0.1/x", true, true),
            ("https://10.0.0.1/x", false, false),
            ("https://169.254.169.254/latest", true, false),
            ("https://0x7f.1/", false, false),
            ("https://2130706433/", false, false),
            ("https://[::ffff:127.0.0.1]/", false, false),
            ("https://user@hooks.example.org/", false, false),
            ("https://hooks.example.org/#x", false, false),
            ("ftp://hooks.example.org/", true, false),
            ("unix:/run/x", true, false),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!(check(&url, private).is_ok(), good, "{text} {private}");
        }
    }

    #[tokio::test]
    async fn names_are_judged_by_what_they_resolve_to() {
        let resolve = |private| Resolver { private }.resolve("localhost".parse().unwrap());
        assert!(resolve(false).await.is_err());
        assert!(resolve(true).await.unwrap().all(|address| address.ip().is_loopback()));
    }
}
