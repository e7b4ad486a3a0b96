//! Which names led a label to an address, as the host's resolvers answered it.
//!
//! Owns what replies said lately. It is given replies as the kernel side saw them arrive. It must never decide anything by
//! them: whoever runs a zone puts any address into it, and the workload chooses what it looks up.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use guard_evidence::record::LookedUp;
use guard_evidence::text::Text;
use parking_lot::Mutex;
use simple_dns::rdata::RData;
use simple_dns::{Name, Packet, PacketFlag, QTYPE, RCODE, TYPE};

use crate::kernel::api::{LabelId, Reply};

/// An answer older than this is not shown: programs that keep addresses for longer are few.
const KEPT: Duration = Duration::from_secs(3_600);
/// Names shown of one address; the last ones count.
const PER_ADDRESS: usize = 3;
/// Addresses of one label; one workload's look-ups must not push out those of others.
const PER_LABEL: usize = 2_048;
const LABELS: usize = 256;
/// Aliases followed from the name that was asked for.
const ALIASES: usize = 16;
/// Addresses taken from one reply.
const PER_REPLY: usize = 64;
const RESOLV_CONF_BYTES: u64 = 64 * 1024;

#[derive(Debug)]
struct Known {
    name: String,
    resolver: IpAddr,
    at: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Names {
    labels: Mutex<HashMap<LabelId, HashMap<IpAddr, Vec<Known>>>>,
    resolvers: Mutex<Resolvers>,
    /// The agent's own, which is the host's: in another one anybody may answer from a resolver's address.
    network_namespace: Option<u64>,
}

impl Names {
    pub(super) fn new(resolv_conf: PathBuf) -> Self {
        Self {
            labels: Mutex::default(),
            resolvers: Mutex::new(Resolvers {
                file: resolv_conf,
                changed: None,
                addresses: Vec::new(),
            }),
            network_namespace: std::fs::metadata("/proc/self/ns/net").ok().map(|found| found.ino()),
        }
    }

    /// A reply arrived at a socket of the label.
    pub(super) fn heard(&self, reply: &Reply) {
        if self.network_namespace != Some(reply.network_namespace.into()) || !self.resolvers.lock().has(&reply.resolver)
        {
            return;
        }
        let Some((name, addresses)) = read(&reply.message) else {
            return;
        };
        let at = Instant::now();
        let mut labels = self.labels.lock();
        if labels.len() >= LABELS && !labels.contains_key(&reply.label) {
            labels.clear();
        }
        let known = labels.entry(reply.label).or_default();
        for address in addresses {
            if known.len() >= PER_LABEL && !known.contains_key(&address) {
                known.retain(|_, names| names.iter().any(|name| at.duration_since(name.at) < KEPT / 8));
                if known.len() >= PER_LABEL {
                    known.clear();
                }
            }
            let names = known.entry(address).or_default();
            names.retain(|known| known.name != name);
            names.push(Known {
                name: name.clone(),
                resolver: reply.resolver,
                at,
            });
            let over = names.len().saturating_sub(PER_ADDRESS);
            names.drain(..over);
        }
    }

    /// The names that led the label to this address, the last one first.
    pub(super) fn of(&self, label: LabelId, address: &IpAddr) -> Vec<LookedUp> {
        let labels = self.labels.lock();
        let Some(names) = labels.get(&label).and_then(|known| known.get(address)) else {
            return Vec::new();
        };
        let now = Instant::now();
        names
            .iter()
            .rev()
            .map(|known| (known, now.duration_since(known.at)))
            .filter(|(_, age)| *age < KEPT)
            .map(|(known, age)| LookedUp {
                name: Text::from(known.name.as_str()),
                resolver: known.resolver,
                seconds_ago: age.as_secs(),
            })
            .collect()
    }
}

/// The resolvers that the host is configured with.
#[derive(Debug)]
struct Resolvers {
    file: PathBuf,
    /// Of the file that was read.
    changed: Option<(u64, SystemTime)>,
    addresses: Vec<IpAddr>,
}

impl Resolvers {
    fn has(&mut self, address: &IpAddr) -> bool {
        let found = std::fs::metadata(&self.file)
            .ok()
            .filter(|found| found.is_file() && found.len() <= RESOLV_CONF_BYTES);
        let changed = found.and_then(|found| Some((found.ino(), found.modified().ok()?)));
        if changed.is_none() || changed != self.changed {
            self.addresses = if changed.is_some() {
                nameservers(&self.file)
            } else {
                Vec::new()
            };
            self.changed = changed;
        }
        self.addresses.contains(address)
    }
}

fn nameservers(file: &Path) -> Vec<IpAddr> {
    let text = std::fs::read(file).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
            // A link-local address may name its interface.
            let address = address.split('%').next().unwrap_or_default();
            address.parse::<IpAddr>().ok().map(|address| address.to_canonical())
        })
        .collect()
}

/// The name that was asked for, and the addresses that the reply gives it, through its aliases.
fn read(message: &[u8]) -> Option<(String, Vec<IpAddr>)> {
    let packet = Packet::parse(message).ok()?;
    let [question] = packet.questions.as_slice() else {
        return None;
    };
    let for_addresses = matches!(question.qtype, QTYPE::TYPE(TYPE::A | TYPE::AAAA) | QTYPE::ANY);
    if !packet.has_flags(PacketFlag::RESPONSE) || packet.rcode() != RCODE::NoError || !for_addresses {
        return None;
    }
    let asked = text(&question.qname)?;
    let mut names = vec![asked.clone()];
    // Aliases usually come in order; a reply that has them otherwise is read again.
    for _ in 0..ALIASES {
        let before = names.len();
        for answer in &packet.answers {
            if let RData::CNAME(alias) = &answer.rdata
                && let (Some(of), Some(to)) = (text(&answer.name), text(&alias.0))
                && names.contains(&of)
                && !names.contains(&to)
                && names.len() <= ALIASES
            {
                names.push(to);
            }
        }
        if names.len() == before {
            break;
        }
    }
    let mut addresses = Vec::new();
    for answer in &packet.answers {
        let address = match &answer.rdata {
            RData::A(a) => IpAddr::from(a.address.to_be_bytes()),
            RData::AAAA(aaaa) => IpAddr::from(aaaa.address.to_be_bytes()).to_canonical(),
            _ => continue,
        };
        if addresses.len() < PER_REPLY && text(&answer.name).is_some_and(|name| names.contains(&name)) {
            addresses.push(address);
        }
    }
    (!addresses.is_empty()).then_some((asked, addresses))
}

/// As people write it, in lower case; any byte that no host name has as `\DDD`. `None` for the root.
fn text(name: &Name<'_>) -> Option<String> {
    let mut text = String::new();
    for label in name.get_labels() {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label.as_ref() {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => text.push(char::from(*byte)),
                b'A'..=b'Z' => text.push(char::from(byte.to_ascii_lowercase())),
                other => text.push_str(&format!("\\{other:03}")),
            }
        }
    }
    (!text.is_empty()).then_some(text)
}

/// For the fuzzer: any bytes.
pub fn fuzz_reply(data: &[u8]) {
    if let Some((name, addresses)) = read(data) {
        assert!(!name.is_empty() && name.len() <= 4 * 255 && name.is_ascii());
        assert!(!addresses.is_empty() && addresses.len() <= PER_REPLY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simple_dns::rdata::{A, AAAA, CNAME};
    use simple_dns::{CLASS, QCLASS, Question, ResourceRecord};

    fn reply<'a>(asked: &'a str, answers: &[(&'a str, RData<'a>)]) -> Vec<u8> {
        let mut packet = Packet::new_reply(7);
        packet.questions.push(Question::new(
            Name::new(asked).unwrap(),
            QTYPE::TYPE(TYPE::A),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        for (name, rdata) in answers {
            let record = ResourceRecord::new(Name::new(name).unwrap(), CLASS::IN, 60, rdata.clone());
            packet.answers.push(record);
        }
        packet.build_bytes_vec_compressed().unwrap()
    }

    fn a(address: &str) -> RData<'static> {
        match address.parse().unwrap() {
            IpAddr::V4(address) => RData::A(A {
                address: address.into(),
            }),
            IpAddr::V6(address) => RData::AAAA(AAAA {
                address: address.into(),
            }),
        }
    }

    fn alias(name: &str) -> RData<'_> {
        RData::CNAME(CNAME(Name::new(name).unwrap()))
    }

    fn found(message: &[u8]) -> Option<(String, Vec<String>)> {
        let (name, addresses) = read(message)?;
        Some((name, addresses.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn a_reply_gives_the_asked_name_its_addresses_through_aliases() {
        let of =
            |name: &str, addresses: &[&str]| Some((name.to_owned(), addresses.iter().map(|&a| a.to_owned()).collect()));
        assert_eq!(
            found(&reply(
                "API.example.org",
                &[
                    ("api.example.org", a("192.0.2.1")),
                    ("api.example.org", a("2001:db8::1"))
                ]
            )),
            of("api.example.org", &["192.0.2.1", "2001:db8::1"])
        );
        // In whatever order.
        let aliased = reply(
            "www.example.org",
            &[
                ("edge.example.net", a("192.0.2.2")),
                ("cdn.example.net", alias("edge.example.net")),
                ("www.example.org", alias("cdn.example.net")),
                // Of a name that nobody asked for.
                ("bank.example.com", a("192.0.2.3")),
            ],
        );
        assert_eq!(found(&aliased), of("www.example.org", &["192.0.2.2"]));
        let circle = reply(
            "a.example",
            &[("a.example", alias("b.example")), ("b.example", alias("a.example"))],
        );
        assert_eq!(found(&circle), None);
        assert_eq!(found(&reply("a.example", &[])), None);
        assert_eq!(found(b""), None);
        let whole = reply("a.example", &[("a.example", a("192.0.2.1"))]);
        for length in 0..whole.len() {
            assert_eq!(found(&whole[..length]), None, "{length}");
        }
        // A question, and a failure.
        for (at, value) in [(2, 0), (3, 3)] {
            let mut other = whole.clone();
            other[at] = value;
            assert_eq!(found(&other), None);
        }
    }

    #[test]
    fn names_show_no_byte_that_is_not_of_names() {
        let name = Name::new("\\027[2J\\226\\128\\174x.A\\.b.example").unwrap();
        assert_eq!(
            text(&name).as_deref(),
            Some("\\027\\0912j\\226\\128\\174x.a\\046b.example")
        );
        assert_eq!(text(&Name::new(".").unwrap()), None);
    }

    #[test]
    fn only_the_hosts_resolvers_are_believed_and_labels_are_apart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        std::fs::write(
            &file,
            "# x\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\noptions edns0\n",
        )
        .unwrap();
        let names = Names::new(file.clone());
        let own = u32::try_from(names.network_namespace.unwrap()).unwrap();
        let hear = |label, name: &str, resolver: &str, network_namespace| {
            names.heard(&Reply {
                label: LabelId(label),
                resolver: resolver.parse().unwrap(),
                network_namespace,
                message: reply(name, &[(name, a("192.0.2.1"))]),
            });
        };
        let of = |label| {
            let found = names.of(LabelId(label), &"192.0.2.1".parse().unwrap());
            found.iter().map(|known| known.name.display()).collect::<Vec<_>>()
        };
        hear(1, "not.example", "192.0.2.53", own);
        hear(1, "not.example", "127.0.0.53", own + 1);
        assert!(of(1).is_empty());
        for name in ["a.example", "b.example", "c.example", "d.example", "b.example"] {
            hear(1, name, "127.0.0.53", own);
        }
        hear(2, "e.example", "fe80::1", own);
        assert_eq!(of(1), ["b.example", "d.example", "c.example"]);
        assert_eq!(of(2), ["e.example"]);
        std::fs::remove_file(&file).unwrap();
        hear(2, "f.example", "127.0.0.53", own);
        assert_eq!(of(2), ["e.example"]);
    }

    #[test]
    fn one_label_keeps_a_bounded_number() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        std::fs::write(&file, "nameserver 127.0.0.53\n").unwrap();
        let names = Names::new(file);
        let own = u32::try_from(names.network_namespace.unwrap()).unwrap();
        for n in 0..3_000u32 {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string();
            names.heard(&Reply {
                label: LabelId(1),
                resolver: [127, 0, 0, 53].into(),
                network_namespace: own,
                message: reply("a.example", &[("a.example", a(&address))]),
            });
        }
        let kept = names.labels.lock()[&LabelId(1)].len();
        assert!(kept <= PER_LABEL, "{kept}");
        assert_eq!(names.of(LabelId(1), &"10.0.11.183".parse().unwrap()).len(), 1);
    }
}
