//! The spool: any bytes as a segment, and good segments with damage.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use guard_evidence::spool::{Opened, Options, Spool, SpoolError, frames_of_segment};

const FIRST: &str = "00000000000000000001.seg";

thread_local! {
    static DIR: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// A directory of this process, in memory where there is such a place: every input writes files.
pub(crate) fn dir() -> PathBuf {
    DIR.with_borrow_mut(|dir| {
        let dir = dir.get_or_insert_with(|| {
            let memory = Path::new("/dev/shm");
            let base = if memory.is_dir() {
                memory.to_path_buf()
            } else {
                std::env::temp_dir()
            };
            base.join(format!("guard-fuzz-spool-{}", std::process::id()))
        });
        if dir.exists() {
            let _ = fs::remove_dir_all(&*dir);
        }
        dir.clone()
    })
}

/// A segment of any bytes; then one that the spool itself wrote, cut or changed where the input says.
pub fn spool(data: &[u8]) {
    let dir = dir();
    any_segment(&dir, data);
    let _ = fs::remove_dir_all(&dir);
    damaged_segment(&dir, data);
    let _ = fs::remove_dir_all(&dir);
}

fn any_segment(dir: &Path, data: &[u8]) {
    let frames: Vec<Vec<u8>> = frames_of_segment(data).into_iter().map(<[u8]>::to_vec).collect();
    if fs::create_dir_all(dir)
        .and_then(|()| fs::write(dir.join(FIRST), data))
        .is_err()
    {
        return;
    }
    match Spool::open(dir, Options::default()) {
        Ok(opened) => goes_on(dir, opened, &frames),
        Err(error) => {
            assert!(matches!(error, SpoolError::Damaged { .. }), "{error}");
            assert_eq!(
                fs::read(dir.join(FIRST)).ok().as_deref(),
                Some(data),
                "damaged, and yet changed"
            );
        }
    }
}

/// An opened spool has exactly these frames, takes another and opens again without loss.
fn goes_on(dir: &Path, opened: Opened, frames: &[Vec<u8>]) {
    let Opened { mut spool, last, .. } = opened;
    let count = u64::try_from(frames.len()).unwrap_or(u64::MAX);
    assert_eq!(spool.written(), count);
    assert_eq!(last.as_ref(), frames.last());
    assert!(spool.append(b"one more").is_ok_and(|position| position == count + 1));
    assert!(spool.sync().is_ok_and(|durable| durable == count + 1));
    let read = spool
        .reader(1)
        .read(count + 1, usize::MAX, usize::MAX)
        .unwrap_or_default();
    assert_eq!(read.len(), frames.len() + 1);
    for ((position, frame), (n, expected)) in read.iter().zip(frames.iter().enumerate()) {
        assert_eq!(*position, n as u64 + 1);
        assert_eq!(frame, expected);
    }
    drop(spool);
    let Ok(again) = Spool::open(dir, Options::default()) else {
        panic!("does not open again")
    };
    assert!(again.cut.is_none());
    assert_eq!(again.last.as_deref(), Some(b"one more".as_slice()));
}

fn damaged_segment(dir: &Path, data: &[u8]) {
    let [a, b, how, rest @ ..] = data else { return };
    // Frames are envelopes, JSON: without NUL, so that no part of one looks like the header of a small frame.
    let rest: Vec<u8> = rest.iter().map(|byte| if *byte == 0 { b'0' } else { *byte }).collect();
    let frames: Vec<&[u8]> = rest.chunks(1 + usize::from(*a)).take(20).collect();
    let Ok(Opened { mut spool, .. }) = Spool::open(dir, Options::default()) else {
        panic!("a new spool does not open")
    };
    for frame in &frames {
        assert!(spool.append(frame).is_ok());
    }
    assert!(spool.sync().is_ok());
    drop(spool);
    let path = dir.join(FIRST);
    let Ok(good) = fs::read(&path) else { return };
    assert_eq!(frames_of_segment(&good), frames);
    let at = (usize::from(*a) << 8 | usize::from(*b)) % good.len();
    let mut bytes = good.clone();
    let cut = how % 2 == 0;
    if cut {
        bytes.truncate(at);
    } else {
        bytes[at] ^= how;
    }
    if fs::write(&path, &bytes).is_err() {
        return;
    }
    let intact: Vec<Vec<u8>> = frames_of_segment(&bytes).into_iter().map(<[u8]>::to_vec).collect();
    // Whatever happened, no frame is made up.
    assert!(intact.iter().zip(&frames).all(|(found, written)| found == written));
    match Spool::open(dir, Options::default()) {
        Ok(opened) => {
            assert_eq!(
                opened.cut.is_some(),
                !(cut && bytes == good[..bytes.len()] && whole(&bytes, &intact))
            );
            goes_on(dir, opened, &intact);
        }
        // What a crash leaves is a cut end; that must open.
        Err(error) => assert!(!cut, "cut at {at} of {}: {error}", good.len()),
    }
}

/// Whether the bytes end exactly after a frame.
fn whole(bytes: &[u8], frames: &[Vec<u8>]) -> bool {
    bytes.len() == 16 + frames.iter().map(|frame| 8 + frame.len()).sum::<usize>()
}
