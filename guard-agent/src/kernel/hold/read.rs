//! Reads from a held thread what it is about to execute.
//!
//! Owns the reading of registers, memory and files of the workload; given a thread that is stopped in exec. All of it
//! was written by the workload, so everything has a limit. It runs on a worker: pages behind userfaultfd or FUSE, and
//! files of hostile file systems, can make any of these calls wait.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use guard_common::ActionKey;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};

use super::workers::Workers;
use crate::kernel::api::{Argv, Tracer};
use crate::kernel::maps::Identify;
use crate::kernel::sys::Tid;

/// execve itself takes at most 6 MiB of strings with default limits, pointers included.
const MAX_BYTES: u64 = 16 << 20;
const MAX_STRING: usize = 128 << 10;
/// Of a vector, this much is kept from its front and its back.
const KEEP_FRONT: usize = 256 << 10;
const KEEP_BACK: usize = 32 << 10;
const MAX_PATH: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// Stopped somewhere else, or running: the caller tries again.
    #[error("the thread is not stopped in exec")]
    NotInExec,
    #[error("nobody may read its memory: kernel.yama.ptrace_scope is 3")]
    Forbidden,
    #[error("{what} cannot be read: {source}")]
    Memory { what: &'static str, source: io::Error },
    #[error("{0} is longer than exec takes")]
    TooLong(&'static str),
    #[error("it called exec in a way that this agent does not read ({0})")]
    Unknown(i64),
}

/// What was read; kept by the holder to compare the new image with.
#[derive(Debug)]
pub(crate) struct Detail {
    pub argv: Argv,
    /// As `argv.sha256`, without the first string: what a script's interpreter still gets unchanged.
    pub tail_sha256: [u8; 32],
    pub environment: Argv,
    pub cwd: PathBuf,
    pub file: Option<OwnedFd>,
    pub given: OsString,
    /// The name alone says which file: not execveat with a descriptor.
    pub by_name: bool,
    pub tracer: Option<Tracer>,
}

/// Closing a file of a hostile file system may wait for it: never on the holder's thread.
impl Drop for Detail {
    fn drop(&mut self) {
        static CLOSERS: LazyLock<Workers> = LazyLock::new(Workers::default);
        if let Some(file) = self.file.take() {
            CLOSERS.run(0, move || drop(file));
        }
    }
}

/// Where exec was called from, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    /// Descriptor of execveat.
    at: Option<i32>,
    name: u64,
    argv: u64,
    environment: u64,
    /// Bytes of a pointer of the caller.
    pointer: usize,
}

#[cfg(target_arch = "x86_64")]
const COMPAT_EXECVEAT: i64 = 358;
#[cfg(target_arch = "aarch64")]
const COMPAT_EXECVEAT: i64 = 387;
/// The same number on both.
const COMPAT_EXECVE: i64 = 11;
const X32: i64 = 0x4000_0000;

/// `/proc/TID/syscall`: number, six arguments, stack and instruction pointer.
fn parse_syscall(text: &str) -> Result<Call, ReadError> {
    let mut words = text.split_ascii_whitespace();
    let number: i64 = words
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or(ReadError::NotInExec)?;
    let mut arguments = [0u64; 6];
    for argument in &mut arguments {
        *argument = words
            .next()
            .and_then(|word| word.strip_prefix("0x"))
            .and_then(|word| u64::from_str_radix(word, 16).ok())
            .ok_or(ReadError::NotInExec)?;
    }
    let [a, b, c, d, _, _] = arguments;
    let plain = |pointer| Call {
        at: None,
        name: a,
        argv: b,
        environment: c,
        pointer,
    };
    // The descriptor is the low half of its register.
    let [low @ .., _, _, _, _] = a.to_le_bytes();
    let descriptor = i32::from_le_bytes(low);
    let at = |pointer| Call {
        at: Some(descriptor),
        name: b,
        argv: c,
        environment: d,
        pointer,
    };
    match number {
        _ if number == libc::SYS_execve => Ok(plain(8)),
        _ if number == libc::SYS_execveat => Ok(at(8)),
        COMPAT_EXECVE => Ok(plain(4)),
        COMPAT_EXECVEAT => Ok(at(4)),
        _ if number > 0 && number & X32 != 0 => Err(ReadError::Unknown(number)),
        _ => Err(ReadError::NotInExec),
    }
}

struct Memory {
    pid: Pid,
    what: &'static str,
}

impl Memory {
    /// Fills as much of `buffer` as one page has.
    fn page(&self, address: u64, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let left = 4096 - (address & 4095);
        let length = buffer.len().min(usize::try_from(left).unwrap_or(4096));
        let error = |source: nix::Error| ReadError::Memory {
            what: self.what,
            source: source.into(),
        };
        let base = usize::try_from(address).map_err(|_| error(nix::Error::EFAULT))?;
        let remote = [RemoteIoVec { base, len: length }];
        let got = process_vm_readv(self.pid, &mut [IoSliceMut::new(&mut buffer[..length])], &remote).map_err(error)?;
        if got == 0 {
            Err(error(nix::Error::EFAULT))
        } else {
            Ok(got)
        }
    }

    fn string(&self, address: u64, limit: usize) -> Result<Vec<u8>, ReadError> {
        let mut out = Vec::new();
        let mut buffer = [0u8; 4096];
        let mut address = address;
        loop {
            let got = self.page(address, &mut buffer)?;
            let part = &buffer[..got];
            if let Some(end) = part.iter().position(|byte| *byte == 0) {
                out.extend_from_slice(&part[..end]);
                return if out.len() <= limit {
                    Ok(out)
                } else {
                    Err(ReadError::TooLong(self.what))
                };
            }
            out.extend_from_slice(part);
            if out.len() > limit {
                return Err(ReadError::TooLong(self.what));
            }
            address = address.wrapping_add(got as u64);
        }
    }

    /// Calls `each` for every string of a vector. A null vector is an empty one.
    fn vector(&self, address: u64, pointer: usize, mut each: impl FnMut(Vec<u8>)) -> Result<(), ReadError> {
        if address == 0 {
            return Ok(());
        }
        let mut address = address;
        let mut total = 0u64;
        let mut buffer = [0u8; 4096];
        // A pointer may cross a page only if the vector is not aligned.
        let mut rest: Vec<u8> = Vec::new();
        loop {
            let got = self.page(address, &mut buffer)?;
            address = address.wrapping_add(got as u64);
            rest.extend_from_slice(&buffer[..got]);
            let whole = rest.len() / pointer * pointer;
            let words: Vec<u8> = rest.drain(..whole).collect();
            for word in words.chunks_exact(pointer) {
                let mut bytes = [0u8; 8];
                bytes[..pointer].copy_from_slice(word);
                let string = u64::from_le_bytes(bytes);
                if string == 0 {
                    return Ok(());
                }
                let string = self.string(string, MAX_STRING)?;
                total += string.len() as u64 + 1 + pointer as u64;
                if total > MAX_BYTES {
                    return Err(ReadError::TooLong(self.what));
                }
                each(string);
            }
        }
    }
}

/// Hashes everything, keeps a bounded part.
#[derive(Default)]
pub(crate) struct Collector {
    hash: Sha256,
    tail: Sha256,
    front: Vec<Vec<u8>>,
    front_bytes: usize,
    back: std::collections::VecDeque<Vec<u8>>,
    back_bytes: usize,
    count: u64,
    bytes: u64,
    truncated: bool,
}

impl Collector {
    pub(crate) fn push(&mut self, string: Vec<u8>) {
        self.hash.update(&string);
        self.hash.update([0]);
        if self.count > 0 {
            self.tail.update(&string);
            self.tail.update([0]);
        }
        self.count += 1;
        self.bytes += string.len() as u64 + 1;
        if self.back.is_empty() && !self.truncated && self.front_bytes + string.len() <= KEEP_FRONT {
            self.front_bytes += string.len();
            self.front.push(string);
            return;
        }
        self.back_bytes += string.len();
        self.back.push_back(string);
        while self.back_bytes > KEEP_BACK {
            let Some(dropped) = self.back.pop_front() else { break };
            self.back_bytes -= dropped.len();
            self.truncated = true;
        }
    }

    /// The vector and the digest without its first string.
    pub(crate) fn finish(self) -> (Argv, [u8; 32]) {
        let mut strings = self.front;
        let gap = self.truncated.then_some(strings.len());
        strings.extend(self.back);
        let argv = Argv {
            strings,
            count: self.count,
            bytes: self.bytes,
            sha256: self.hash.finalize().into(),
            gap,
        };
        (argv, self.tail.finalize().into())
    }
}

/// Reads all of it. `key` and `kernel_path` are the kernel's: which file it will be, and where the walk found it.
pub(crate) fn read(
    tid: Tid,
    key: &ActionKey,
    kernel_path: Option<&Path>,
    identify: &Identify,
) -> Result<Detail, ReadError> {
    let text = fs::read_to_string(format!("/proc/{tid}/syscall")).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => ReadError::Forbidden,
        _ => ReadError::NotInExec,
    })?;
    let call = parse_syscall(&text)?;
    let memory = |what| Memory {
        pid: Pid::from_raw(tid),
        what,
    };

    let given = if call.name == 0 {
        Vec::new()
    } else {
        memory("the file name").string(call.name, MAX_PATH)?
    };
    let given = OsString::from_vec(given);
    let mut strings = Collector::default();
    memory("argv").vector(call.argv, call.pointer, |string| strings.push(string))?;
    if strings.count == 0 {
        // The kernel gives an empty vector one empty string.
        strings.push(Vec::new());
    }
    let (argv, tail_sha256) = strings.finish();
    let mut strings = Collector::default();
    memory("the environment").vector(call.environment, call.pointer, |string| strings.push(string))?;
    let (environment, _) = strings.finish();
    let cwd = fs::read_link(format!("/proc/{tid}/cwd")).map_err(|source| ReadError::Memory {
        what: "the working directory",
        source,
    })?;
    let file = open(tid, &call, &given, key, kernel_path, identify);
    Ok(Detail {
        argv,
        tail_sha256,
        environment,
        cwd,
        file,
        given,
        by_name: call.at.is_none(),
        tracer: tracer(tid),
    })
}

/// Who traces it, other than this process.
pub(crate) fn tracer(tid: Tid) -> Option<Tracer> {
    let status = fs::read(format!("/proc/{tid}/status")).ok()?;
    // `Name` comes first and is the workload's, but a line break in it is shown escaped.
    let pid = status
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"TracerPid:"))?;
    let pid: u32 = str::from_utf8(pid).ok()?.trim().parse().ok()?;
    // The id of the tracing thread; ours is one of this process.
    if pid == 0 || Path::new(&format!("/proc/self/task/{pid}")).exists() {
        return None;
    }
    let mut comm = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.pop_if(|byte| *byte == b'\n');
    Some(Tracer { pid, comm })
}

/// Opens the file that the kernel named, the way the thread did or the way the kernel's walk went.
fn open(
    tid: Tid,
    call: &Call,
    given: &OsStr,
    key: &ActionKey,
    kernel_path: Option<&Path>,
    identify: &Identify,
) -> Option<OwnedFd> {
    let candidates: [&dyn Fn() -> Option<OwnedFd>; 3] =
        [&|| as_given(tid, call, given), &|| in_root(tid, kernel_path?), &|| {
            plain(Path::new(&format!("/proc/{tid}/cwd")).join(given))
        }];
    candidates.iter().find_map(|candidate| {
        let file = regular(&candidate()?)?;
        (named_by_kernel(&file, identify)? == *key).then_some(file)
    })
}

fn plain(path: impl AsRef<Path>) -> Option<OwnedFd> {
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .ok()
        .map(OwnedFd::from)
}

/// Resolved inside the thread's root, links included; magic links are not followed.
fn in_root(tid: Tid, path: &Path) -> Option<OwnedFd> {
    let root = plain(format!("/proc/{tid}/root"))?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how).ok()
}

fn as_given(tid: Tid, call: &Call, given: &OsStr) -> Option<OwnedFd> {
    let bytes = given.as_bytes();
    // Its own /proc/self is not ours.
    for own in [&b"/proc/self/"[..], b"/proc/thread-self/", b"/dev/"] {
        if let Some(rest) = bytes.strip_prefix(own)
            && (rest == b"exe" && own != b"/dev/" || rest.starts_with(b"fd/"))
        {
            return plain(Path::new(&format!("/proc/{tid}")).join(OsStr::from_bytes(rest)));
        }
    }
    if bytes.starts_with(b"/") {
        return in_root(tid, Path::new(given));
    }
    let folder = match call.at {
        Some(fd) if fd != libc::AT_FDCWD => plain(format!("/proc/{tid}/fd/{fd}"))?,
        _ => plain(format!("/proc/{tid}/cwd"))?,
    };
    if bytes.is_empty() {
        return Some(folder);
    }
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(folder, given, how).ok()
}

/// Opens for reading what an O_PATH descriptor names, if it is a regular file.
fn regular(path: &OwnedFd) -> Option<OwnedFd> {
    let probe = File::from(path.try_clone().ok()?);
    if !probe.metadata().ok()?.is_file() {
        return None;
    }
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    let link = format!("/proc/self/fd/{}", path.as_raw_fd());
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(link)
        .ok()
        .map(OwnedFd::from)
}

/// The kernel's key of an open file.
pub(crate) fn named_by_kernel(file: &impl AsFd, identify: &Identify) -> Option<ActionKey> {
    identify.name(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_in_memory_is_read_whole() {
        let strings: Vec<std::ffi::CString> = (0..600)
            .map(|number| std::ffi::CString::new(format!("argument {number} {}", "x".repeat(number % 97))).unwrap())
            .collect();
        let mut pointers: Vec<u64> = strings.iter().map(|string| string.as_ptr() as u64).collect();
        pointers.push(0);
        let memory = Memory {
            pid: Pid::this(),
            what: "argv",
        };
        let mut got = Collector::default();
        memory
            .vector(pointers.as_ptr() as u64, 8, |string| got.push(string))
            .unwrap();
        let (argv, tail) = got.finish();
        assert_eq!(argv.count, 600);
        assert_eq!(argv.strings.len(), 600);
        assert!(
            argv.strings
                .iter()
                .zip(&strings)
                .all(|(got, sent)| got == sent.as_bytes())
        );
        let mut whole = Sha256::new();
        let mut rest = Sha256::new();
        for (index, string) in strings.iter().enumerate() {
            whole.update(string.as_bytes_with_nul());
            if index > 0 {
                rest.update(string.as_bytes_with_nul());
            }
        }
        assert_eq!(argv.sha256, <[u8; 32]>::from(whole.finalize()));
        assert_eq!(tail, <[u8; 32]>::from(rest.finalize()));
        assert_eq!(argv.gap, None);
    }

    #[test]
    fn narrow_pointers_and_wild_addresses() {
        let memory = Memory {
            pid: Pid::this(),
            what: "argv",
        };
        let vector = [0u32, 0];
        let mut count = 0;
        memory.vector(vector.as_ptr() as u64, 4, |_| count += 1).unwrap();
        memory.vector(0, 8, |_| count += 1).unwrap();
        assert_eq!(count, 0);
        assert!(matches!(memory.vector(16, 8, |_| ()), Err(ReadError::Memory { .. })));
        let bad = [0x10u64, 0];
        assert!(matches!(
            memory.vector(bad.as_ptr() as u64, 8, |_| ()),
            Err(ReadError::Memory { .. })
        ));
        let long = vec![b'a'; MAX_PATH + 2];
        assert!(matches!(
            memory.string(long.as_ptr() as u64, MAX_PATH),
            Err(ReadError::TooLong(_))
        ));
    }

    #[test]
    fn a_long_vector_keeps_both_ends_and_hashes_all() {
        let mut got = Collector::default();
        let mut expected = Sha256::new();
        for number in 0..10_000 {
            let string = format!("{number:0100}").into_bytes();
            expected.update(&string);
            expected.update([0]);
            got.push(string);
        }
        let (argv, _) = got.finish();
        let gap = argv.gap.unwrap();
        assert!(argv.strings[gap - 1].len() == 100 && gap < argv.strings.len());
        assert_eq!(argv.strings[gap - 1], format!("{:0100}", gap - 1).into_bytes());
        assert_eq!(argv.count, 10_000);
        assert_eq!(argv.bytes, 10_000 * 101);
        assert_eq!(argv.sha256, <[u8; 32]>::from(expected.finalize()));
        assert!(argv.strings.first().unwrap().ends_with(b"00"));
        assert!(argv.strings.last().unwrap().ends_with(b"9999"));
        assert!(argv.strings.iter().map(Vec::len).sum::<usize>() <= KEEP_FRONT + KEEP_BACK);
    }

    #[test]
    fn registers_are_read_by_number() {
        let line = |number: i64| format!("{number} 0x10 0x20 0x30 0x40 0x50 0x60 0x7ffc 0x401000");
        let plain = Call {
            at: None,
            name: 0x10,
            argv: 0x20,
            environment: 0x30,
            pointer: 8,
        };
        assert_eq!(parse_syscall(&line(libc::SYS_execve)).unwrap(), plain);
        assert_eq!(
            parse_syscall(&line(COMPAT_EXECVE)).unwrap(),
            Call { pointer: 4, ..plain }
        );
        let at = Call {
            at: Some(0x10),
            name: 0x20,
            argv: 0x30,
            environment: 0x40,
            pointer: 8,
        };
        assert_eq!(parse_syscall(&line(libc::SYS_execveat)).unwrap(), at);
        assert!(matches!(parse_syscall("running\n"), Err(ReadError::NotInExec)));
        assert!(matches!(
            parse_syscall("-1 0x7ffc 0x401000\n"),
            Err(ReadError::NotInExec)
        ));
        assert!(matches!(parse_syscall(&line(1)), Err(ReadError::NotInExec)));
        assert!(matches!(parse_syscall(&line(X32 | 520)), Err(ReadError::Unknown(_))));
        assert!(matches!(parse_syscall(""), Err(ReadError::NotInExec)));
    }
}
