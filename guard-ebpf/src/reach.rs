// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Egress: a labelled task reaches no address and no unix socket without an answer.
//!
//! Owns the socket hooks and FLOWS, which remembers what each socket was allowed to reach, so that what follows on it
//! (an interrupted connect that starts again, the messages themselves) is not asked again. It must never let a socket
//! that was connected elsewhere, or before the label, send unasked.

use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::protect::kind as protected;
use guard_common::{
    ActionKey, FLOW_SLOTS, Flow, FlowFilter, action, ask_flag, counter, ended, errno, flow, peer_op, verdict,
};

use crate::emit::{AddressOf, UnixOf};
use crate::kernel;
use crate::maps::{FLOW_FILTER, FLOWS, PENDING, add32, count};
use crate::protect::{self, count_refused};
use crate::scope::{self, Label};
use crate::verdict::{Answer, finish, gate};

const AF_UNSPEC: u16 = 0;
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const AF_NETLINK: u16 = 16;
const SOCK_STREAM: u16 = 1;
const SOCK_DGRAM: u16 = 2;
const SOCK_RAW: u16 = 3;
const SOCK_SEQPACKET: u16 = 5;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const NETLINK_ROUTE: u32 = 0;
const MAY_WRITE: u32 = 2;
const SOCKFS_MAGIC: u64 = 0x534f_434b;
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;

/// The verifier wants constants.
macro_rules! answer {
    ($answer:expr) => {
        match $answer {
            Answer::Pass => 0,
            Answer::Refuse => -errno::EPERM,
            Answer::Restart => -errno::ERESTARTNOINTR,
        }
    };
}

/// Where something is sent.
#[derive(Clone, Copy)]
struct Peer {
    address: [u8; 16],
    port: u32,
    scope: u32,
}

impl Peer {
    #[inline(always)]
    fn v4(bytes: [u8; 4], port: u16) -> Self {
        let mut address = [0; 16];
        address[10] = 0xff;
        address[11] = 0xff;
        address[12..].copy_from_slice(&bytes);
        Self {
            address,
            port: port.into(),
            scope: 0,
        }
    }

    /// What a socket is connected to.
    #[inline(always)]
    fn of(sock: u64) -> Self {
        Self::either(sock, kernel::sock_peer(sock))
    }

    /// What a socket is bound to.
    #[inline(always)]
    fn own(sock: u64) -> Self {
        Self::either(sock, kernel::sock_own(sock))
    }

    #[inline(always)]
    fn either(sock: u64, (v4, v6, port): ([u8; 4], [u8; 16], u16)) -> Self {
        if kernel::sock_family(sock) == AF_INET {
            Self::v4(v4, port)
        } else {
            Self {
                address: v6,
                port: port.into(),
                scope: 0,
            }
        }
    }

    /// A `sockaddr_in` or `sockaddr_in6` in kernel memory.
    #[inline(always)]
    fn read(address: u64, length: u32, v6: bool) -> Self {
        let bytes = kernel::socket_address(address, length);
        let port = u16::from_be_bytes([bytes[2], bytes[3]]);
        if !v6 {
            return Self::v4([bytes[4], bytes[5], bytes[6], bytes[7]], port);
        }
        let mut address = [0; 16];
        address.copy_from_slice(&bytes[8..24]);
        Self {
            address,
            port: port.into(),
            scope: u32::from_ne_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]),
        }
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        const ONE: u64 = u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0, 1]);
        const MAPPED: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 127, 0, 0, 0]);
        const MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0]);
        let (first, second) = self.halves();
        first == 0 && (second == ONE || second & MASK == MAPPED)
    }

    #[inline(always)]
    fn halves(&self) -> (u64, u64) {
        let half = |at: usize| {
            let a = &self.address;
            u64::from_ne_bytes([
                a[at],
                a[at + 1],
                a[at + 2],
                a[at + 3],
                a[at + 4],
                a[at + 5],
                a[at + 6],
                a[at + 7],
            ])
        };
        (half(0), half(8))
    }
}

// ---- what is remembered of sockets ----

#[inline(always)]
fn slot(filter: *mut FlowFilter, sock: u64) -> *mut u32 {
    const SHIFT: u32 = 64 - FLOW_SLOTS.trailing_zeros();
    let index = sock.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> SHIFT;
    // SAFETY: the index is within the array; nothing is read.
    unsafe { (&raw mut (*filter).slots).cast::<u32>().add(index as usize) }
}

/// Remembers it, or says that there is no room.
#[inline(always)]
fn remember(sock: u64, new: &Flow) -> bool {
    const NOEXIST: u64 = 1;
    const EXIST: u64 = 2;
    let Some(filter) = FLOW_FILTER.get_ptr_mut(0) else {
        return false;
    };
    if FLOWS.insert(sock, new, EXIST).is_ok() {
        return true;
    }
    // Before the entry is there: a socket whose slot is 0 surely has none.
    // SAFETY: a live map value.
    unsafe { add32(slot(filter, sock), 1) };
    if FLOWS.insert(sock, new, NOEXIST).is_ok() {
        return true;
    }
    // SAFETY: as above.
    unsafe { add32(slot(filter, sock), u32::MAX) };
    // Another thread was quicker with the same socket, or there is no room.
    if FLOWS.insert(sock, new, EXIST).is_ok() {
        return true;
    }
    count(counter::FLOWS_FULL);
    false
}

#[inline(always)]
fn forget(sock: u64) {
    let Some(filter) = FLOW_FILTER.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a live map value.
    if unsafe { slot(filter, sock).read_volatile() } == 0 {
        return;
    }
    // Only one remover succeeds.
    if FLOWS.remove(sock).is_ok() {
        // SAFETY: as above.
        unsafe { add32(slot(filter, sock), u32::MAX) };
    }
}

/// Nothing is known.
const NOTHING: Flow = Flow {
    address: [0; 16],
    port: 0,
    scope: 0,
    label: 0,
    sort: flow::MADE,
    owner: 0,
};

#[inline(always)]
fn known(sock: u64) -> Flow {
    // SAFETY: copied at once.
    match unsafe { FLOWS.get(sock) } {
        Some(found) => *found,
        None => NOTHING,
    }
}

/// False for the sockets of everybody else, nearly always.
#[inline(always)]
fn maybe(sock: u64) -> bool {
    let Some(filter) = FLOW_FILTER.get_ptr_mut(0) else {
        return true;
    };
    // SAFETY: a live map value.
    unsafe { slot(filter, sock).read_volatile() != 0 }
}

/// The address may be given to another socket from here on.
#[lsm(hook = "sk_free_security")]
pub fn guard_reach_free(context: LsmContext) -> i32 {
    forget(kernel::argument(&context, 0));
    0
}

/// Who can be reached from outside is answered when it listens; replies to them are no egress.
#[lsm(hook = "socket_listen")]
pub fn guard_reach_listen(context: LsmContext) -> i32 {
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    let sock = kernel::socket_sock(kernel::argument(&context, 0));
    let family = kernel::sock_family(sock);
    if family != AF_INET && family != AF_INET6 {
        return 0;
    }
    let found = known(sock);
    if found.sort == flow::LISTENER && found.label == label.label {
        return 0;
    }
    let listener = Flow {
        label: label.label,
        sort: flow::LISTENER,
        owner: found.owner,
        ..NOTHING
    };
    let own = Peer::own(sock);
    if own.is_loopback() {
        return if remember(sock, &listener) { 0 } else { -errno::EPERM };
    }
    answer!(ask(sock, &own, ask_flag::LISTEN, &listener))
}

/// fn(newsk, req): a connection came in; not in the context of the task that will accept it.
#[lsm(hook = "inet_csk_clone")]
pub fn guard_reach_accepted(context: LsmContext) -> i32 {
    let listener = kernel::request_listener(kernel::argument(&context, 1));
    if !maybe(listener) {
        return 0;
    }
    let found = known(listener);
    if found.sort == flow::LISTENER {
        let accepted = Flow {
            sort: flow::ACCEPTED,
            ..found
        };
        // No room: its first message is asked.
        let _ = remember(kernel::argument(&context, 0), &accepted);
    }
    0
}

// ---- addresses ----

/// Asks whether this socket may reach this peer, and remembers that it may.
#[inline(always)]
fn reach(label: &Label, sock: u64, peer: &Peer, flags: u32) -> Answer {
    let found = known(sock);
    let new = Flow {
        address: peer.address,
        port: peer.port.into(),
        scope: peer.scope,
        label: label.label,
        sort: flow::ALLOWED,
        owner: found.owner,
    };
    let (first, second) = peer.halves();
    if found.sort == flow::ALLOWED
        && found.label == new.label
        && found.port == new.port
        && found.scope == new.scope
        && (Peer {
            address: found.address,
            ..*peer
        })
        .halves()
            == (first, second)
    {
        return Answer::Pass;
    }
    ask(sock, peer, flags, &new)
}

/// Asks for what `new` will say.
#[inline(always)]
fn ask(sock: u64, peer: &Peer, flags: u32, new: &Flow) -> Answer {
    let (first, second) = peer.halves();
    let key = ActionKey {
        kind: action::REACH,
        op: peer_op(
            kernel::sock_family(sock),
            kernel::sock_type(sock),
            kernel::sock_protocol(sock),
        ),
        device: peer.port,
        generation: peer.scope,
        inode: sock,
        extra: [first, second, u64::from(flags & ask_flag::LISTEN != 0)],
    };
    let subject = AddressOf {
        sock,
        address: peer.address,
        port: peer.port,
        scope: peer.scope,
        flags,
    };
    let answer = gate(Some(key), &subject);
    through(answer, sock, new)
}

/// An answer was used. What it was for is remembered first, so that it holds although the question is over.
#[inline(always)]
fn through(answer: Answer, sock: u64, new: &Flow) -> Answer {
    if answer != Answer::Pass {
        return answer;
    }
    let task = kernel::current();
    let room = remember(sock, new);
    let mut checked = false;
    if let Some(pending) = PENDING.get_ptr_mut(task) {
        // SAFETY: only this task's own hooks write or remove this entry.
        let pending = unsafe { &*pending };
        checked = pending.verdict == verdict::CHECK;
        finish(task, pending, ended::COMMITTED, 0);
    }
    if room && !checked { Answer::Pass } else { Answer::Refuse }
}

/// Nobody is asked about a socket of this kind.
#[inline(always)]
fn never(label: &Label) -> i32 {
    count_refused(label, protected::SOCKET);
    -errno::EPERM
}

/// fn(family, type, protocol, kern): what can be asked about later, and what leaves the workload nowhere.
#[lsm(hook = "socket_create")]
pub fn guard_reach_create(context: LsmContext) -> i32 {
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    if kernel::argument(&context, 3) as u32 != 0 {
        return 0;
    }
    let (kind, protocol) = (
        kernel::argument(&context, 1) as u16,
        kernel::argument(&context, 2) as u32,
    );
    let known = match kernel::argument(&context, 0) as u16 {
        AF_UNIX => true,
        AF_INET | AF_INET6 => match kind {
            SOCK_STREAM => protocol == 0 || protocol == IPPROTO_TCP,
            SOCK_DGRAM => protocol == 0 || protocol == IPPROTO_UDP,
            _ => false,
        },
        AF_NETLINK => protocol == NETLINK_ROUTE,
        _ => false,
    };
    if known { 0 } else { never(&label) }
}

/// fn(sock, address, length)
#[lsm(hook = "socket_connect")]
pub fn guard_reach_connect(context: LsmContext) -> i32 {
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    let sock = kernel::socket_sock(kernel::argument(&context, 0));
    let (address, length) = (kernel::argument(&context, 1), kernel::argument(&context, 2) as u32);
    let refused = protect::address(address, length, false);
    if refused != 0 {
        count_refused(&label, refused);
        return -errno::EPERM;
    }
    match kernel::sock_family(sock) {
        // What is really reached is seen by its own hooks.
        AF_UNIX => 0,
        AF_NETLINK => 0,
        AF_INET | AF_INET6 if kernel::sock_type(sock) != SOCK_RAW => {
            let family = kernel::address_family(address, length);
            if family == AF_UNSPEC {
                // It disconnects.
                return 0;
            }
            let peer = Peer::read(address, length, family == AF_INET6);
            answer!(reach(&label, sock, &peer, 0))
        }
        _ => never(&label),
    }
}

/// fn(sock, message, size)
#[lsm(hook = "socket_sendmsg")]
pub fn guard_reach_send(context: LsmContext) -> i32 {
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    let sock = kernel::socket_sock(kernel::argument(&context, 0));
    let message = kernel::argument(&context, 1);
    let (to, length) = kernel::message_address(message);
    let refused = protect::address(to, length, true);
    if refused != 0 {
        count_refused(&label, refused);
        return -errno::EPERM;
    }
    let own = kernel::sock_family(sock);
    if own == AF_UNIX {
        return answer!(connected_unix(&label, sock));
    }
    if own == AF_NETLINK {
        return 0;
    }
    let kind = kernel::sock_type(sock);
    if own != AF_INET && own != AF_INET6 || kind == SOCK_RAW {
        return never(&label);
    }
    if is_routed(message) {
        count_refused(&label, protected::ROUTE);
        return -errno::EPERM;
    }
    let family = kernel::address_family(to, length);
    let connected = kernel::sock_state(sock) != TCP_CLOSE;
    // A stream goes where it is connected to, whatever the message says; so does what IPv6 reads no family in.
    let named =
        to != 0 && length != 0 && !(kind == SOCK_STREAM && connected) && !(own == AF_INET6 && family == AF_UNSPEC);
    if named {
        let peer = Peer::read(to, length, family == AF_INET6);
        return answer!(reach(&label, sock, &peer, ask_flag::MESSAGE));
    }
    answer!(send(&label, sock))
}

/// What is sent to whom the socket is connected to.
#[inline(always)]
fn send(label: &Label, sock: u64) -> Answer {
    let state = kernel::sock_state(sock);
    if state == TCP_CLOSE || state == TCP_LISTEN {
        // Nowhere to go: the kernel says so itself.
        return Answer::Pass;
    }
    let found = known(sock);
    if found.sort == flow::ACCEPTED && found.label == label.label {
        return Answer::Pass;
    }
    reach(label, sock, &Peer::of(sock), ask_flag::CONNECTED_BEFORE)
}

/// fn(file, mask): where the kernel gives whole pages to a socket past `socket_sendmsg`. What is asked here is remembered
/// of the socket, so the message that follows an ordinary write(2) is not asked again.
#[lsm(hook = "file_permission")]
pub fn guard_reach_pages(context: LsmContext) -> i32 {
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    if kernel::argument(&context, 1) as u32 & MAY_WRITE == 0 {
        return 0;
    }
    let inode = kernel::file_inode(kernel::argument(&context, 0));
    if kernel::super_magic(kernel::inode_super(inode)) != SOCKFS_MAGIC {
        return 0;
    }
    let sock = kernel::inode_sock(inode);
    match kernel::sock_family(sock) {
        AF_UNIX => answer!(connected_unix(&label, sock)),
        AF_INET | AF_INET6 => answer!(send(&label, sock)),
        _ => 0,
    }
}

// ---- packets that would go elsewhere ----

/// Options of a socket, and control messages, that carry a route of their own.
#[inline(always)]
const fn is_route(level: u32, name: u32, of_message: bool) -> bool {
    const IP: u32 = 0;
    const IPV6: u32 = 41;
    const IP_OPTIONS: u32 = 4;
    const IP_RETOPTS: u32 = 7;
    const OLD_RTHDR: u32 = 5;
    const OLD_OPTIONS: u32 = 6;
    const RTHDR: u32 = 57;
    match level {
        IP => name == if of_message { IP_RETOPTS } else { IP_OPTIONS },
        IPV6 => name == RTHDR || name == OLD_RTHDR || name == OLD_OPTIONS,
        _ => false,
    }
}

/// Whether a message carries a route of its own, or more than can be looked at.
#[inline(always)]
fn is_routed(message: u64) -> bool {
    const HEAD: u64 = 16;
    const MOST: u32 = 16;
    let (mut at, length) = kernel::message_control(message);
    let mut left = length;
    for _ in 0..MOST {
        if left < HEAD {
            return false;
        }
        let (size, level, name) = kernel::control_head(at);
        if is_route(level, name, true) || size < HEAD || size > left {
            return true;
        }
        let step = (size + 7) & !7;
        if step >= left {
            return false;
        }
        at += step;
        left -= step;
    }
    true
}

/// fn(socket, level, option)
#[lsm(hook = "socket_setsockopt")]
pub fn guard_reach_option(context: LsmContext) -> i32 {
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    if is_route(
        kernel::argument(&context, 1) as u32,
        kernel::argument(&context, 2) as u32,
        false,
    ) {
        count_refused(&label, protected::ROUTE);
        return -errno::EPERM;
    }
    0
}

/// fn(sock, skb): of the host's network, a workload reads; it changes nothing, whatever privileges it has.
#[lsm(hook = "netlink_send")]
pub fn guard_reach_netlink(context: LsmContext) -> i32 {
    const HEAD: u32 = 16;
    const MOST: u32 = 16;
    const FIRST: u16 = 16;
    const GET: u16 = 2;
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    if kernel::sock_protocol(kernel::argument(&context, 0)) as u32 != NETLINK_ROUTE {
        return never(&label);
    }
    let (mut at, mut left) = kernel::packet(kernel::argument(&context, 1));
    for _ in 0..MOST {
        if left < HEAD {
            return 0;
        }
        let (size, kind) = kernel::netlink_head(at);
        if size < HEAD || size > left || kind >= FIRST && kind & 3 != GET {
            break;
        }
        let step = (size + 3) & !3;
        if step >= left {
            return 0;
        }
        at += step as u64;
        left -= step;
    }
    count_refused(&label, protected::ROUTE);
    -errno::EPERM
}

// ---- unix sockets ----

/// fn(socket, family, type, protocol, kern): which sockets belong to the workload itself.
#[lsm(hook = "socket_post_create")]
pub fn guard_reach_made(context: LsmContext) -> i32 {
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    if kernel::argument(&context, 1) as u16 != AF_UNIX || kernel::argument(&context, 4) as u32 != 0 {
        return 0;
    }
    let made = Flow {
        owner: label.label,
        ..NOTHING
    };
    if remember(kernel::socket_sock(kernel::argument(&context, 0)), &made) {
        0
    } else {
        -errno::EPERM
    }
}

/// Asks whether this socket may reach that one.
#[inline(always)]
fn reach_unix(label: &Label, sock: u64, peer: u64, flags: u32) -> Answer {
    let refused = protect::peer(peer);
    if refused != 0 {
        count_refused(label, refused);
        return Answer::Refuse;
    }
    // Inside the workload.
    if known(peer).owner == label.label {
        return Answer::Pass;
    }
    let found = known(sock);
    if found.sort == flow::ALLOWED && found.label == label.label && found.port == peer {
        return Answer::Pass;
    }
    let new = Flow {
        port: peer,
        label: label.label,
        sort: flow::ALLOWED,
        owner: found.owner,
        ..NOTHING
    };
    let named = kernel::file_id(kernel::dentry_inode(kernel::unix_dentry(peer)));
    let key = ActionKey {
        kind: action::REACH_UNIX,
        op: peer_op(AF_UNIX, kernel::sock_type(sock), 0),
        device: 0,
        generation: 0,
        inode: sock,
        extra: [
            peer,
            named.inode,
            u64::from(named.device) << 32 | u64::from(named.generation),
        ],
    };
    let answer = gate(Some(key), &UnixOf { peer, flags });
    through(answer, sock, &new)
}

/// fn(sock, other, newsk)
#[lsm(hook = "unix_stream_connect")]
pub fn guard_reach_stream(context: LsmContext) -> i32 {
    let peer = kernel::argument(&context, 1);
    if maybe(peer) {
        // The other end belongs to whom the listener belongs to: what is sent back on it is no egress.
        let owner = known(peer).owner;
        if owner != 0 {
            let _ = remember(kernel::argument(&context, 2), &Flow { owner, ..NOTHING });
        }
    }
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    answer!(reach_unix(&label, kernel::argument(&context, 0), peer, 0))
}

/// fn(socket, other): connect, and each message.
#[lsm(hook = "unix_may_send")]
pub fn guard_reach_datagram(context: LsmContext) -> i32 {
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    let sock = kernel::socket_sock(kernel::argument(&context, 0));
    let peer = kernel::socket_sock(kernel::argument(&context, 1));
    answer!(reach_unix(&label, sock, peer, ask_flag::MESSAGE))
}

/// A message on a stream: it was connected by an answer, is the workload's own end, or was connected by somebody else.
#[inline(always)]
fn connected_unix(label: &Label, sock: u64) -> Answer {
    let kind = kernel::sock_type(sock);
    if kind != SOCK_STREAM && kind != SOCK_SEQPACKET {
        return Answer::Pass;
    }
    let found = known(sock);
    if found.owner == label.label || found.sort == flow::ALLOWED && found.label == label.label {
        return Answer::Pass;
    }
    let peer = kernel::unix_peer(sock);
    if peer == 0 {
        return Answer::Pass;
    }
    reach_unix(label, sock, peer, ask_flag::CONNECTED_BEFORE)
}
