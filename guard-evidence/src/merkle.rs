//! The log's tree: RFC 6962 hashes, roots, inclusion and consistency proofs.
//!
//! Owns the arithmetic of the tree. It is given leaf hashes in order. It must never be asked to trust a size or an
//! index: those of a proof come from a signed checkpoint and from the record's own place.

use std::convert::Infallible;

use sha2::{Digest as _, Sha256};

use crate::nodes::{self, Nodes};

/// SHA-256.
pub type Hash = [u8; 32];

/// Longest proof of a tree with at most 2^63 leaves.
pub const MOST_HASHES: usize = 63;

/// Hash of a leaf: SHA-256(0x00 ‖ bytes). A leaf is the exact bytes of an envelope.
#[must_use]
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(leaf).finalize().into()
}

/// Hash of a node: SHA-256(0x01 ‖ left ‖ right).
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new()
        .chain_update([1])
        .chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

/// Root of the tree without leaves.
#[must_use]
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// What it takes to append: the roots of the complete subtrees that make up the tree, largest first. 32 bytes for each
/// bit that is set in the size.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    roots: Vec<Hash>,
}

impl Frontier {
    /// As [`Frontier::size`] and [`Frontier::roots`] gave it; `None` if they do not fit each other.
    #[must_use]
    pub fn from_parts(size: u64, roots: Vec<Hash>) -> Option<Self> {
        (u64::from(size.count_ones()) == roots.len() as u64).then_some(Self { size, roots })
    }

    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    #[must_use]
    pub fn roots(&self) -> &[Hash] {
        &self.roots
    }

    /// Appends a leaf by its hash.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.roots.pop() {
                hash = node_hash(&left, &hash);
            }
        }
        self.roots.push(hash);
        self.size += 1;
    }

    #[must_use]
    pub fn root(&self) -> Hash {
        self.roots
            .iter()
            .rev()
            .copied()
            .reduce(|right, left| node_hash(&left, &right))
            .unwrap_or_else(empty_root)
    }
}

/// A whole tree in memory (about 64 bytes for each leaf), for many proofs.
#[derive(Debug, Clone)]
pub struct Tree {
    /// `levels[l][i]`: root of the complete subtree over leaves `i·2^l .. (i+1)·2^l`.
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    #[must_use]
    pub fn new(leaves: Vec<Hash>) -> Self {
        let mut levels = vec![leaves];
        while let Some(below) = levels.last().filter(|below| below.len() > 1) {
            let level = below
                .chunks_exact(2)
                .map(|pair| node_hash(&pair[0], &pair[1]))
                .collect();
            levels.push(level);
        }
        Self { levels }
    }

    #[must_use]
    pub fn size(&self) -> u64 {
        self.levels.first().map_or(0, |leaves| leaves.len() as u64)
    }

    #[must_use]
    pub fn root(&self) -> Hash {
        let Ok(root) = nodes::root(&mut &*self, self.size());
        root
    }

    /// Proof that leaf `index` is in this tree; `None` if it is not.
    #[must_use]
    pub fn inclusion(&self, index: u64) -> Option<Vec<Hash>> {
        let Ok(proof) = nodes::inclusion(&mut &*self, index, self.size());
        proof
    }

    /// Proof that the tree of the first `old` leaves is a beginning of this one; `None` if `old` is 0 or too large.
    #[must_use]
    pub fn consistency(&self, old: u64) -> Option<Vec<Hash>> {
        let Ok(proof) = nodes::consistency(&mut &*self, old, self.size());
        proof
    }
}

impl Nodes for &Tree {
    type Error = Infallible;

    fn node(&mut self, level: u32, index: u64) -> Result<Hash, Infallible> {
        let level = &self.levels[level as usize];
        Ok(level[usize::try_from(index).unwrap_or(usize::MAX)])
    }
}

/// A proof that does not prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error("the index or size lies outside the tree")]
    Range,
    #[error("the proof has the wrong number of hashes")]
    Length,
    #[error("the proof leads to another root")]
    Root,
}

/// Checks that the leaf with this hash is number `index` of the tree with `size` leaves and this root.
///
/// # Errors
/// [`ProofError`].
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::Range);
    }
    let (mut node, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for sibling in proof {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(ProofError::Length);
    }
    if hash == *root { Ok(()) } else { Err(ProofError::Root) }
}

/// Checks that the tree with `old` leaves is a beginning of the one with `new` leaves.
///
/// # Errors
/// [`ProofError`].
pub fn verify_consistency(
    old: u64,
    new: u64,
    old_root: &Hash,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), ProofError> {
    if old == 0 || old > new {
        return Err(ProofError::Range);
    }
    if old == new {
        return match (proof.is_empty(), old_root == new_root) {
            (false, _) => Err(ProofError::Length),
            (true, false) => Err(ProofError::Root),
            (true, true) => Ok(()),
        };
    }
    let (mut node, mut last) = (old - 1, new - 1);
    let shift = node.trailing_ones();
    node >>= shift;
    last >>= shift;
    let mut hashes = proof.iter();
    // When the old tree is one complete subtree, its root is where the way up begins.
    let first = if node == 0 {
        old_root
    } else {
        hashes.next().ok_or(ProofError::Length)?
    };
    let (mut old_hash, mut new_hash) = (*first, *first);
    for sibling in hashes {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if node & 1 == 1 || node == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(ProofError::Length);
    }
    if old_hash == *old_root && new_hash == *new_root {
        Ok(())
    } else {
        Err(ProofError::Root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The leaves and roots that Certificate Transparency implementations share.
    const LEAVES: [&str; 8] = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ];
    const ROOTS: [&str; 8] = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    fn leaves(n: usize) -> Vec<Hash> {
        (0..n).map(|i| leaf_hash(format!("leaf {i}").as_bytes())).collect()
    }

    #[test]
    fn known_roots() {
        assert_eq!(
            hex::encode(empty_root()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        let hashes: Vec<Hash> = LEAVES.iter().map(|l| leaf_hash(&hex::decode(l).unwrap())).collect();
        let mut frontier = Frontier::default();
        for (n, root) in ROOTS.iter().enumerate() {
            frontier.push(hashes[n]);
            assert_eq!(hex::encode(frontier.root()), *root);
            assert_eq!(hex::encode(Tree::new(hashes[..=n].to_vec()).root()), *root);
        }
    }

    #[test]
    fn known_proof() {
        // RFC 6962 section 2.1.3: in the tree of 7, the path of d0 is b, h, l; of d6 it is i, k.
        let l = leaves(7);
        let tree = Tree::new(l.clone());
        let (g, h, i, j) = (
            node_hash(&l[0], &l[1]),
            node_hash(&l[2], &l[3]),
            node_hash(&l[4], &l[5]),
            l[6],
        );
        let (k, right) = (node_hash(&g, &h), node_hash(&i, &j));
        assert_eq!(tree.inclusion(0).unwrap(), vec![l[1], h, right]);
        assert_eq!(tree.inclusion(6).unwrap(), vec![i, k]);
        // 2.1.3: from 3 to 7 it is c, d, g, l; from 4 to 7 it is l; from 6 to 7 it is i, j, k.
        assert_eq!(tree.consistency(3).unwrap(), vec![l[2], l[3], g, right]);
        assert_eq!(tree.consistency(4).unwrap(), vec![right]);
        assert_eq!(tree.consistency(6).unwrap(), vec![i, j, k]);
    }

    #[test]
    fn every_proof_up_to_70_leaves_holds_and_every_change_of_it_does_not() {
        for n in 1..=70usize {
            let l = leaves(n);
            let tree = Tree::new(l.clone());
            let size = n as u64;
            let mut frontier = Frontier::default();
            l.iter().for_each(|leaf| frontier.push(*leaf));
            assert_eq!(frontier.root(), tree.root());
            assert_eq!(
                Frontier::from_parts(frontier.size(), frontier.roots().to_vec()),
                Some(frontier)
            );
            for index in 0..size {
                let leaf = &l[usize::try_from(index).unwrap()];
                let proof = tree.inclusion(index).unwrap();
                verify_inclusion(leaf, index, size, &proof, &tree.root()).unwrap();
                assert!(verify_inclusion(&[0; 32], index, size, &proof, &tree.root()).is_err());
                assert!(verify_inclusion(leaf, index + 1, size, &proof, &tree.root()).is_err());
                for at in 0..proof.len() {
                    let mut changed = proof.clone();
                    changed[at][0] ^= 1;
                    assert_eq!(
                        verify_inclusion(leaf, index, size, &changed, &tree.root()),
                        Err(ProofError::Root)
                    );
                    changed.remove(at);
                    assert!(verify_inclusion(leaf, index, size, &changed, &tree.root()).is_err());
                }
                let longer = [proof, vec![[0; 32]]].concat();
                assert!(verify_inclusion(leaf, index, size, &longer, &tree.root()).is_err());
            }
            assert!(tree.inclusion(size).is_none());
            for old in 1..=size {
                let old_root = Tree::new(l[..usize::try_from(old).unwrap()].to_vec()).root();
                let proof = tree.consistency(old).unwrap();
                verify_consistency(old, size, &old_root, &tree.root(), &proof).unwrap();
                assert!(verify_consistency(old, size, &[0; 32], &tree.root(), &proof).is_err());
                assert!(verify_consistency(old, size, &old_root, &[0; 32], &proof).is_err());
                for at in 0..proof.len() {
                    let mut changed = proof.clone();
                    changed[at][0] ^= 1;
                    assert!(verify_consistency(old, size, &old_root, &tree.root(), &changed).is_err());
                    changed.remove(at);
                    assert!(verify_consistency(old, size, &old_root, &tree.root(), &changed).is_err());
                }
                let longer = [proof, vec![[0; 32]]].concat();
                assert!(verify_consistency(old, size, &old_root, &tree.root(), &longer).is_err());
            }
            assert!(tree.consistency(0).is_none() && tree.consistency(size + 1).is_none());
        }
    }

    #[test]
    fn no_size_or_index_panics() {
        let h = [1; 32];
        for a in [0, 1, 2, u64::MAX / 2, u64::MAX - 1, u64::MAX] {
            for b in [0, 1, 2, u64::MAX / 2, u64::MAX - 1, u64::MAX] {
                for n in [0, 1, 63, 64, 100] {
                    let proof = vec![h; n];
                    assert!(verify_inclusion(&h, a, b, &proof, &[2; 32]).is_err());
                    assert!(verify_consistency(a, b, &h, &[2; 32], &proof).is_err());
                }
            }
        }
    }
}
