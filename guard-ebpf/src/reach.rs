// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Egress: a labelled task reaches no address and no unix socket without an answer.
//!
//! Owns the socket hooks and FLOWS, which remembers what each socket was allowed to reach, so that what follows on it
//! (an interrupted connect that starts again, the messages themselves) is not asked again. It must never let a socket
//! that was connected elsewhere, or before the label, send unasked.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::protect::kind as protected;
use guard_common::{
    ActionKey, FLOW_SLOTS, Flow, FlowFilter, action, ask_flag, counter, ended, errno, flow, peer_op, verdict,
};

use crate::abi::MAY_WRITE;
use crate::emit::{self, AddressOf, UnixOf};
use crate::kernel;
use crate::maps::{FLOW_FILTER, FLOWS, PENDING, add32, count};
use crate::protect::{self, count_refused};
use crate::quota;
use crate::rules;
use crate::scope::{self, Label};
use crate::tripwire;
use crate::verdict::{self as questions, Answer, finish, gate};

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
/// Of resolvers.
const RESOLVER_PORT: u64 = 53;
const SOCKFS_MAGIC: u64 = 0x534f_434b;
const MSG_FASTOPEN: u32 = 0x2000_0000;
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
    /// The address as in `AskAddress`, eight bytes each in memory order.
    address: [u64; 2],
    port: u32,
    scope: u32,
}

impl Peer {
    #[inline(always)]
    fn v4(address: u32, port: u16) -> Self {
        Self {
            address: [0, kernel::MAPPED | (address as u64) << 32],
            port: port.into(),
            scope: 0,
        }
    }

    /// What a socket is connected to.
    #[inline(always)]
    fn of(sock: u64) -> Self {
        if kernel::sock_family(sock) == AF_INET {
            return Self::v4(kernel::sock_peer_v4(sock), kernel::sock_peer_port(sock));
        }
        Self {
            address: kernel::sock_peer_v6(sock),
            port: kernel::sock_peer_port(sock).into(),
            scope: 0,
        }
    }

    /// What a socket is bound to.
    #[inline(always)]
    fn own(sock: u64) -> Self {
        if kernel::sock_family(sock) == AF_INET {
            return Self::v4(kernel::sock_own_v4(sock), kernel::sock_own_port(sock));
        }
        Self {
            address: kernel::sock_own_v6(sock),
            port: kernel::sock_own_port(sock).into(),
            scope: 0,
        }
    }

    /// A `sockaddr_in` or `sockaddr_in6` in kernel memory. The kernel itself refuses one that is too short.
    #[inline(always)]
    fn read(address: u64, length: u32, v6: bool) -> Self {
        let port = kernel::address_port(address);
        if !v6 {
            return Self::v4(kernel::address_v4(address), port);
        }
        Self {
            address: kernel::address_v6(address),
            port: port.into(),
            // A shorter one is allowed, without this.
            scope: if length >= 28 {
                kernel::address_scope(address)
            } else {
                0
            },
        }
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        const ONE: u64 = u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0, 1]);
        const MAPPED: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 127, 0, 0, 0]);
        const MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0]);
        let [first, second] = self.address;
        first == 0 && (second == ONE || second & MASK == MAPPED)
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
fn remember(sock: u64, new: &mut Flow) -> bool {
    const NOEXIST: u64 = 1;
    let Some(filter) = FLOW_FILTER.get_ptr_mut(0) else {
        return false;
    };
    if replace(sock, new) {
        return true;
    }
    new.charged = if new.label != 0 { new.label } else { new.owner };
    // SAFETY: no arguments. Never 0, which is that of a socket without an entry.
    new.serial = unsafe { bpf_get_prandom_u32() } | 1;
    if !quota::enter_socket(new.charged) {
        return false;
    }
    // Before the entry is there: a socket whose slot is 0 surely has none.
    // SAFETY: a live map value.
    unsafe { add32(slot(filter, sock), 1) };
    if FLOWS.insert(sock, &*new, NOEXIST).is_ok() {
        return true;
    }
    // SAFETY: as above.
    unsafe { add32(slot(filter, sock), u32::MAX) };
    quota::leave_socket(new.charged);
    // Another thread was quicker with the same socket, or there is no room.
    if replace(sock, new) {
        return true;
    }
    count(counter::FLOWS_FULL);
    false
}

/// In place of what is known of the socket; false if nothing is.
#[inline(always)]
fn replace(sock: u64, new: &mut Flow) -> bool {
    const EXIST: u64 = 2;
    let Some(found) = known(sock) else {
        return false;
    };
    new.charged = found.charged;
    new.serial = found.serial;
    FLOWS.insert(sock, &*new, EXIST).is_ok()
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
    let Some(found) = known(sock) else {
        return;
    };
    let charged = found.charged;
    // Only one remover succeeds.
    if FLOWS.remove(sock).is_ok() {
        // SAFETY: as above.
        unsafe { add32(slot(filter, sock), u32::MAX) };
        quota::leave_socket(charged);
    }
}

/// Nothing is known.
const NOTHING: Flow = Flow {
    address: [0; 2],
    port: 0,
    scope: 0,
    label: 0,
    sort: flow::MADE,
    owner: 0,
    charged: 0,
    serial: 0,
};

#[inline(always)]
fn known(sock: u64) -> Option<&'static Flow> {
    // SAFETY: read at once.
    unsafe { FLOWS.get(sock) }
}

/// The label of the task that made the socket; 0 for others.
#[inline(always)]
fn owner(sock: u64) -> u32 {
    match known(sock) {
        Some(found) => found.owner,
        None => 0,
    }
}

/// Whether the socket is of this sort, for this label.
#[inline(always)]
fn is(sock: u64, sort: u32, label: &Label) -> bool {
    match known(sock) {
        Some(found) => found.sort == sort && found.label == label.label,
        None => false,
    }
}

/// Whether it may already listen there, for this label: an address that it got later is another one.
#[inline(always)]
fn may_listen(sock: u64, own: &Peer, label: &Label) -> bool {
    match known(sock) {
        Some(found) => {
            found.sort == flow::LISTENER
                && found.label == label.label
                && found.port == own.port as u64
                && found.address[0] == own.address[0]
                && found.address[1] == own.address[1]
        }
        None => false,
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
    let own = Peer::own(sock);
    if may_listen(sock, &own, &label) {
        return 0;
    }
    if own.is_loopback() {
        let mut listener = Flow {
            address: own.address,
            port: own.port.into(),
            label: label.label,
            sort: flow::LISTENER,
            owner: owner(sock),
            ..NOTHING
        };
        return if remember(sock, &mut listener) {
            0
        } else {
            -errno::EPERM
        };
    }
    answer!(ask(&label, sock, &own, ask_flag::LISTEN))
}

/// fn(socket, address, length): a datagram socket hears whom it does not know from here on. Without a port of its own it
/// hears only who learnt the one that it got, as with each socket that has sent something.
#[lsm(hook = "socket_bind")]
pub fn guard_reach_bind(context: LsmContext) -> i32 {
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    let sock = kernel::socket_sock(kernel::argument(&context, 0));
    let family = kernel::sock_family(sock);
    if family != AF_INET && family != AF_INET6 || kernel::sock_type(sock) != SOCK_DGRAM {
        return 0;
    }
    let (address, length) = (kernel::argument(&context, 1), kernel::argument(&context, 2) as u32);
    let own = Peer::read(address, length, kernel::address_family(address, length) == AF_INET6);
    // On loopback too nobody answers as a resolver unasked.
    let closed = own.is_loopback() && own.port as u64 != RESOLVER_PORT;
    if own.port == 0 || closed || may_listen(sock, &own, &label) {
        return 0;
    }
    answer!(ask(&label, sock, &own, ask_flag::LISTEN))
}

/// fn(sk, skb, req): somebody connects, perhaps to another address than the one that was looked at: between the look and the
/// listening another thread may have bound the socket anew.
#[lsm(hook = "inet_conn_request")]
pub fn guard_reach_incoming(context: LsmContext) -> i32 {
    let sock = kernel::argument(&context, 0);
    if !maybe(sock) {
        return 0;
    }
    let Some(found) = known(sock) else {
        return 0;
    };
    let own = Peer::own(sock);
    // Port 0: whichever it got.
    let same = found.address[0] == own.address[0]
        && found.address[1] == own.address[1]
        && (found.port == 0 || found.port == own.port as u64);
    if found.sort != flow::LISTENER || same {
        return 0;
    }
    -errno::EPERM
}

/// fn(newsk, req): a connection came in; not in the context of the task that will accept it.
#[lsm(hook = "inet_csk_clone")]
pub fn guard_reach_accepted(context: LsmContext) -> i32 {
    let listener = kernel::request_listener(kernel::argument(&context, 1));
    if !maybe(listener) {
        return 0;
    }
    if let Some(found) = known(listener)
        && found.sort == flow::LISTENER
    {
        let mut accepted = Flow {
            sort: flow::ACCEPTED,
            ..*found
        };
        // No room: its first message is asked.
        let _ = remember(kernel::argument(&context, 0), &mut accepted);
    }
    0
}

// ---- addresses ----

/// Asks whether this socket may reach this peer, and remembers that it may.
#[inline(always)]
fn reach(label: &Label, sock: u64, peer: &Peer, flags: u32) -> Answer {
    if let Some(found) = known(sock)
        && found.sort == flow::ALLOWED
        && found.label == label.label
        && found.port == peer.port as u64
        && found.scope == peer.scope
        && found.address[0] == peer.address[0]
        && found.address[1] == peer.address[1]
    {
        settle();
        return Answer::Pass;
    }
    ask(label, sock, peer, flags)
}

/// Whether an answer could be remembered: else nobody is asked in vain.
#[inline(always)]
fn room(label: &Label, sock: u64) -> bool {
    known(sock).is_some() || quota::room_for_socket(label.label)
}

/// Another thread's question about the same socket may have been answered first: what this thread asked is over, too. A
/// function of its own: the stack is short.
#[inline(never)]
fn settle() {
    let task = kernel::current();
    let Some(pending) = PENDING.get_ptr_mut(task) else {
        return;
    };
    // SAFETY: only this task's own hooks write or remove this entry.
    let pending = unsafe { &mut *pending };
    if pending.key.kind != action::REACH && pending.key.kind != action::REACH_UNIX {
        return;
    }
    let allowed = questions::find(task, pending) == verdict::ALLOW;
    if allowed {
        pending.verdict = verdict::ALLOW;
    }
    finish(
        task,
        pending,
        if allowed { ended::COMMITTED } else { ended::REPLACED },
        0,
    );
}

#[inline(always)]
fn ask(label: &Label, sock: u64, peer: &Peer, flags: u32) -> Answer {
    if !room(label, sock) || is_routed_already(label, sock) {
        return Answer::Refuse;
    }
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
        extra: [
            peer.address[0],
            peer.address[1],
            u64::from(flags & ask_flag::LISTEN != 0),
        ],
    };
    let answer = if rules::reach_allowed(label.label, &key, flags) {
        if remember_answer(&key, label.label) {
            Answer::Pass
        } else {
            Answer::Refuse
        }
    } else {
        through(gate(Some(key), &AddressOf { flags }))
    };
    if answer == Answer::Pass && flags & ask_flag::LISTEN == 0 {
        let_through(sock, peer);
    }
    answer
}

/// Whoever lets something leave for an address says so here, whether a question led to it or not. A function of its own: the
/// stack is short.
#[inline(never)]
fn let_through(sock: u64, peer: &Peer) {
    let serial = match known(sock) {
        Some(found) => found.serial,
        None => 0,
    };
    tripwire::let_through(sock, serial, peer.address, peer.port);
}

/// An answer was used. What it was for is remembered first, so that it holds although the question is over.
#[inline(always)]
fn through(answer: Answer) -> Answer {
    if answer != Answer::Pass {
        return answer;
    }
    let task = kernel::current();
    let Some(pending) = PENDING.get_ptr_mut(task) else {
        // Nobody was to be asked.
        return Answer::Pass;
    };
    // SAFETY: only this task's own hooks write or remove this entry.
    let pending = unsafe { &*pending };
    let goes_on = remember_answer(&pending.key, pending.label) && pending.verdict != verdict::CHECK;
    let (how, errno) = if goes_on {
        (ended::COMMITTED, 0)
    } else {
        (ended::RETURNED, errno::EPERM as u32)
    };
    finish(task, pending, how, errno);
    if goes_on { Answer::Pass } else { Answer::Refuse }
}

/// What the key of an answer says, for its socket. A function of its own: the stack is short.
#[inline(never)]
fn remember_answer(key: &ActionKey, label: u32) -> bool {
    let sock = key.inode;
    let mut new = Flow {
        label,
        sort: flow::ALLOWED,
        owner: owner(sock),
        ..NOTHING
    };
    if key.kind == action::REACH_UNIX {
        new.port = key.extra[0];
    } else {
        new.address = [key.extra[0], key.extra[1]];
        new.port = key.device as u64;
        new.scope = key.generation;
        if key.extra[2] != 0 {
            new.sort = flow::LISTENER;
        }
    }
    remember(sock, &mut new)
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
        AF_NETLINK if to_kernel(address, length) => 0,
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
        return if to_kernel(to, length) { 0 } else { never(&label) };
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
    // A stream goes where it is connected to, whatever the message says; so does what IPv6 reads no family in. One that asks
    // to connect is asked about in any case: it may be disconnected before its turn.
    let stream = kind == SOCK_STREAM && connected && kernel::message_flags(message) & MSG_FASTOPEN == 0;
    let named = to != 0 && length != 0 && !stream && !(own == AF_INET6 && family == AF_UNSPEC);
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
    if is(sock, flow::ACCEPTED, label) {
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

/// fn(sk, skb): what a resolver answers, so that people can be told a name with the address.
#[lsm(hook = "socket_sock_rcv_skb")]
pub fn guard_reach_heard(context: LsmContext) -> i32 {
    let sock = kernel::argument(&context, 0);
    if !maybe(sock) {
        return 0;
    }
    let Some(found) = known(sock) else {
        return 0;
    };
    if found.sort != flow::ALLOWED || found.port != RESOLVER_PORT || kernel::sock_type(sock) != SOCK_DGRAM {
        return 0;
    }
    let family = kernel::sock_family(sock);
    if family != AF_INET && family != AF_INET6 {
        return 0;
    }
    let (from, port, reply, length) = kernel::datagram(kernel::argument(&context, 1));
    if length != 0 && port as u64 == RESOLVER_PORT && from[0] == found.address[0] && from[1] == found.address[1] {
        emit::resolved(found.label, from, kernel::sock_network_namespace(sock), reply, length);
    }
    0
}

// ---- packets that would go elsewhere ----

/// Options of a socket that make the kernel send packets to whom the workload likes: memberships of groups, which it reports.
#[inline(always)]
const fn is_membership(level: u32, name: u32) -> bool {
    const IP: u32 = 0;
    const IPV6: u32 = 41;
    const IP_ADD_MEMBERSHIP: u32 = 35;
    const IP_MSFILTER: u32 = 41;
    const IPV6_JOIN_GROUP: u32 = 20;
    const IPV6_LEAVE_GROUP: u32 = 21;
    const IPV6_JOIN_ANYCAST: u32 = 27;
    const IPV6_LEAVE_ANYCAST: u32 = 28;
    const MCAST_JOIN_GROUP: u32 = 42;
    const MCAST_MSFILTER: u32 = 48;
    match level {
        IP => name >= IP_ADD_MEMBERSHIP && name <= IP_MSFILTER || name >= MCAST_JOIN_GROUP && name <= MCAST_MSFILTER,
        IPV6 => {
            matches!(
                name,
                IPV6_JOIN_GROUP | IPV6_LEAVE_GROUP | IPV6_JOIN_ANYCAST | IPV6_LEAVE_ANYCAST
            ) || name >= MCAST_JOIN_GROUP && name <= MCAST_MSFILTER
        }
        _ => false,
    }
}

/// Whether somebody gave the socket a route before the label, under which nobody does. A function of its own: the stack is short.
#[inline(never)]
fn is_routed_already(label: &Label, sock: u64) -> bool {
    let routed = kernel::sock_has_options(sock);
    if routed {
        count_refused(label, protected::ROUTE);
    }
    routed
}

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
    /// It may carry one inside.
    const FLOWLABEL_MGR: u32 = 32;
    match level {
        IP => name == if of_message { IP_RETOPTS } else { IP_OPTIONS },
        IPV6 => name == RTHDR || name == OLD_RTHDR || name == OLD_OPTIONS || name == FLOWLABEL_MGR && !of_message,
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
    let (level, name) = (kernel::plain(&context, 1) as u32, kernel::plain(&context, 2) as u32);
    if is_route(level, name, false) || is_membership(level, name) {
        count_refused(&label, protected::ROUTE);
        return -errno::EPERM;
    }
    0
}

/// Whether a netlink address is the kernel's: processes and groups hear there, too.
#[inline(always)]
fn to_kernel(address: u64, length: u32) -> bool {
    const LENGTH: u32 = 12;
    if address == 0 || length == 0 {
        return true;
    }
    if length < LENGTH {
        // The kernel refuses it.
        return false;
    }
    let (port, groups) = kernel::netlink_address(address);
    port == 0 && groups == 0
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
    let mut made = Flow {
        owner: label.label,
        ..NOTHING
    };
    if remember(kernel::socket_sock(kernel::argument(&context, 0)), &mut made) {
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
    if owner(peer) == label.label {
        return Answer::Pass;
    }
    if let Some(found) = known(sock)
        && found.sort == flow::ALLOWED
        && found.label == label.label
        && found.port == peer
    {
        settle();
        return Answer::Pass;
    }
    if !room(label, sock) {
        return Answer::Refuse;
    }
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
    through(gate(Some(key), &UnixOf { flags }))
}

/// fn(sock, other, newsk)
#[lsm(hook = "unix_stream_connect")]
pub fn guard_reach_stream(context: LsmContext) -> i32 {
    let peer = kernel::argument(&context, 1);
    if maybe(peer) {
        // The other end belongs to whom the listener belongs to: what is sent back on it is no egress.
        let owner = owner(peer);
        if owner != 0 {
            let _ = remember(kernel::argument(&context, 2), &mut Flow { owner, ..NOTHING });
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
    if owner(sock) == label.label {
        return Answer::Pass;
    }
    if is(sock, flow::ALLOWED, label) {
        settle();
        return Answer::Pass;
    }
    let peer = kernel::unix_peer(sock);
    if peer == 0 {
        return Answer::Pass;
    }
    reach_unix(label, sock, peer, ask_flag::CONNECTED_BEFORE)
}
