// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Behind the socket hooks: what a labelled cgroup sends to whom it was never allowed to reach is dropped and counted. The
//! count stays 0, or one of those hooks has a hole.
//!
//! Owns the look at packets as they leave a socket, and SENT, which remembers what the hooks let through; given FLOWS. It must
//! never drop what follows from something that was let through: it looks at the first packet of a connection (those after it
//! have no other way), at every datagram, and at nothing that the kernel sends by sockets of its own (errors, resets, reports
//! of memberships, what is sent for a connection after its socket is gone).

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_skb_cgroup_id;
use aya_ebpf::macros::{cgroup_skb, map};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::SkBuffContext;
use guard_common::protect::{Refused, RefusedKey, kind};
use guard_common::{Flow, Sent, counter, flow};

use crate::kernel;
use crate::maps::{CGROUPS, FLOWS, ORIGINS, REFUSED, add, count};

const DROP: i32 = 0;
const PASS: i32 = 1;
const IPPROTO_TCP: u16 = 6;
const IPPROTO_UDP: u16 = 17;
const TCP_SYN_SENT: u8 = 2;

/// Peers that a socket was let through to. FLOWS has the last one of each; a datagram may follow after another thread's, or
/// after it was kept back (MSG_MORE). Written by the hooks alone.
#[map]
pub static SENT: LruHashMap<Sent, u8> = LruHashMap::pinned(16_384, 0);

/// The socket was let through to this peer.
#[inline(always)]
pub fn let_through(sock: u64, serial: u32, address: [u64; 2], port: u32) {
    let _ = SENT.insert(
        Sent {
            sock,
            address,
            port,
            serial,
        },
        1,
        0,
    );
}

#[cgroup_skb(egress)]
pub fn guard_tripwire(context: SkBuffContext) -> i32 {
    // SAFETY: the helper takes the context.
    let cgroup = unsafe { bpf_skb_cgroup_id(context.skb.skb) };
    // SAFETY: copied at once, as below.
    let Some(origin) = (unsafe { CGROUPS.get(cgroup) }).copied() else {
        return PASS;
    };
    // SAFETY: as above.
    let Some(label) = (unsafe { ORIGINS.get(origin) }).map(|origin| origin.label) else {
        return PASS;
    };
    // SAFETY: the context has this field; what it points at is only read by the helper that checks.
    let sock = kernel::number(unsafe { (*context.skb.skb).__bindgen_anon_2.sk } as u64);
    if sock == 0 {
        return PASS;
    }
    if may_leave(sock, kernel::number(context.as_ptr() as u64)) {
        return PASS;
    }
    count(counter::TRIPWIRE);
    tell(label);
    DROP
}

#[inline(always)]
fn may_leave(sock: u64, packet: u64) -> bool {
    // SAFETY: read at once.
    let found = unsafe { FLOWS.get(sock) };
    match kernel::sock_protocol(sock) {
        IPPROTO_TCP => {
            kernel::sock_state(sock) != TCP_SYN_SENT || {
                // Of the socket, not of the packet, which may be rewritten by now.
                let (address, port) = peer(sock);
                is_allowed(sock, found, address, port)
            }
        }
        IPPROTO_UDP => {
            let (protocol, address, port) = kernel::packet_destination(packet);
            if protocol == IPPROTO_UDP as u8 && is_allowed(sock, found, address, port) {
                return true;
            }
            // Translated or wrapped by the host since it left the socket: whoever is connected says where it was sent to, of
            // others it is known only that something was allowed.
            let changed = protocol != IPPROTO_UDP as u8 || kernel::packet_is_tracked(packet);
            if !changed {
                return false;
            }
            let (address, port) = peer(sock);
            port != 0 && is_allowed(sock, found, address, port)
                || found.is_some_and(|found| found.sort == flow::ALLOWED)
        }
        _ => false,
    }
}

/// What a socket is connected to.
#[inline(always)]
fn peer(sock: u64) -> ([u64; 2], u32) {
    const AF_INET: u16 = 2;
    let address = if kernel::sock_family(sock) == AF_INET {
        [0, kernel::MAPPED | u64::from(kernel::sock_peer_v4(sock)) << 32]
    } else {
        kernel::sock_peer_v6(sock)
    };
    (address, kernel::sock_peer_port(sock).into())
}

#[inline(always)]
fn is_allowed(sock: u64, found: Option<&Flow>, address: [u64; 2], port: u32) -> bool {
    let mut serial = 0;
    if let Some(found) = found {
        serial = found.serial;
        if found.sort == flow::ALLOWED && found.port == u64::from(port) && is_to(found.address, address) {
            return true;
        }
    }
    was_let_through(sock, serial, address, port)
        // Asked about as "this host", which the kernel turns into an address.
        || was_let_through(sock, serial, [0, 0], port)
        || was_let_through(sock, serial, [0, kernel::MAPPED], port)
}

#[inline(always)]
fn is_to(allowed: [u64; 2], address: [u64; 2]) -> bool {
    allowed[0] == address[0] && allowed[1] == address[1]
        || allowed[0] == 0 && (allowed[1] == 0 || allowed[1] == kernel::MAPPED)
}

#[inline(always)]
fn was_let_through(sock: u64, serial: u32, address: [u64; 2], port: u32) -> bool {
    let key = Sent {
        sock,
        address,
        port,
        serial,
    };
    // SAFETY: not kept.
    unsafe { SENT.get(key) }.is_some()
}

/// Counts it for the label. Who runs on this CPU now may be anybody.
#[inline(always)]
fn tell(label: u32) {
    let key = RefusedKey {
        label,
        kind: kind::STRAY,
    };
    if REFUSED.get_ptr_mut(key).is_none() {
        // Somebody else may have been quicker.
        let _ = REFUSED.insert(key, Refused::default(), 1);
    }
    if let Some(refused) = REFUSED.get_ptr_mut(key) {
        // SAFETY: a live map value.
        unsafe { add(&raw mut (*refused).count, 1) };
    }
}
