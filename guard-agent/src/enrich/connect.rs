//! What the kernel says of a connection, in the words of policies and records.
//!
//! Owns the names of protocols and of peers. It is given the kernel's question. It must never take a name from the caller:
//! a peer is who was really reached.

use std::os::unix::ffi::OsStrExt as _;

use guard_evidence::record::{ConnectAction, ConnectHow, Peer as RecordedPeer};
use guard_evidence::text::Text;

use crate::kernel::api::{AskedReach, Peer, ReachHow};
use guard_policy::{ConnectFacts, PeerFacts};

const AF_UNIX: u16 = 1;

/// For the policy, before the thread is held.
pub(super) fn facts(reach: &AskedReach) -> ConnectFacts {
    let known = |bytes: &[u8]| str::from_utf8(bytes).ok().map(str::to_owned);
    ConnectFacts {
        peer: match &reach.peer {
            Peer::Address { address, port, .. } => PeerFacts::Ip {
                address: *address,
                port: *port,
            },
            Peer::Unix { path } => PeerFacts::Unix(path.as_ref().and_then(|path| known(path.as_os_str().as_bytes()))),
            Peer::Abstract(name) => PeerFacts::Unix(known(name).map(|name| format!("@{name}"))),
            Peer::Nameless => PeerFacts::Unix(Some(String::new())),
        },
        protocol: protocol(reach),
        listen: reach.how == ReachHow::Listen,
        connected_before: reach.how == ReachHow::ConnectedBefore,
        held: false,
    }
}

/// For records.
pub(crate) fn connect_action(reach: &AskedReach) -> ConnectAction {
    ConnectAction {
        peer: match &reach.peer {
            Peer::Address { address, port, scope } => RecordedPeer::Ip {
                address: *address,
                port: *port,
                scope: (*scope != 0).then_some(*scope),
            },
            Peer::Unix { path } => RecordedPeer::Unix {
                path: path.as_ref().map(|path| Text::from(path.as_os_str().as_bytes())),
            },
            Peer::Abstract(name) => RecordedPeer::Abstract {
                name: Text::from(name.as_slice()),
            },
            Peer::Nameless => RecordedPeer::Nameless,
        },
        protocol: protocol(reach),
        how: match reach.how {
            ReachHow::Connect => ConnectHow::Connect,
            ReachHow::Message => ConnectHow::Message,
            ReachHow::ConnectedBefore => ConnectHow::ConnectedBefore,
            ReachHow::Listen => ConnectHow::Listen,
        },
    }
}

/// What the socket speaks.
fn protocol(reach: &AskedReach) -> String {
    let kind = i32::from(reach.kind);
    let name = if reach.family == AF_UNIX {
        match kind {
            libc::SOCK_STREAM => "stream",
            libc::SOCK_DGRAM => "datagram",
            libc::SOCK_SEQPACKET => "seqpacket",
            _ => return kind.to_string(),
        }
    } else {
        match i32::from(reach.protocol) {
            libc::IPPROTO_TCP => "tcp",
            libc::IPPROTO_UDP => "udp",
            libc::IPPROTO_ICMP => "icmp",
            libc::IPPROTO_ICMPV6 => "icmpv6",
            libc::IPPROTO_UDPLITE => "udplite",
            libc::IPPROTO_SCTP => "sctp",
            libc::IPPROTO_MPTCP => "mptcp",
            other => return other.to_string(),
        }
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(peer: Peer, kind: i32, protocol: i32, family: i32) -> AskedReach {
        AskedReach {
            peer,
            how: ReachHow::Connect,
            family: u16::try_from(family).unwrap(),
            kind: u16::try_from(kind).unwrap(),
            protocol: u16::try_from(protocol).unwrap(),
        }
    }

    #[test]
    fn names_outside_the_file_system_never_read_as_paths() {
        let name = |peer| match facts(&reach(peer, libc::SOCK_STREAM, 0, libc::AF_UNIX)).peer {
            PeerFacts::Unix(name) => name,
            PeerFacts::Ip { .. } => panic!("not unix"),
        };
        assert_eq!(name(Peer::Abstract(b"/run/x".to_vec())).as_deref(), Some("@/run/x"));
        assert_eq!(name(Peer::Abstract(b"\xff".to_vec())), None);
        assert_eq!(name(Peer::Nameless).as_deref(), Some(""));
        assert_eq!(name(Peer::Unix { path: None }), None);
        let path = Some("/run/x".into());
        assert_eq!(name(Peer::Unix { path }).as_deref(), Some("/run/x"));
    }

    #[test]
    fn protocols_have_names_or_numbers() {
        let address = || Peer::Address {
            address: "192.0.2.1".parse().unwrap(),
            port: 1,
            scope: 0,
        };
        for (kind, protocol_number, family, expected) in [
            (libc::SOCK_STREAM, libc::IPPROTO_TCP, libc::AF_INET, "tcp"),
            (libc::SOCK_STREAM, libc::IPPROTO_MPTCP, libc::AF_INET6, "mptcp"),
            (libc::SOCK_DGRAM, libc::IPPROTO_UDP, libc::AF_INET6, "udp"),
            (libc::SOCK_DGRAM, 200, libc::AF_INET, "200"),
            (libc::SOCK_SEQPACKET, 0, libc::AF_UNIX, "seqpacket"),
        ] {
            let reach = reach(address(), kind, protocol_number, family);
            assert_eq!(protocol(&reach), expected);
        }
    }
}
