//! What the decoder of events says in the words of the rest of the agent.
//!
//! Owns those few types; given nothing. It must not need more than the standard library: the decoder is fuzzed without aya.

use std::net::IpAddr;

/// Index of a label in the kernel maps; 0 means not labelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelId(pub u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReachHow {
    Connect,
    /// A message that names its destination.
    Message,
    /// A message on a socket that was connected before the label, or by somebody outside.
    ConnectedBefore,
    /// listen(2) on an address that others can reach; the peer is the own address.
    Listen,
}

/// A datagram from the port of resolvers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub label: LabelId,
    pub resolver: IpAddr,
    /// Inode number of the network namespace that it arrived in.
    pub network_namespace: u32,
    /// Anybody's bytes.
    pub message: Vec<u8>,
}
