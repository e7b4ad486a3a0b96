//! System calls of the holder that no crate wraps as needed: any signal number, any wait status.
//!
//! Owns the unsafe calls; given thread ids. It must never block, but for [`seize`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;

/// A thread id as the kernel's ABI has it.
pub(crate) type Tid = i32;

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// One ptrace request whose address is 0 and whose data is a number.
fn request(request: libc::c_uint, tid: Tid, data: usize) -> io::Result<()> {
    // SAFETY: these requests take numbers only; the kernel dereferences nothing of ours.
    let result = unsafe {
        libc::ptrace(
            request,
            tid,
            std::ptr::null_mut::<libc::c_void>(),
            data as *mut libc::c_void,
        )
    };
    check(result)
}

/// Traces a thread without stopping it. Asks for the exec event; never for the tracees' death with the tracer.
/// The one call here that may block: as long as another thread of that process is in an exec. [`end_seize`] ends it.
///
/// # Errors
/// What ptrace says; EINTR after [`end_seize`].
pub(crate) fn seize(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, libc::PTRACE_O_TRACEEXEC as usize)
}

/// Means nothing to anybody else here.
const END_SEIZE: Signal = Signal::SIGALRM;

/// Makes the calling thread's [`seize`] one that [`end_seize`] ends.
pub(crate) fn let_seizes_end() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::SigAction(skip_seize), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler changes two saved registers of the thread it interrupts, and nothing else.
    unsafe { sigaction(END_SEIZE, &action) }?;
    unblock(END_SEIZE)
}

/// Ends a [`seize`] of that thread of this process, if it is in one.
pub(crate) fn end_seize(thread: Tid) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_tgkill, Pid::this().as_raw(), thread, END_SEIZE as libc::c_int) })
}

/// The kernel restarts a PTRACE_SEIZE that a signal interrupts, whatever the handler's flags say: by then the thread stands
/// before its system call again. It goes on behind it, as if the call had failed with EINTR.
extern "C" fn skip_seize(_signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    // SAFETY: a handler with SA_SIGINFO, as nix sets it, is given the interrupted thread's ucontext_t, and nobody else has it.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = |register: libc::c_int| usize::try_from(register).unwrap_or_default();
    let seizes = registers[at(libc::REG_RAX)] == libc::SYS_ptrace
        && registers[at(libc::REG_RDI)] == i64::from(libc::PTRACE_SEIZE);
    if !seizes {
        return;
    }
    let next =
        std::ptr::with_exposed_provenance::<[u8; 2]>(usize::try_from(registers[at(libc::REG_RIP)]).unwrap_or_default());
    // SAFETY: the address of an instruction of this program, none of which is the last byte that is mapped there.
    if unsafe { next.read_unaligned() } == SYSCALL {
        registers[at(libc::REG_RIP)] += 2;
        registers[at(libc::REG_RAX)] = -i64::from(libc::EINTR);
    }
}

fn unblock(signal: Signal) -> nix::Result<()> {
    let mut set = SigSet::empty();
    set.add(signal);
    set.thread_unblock()
}

/// How the calling thread goes before others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precedence {
    /// SCHED_RR: it runs as soon as it is woken, whatever else the CPU does.
    RealTime,
    /// A nice value below 0: more of the CPU, but others finish their slice.
    Nice,
}

/// Lets the calling thread run before others; threads that it starts are not affected by the first of the two ways.
/// Without it everything works, later.
///
/// # Errors
/// Neither is permitted; the error is that of the first.
pub(crate) fn run_before_others() -> io::Result<Precedence> {
    // The lowest: it goes before all that is not real time, and before nothing that is.
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads one sched_param; 0 is the calling thread.
    let result =
        unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const parameters) };
    let error = match check(result.into()) {
        Ok(()) => return Ok(Precedence::RealTime),
        Err(error) => error,
    };
    // SAFETY: takes numbers only; 0 is the calling thread.
    match check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) }.into()) {
        Ok(()) => Ok(Precedence::Nice),
        Err(_) => Err(error),
    }
}

/// How many CPUs the calling thread may run on; 1 when that cannot be told.
pub(crate) fn cpus() -> usize {
    sched_getaffinity(Pid::from_raw(0)).map_or(1, |allowed| {
        (0..CpuSet::count())
            .filter(|cpu| allowed.is_set(*cpu).unwrap_or(false))
            .count()
    })
}

/// Moves the calling thread to another CPU if it is on this one and may run on another; it may come back.
pub(crate) fn leave_cpu(cpu: usize) -> nix::Result<()> {
    if sched_getcpu()? != cpu {
        return Ok(());
    }
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread)?;
    let mut others = allowed;
    others.unset(cpu)?;
    if others != CpuSet::new() {
        sched_setaffinity(this_thread, &others)?;
        sched_setaffinity(this_thread, &allowed)?;
    }
    Ok(())
}

pub(crate) fn interrupt(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0)
}

/// Goes on, with a signal or 0.
pub(crate) fn cont(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, signal.unsigned_abs() as usize)
}

/// Goes on untraced, with a signal or 0.
pub(crate) fn detach(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, signal.unsigned_abs() as usize)
}

/// Stays in its group stop, and tells when that ends.
pub(crate) fn listen(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_LISTEN, tid, 0)
}

/// At PTRACE_EVENT_EXEC: the thread id before the exec.
pub(crate) fn event_message(tid: Tid) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: the kernel writes one long to `message`.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_GETEVENTMSG,
            tid,
            std::ptr::null_mut::<libc::c_void>(),
            &raw mut message,
        )
    };
    check(result)?;
    Ok(message)
}

/// `si_code` of the signal that a signal-delivery stop is about.
pub(crate) fn signal_code(tid: Tid) -> io::Result<i32> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the kernel writes one siginfo_t to `info`.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_GETSIGINFO,
            tid,
            std::ptr::null_mut::<libc::c_void>(),
            info.as_mut_ptr(),
        )
    };
    check(result)?;
    // SAFETY: zeroed and then written by the kernel; every bit pattern is a siginfo_t.
    Ok(unsafe { info.assume_init() }.si_code)
}

/// The next state change of a thread that this thread traces; other children of the process are left alone.
pub(crate) fn wait() -> Option<(Tid, i32)> {
    let mut status = 0;
    // SAFETY: the kernel writes one int to `status`.
    let tid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::WNOHANG | libc::__WNOTHREAD) };
    (tid > 0).then_some((tid, status))
}

/// A signal for a whole process.
pub(crate) fn kill(tgid: Tid, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::kill(tgid, signal) }.into())
}

/// Whether a thread is stopped as its whole process is, by whatever signal.
pub(crate) fn is_stopped(tgid: Tid, tid: Tid) -> bool {
    state(&format!("/proc/{tgid}/task/{tid}/stat")) == Some('T')
}

/// Whether a thread is stopped for its tracer.
pub(crate) fn is_held(tid: Tid) -> bool {
    state(&format!("/proc/{tid}/stat")) == Some('t')
}

fn state(path: &str) -> Option<char> {
    let stat = std::fs::read_to_string(path).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// This thread's id.
#[must_use]
pub(crate) fn thread_id() -> Tid {
    // SAFETY: no arguments.
    unsafe { libc::gettid() }
}

/// Asks for no lock: only so that the `file_lock` hook sees the file.
pub(crate) fn flock(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is open.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) }.into())
}

/// Nanoseconds since boot, suspend included: the clock of the BPF programs.
#[must_use]
pub(crate) fn boot_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec to `time`.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Opens a file by handle, as found below `mount`.
pub(crate) fn open_cgroup(mount: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    const FILEID_KERNFS: i32 = 0xfe;
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: u64,
    }
    let mut handle = Handle {
        bytes: 8,
        kind: FILEID_KERNFS,
        id,
    };
    // SAFETY: `handle` is laid out as struct file_handle with 8 bytes of identifier, and outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw mut handle,
            libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC,
        )
    };
    check(fd)?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Wakes a poll; cheap, never blocks.
#[derive(Debug)]
pub(crate) struct Waker(OwnedFd);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        check(fd.into())?;
        // SAFETY: the kernel has just given it to us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Async-signal-safe.
    pub(crate) fn wake(&self) {
        let one = 1u64;
        // SAFETY: 8 readable bytes. It fails only when the counter is full, and then the poll wakes anyway.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    pub(crate) fn clear(&self) {
        let mut value = 0u64;
        // SAFETY: 8 writable bytes.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut value).cast(), 8) };
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of them is readable or the time is over; says which are.
pub(crate) fn poll<const N: usize>(descriptors: [BorrowedFd<'_>; N], milliseconds: i32) -> [bool; N] {
    let mut polled = descriptors.map(|fd| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: `polled` has N elements.
    unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, milliseconds) };
    polled.map(|fd| fd.revents != 0)
}

/// Calls `waker` for every SIGCHLD of the process, next to whoever else listens.
pub(crate) fn wake_on_child_events(waker: std::sync::Arc<Waker>) -> io::Result<()> {
    // SAFETY: the action does one write(2), which is async-signal-safe, and neither allocates nor locks.
    unsafe { signal_hook_registry::register(libc::SIGCHLD, move || waker.wake()) }?;
    unblock(Signal::SIGCHLD)?;
    Ok(())
}
