//! The log's folder: tiles and checkpoint on disk, written so that no crash can fork the log.
//!
//! Owns a directory, a lock on it, and the order stage ▶ sync ▶ publish. It is given leaves in an order that is durable
//! elsewhere already, and signed heads. It must never show a head whose tiles are not on disk, nor one that does not
//! continue the last.
//!
//! Tiles that a crash left behind beyond the checkpoint are written again with the same bytes, since the order of the
//! leaves does not change. Of tiles that grow, those of the last two checkpoints stay; [`read_tile`] cuts any older one
//! out of what is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::{self, CHECKPOINT_BYTES, Checkpoint, CheckpointError, Note};
use crate::key::PublicKey;
use crate::merkle::{Hash, leaf_hash};
use crate::nodes;
use crate::tile::{self, Kind, LEVELS, NoTile, Tile, TileTree, Tiles, WIDTH};

#[cfg(test)]
mod tests;

const CHECKPOINT: &str = "checkpoint";
/// Most bytes of a bundle of entries.
const BUNDLE_BYTES: u64 = 256 * (2 + 65_535);
/// Full tiles that a reader keeps, of 8 KiB each.
const CACHED: usize = 512;

/// The log's folder could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: another process writes this log; stop it first")]
    Locked { path: PathBuf },
    #[error("{path}: {why}")]
    Checkpoint { path: PathBuf, why: CheckpointError },
    #[error("{path}: not what the log wrote there")]
    Damaged { path: PathBuf },
    #[error(transparent)]
    NoTile(#[from] NoTile),
    #[error("a leaf of {0} bytes does not fit a tile")]
    Leaf(usize),
    #[error(
        "the records are not those of the published log: its checkpoint of size {size} has another root; restore the newest database"
    )]
    Forked { size: u64 },
    #[error("a head of size {offered} cannot follow one of size {last}")]
    Backwards { last: u64, offered: u64 },
    #[error("the head to be published is not that of the staged tiles")]
    Head,
}

/// A place at which tests end the writer, as a crash would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// A tile is written under a temporary name; nothing of it need be on disk.
    TileWritten,
    TilesSynced,
    /// A tile has its name; the name need not be on disk.
    TilePlaced,
    FoldersSynced,
    CheckpointWritten,
    CheckpointSynced,
    /// The new head can be seen; after a loss of power the old one may be there again.
    CheckpointPlaced,
    CheckpointDurable,
    Pruned,
}

/// Every point, in the order in which they are passed.
pub const POINTS: [Point; 9] = [
    Point::TileWritten,
    Point::TilesSynced,
    Point::TilePlaced,
    Point::FoldersSynced,
    Point::CheckpointWritten,
    Point::CheckpointSynced,
    Point::CheckpointPlaced,
    Point::CheckpointDurable,
    Point::Pruned,
];

/// Called at each point; an error ends the write there.
pub type Crash = Box<dyn FnMut(Point) -> io::Result<()> + Send>;

/// A published head: the signed note and what is needed to prove from it.
#[derive(Debug)]
pub struct Head {
    /// The signed note, exact text.
    pub note: String,
    pub checkpoint: Checkpoint,
    /// Hashes of the tiles that are not full, by level.
    levels: Vec<Vec<Hash>>,
}

/// The writer. One per directory, held by a lock.
pub struct Folder {
    dir: PathBuf,
    /// What is staged: hashes of the tiles that are not full, by level.
    levels: Vec<Vec<Hash>>,
    /// The bundle of entries that is not full.
    entries: Vec<u8>,
    size: u64,
    head: Option<Arc<Head>>,
    /// Sizes whose growing tiles may still lie about: of the head before, and staged without being published.
    before: BTreeSet<u64>,
    /// Tiles of the head are gone or damaged, and are made again from the leaves.
    rebuilding: Option<String>,
    crash: Option<Crash>,
    _lock: File,
}

impl std::fmt::Debug for Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Folder")
            .field("dir", &self.dir)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Folder {
    /// Opens the folder, making it when it is missing. The checkpoint has to be this log's. If its tiles are not all
    /// there, they are made again: [`Self::rebuilding`] says so, and leaves are staged from the first on.
    ///
    /// # Errors
    /// [`FolderError::Locked`], or for a checkpoint that this log did not sign: nothing is changed then.
    pub fn open(dir: &Path, origin: &str, keys: &[PublicKey]) -> Result<Self, FolderError> {
        make_directory(dir)?;
        let lock_path = dir.join("lock");
        let lock = private(true).open(&lock_path).map_err(io_at(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(FolderError::Locked { path: dir.to_owned() }),
            Err(fs::TryLockError::Error(source)) => {
                return Err(FolderError::Io {
                    path: lock_path,
                    source,
                });
            }
        }
        let mut folder = Self {
            dir: dir.to_owned(),
            levels: vec![Vec::new(); usize::from(LEVELS)],
            entries: Vec::new(),
            size: 0,
            head: None,
            before: BTreeSet::new(),
            rebuilding: None,
            crash: None,
            _lock: lock,
        };
        let Some((note, checkpoint)) = read_checkpoint(dir, origin, keys)? else {
            return Ok(folder);
        };
        match load(dir, &checkpoint) {
            Ok((levels, entries)) => {
                (folder.levels, folder.entries, folder.size) = (levels, entries, checkpoint.size);
            }
            Err(why) => folder.rebuilding = Some(why.to_string()),
        }
        folder.head = Some(Arc::new(Head {
            note,
            checkpoint,
            levels: folder.levels.clone(),
        }));
        Ok(folder)
    }

    /// Ends the writer where a test wants it.
    #[must_use]
    pub fn with_crash(mut self, crash: Crash) -> Self {
        self.crash = Some(crash);
        self
    }

    /// Leaves that are staged: the next one has this index.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The published head. While tiles are made again nothing can be proved from it.
    #[must_use]
    pub fn head(&self) -> Option<Arc<Head>> {
        self.head.clone().filter(|_| self.rebuilding.is_none())
    }

    /// Why tiles are made again from the first leaf on.
    #[must_use]
    pub fn rebuilding(&self) -> Option<&str> {
        self.rebuilding.as_deref()
    }

    /// How many leaves the next [`Self::stage`] may have.
    #[must_use]
    pub fn room(&self) -> u64 {
        match &self.head {
            Some(head) if self.rebuilding.is_some() => head.checkpoint.size - self.size,
            _ => u64::MAX,
        }
    }

    /// Size of the checkpoint that was read or published last.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.head.as_ref().map_or(0, |head| head.checkpoint.size)
    }

    /// The last leaf hashes that are staged, those of one tile.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn last_leaves(&self) -> Result<Vec<Hash>, FolderError> {
        match (self.levels.first(), self.size.checked_sub(1)) {
            (Some(growing), _) if !growing.is_empty() => Ok(growing.clone()),
            (_, Some(last)) => hashes_on_disk(&self.dir, full(Kind::Hashes(0), last / WIDTH)),
            _ => Ok(Vec::new()),
        }
    }

    /// What is staged, as a head that nobody sees yet.
    #[must_use]
    pub fn staged(&self, note: String, checkpoint: Checkpoint) -> Head {
        Head {
            note,
            checkpoint,
            levels: self.levels.clone(),
        }
    }

    /// Root of what is staged.
    ///
    /// # Errors
    /// Never for what this writer staged.
    pub fn root(&self) -> Result<Hash, FolderError> {
        root(&self.levels, self.size)
    }

    /// Makes the tiles of these leaves durable, which come after those staged before. Nobody sees them yet. After an error
    /// the same leaves may be staged again.
    ///
    /// # Errors
    /// If the disk refuses, or the leaves are not those of the published head.
    pub fn stage<L: AsRef<[u8]>>(&mut self, leaves: &[L]) -> Result<(), FolderError> {
        let mut levels = self.levels.clone();
        let mut entries = self.entries.clone();
        let mut size = self.size;
        let mut files: BTreeMap<Tile, Vec<u8>> = BTreeMap::new();
        for leaf in leaves {
            let leaf = leaf.as_ref();
            if !tile::push_entry(&mut entries, leaf) {
                return Err(FolderError::Leaf(leaf.len()));
            }
            push(&mut levels, leaf_hash(leaf), size, &mut files);
            size += 1;
            if size.is_multiple_of(WIDTH) {
                files.insert(full(Kind::Entries, size / WIDTH - 1), std::mem::take(&mut entries));
            }
        }
        for tile in tile::partials(size).filter(|tile| tile::partial(tile.kind, self.size) != Some(*tile)) {
            let bytes = match tile.kind {
                Kind::Hashes(level) => tile::to_bytes(&levels[usize::from(level)]),
                Kind::Entries => entries.clone(),
            };
            files.insert(tile, bytes);
        }
        // Before anything of another log's tiles is overwritten.
        let confirmed = match &self.head {
            Some(head) if self.rebuilding.is_some() && size >= head.checkpoint.size => {
                if size > head.checkpoint.size || root(&levels, size)? != head.checkpoint.root {
                    return Err(FolderError::Forked {
                        size: head.checkpoint.size,
                    });
                }
                Some(Arc::new(Head {
                    note: head.note.clone(),
                    checkpoint: head.checkpoint.clone(),
                    levels: levels.clone(),
                }))
            }
            _ => None,
        };
        self.write(&files)?;
        self.before.insert(self.size);
        (self.levels, self.entries, self.size) = (levels, entries, size);
        if let Some(head) = confirmed {
            (self.head, self.rebuilding) = (Some(head), None);
        }
        Ok(())
    }

    /// Shows the head of what is staged: a signed note of its size and root.
    ///
    /// # Errors
    /// If the note is not that head's, or the disk refuses: then the old head is the one that counts, or the new one.
    pub fn publish(&mut self, note: String) -> Result<Arc<Head>, FolderError> {
        let last = self.published();
        if self.rebuilding.is_some() || self.size < last {
            return Err(FolderError::Backwards {
                last,
                offered: self.size,
            });
        }
        let path = self.dir.join(CHECKPOINT);
        let parsed = Note::parse(note.as_bytes()).map_err(|why| FolderError::Checkpoint {
            path: path.clone(),
            why,
        })?;
        if parsed.checkpoint.size != self.size || parsed.checkpoint.root != self.root()? {
            return Err(FolderError::Head);
        }
        let new = temporary(&path);
        let mut file = private(false).truncate(true).open(&new).map_err(io_at(&new))?;
        file.write_all(note.as_bytes()).map_err(io_at(&new))?;
        self.at(Point::CheckpointWritten)?;
        file.sync_all().map_err(io_at(&new))?;
        self.at(Point::CheckpointSynced)?;
        fs::rename(&new, &path).map_err(io_at(&path))?;
        self.at(Point::CheckpointPlaced)?;
        sync_directory(&self.dir)?;
        self.at(Point::CheckpointDurable)?;
        let head = Arc::new(Head {
            note,
            checkpoint: parsed.checkpoint,
            levels: self.levels.clone(),
        });
        self.prune(last);
        self.head = Some(head.clone());
        self.at(Point::Pruned)?;
        Ok(head)
    }

    /// Removes tiles that have grown since the last checkpoint. What cannot be removed only takes room.
    fn prune(&mut self, last: u64) {
        let kept: BTreeSet<Tile> = tile::partials(last).chain(tile::partials(self.size)).collect();
        for size in std::mem::replace(&mut self.before, BTreeSet::from([last])) {
            for tile in tile::partials(size).filter(|tile| !kept.contains(tile)) {
                let path = self.dir.join(tile.path());
                let _ = fs::remove_file(&path);
                if let Some(parent) = path.parent() {
                    // Refused while there is another one.
                    let _ = fs::remove_dir(parent);
                }
            }
        }
    }

    /// Writes files so that each is there whole or not at all, and durable.
    fn write(&mut self, files: &BTreeMap<Tile, Vec<u8>>) -> Result<(), FolderError> {
        let mut written = Vec::with_capacity(files.len());
        let mut folders = BTreeSet::new();
        for (tile, bytes) in files {
            let path = self.dir.join(tile.path());
            for folder in path.ancestors().skip(1).take_while(|folder| *folder != self.dir) {
                folders.insert(folder.to_owned());
            }
            if let Some(parent) = path.parent() {
                make_directory(parent)?;
            }
            let new = temporary(&path);
            let mut file = private(false).truncate(true).open(&new).map_err(io_at(&new))?;
            file.write_all(bytes).map_err(io_at(&new))?;
            self.at(Point::TileWritten)?;
            written.push((path, new, file));
        }
        for (_, new, file) in &written {
            file.sync_all().map_err(io_at(new))?;
        }
        self.at(Point::TilesSynced)?;
        for (path, new, _) in &written {
            fs::rename(new, path).map_err(io_at(path))?;
            self.at(Point::TilePlaced)?;
        }
        for folder in &folders {
            sync_directory(folder)?;
        }
        sync_directory(&self.dir)?;
        self.at(Point::FoldersSynced)
    }

    fn at(&mut self, point: Point) -> Result<(), FolderError> {
        match &mut self.crash {
            None => Ok(()),
            Some(crash) => crash(point).map_err(io_at(&self.dir)),
        }
    }
}

/// Adds a leaf's hash, which has this index; tiles that are full with it are files.
fn push(levels: &mut [Vec<Hash>], leaf: Hash, index: u64, files: &mut BTreeMap<Tile, Vec<u8>>) {
    let mut hash = leaf;
    let mut number = index;
    for (level, hashes) in (0..LEVELS).zip(levels) {
        hashes.push(hash);
        if (hashes.len() as u64) < WIDTH {
            return;
        }
        number /= WIDTH;
        files.insert(full(Kind::Hashes(level), number), tile::to_bytes(hashes));
        hash = tile::root_of(hashes);
        hashes.clear();
    }
}

fn full(kind: Kind, number: u64) -> Tile {
    Tile {
        kind,
        number,
        width: 256,
    }
}

/// The root over tiles that are not full: those of larger subtrees are their hashes.
fn root(levels: &[Vec<Hash>], size: u64) -> Result<Hash, FolderError> {
    nodes::root(&mut TileTree::new(Partial(levels), size), size)
}

/// Tiles that are not full, in memory.
struct Partial<'l>(&'l [Vec<Hash>]);

impl Tiles for Partial<'_> {
    type Error = FolderError;

    fn hashes(&mut self, tile: Tile) -> Result<Arc<[Hash]>, FolderError> {
        let hashes = match tile.kind {
            Kind::Hashes(level) => self.0.get(usize::from(level)),
            Kind::Entries => None,
        };
        hashes
            .filter(|hashes| hashes.len() == usize::from(tile.width))
            .map(|hashes| hashes.as_slice().into())
            .ok_or_else(|| FolderError::Damaged {
                path: tile.path().into(),
            })
    }
}

/// Proofs from one published head, beside the writer.
#[derive(Debug)]
pub struct Proofs {
    tree: TileTree<Reader>,
    head: Arc<Head>,
}

impl Proofs {
    #[must_use]
    pub fn new(dir: &Path, head: Arc<Head>) -> Self {
        let reader = Reader {
            dir: dir.to_owned(),
            head: head.clone(),
            cache: HashMap::new(),
        };
        Self {
            tree: TileTree::new(reader, head.checkpoint.size),
            head,
        }
    }

    #[must_use]
    pub fn head(&self) -> &Arc<Head> {
        &self.head
    }

    /// Proof that leaf `index` is in the head's tree; `None` if it is not.
    ///
    /// # Errors
    /// If tiles cannot be read.
    pub fn inclusion(&mut self, index: u64) -> Result<Option<Vec<Hash>>, FolderError> {
        nodes::inclusion(&mut self.tree, index, self.head.checkpoint.size)
    }

    /// Proof that the tree of the first `old` leaves is a beginning of the head's; `None` if `old` is 0 or too large.
    ///
    /// # Errors
    /// If tiles cannot be read.
    pub fn consistency(&mut self, old: u64) -> Result<Option<Vec<Hash>>, FolderError> {
        nodes::consistency(&mut self.tree, old, self.head.checkpoint.size)
    }
}

/// Reads full tiles from disk; those that are not full the head has.
#[derive(Debug)]
struct Reader {
    dir: PathBuf,
    head: Arc<Head>,
    cache: HashMap<Tile, Arc<[Hash]>>,
}

impl Tiles for Reader {
    type Error = FolderError;

    fn hashes(&mut self, tile: Tile) -> Result<Arc<[Hash]>, FolderError> {
        if !tile.is_full() {
            return Partial(&self.head.levels).hashes(tile);
        }
        if let Some(hashes) = self.cache.get(&tile) {
            return Ok(hashes.clone());
        }
        let hashes: Arc<[Hash]> = hashes_on_disk(&self.dir, tile)?.into();
        if self.cache.len() >= CACHED {
            self.cache.clear();
        }
        self.cache.insert(tile, hashes.clone());
        Ok(hashes)
    }
}

/// A tile of the published log; `None` if the log has none. One that has grown since is cut out of what is there.
///
/// # Errors
/// If the disk refuses, or the tile is damaged.
pub fn read_tile(dir: &Path, head: &Head, tile: Tile) -> Result<Option<Vec<u8>>, FolderError> {
    let size = head.checkpoint.size;
    let of = |tile: Tile| match tile.kind {
        Kind::Hashes(level) => size >> (8 * u32::from(level)),
        Kind::Entries => size,
    };
    let end = tile
        .number
        .checked_mul(WIDTH)
        .and_then(|n| n.checked_add(tile.width.into()));
    if end.is_none_or(|end| end > of(tile)) {
        return Ok(None);
    }
    let grown = tile::partial(tile.kind, size).filter(|grown| grown.number == tile.number);
    for candidate in [Some(tile), grown, Some(tile.full())].into_iter().flatten() {
        let path = dir.join(candidate.path());
        let bytes = match read_file(&path, BUNDLE_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(FolderError::Io { path, source }),
        };
        return cut(&bytes, tile).map(Some).ok_or(FolderError::Damaged { path });
    }
    Err(FolderError::Damaged {
        path: dir.join(tile.path()),
    })
}

/// The first hashes or entries of a tile.
fn cut(bytes: &[u8], tile: Tile) -> Option<Vec<u8>> {
    let width = usize::from(tile.width);
    let length = match tile.kind {
        Kind::Hashes(_) => 32 * width,
        Kind::Entries => {
            let entries = tile::entries(bytes)?;
            entries.get(..width)?.iter().map(|entry| entry.len() + 2).sum()
        }
    };
    bytes.get(..length).map(<[u8]>::to_vec)
}

/// The checkpoint that is published in a folder, and its head.
fn read_checkpoint(dir: &Path, origin: &str, keys: &[PublicKey]) -> Result<Option<(String, Checkpoint)>, FolderError> {
    let path = dir.join(CHECKPOINT);
    let bytes = match read_file(&path, CHECKPOINT_BYTES as u64) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FolderError::Io { path, source }),
    };
    let checkpoint = checkpoint::verify(&bytes, origin, keys).map_err(|why| FolderError::Checkpoint {
        path: path.clone(),
        why,
    })?;
    let note = String::from_utf8(bytes).map_err(|_| FolderError::Damaged { path })?;
    Ok(Some((note, checkpoint)))
}

/// The tiles of a head that are not full: hashes by level, and entries.
fn load(dir: &Path, head: &Checkpoint) -> Result<(Vec<Vec<Hash>>, Vec<u8>), FolderError> {
    let mut levels = vec![Vec::new(); usize::from(LEVELS)];
    let mut entries = Vec::new();
    for tile in tile::partials(head.size) {
        match tile.kind {
            Kind::Hashes(level) => levels[usize::from(level)] = hashes_on_disk(dir, tile)?,
            Kind::Entries => {
                let path = dir.join(tile.path());
                entries = read_file(&path, BUNDLE_BYTES).map_err(io_at(&path))?;
                let leaves = tile::entries(&entries).filter(|leaves| leaves.len() == usize::from(tile.width));
                let hashes: Option<Vec<Hash>> =
                    leaves.map(|leaves| leaves.iter().map(|leaf| leaf_hash(leaf)).collect());
                if hashes.as_ref() != levels.first() {
                    return Err(FolderError::Damaged { path });
                }
            }
        }
    }
    if root(&levels, head.size)? == head.root {
        Ok((levels, entries))
    } else {
        Err(FolderError::Damaged { path: dir.to_owned() })
    }
}

fn hashes_on_disk(dir: &Path, tile: Tile) -> Result<Vec<Hash>, FolderError> {
    let path = dir.join(tile.path());
    let bytes = read_file(&path, 32 * WIDTH).map_err(io_at(&path))?;
    tile::from_bytes(&bytes, tile.width).ok_or(FolderError::Damaged { path })
}

/// No more than a file of its kind may have.
fn read_file(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// Beside the file, so that it can take its place in one step.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

fn private(read: bool) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(read).write(true).create(true).truncate(false).mode(0o600);
    options
}

fn make_directory(dir: &Path) -> Result<(), FolderError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io_at(dir))
}

fn sync_directory(dir: &Path) -> Result<(), FolderError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_at(dir))
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { path, source }
}
