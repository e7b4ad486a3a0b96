//! Roots and proofs, from wherever a tree's hashes are kept: in memory or in tiles.
//!
//! Owns which hashes a proof is made of. It is given whoever knows the roots of complete subtrees. It must never ask for
//! more of them than the logarithm of the tree.

use crate::merkle::{Hash, empty_root, node_hash};

/// Knows the roots of complete subtrees.
pub trait Nodes {
    type Error;

    /// Root of the complete subtree over leaves `index·2^level .. (index+1)·2^level`, all of which are in the tree.
    ///
    /// # Errors
    /// If the hash cannot be had.
    fn node(&mut self, level: u32, index: u64) -> Result<Hash, Self::Error>;
}

/// Root of the tree of the first `size` leaves.
///
/// # Errors
/// Those of `nodes`.
pub fn root<N: Nodes>(nodes: &mut N, size: u64) -> Result<Hash, N::Error> {
    if size == 0 {
        Ok(empty_root())
    } else {
        subtree(nodes, 0, size)
    }
}

/// Proof that leaf `index` is in the tree of the first `size`; `None` if it is not.
///
/// # Errors
/// Those of `nodes`.
pub fn inclusion<N: Nodes>(nodes: &mut N, index: u64, size: u64) -> Result<Option<Vec<Hash>>, N::Error> {
    if index >= size {
        return Ok(None);
    }
    let mut proof = Vec::new();
    let (mut lo, mut hi) = (0, size);
    while hi - lo > 1 {
        let mid = lo + split(hi - lo);
        if index < mid {
            proof.push(subtree(nodes, mid, hi)?);
            hi = mid;
        } else {
            proof.push(subtree(nodes, lo, mid)?);
            lo = mid;
        }
    }
    proof.reverse();
    Ok(Some(proof))
}

/// Proof that the tree of the first `old` leaves is a beginning of that of the first `size`; `None` if `old` is 0 or
/// too large.
///
/// # Errors
/// Those of `nodes`.
pub fn consistency<N: Nodes>(nodes: &mut N, old: u64, size: u64) -> Result<Option<Vec<Hash>>, N::Error> {
    if old == 0 || old > size {
        return Ok(None);
    }
    let mut proof = Vec::new();
    let (mut lo, mut hi) = (0, size);
    // While `whole`, the old tree is the subtree over `lo..old` and its root is known to the verifier.
    let mut whole = true;
    while hi != old {
        let mid = lo + split(hi - lo);
        if old <= mid {
            proof.push(subtree(nodes, mid, hi)?);
            hi = mid;
        } else {
            proof.push(subtree(nodes, lo, mid)?);
            lo = mid;
            whole = false;
        }
    }
    if !whole {
        proof.push(subtree(nodes, lo, hi)?);
    }
    proof.reverse();
    Ok(Some(proof))
}

/// Root over the leaves `lo..hi`, at least one; `lo` is where the tree splits.
fn subtree<N: Nodes>(nodes: &mut N, lo: u64, hi: u64) -> Result<Hash, N::Error> {
    let n = hi - lo;
    if n.is_power_of_two() {
        return nodes.node(n.trailing_zeros(), lo >> n.trailing_zeros());
    }
    let mid = lo + split(n);
    let left = subtree(nodes, lo, mid)?;
    Ok(node_hash(&left, &subtree(nodes, mid, hi)?))
}

/// Largest power of two smaller than `n`, which is at least 2.
fn split(n: u64) -> u64 {
    1 << (u64::BITS - 1 - (n - 1).leading_zeros())
}
