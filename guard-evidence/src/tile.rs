//! Tiles: a log as immutable files (C2SP tlog-tiles).
//!
//! Owns their names and contents, and how a proof is read out of them. It is given hashes and envelopes in log order. It
//! must never touch a file: [`crate::folder`] does, and so may any HTTP client.
//!
//! ```text
//! tile/<L>/<N>[.p/<W>]        hashes N·256 .. of level 8·L: roots over 256^L leaves each
//! tile/entries/<N>[.p/<W>]    leaves N·256 ..: a length of 16 bits, big-endian, before each
//! ```
//!
//! `.p/<W>` names the first `W` of a tile that is not full yet. `N` is in groups of three digits, each but the last with
//! an `x` before it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::merkle::{Hash, node_hash};
use crate::nodes::Nodes;

/// Hashes or entries of a full tile.
pub const WIDTH: u64 = 256;
/// Binary levels that one tile spans.
const HEIGHT: u32 = 8;
/// Levels of tiles that a log with 2^63 leaves has.
pub const LEVELS: u8 = 8;

/// Roots within tiles that a [`TileTree`] keeps.
const ROOTS: usize = 16_384;

/// What a tile holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Hashes of a level of tiles, 0 to 7.
    Hashes(u8),
    Entries,
}

/// The name of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    pub kind: Kind,
    /// Counted from 0.
    pub number: u64,
    /// How many hashes or entries it has, 1 to 256.
    pub width: u16,
}

impl Tile {
    /// Whether it never grows any more.
    #[must_use]
    pub fn is_full(self) -> bool {
        u64::from(self.width) == WIDTH
    }

    /// The same tile when it is full.
    #[must_use]
    pub fn full(self) -> Self {
        Self { width: 256, ..self }
    }

    /// Its path below the log's folder or address.
    #[must_use]
    pub fn path(self) -> String {
        let kind = match self.kind {
            Kind::Hashes(level) => level.to_string(),
            Kind::Entries => "entries".to_owned(),
        };
        let mut number = format!("{:03}", self.number % 1000);
        let mut rest = self.number / 1000;
        while rest > 0 {
            number = format!("x{:03}/{number}", rest % 1000);
            rest /= 1000;
        }
        if self.is_full() {
            format!("tile/{kind}/{number}")
        } else {
            format!("tile/{kind}/{number}.p/{}", self.width)
        }
    }

    /// Reads a path in its only spelling, which leaves no way out of the folder.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        if path.len() > 64 {
            return None;
        }
        let (kind, rest) = path.strip_prefix("tile/")?.split_once('/')?;
        let kind = match kind {
            "entries" => Kind::Entries,
            level => Kind::Hashes(level.parse().ok().filter(|level| *level < LEVELS)?),
        };
        let (digits, width) = match rest.split_once(".p/") {
            Some((digits, width)) => (digits, width.parse().ok().filter(|width| (1..256).contains(width))?),
            None => (rest, 256),
        };
        let mut number: u64 = 0;
        for group in digits.split('/') {
            let group: u64 = group.strip_prefix('x').unwrap_or(group).parse().ok()?;
            number = number.checked_mul(1000)?.checked_add(group)?;
        }
        let tile = Self { kind, number, width };
        (tile.path() == path).then_some(tile)
    }
}

/// The tile of a kind that is not full in a tree of this size; `None`: all of them are.
#[must_use]
pub fn partial(kind: Kind, size: u64) -> Option<Tile> {
    let hashes = of_level(kind, size);
    let width = u16::try_from(hashes % WIDTH).ok().filter(|width| *width > 0)?;
    Some(Tile {
        kind,
        number: hashes / WIDTH,
        width,
    })
}

/// Every tile that is not full in a tree of this size.
pub fn partials(size: u64) -> impl Iterator<Item = Tile> {
    let kinds = (0..LEVELS).map(Kind::Hashes).chain([Kind::Entries]);
    kinds.filter_map(move |kind| partial(kind, size))
}

/// How many hashes or entries of a kind a tree of this size has.
fn of_level(kind: Kind, size: u64) -> u64 {
    match kind {
        Kind::Hashes(level) => size >> (u32::from(level) * HEIGHT),
        Kind::Entries => size,
    }
}

/// The tile of level `level` that has hash `index`, as it is in a tree of this size.
#[must_use]
pub fn holding(level: u8, index: u64, size: u64) -> Option<Tile> {
    let kind = Kind::Hashes(level);
    let hashes = of_level(kind, size);
    let number = index / WIDTH;
    let width = hashes.checked_sub(number * WIDTH)?.min(WIDTH);
    let tile = Tile {
        kind,
        number,
        width: u16::try_from(width).ok()?,
    };
    (index < hashes).then_some(tile)
}

/// Root over a power of two of hashes.
#[must_use]
pub fn root_of(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => [0; 32],
        [one] => *one,
        _ => {
            let (left, right) = hashes.split_at(hashes.len() / 2);
            node_hash(&root_of(left), &root_of(right))
        }
    }
}

/// The bytes of a tile of hashes.
#[must_use]
pub fn to_bytes(hashes: &[Hash]) -> Vec<u8> {
    hashes.concat()
}

/// The hashes of a tile; `None` if the bytes are not that many.
#[must_use]
pub fn from_bytes(bytes: &[u8], width: u16) -> Option<Vec<Hash>> {
    let (hashes, rest) = bytes.as_chunks::<32>();
    (rest.is_empty() && hashes.len() == usize::from(width)).then(|| hashes.to_vec())
}

/// Adds an entry to a bundle; `false` if it is too long for one, which an envelope never is.
#[must_use]
pub fn push_entry(bundle: &mut Vec<u8>, entry: &[u8]) -> bool {
    let Ok(length) = u16::try_from(entry.len()) else {
        return false;
    };
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    true
}

/// The entries of a bundle; `None` if it is cut or has more than 256.
#[must_use]
pub fn entries(bundle: &[u8]) -> Option<Vec<&[u8]>> {
    let mut out = Vec::new();
    let mut rest = bundle;
    while !rest.is_empty() {
        let (length, tail) = rest.split_first_chunk::<2>()?;
        let (entry, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        out.push(entry);
        rest = tail;
    }
    (out.len() as u64 <= WIDTH).then_some(out)
}

/// Gives the hashes of tiles: from a folder, an archive, a server.
pub trait Tiles {
    type Error;

    /// The hashes of a tile of hashes, exactly as many as its width.
    ///
    /// # Errors
    /// If it cannot be had.
    fn hashes(&mut self, tile: Tile) -> Result<Arc<[Hash]>, Self::Error>;
}

/// A tree whose hashes are in tiles.
#[derive(Debug)]
pub struct TileTree<T> {
    tiles: T,
    size: u64,
    /// Roots that were computed: proofs of neighbours share nearly all of them.
    roots: HashMap<(u32, u64), Hash>,
}

impl<T: Tiles> TileTree<T> {
    /// The tree of the first `size` leaves.
    pub fn new(tiles: T, size: u64) -> Self {
        Self {
            tiles,
            size,
            roots: HashMap::new(),
        }
    }
}

impl<T: Tiles> Nodes for TileTree<T>
where
    T::Error: From<NoTile>,
{
    type Error = T::Error;

    fn node(&mut self, level: u32, index: u64) -> Result<Hash, T::Error> {
        if let Some(root) = self.roots.get(&(level, index)) {
            return Ok(*root);
        }
        let (tile_level, below) = (level / HEIGHT, level % HEIGHT);
        let first = index << below;
        let missing = || NoTile { level, index };
        let tile = u8::try_from(tile_level)
            .ok()
            .and_then(|level| holding(level, first, self.size))
            .ok_or_else(missing)?;
        let hashes = self.tiles.hashes(tile)?;
        let at = usize::try_from(first % WIDTH).unwrap_or(usize::MAX);
        let hashes = hashes.get(at..at + (1 << below)).ok_or_else(missing)?;
        let root = root_of(hashes);
        if below > 0 {
            if self.roots.len() >= ROOTS {
                self.roots.clear();
            }
            self.roots.insert((level, index), root);
        }
        Ok(root)
    }
}

/// A node that no tile of the tree has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tree has no node {index} at level {level}")]
pub struct NoTile {
    level: u32,
    index: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tile(kind: Kind, number: u64, width: u16) -> Tile {
        Tile { kind, number, width }
    }

    #[test]
    fn names() {
        for (tile, path) in [
            (tile(Kind::Hashes(0), 0, 256), "tile/0/000"),
            (tile(Kind::Hashes(0), 273, 112), "tile/0/273.p/112"),
            (tile(Kind::Hashes(1), 1_234_067, 256), "tile/1/x001/x234/067"),
            (tile(Kind::Entries, 1_000, 1), "tile/entries/x001/000.p/1"),
        ] {
            assert_eq!(tile.path(), path);
            assert_eq!(Tile::parse(path), Some(tile));
        }
        for bad in [
            "tile/0/0",
            "tile/0/0000",
            "tile/8/000",
            "tile/00/000",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/01",
            "tile/0/x000/000",
            "tile/0/../../checkpoint",
            "tile/0/001/000",
            "tile/0/x001/x000",
            "tile/entry/000",
            "tile/0/000/",
            "/tile/0/000",
            "tile/0/+00",
            "checkpoint",
        ] {
            assert_eq!(Tile::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn seventy_thousand_leaves_have_these_partial_tiles() {
        let paths: Vec<String> = partials(70_000).map(Tile::path).collect();
        assert_eq!(
            paths,
            [
                "tile/0/273.p/112",
                "tile/1/001.p/17",
                "tile/2/000.p/1",
                "tile/entries/273.p/112"
            ]
        );
        assert_eq!(partials(65_536).map(Tile::path).collect::<Vec<_>>(), ["tile/2/000.p/1"]);
        assert_eq!(partials(0).count(), 0);
        assert_eq!(holding(0, 69_999, 70_000), Some(tile(Kind::Hashes(0), 273, 112)));
        assert_eq!(holding(0, 70_000, 70_000), None);
        assert_eq!(holding(1, 5, 70_000), Some(tile(Kind::Hashes(1), 0, 256)));
    }

    #[test]
    fn bundles_round_trip_and_cut_ones_are_refused() {
        let mut bundle = Vec::new();
        let long = vec![7; 65_535];
        for entry in [&b""[..], b"one", &long] {
            assert!(push_entry(&mut bundle, entry));
        }
        assert_eq!(entries(&bundle).unwrap(), [&b""[..], b"one", &long]);
        assert!(!push_entry(&mut bundle, &vec![0; 65_536]));
        for cut in [1, 3, 6, bundle.len() - 1] {
            assert_eq!(entries(&bundle[..cut]), None, "{cut}");
        }
        assert_eq!(entries(&[0; 514]), None, "257 of them");
    }
}
