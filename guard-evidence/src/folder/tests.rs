//! The log's folder: what it holds, and what a crash at each point leaves.

use super::*;
use crate::key::SigningKey;
use crate::merkle::{Tree, verify_consistency, verify_inclusion};

const ORIGIN: &str = "guard.example.org/guard";

fn key() -> SigningKey {
    SigningKey::from_seed(&[4; 32])
}

fn leaf(n: u64) -> Vec<u8> {
    format!("envelope {n}").into_bytes()
}

fn leaves(range: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    range.map(leaf).collect()
}

fn tree(size: u64) -> Tree {
    Tree::new((0..size).map(|n| leaf_hash(&leaf(n))).collect())
}

fn open(dir: &Path) -> Folder {
    Folder::open(dir, ORIGIN, &[key().public()]).unwrap()
}

fn note(size: u64, root: Hash) -> String {
    let origin = ORIGIN.to_owned();
    Checkpoint { origin, size, root }.sign(&key()).unwrap()
}

fn grow(folder: &mut Folder, size: u64) -> Result<Arc<Head>, FolderError> {
    folder.stage(&leaves(folder.size()..size))?;
    folder.publish(note(size, folder.root()?))
}

/// Reads the log as a stranger does: the checkpoint, then every tile that a tree of its size has.
fn read_as_stranger(dir: &Path) -> u64 {
    let Some((_, head)) = read_checkpoint(dir, ORIGIN, &[key().public()]).unwrap() else {
        return 0;
    };
    let size = head.size;
    let mut hashes = Vec::new();
    for number in 0..size.div_ceil(WIDTH) {
        let width = u16::try_from((size - number * WIDTH).min(WIDTH)).unwrap();
        let tile = |kind| Tile { kind, number, width };
        let entries = fs::read(dir.join(tile(Kind::Entries).path())).unwrap();
        let entries = tile::entries(&entries).unwrap();
        let level: Vec<Hash> = entries.iter().map(|entry| leaf_hash(entry)).collect();
        assert_eq!(hashes_on_disk(dir, tile(Kind::Hashes(0))).unwrap(), level);
        for (n, entry) in (number * WIDTH..).zip(&entries) {
            assert_eq!(*entry, leaf(n));
        }
        hashes.extend(level);
    }
    assert_eq!(hashes.len() as u64, size);
    assert_eq!(Tree::new(hashes).root(), head.root);
    for tile in tile::partials(size) {
        assert!(dir.join(tile.path()).exists(), "{}", tile.path());
    }
    size
}

#[test]
fn proofs_from_tiles_are_those_of_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = open(dir.path());
    let mut last: Option<Arc<Head>> = None;
    for size in [1, 2, 255, 256, 257, 511, 512, 700, 70_000] {
        let head = grow(&mut folder, size).unwrap();
        let whole = tree(size);
        assert_eq!(head.checkpoint.root, whole.root(), "{size}");
        let mut proofs = Proofs::new(dir.path(), head.clone());
        for index in [0, size / 3, size / 2, size - 1] {
            let proof = proofs.inclusion(index).unwrap().unwrap();
            assert_eq!(Some(&proof), whole.inclusion(index).as_ref());
            verify_inclusion(&leaf_hash(&leaf(index)), index, size, &proof, &head.checkpoint.root).unwrap();
        }
        assert_eq!(proofs.inclusion(size).unwrap(), None);
        if let Some(last) = &last {
            let (old, root) = (last.checkpoint.size, last.checkpoint.root);
            let proof = proofs.consistency(old).unwrap().unwrap();
            verify_consistency(old, size, &root, &head.checkpoint.root, &proof).unwrap();
        }
        last = Some(head);
    }
    assert_eq!(read_as_stranger(dir.path()), 70_000);
    for path in [
        "tile/0/273.p/112",
        "tile/1/001.p/17",
        "tile/2/000.p/1",
        "tile/entries/000",
    ] {
        assert!(dir.path().join(path).exists(), "{path}");
    }
}

#[test]
fn a_crash_at_any_point_goes_on_and_never_forks() {
    // Sizes around the edges of tiles of the first two levels.
    for (from, to) in [(0, 1), (200, 255), (250, 256), (255, 258), (500, 800)] {
        for point in POINTS {
            for lost in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                if from > 0 {
                    grow(&mut open(dir.path()), from).unwrap();
                }
                let crash = Box::new(move |at| match at == point {
                    true => Err(io::Error::other("crash")),
                    false => Ok(()),
                });
                let mut folder = open(dir.path()).with_crash(crash);
                grow(&mut folder, to).unwrap_err();
                drop(folder);
                if lost {
                    lose_unsynced(dir.path(), point);
                }
                let seen = read_as_stranger(dir.path());
                let published = point >= Point::CheckpointPlaced && !(lost && point == Point::CheckpointPlaced);
                assert_eq!(
                    seen,
                    if published { to } else { from },
                    "{from} to {to}, {point:?}, {lost}"
                );
                // What was seen is a beginning of what comes: more leaves than the crash had.
                let old = tree(seen).root();
                let mut folder = open(dir.path());
                assert_eq!((folder.size(), folder.rebuilding()), (seen, None));
                let head = grow(&mut folder, to + 300).unwrap();
                if seen > 0 {
                    let mut proofs = Proofs::new(dir.path(), head.clone());
                    let proof = proofs.consistency(seen).unwrap().unwrap();
                    verify_consistency(seen, to + 300, &old, &head.checkpoint.root, &proof).unwrap();
                }
                assert_eq!(read_as_stranger(dir.path()), to + 300);
            }
        }
    }
}

/// What a loss of power may take at this point: bytes and names that were not synced.
fn lose_unsynced(dir: &Path, point: Point) {
    match point {
        Point::TileWritten | Point::CheckpointWritten => {
            for path in temporaries(dir) {
                fs::write(path, b"").unwrap();
            }
        }
        Point::TilesSynced | Point::TilePlaced | Point::CheckpointSynced => {
            for path in temporaries(dir) {
                fs::remove_file(path).unwrap();
            }
        }
        Point::CheckpointPlaced => {
            // The name may still lead to the old file.
            let path = dir.join(CHECKPOINT);
            let size = read_checkpoint(dir, ORIGIN, &[key().public()]).unwrap().unwrap().1.size;
            let before = [(1, 0), (255, 200), (256, 250), (258, 255), (800, 500)];
            match before.iter().find(|(to, _)| *to == size).unwrap().1 {
                0 => fs::remove_file(path).unwrap(),
                from => fs::write(path, note(from, tree(from).root())).unwrap(),
            }
        }
        _ => {}
    }
}

fn temporaries(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(temporaries(&entry.path()));
        } else if entry.file_name().to_string_lossy().ends_with(".new") {
            found.push(entry.path());
        }
    }
    found
}

#[test]
fn tiles_that_are_gone_are_made_again_and_other_records_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    grow(&mut open(dir.path()), 600).unwrap();
    let damage = dir.path().join("tile/0/002.p/88");
    let bytes = fs::read(&damage).unwrap();
    for change in [0, 1, 2] {
        match change {
            0 => fs::remove_file(&damage).unwrap(),
            1 => fs::write(&damage, &bytes[..64]).unwrap(),
            _ => fs::write(&damage, [&[bytes[0] ^ 1][..], &bytes[1..]].concat()).unwrap(),
        }
        let mut folder = open(dir.path());
        assert!(folder.rebuilding().is_some() && folder.head().is_none());
        assert_eq!((folder.size(), folder.room(), folder.published()), (0, 600, 600));
        // Nothing is published before the tiles are those of the head.
        assert!(matches!(
            folder.publish(note(0, folder.root().unwrap())),
            Err(FolderError::Backwards { last: 600, offered: 0 })
        ));
        folder.stage(&leaves(0..300)).unwrap();
        let mut other = leaves(300..600);
        other[7] = b"another record".to_vec();
        assert!(matches!(folder.stage(&other), Err(FolderError::Forked { size: 600 })));
        folder.stage(&leaves(300..600)).unwrap();
        assert_eq!(folder.head().unwrap().checkpoint.size, 600);
        assert_eq!(read_as_stranger(dir.path()), 600);
        assert_eq!(fs::read(&damage).unwrap(), bytes);
    }
}

#[test]
fn one_writer_and_only_its_own_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = open(dir.path());
    let open = |origin: &str, key: SigningKey| Folder::open(dir.path(), origin, &[key.public()]);
    assert!(matches!(open(ORIGIN, key()), Err(FolderError::Locked { .. })));
    grow(&mut folder, 3).unwrap();
    assert!(matches!(folder.publish(note(3, [0; 32])), Err(FolderError::Head)));
    drop(folder);
    for (origin, key) in [("other.example.org", key()), (ORIGIN, SigningKey::from_seed(&[5; 32]))] {
        assert!(matches!(open(origin, key), Err(FolderError::Checkpoint { .. })));
    }
    let changed = note(3, tree(3).root()).replacen("\n3\n", "\n2\n", 1);
    fs::write(dir.path().join(CHECKPOINT), changed).unwrap();
    assert!(matches!(open(ORIGIN, key()), Err(FolderError::Checkpoint { .. })));
}

#[test]
fn older_tiles_are_cut_out_of_what_is_there_and_unpublished_ones_are_not_given() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = open(dir.path());
    for size in [10, 20, 30, 40, 290] {
        grow(&mut folder, size).unwrap();
    }
    let head = grow(&mut folder, 300).unwrap();
    assert!(!dir.path().join("tile/0/000.p").exists(), "grown tiles are removed");
    assert!(
        dir.path().join("tile/0/001.p/34").exists(),
        "those of the checkpoint before are kept"
    );
    folder.stage(&leaves(300..310)).unwrap();
    let tile = |kind, number, width| read_tile(dir.path(), &head, Tile { kind, number, width }).unwrap();
    let hashes = |range: std::ops::Range<u64>| range.flat_map(|n| leaf_hash(&leaf(n))).collect::<Vec<u8>>();
    assert_eq!(tile(Kind::Hashes(0), 0, 10), Some(hashes(0..10)));
    assert_eq!(tile(Kind::Hashes(0), 0, 256), Some(hashes(0..256)));
    assert_eq!(tile(Kind::Hashes(0), 1, 3), Some(hashes(256..259)));
    let entries = tile(Kind::Entries, 1, 2).unwrap();
    assert_eq!(tile::entries(&entries).unwrap(), [leaf(256), leaf(257)]);
    assert_eq!(tile(Kind::Hashes(0), 1, 45), None, "not published");
    assert_eq!(tile(Kind::Entries, 1, 256), None);
    assert_eq!(tile(Kind::Hashes(1), 0, 2), None);
    assert_eq!(tile(Kind::Hashes(0), u64::MAX, 1), None);
}
