//! The spool: records on the host's disk from before they take effect until the console has them.
//!
//! Owns a directory of append-only segment files and a lock on it. It is given exact envelope bytes. It must never say
//! that a record is durable before `fdatasync` returned, and must never cut anything but a torn last frame.
//!
//! A segment is `GUARDSP1` ‖ first position (u64), then frames: length (u32) ‖ CRC-32C (u32) over length and bytes ‖
//! bytes; integers are little-endian. Positions count frames from 1 over the life of the directory. All calls block:
//! they belong on a thread of their own.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::dsse::RECORD_BYTES;

#[cfg(test)]
mod tests;

const MAGIC: &[u8; 8] = b"GUARDSP1";
const SEGMENT_HEADER: usize = 16;
const FRAME_HEADER: usize = 8;

/// A spool could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path}: damaged at byte {offset}: {what}; intact frames follow or it is not the last segment, so nothing was cut"
    )]
    Damaged {
        path: PathBuf,
        offset: u64,
        what: &'static str,
    },
    #[error("{path}: another process has this spool open")]
    Locked { path: PathBuf },
    #[error("spool is full: {bytes} bytes, {limit} allowed")]
    Full { bytes: u64, limit: u64 },
    #[error("a frame has 1 to {RECORD_BYTES} bytes, not {0}")]
    FrameSize(usize),
    #[error("an earlier write to the spool failed; open it again")]
    Broken,
    #[error("position {position} is not in the spool, which has {first} to {last}")]
    NoSuchPosition { position: u64, first: u64, last: u64 },
}

/// Sizes of a spool.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// A segment is closed when it has this many bytes.
    pub segment_bytes: u64,
    /// All segments together; [`Spool::append`] refuses beyond it.
    pub max_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 8 << 20,
            max_bytes: 1 << 30,
        }
    }
}

/// What [`Spool::open`] found.
#[derive(Debug)]
pub struct Opened {
    pub spool: Spool,
    /// A torn last frame was cut off: to be told in a `recovered` record.
    pub cut: Option<Cut>,
    /// The last intact frame: the chain goes on after it.
    pub last: Option<Vec<u8>>,
}

/// A torn end that was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    pub path: PathBuf,
    /// Where the file ends now.
    pub offset: u64,
    /// How much was cut.
    pub bytes: u64,
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    first: u64,
    bytes: u64,
}

/// The writer. One per directory, held by a lock.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    options: Options,
    segments: VecDeque<Segment>,
    file: File,
    /// Position of the last frame written; 0: none ever.
    written: u64,
    durable: u64,
    broken: bool,
    _lock: File,
}

impl Spool {
    /// Opens the directory, making it (mode 0700) if it is not there, and recovers: every frame of every segment is
    /// checked; what a crash left half-written at the very end is cut and reported.
    ///
    /// # Errors
    /// [`SpoolError::Damaged`] for anything else that is not intact: nothing was changed then. The caller may
    /// [`set_aside`] the damaged spool, say so in a record and begin a new epoch.
    pub fn open(dir: &Path, options: Options) -> Result<Opened, SpoolError> {
        let made = !dir.exists();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io_at(dir))?;
        if made && let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            sync_dir(parent)?;
        }
        let lock_path = dir.join("lock");
        let lock = options_rw().create(true).open(&lock_path).map_err(io_at(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(SpoolError::Locked { path: dir.to_owned() }),
            Err(fs::TryLockError::Error(source)) => {
                return Err(SpoolError::Io {
                    path: lock_path,
                    source,
                });
            }
        }

        let mut segments: VecDeque<Segment> = VecDeque::new();
        let mut cut = None;
        let mut last = None;
        let mut next = 1;
        let paths = segment_paths(dir)?;
        for (n, (name_first, path)) in paths.iter().enumerate() {
            let is_last = n + 1 == paths.len();
            let bytes = fs::read(path).map_err(io_at(path))?;
            if n > 0 && *name_first != next {
                return Err(SpoolError::Damaged {
                    path: path.clone(),
                    offset: 0,
                    what: "a segment before it is missing",
                });
            }
            next = *name_first;
            let scan = scan(&bytes, *name_first);
            if let Some((offset, what)) = scan.bad {
                if !is_last || !is_torn(&bytes, offset) {
                    return Err(SpoolError::Damaged {
                        path: path.clone(),
                        offset: offset as u64,
                        what,
                    });
                }
                let file = options_rw().open(path).map_err(io_at(path))?;
                if offset < SEGMENT_HEADER {
                    write_segment_header(&file, path, *name_first)?;
                } else {
                    file.set_len(offset as u64).map_err(io_at(path))?;
                }
                file.sync_all().map_err(io_at(path))?;
                cut = Some(Cut {
                    path: path.clone(),
                    offset: offset as u64,
                    bytes: (bytes.len() - offset) as u64,
                });
            }
            if let Some(range) = scan.last {
                last = Some(bytes[range].to_vec());
            }
            next += scan.frames;
            let bytes = scan.end.max(SEGMENT_HEADER) as u64;
            segments.push_back(Segment {
                path: path.clone(),
                first: *name_first,
                bytes,
            });
        }
        let written = next - 1;
        let file = match segments.back() {
            Some(segment) => {
                let mut file = options_rw().open(&segment.path).map_err(io_at(&segment.path))?;
                file.seek(SeekFrom::Start(segment.bytes))
                    .map_err(io_at(&segment.path))?;
                // What an earlier run wrote but did not sync is intact, so make it durable now.
                file.sync_all().map_err(io_at(&segment.path))?;
                file
            }
            None => {
                let (segment, file) = new_segment(dir, 1)?;
                segments.push_back(segment);
                file
            }
        };
        let dir = dir.to_owned();
        let spool = Self {
            dir,
            options,
            segments,
            file,
            written,
            durable: written,
            broken: false,
            _lock: lock,
        };
        Ok(Opened { spool, cut, last })
    }

    /// Writes a frame and gives its position. It is durable only after [`Spool::sync`].
    ///
    /// # Errors
    /// [`SpoolError::Full`] and write errors leave the spool as it was; if even that fails it is broken.
    pub fn append(&mut self, bytes: &[u8]) -> Result<u64, SpoolError> {
        if self.broken {
            return Err(SpoolError::Broken);
        }
        let frame = frame(bytes)?;
        let total = self.bytes() + frame.len() as u64;
        if total > self.options.max_bytes {
            return Err(SpoolError::Full {
                bytes: total,
                limit: self.options.max_bytes,
            });
        }
        if self.current()?.bytes >= self.options.segment_bytes {
            self.roll()?;
        }
        let end = self.current()?.bytes;
        if let Err(source) = self.file.write_all(&frame) {
            // A part may have been written: back to the last frame's end, or nothing may be written any more.
            let restored = self
                .file
                .set_len(end)
                .and_then(|()| self.file.seek(SeekFrom::Start(end)));
            self.broken = restored.is_err();
            return Err(SpoolError::Io {
                path: self.current()?.path.clone(),
                source,
            });
        }
        if let Some(segment) = self.segments.back_mut() {
            segment.bytes += frame.len() as u64;
        }
        self.written += 1;
        Ok(self.written)
    }

    /// Makes everything written durable and gives the last durable position. One call serves all appends before it.
    ///
    /// # Errors
    /// If the disk refuses; the spool is then broken, because the kernel may have dropped the pages: open it again.
    pub fn sync(&mut self) -> Result<u64, SpoolError> {
        if self.broken {
            return Err(SpoolError::Broken);
        }
        if self.durable < self.written {
            if let Err(source) = self.file.sync_data() {
                self.broken = true;
                return Err(SpoolError::Io {
                    path: self.current()?.path.clone(),
                    source,
                });
            }
            self.durable = self.written;
        }
        Ok(self.durable)
    }

    /// Deletes every segment whose frames all are at or before `through`. The newest segment stays, so that the chain
    /// can always go on from its last frame.
    ///
    /// # Errors
    /// If a file cannot be deleted.
    pub fn acknowledge(&mut self, through: u64) -> Result<(), SpoolError> {
        while self
            .segments
            .get(1)
            .is_some_and(|second| second.first <= through.saturating_add(1))
        {
            if let Some(segment) = self.segments.front() {
                fs::remove_file(&segment.path).map_err(io_at(&segment.path))?;
            }
            self.segments.pop_front();
        }
        Ok(())
    }

    /// Position of the last frame written; 0: none ever.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Position of the last frame that is on disk for certain.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Position of the oldest frame kept (one more than [`Spool::written`] if there is none).
    #[must_use]
    pub fn first(&self) -> u64 {
        self.segments.front().map_or(1, |s| s.first)
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.bytes).sum()
    }

    /// A reader of the same directory that begins at `position`, for another thread.
    #[must_use]
    pub fn reader(&self, position: u64) -> Reader {
        Reader {
            dir: self.dir.clone(),
            next: position,
            open: None,
        }
    }

    fn current(&self) -> Result<&Segment, SpoolError> {
        self.segments.back().ok_or(SpoolError::Broken)
    }

    fn roll(&mut self) -> Result<(), SpoolError> {
        self.sync()?;
        let (segment, file) = new_segment(&self.dir, self.written + 1)?;
        self.segments.push_back(segment);
        self.file = file;
        Ok(())
    }
}

/// Reads frames in order while the writer goes on.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    next: u64,
    /// Segment file that holds `next`, at its frame.
    open: Option<(PathBuf, File)>,
}

impl Reader {
    /// Position of the next frame to be read.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Goes to another position. To the one where it is costs nothing; any other is looked for from its segment's beginning.
    pub fn seek(&mut self, position: u64) {
        if position != self.next {
            self.next = position;
            self.open = None;
        }
    }

    /// The next frames, none beyond position `through` (give [`Spool::durable`]), at most `frames` of them and about
    /// `bytes` bytes.
    ///
    /// # Errors
    /// [`SpoolError::Damaged`] if a frame is not intact, [`SpoolError::NoSuchPosition`] if it was deleted.
    pub fn read(&mut self, through: u64, frames: usize, bytes: usize) -> Result<Vec<(u64, Vec<u8>)>, SpoolError> {
        let mut out = Vec::new();
        let mut size = 0;
        while self.next <= through && out.len() < frames && size < bytes {
            let frame = self.read_one(through)?;
            size += frame.len();
            out.push((self.next, frame));
            self.next += 1;
        }
        Ok(out)
    }

    fn read_one(&mut self, through: u64) -> Result<Vec<u8>, SpoolError> {
        // What cannot be read leaves no file at an unknown place behind. At the end of a segment the frame is the first of the next.
        if let Some((path, mut file)) = self.open.take()
            && let Some(frame) = read_frame(&mut file, &path)?
        {
            self.open = Some((path, file));
            return Ok(frame);
        }
        let paths = segment_paths(&self.dir)?;
        let missing = || SpoolError::NoSuchPosition {
            position: self.next,
            first: paths.first().map_or(1, |(first, _)| *first),
            last: through,
        };
        let (first, path) = paths
            .iter()
            .rev()
            .find(|(first, _)| *first <= self.next)
            .ok_or_else(missing)?;
        let mut file = File::open(path).map_err(io_at(path))?;
        file.seek(SeekFrom::Start(SEGMENT_HEADER as u64)).map_err(io_at(path))?;
        for _ in *first..self.next {
            read_frame(&mut file, path)?.ok_or_else(missing)?;
        }
        let frame = read_frame(&mut file, path)?.ok_or_else(missing)?;
        self.open = Some((path.clone(), file));
        Ok(frame)
    }
}

/// Renames every segment of a damaged spool so that it is kept but no longer read, and gives the new names.
///
/// # Errors
/// If a file cannot be renamed.
pub fn set_aside(dir: &Path) -> Result<Vec<PathBuf>, SpoolError> {
    let mut moved = Vec::new();
    for (_, path) in segment_paths(dir)? {
        let mut n = 0;
        let target = loop {
            let target = path.with_extension(if n == 0 {
                "damaged".to_owned()
            } else {
                format!("damaged.{n}")
            });
            if !target.exists() {
                break target;
            }
            n += 1;
        };
        fs::rename(&path, &target).map_err(io_at(&path))?;
        moved.push(target);
    }
    sync_dir(dir)?;
    Ok(moved)
}

/// Every intact frame of a segment's bytes, up to the first that is not. Pure: for tools and fuzzing.
#[must_use]
pub fn frames_of_segment(bytes: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    let mut at = SEGMENT_HEADER;
    while let Ok(Some(end)) = frame_at(bytes, at) {
        out.push(&bytes[at + FRAME_HEADER..end]);
        at = end;
    }
    out
}

struct Scan {
    frames: u64,
    last: Option<std::ops::Range<usize>>,
    /// Where the intact part ends.
    end: usize,
    bad: Option<(usize, &'static str)>,
}

fn scan(bytes: &[u8], first: u64) -> Scan {
    let mut scan = Scan {
        frames: 0,
        last: None,
        end: 0,
        bad: None,
    };
    if bytes.get(..SEGMENT_HEADER) != Some(segment_header(first).as_slice()) {
        scan.bad = Some((0, "not the header of this segment"));
        return scan;
    }
    scan.end = SEGMENT_HEADER;
    loop {
        match frame_at(bytes, scan.end) {
            Ok(None) => return scan,
            Ok(Some(end)) => {
                scan.last = Some(scan.end + FRAME_HEADER..end);
                scan.frames += 1;
                scan.end = end;
            }
            Err(what) => {
                scan.bad = Some((scan.end, what));
                return scan;
            }
        }
    }
}

/// Whether what is wrong from `offset` on can only be a write that a crash interrupted: nothing intact comes after it.
fn is_torn(bytes: &[u8], offset: usize) -> bool {
    // A segment whose header is not whole was being made; one with more than a header was not.
    if offset < SEGMENT_HEADER {
        return bytes.len() <= SEGMENT_HEADER;
    }
    (offset + 1..bytes.len()).all(|at| !matches!(frame_at(bytes, at), Ok(Some(_))))
}

/// The end of the intact frame at `at`; `None` at the end of the bytes.
fn frame_at(bytes: &[u8], at: usize) -> Result<Option<usize>, &'static str> {
    let rest = bytes.get(at..).unwrap_or_default();
    if rest.is_empty() {
        return Ok(None);
    }
    let Some((head, rest)) = rest.split_first_chunk::<FRAME_HEADER>() else {
        return Err("a frame's header is cut");
    };
    let (length, crc) = split_header(*head);
    if !(1..=RECORD_BYTES).contains(&length) {
        return Err("a frame's length is impossible");
    }
    let Some(body) = rest.get(..length) else {
        return Err("a frame is cut");
    };
    if checksum(&head[..4], body) == crc {
        Ok(Some(at + FRAME_HEADER + length))
    } else {
        Err("a frame's checksum is wrong")
    }
}

fn split_header(head: [u8; FRAME_HEADER]) -> (usize, u32) {
    let [a, b, c, d, e, f, g, h] = head;
    (
        u32::from_le_bytes([a, b, c, d]) as usize,
        u32::from_le_bytes([e, f, g, h]),
    )
}

fn checksum(length: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(length), body)
}

fn frame(body: &[u8]) -> Result<Vec<u8>, SpoolError> {
    let length = u32::try_from(body.len())
        .ok()
        .filter(|n| (1..=RECORD_BYTES).contains(&(*n as usize)));
    let length = length.ok_or(SpoolError::FrameSize(body.len()))?.to_le_bytes();
    Ok([&length[..], &checksum(&length, body).to_le_bytes(), body].concat())
}

fn read_frame(file: &mut File, path: &Path) -> Result<Option<Vec<u8>>, SpoolError> {
    let offset = file.stream_position().map_err(io_at(path))?;
    let damaged = |what| SpoolError::Damaged {
        path: path.to_owned(),
        offset,
        what,
    };
    let mut head = [0; FRAME_HEADER];
    let mut got = 0;
    while got < FRAME_HEADER {
        match file.read(&mut head[got..]) {
            Ok(0) if got == 0 => return Ok(None),
            Ok(0) => return Err(damaged("a frame's header is cut")),
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(SpoolError::Io {
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
    let (length, crc) = split_header(head);
    if !(1..=RECORD_BYTES).contains(&length) {
        return Err(damaged("a frame's length is impossible"));
    }
    let mut body = vec![0; length];
    file.read_exact(&mut body).map_err(|_| damaged("a frame is cut"))?;
    if checksum(&head[..4], &body) == crc {
        Ok(Some(body))
    } else {
        Err(damaged("a frame's checksum is wrong"))
    }
}

fn segment_header(first: u64) -> Vec<u8> {
    [&MAGIC[..], &first.to_le_bytes()].concat()
}

/// Makes `file` a segment with nothing in it but its header, wherever a crash left it.
fn write_segment_header(mut file: &File, path: &Path, first: u64) -> Result<(), SpoolError> {
    file.set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| file.write_all(&segment_header(first)))
        .and_then(|()| file.sync_all())
        .map_err(io_at(path))
}

fn new_segment(dir: &Path, first: u64) -> Result<(Segment, File), SpoolError> {
    let path = dir.join(format!("{first:020}.seg"));
    let file = options_rw().create_new(true).open(&path).map_err(io_at(&path))?;
    if let Err(error) = write_segment_header(&file, &path, first).and_then(|()| sync_dir(dir)) {
        // Best effort: a disk with no room must not leave a name that stands in the way of the next attempt.
        fs::remove_file(&path).ok();
        return Err(error);
    }
    Ok((
        Segment {
            path,
            first,
            bytes: SEGMENT_HEADER as u64,
        },
        file,
    ))
}

/// Segments by position. Other names are left alone.
fn segment_paths(dir: &Path) -> Result<Vec<(u64, PathBuf)>, SpoolError> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_at(dir))? {
        let path = entry.map_err(io_at(dir))?.path();
        let first = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_suffix(".seg"))
            .filter(|digits| digits.len() == 20)
            .and_then(|digits| digits.parse().ok());
        if let Some(first) = first {
            out.push((first, path));
        }
    }
    out.sort_unstable();
    Ok(out)
}

fn options_rw() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn sync_dir(dir: &Path) -> Result<(), SpoolError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io_at(dir))
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::Io { path, source }
}
