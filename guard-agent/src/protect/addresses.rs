//! Where the console listens.
//!
//! Owns names, ports and what they were resolved to. It is given what the configuration, the enrolment and saved
//! sign-ins say. It must never wait for a name server: a thread of its own does.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use guard_common::protect::{AddressKey, kind};
use serde::Deserialize;

use super::Settings;

/// How often names are resolved again.
const RESOLVE: Duration = Duration::from_secs(60);
/// At the start, for the first answer.
const FIRST: Duration = Duration::from_secs(2);
/// Names and addresses that are kept; a name server must not fill the kernel's table.
const NAMES: usize = 64;
const ADDRESSES: usize = 512;
/// The console's web port when nothing else is said.
const WEB_PORT: u16 = 8443;
const HOST_PORT: u16 = 8444;
const CONSOLE_FILE: &str = "/etc/guard/console.toml";
const CONSOLE_STATE: &str = "/var/lib/guard-console";
const CONSOLE_FILE_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Addresses {
    /// `HOST:PORT`, from configuration and enrolment.
    configured: BTreeSet<String>,
    /// From sign-ins.
    profiles: BTreeSet<String>,
    /// Everything that the names ever meant: name servers take turns.
    resolved: BTreeSet<SocketAddr>,
    resolving: Option<Receiver<Vec<SocketAddr>>>,
    last: Option<Instant>,
    wanted: HashMap<AddressKey, u32>,
}

impl Addresses {
    pub(super) fn new(settings: &Settings) -> Self {
        let mut configured: BTreeSet<String> = settings.addresses.iter().cloned().collect();
        if let Some(console) = &settings.console {
            configured.insert(console.clone());
            if let Some((host, _)) = console.rsplit_once(':') {
                configured.insert(format!("{host}:{WEB_PORT}"));
            }
        }
        Self {
            configured,
            profiles: BTreeSet::new(),
            resolved: BTreeSet::new(),
            resolving: None,
            last: None,
            wanted: HashMap::new(),
        }
    }

    /// Consoles that saved sign-ins name. Those of a person who signed out stay until the agent starts anew.
    pub(super) fn profiles(&mut self, urls: Vec<String>) {
        for url in urls {
            if self.configured.len() + self.profiles.len() < NAMES && self.profiles.insert(url) {
                self.last = None;
            }
        }
    }

    /// The table as it should be; `None` if it is so.
    pub(super) fn look(&mut self) -> Option<HashMap<AddressKey, u32>> {
        let first = self.wanted.is_empty();
        self.resolve(if first { FIRST } else { Duration::ZERO });
        let wanted = table(&self.resolved, &own(), console_here());
        (wanted != self.wanted).then(|| {
            self.wanted.clone_from(&wanted);
            wanted
        })
    }

    fn resolve(&mut self, patience: Duration) {
        if self.resolving.is_none() && self.last.is_none_or(|last| last.elapsed() >= RESOLVE) {
            self.last = Some(Instant::now());
            let names: Vec<String> = self.configured.union(&self.profiles).cloned().collect();
            let (sender, receiver) = mpsc::channel();
            let started = thread::Builder::new().name("resolve".into()).spawn(move || {
                let found = names
                    .iter()
                    .filter_map(|name| name.to_socket_addrs().ok())
                    .flat_map(|found| found.take(64))
                    .collect();
                let _ = sender.send(found);
            });
            match started {
                Ok(_) => self.resolving = Some(receiver),
                Err(error) => tracing::error!(%error, "the console's name cannot be looked up"),
            }
        }
        let Some(receiver) = &self.resolving else { return };
        match receiver.recv_timeout(patience) {
            Ok(found) => {
                for address in found {
                    if self.resolved.len() < ADDRESSES {
                        self.resolved.insert(address);
                    }
                }
                self.resolving = None;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => self.resolving = None,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
    }
}

/// The addresses of this host's interfaces.
fn own() -> BTreeSet<IpAddr> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return BTreeSet::new();
    };
    all.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    })
    .collect()
}

/// The ports of a console on this host.
fn console_here() -> BTreeSet<u16> {
    let bytes = fs::read(CONSOLE_FILE).unwrap_or_default();
    if bytes.is_empty() && !Path::new(CONSOLE_STATE).exists() {
        return BTreeSet::new();
    }
    console_ports(&bytes)
}

fn console_ports(file: &[u8]) -> BTreeSet<u16> {
    #[derive(Default, Deserialize)]
    struct Console {
        listen: Option<SocketAddr>,
        listen_hosts: Option<SocketAddr>,
    }
    let text = file.get(..CONSOLE_FILE_BYTES.min(file.len())).unwrap_or_default();
    let console: Console = std::str::from_utf8(text)
        .ok()
        .and_then(|text| toml::from_str(text).ok())
        .unwrap_or_default();
    let port = |address: Option<SocketAddr>, default| address.map_or(default, |address| address.port());
    [port(console.listen, WEB_PORT), port(console.listen_hosts, HOST_PORT)].into()
}

fn table(resolved: &BTreeSet<SocketAddr>, own: &BTreeSet<IpAddr>, here: BTreeSet<u16>) -> HashMap<AddressKey, u32> {
    let mut all = HashMap::new();
    let mut local = here;
    for address in resolved {
        if address.port() == 0 {
            continue;
        }
        let ip = address.ip().to_canonical();
        if ip.is_loopback() || ip.is_unspecified() || own.contains(&ip) {
            local.insert(address.port());
        }
        all.insert(key(ip, address.port()), kind::ADDRESS);
    }
    for port in local {
        // A console that listens on every address is reached by each of them.
        all.insert(key(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port), kind::ADDRESS);
        for ip in own.iter().take(ADDRESSES) {
            all.insert(key(ip.to_canonical(), port), kind::ADDRESS);
        }
    }
    all
}

fn key(ip: IpAddr, port: u16) -> AddressKey {
    let address = match ip {
        ip if ip.is_loopback() || ip.is_unspecified() => [0; 16],
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    AddressKey {
        address,
        port: port.into(),
        reserved: 0,
    }
}

/// Host and port of a console's URL.
pub(super) fn host_and_port(url: &str) -> Option<String> {
    let rest = url.strip_prefix("https://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let fine = authority
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte));
    if !fine || authority.is_empty() || authority.starts_with(':') || authority.len() > 300 {
        return None;
    }
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(host, port)| (!host.contains(':') || host.ends_with(']')) && port.parse::<u16>().is_ok());
    Some(if has_port {
        authority.to_owned()
    } else {
        format!("{authority}:443")
    })
}

/// For the fuzzer: any bytes as the console's configuration and as a URL.
pub fn fuzz_addresses(data: &[u8]) {
    let ports = console_ports(data);
    assert!(
        (1..=2).contains(&ports.len()),
        "a console has one or two ports: {ports:?}"
    );
    if let Ok(text) = std::str::from_utf8(data) {
        if let Some(address) = host_and_port(text) {
            fuzz_address(&address);
        }
        let found = text
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .take(8)
            .collect();
        let own = [IpAddr::from([192, 0, 2, 1])].into();
        for (key, what) in table(&found, &own, ports) {
            assert!(what == kind::ADDRESS && (1..=0xffff).contains(&key.port));
        }
    }
}

/// What is looked up and connected to: a name or an address with a port, nothing else.
pub(super) fn fuzz_address(address: &str) {
    let (host, port) = address.rsplit_once(':').unwrap_or_default();
    assert!(!host.is_empty() && port.parse::<u16>().is_ok(), "{address}");
    assert!(address.is_ascii() && !address.contains(['/', '@', ' ']), "{address}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table_of(resolved: &[&str], own: &[&str], here: &[u16]) -> HashMap<AddressKey, u32> {
        table(
            &resolved.iter().map(|text| text.parse().unwrap()).collect(),
            &own.iter().map(|text| text.parse().unwrap()).collect(),
            here.iter().copied().collect(),
        )
    }

    fn has(table: &HashMap<AddressKey, u32>, ip: &str, port: u16) -> bool {
        table.contains_key(&key(ip.parse::<IpAddr>().unwrap().to_canonical(), port))
    }

    #[test]
    fn a_console_elsewhere_is_its_addresses_alone() {
        let table = table_of(
            &["192.0.2.7:8444", "[2001:db8::7]:8444"],
            &["192.0.2.1", "::1", "127.0.0.1"],
            &[],
        );
        assert_eq!(table.len(), 2);
        assert!(has(&table, "192.0.2.7", 8444) && has(&table, "2001:db8::7", 8444));
        assert!(has(&table, "::ffff:192.0.2.7", 8444));
        assert!(!has(&table, "192.0.2.7", 8443) && !has(&table, "127.0.0.1", 8444));
    }

    #[test]
    fn a_console_here_is_every_address_of_this_host() {
        for resolved in [
            &["127.0.0.1:8444"][..],
            &["[::1]:8444"],
            &["192.0.2.1:8444"],
            &["0.0.0.0:8444"],
        ] {
            let table = table_of(resolved, &["192.0.2.1", "fe80::1", "::1", "127.0.0.1"], &[]);
            for ip in [
                "127.0.0.1",
                "127.9.9.9",
                "0.0.0.0",
                "::",
                "::1",
                "::ffff:127.0.0.1",
                "192.0.2.1",
                "fe80::1",
            ] {
                assert!(has(&table, ip, 8444), "{resolved:?} {ip}");
            }
            assert!(!has(&table, "192.0.2.2", 8444));
        }
        assert!(has(&table_of(&[], &[], &[8443]), "127.0.0.1", 8443));
    }

    #[test]
    fn ports_of_a_console_on_this_host() {
        assert_eq!(console_ports(b""), [8443, 8444].into());
        assert_eq!(
            console_ports(b"listen = \"0.0.0.0:443\"\nnames = [\"x\"]"),
            [443, 8444].into()
        );
        assert_eq!(console_ports(b"\xff"), [8443, 8444].into());
    }

    #[test]
    fn urls() {
        let all = [
            ("https://console.example.org", Some("console.example.org:443")),
            ("https://console.example.org:9/x", Some("console.example.org:9")),
            ("https://[::1]:8443", Some("[::1]:8443")),
            ("https://[::1]", Some("[::1]:443")),
            ("https://a@b:1", Some("b:1")),
            ("http://console.example.org", None),
            ("https://", None),
            ("https://:843/x", None),
            ("https://a@:843", None),
            ("https://a b", None),
        ];
        for (url, expected) in all {
            assert_eq!(host_and_port(url).as_deref(), expected, "{url}");
        }
    }
}
