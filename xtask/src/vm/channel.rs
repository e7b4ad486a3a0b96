//! The host's end of the command channel: many commands at once over one virtio-serial port.
//! Given the connected socket. Never leaves the socket unread: the guest's end writes blockingly.
//!
//! Frames: u32 session, u8 kind, u32 length (little endian), payload. The other end is guest/channel.py.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::Output;

/// A piece of what a command in the guest does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It wrote to standard output.
    Stdout(Vec<u8>),
    /// It wrote to standard error.
    Stderr(Vec<u8>),
    /// It ended; 128 + signal number when a signal ended it.
    Exit(i32),
}

#[derive(Debug)]
pub(super) struct Channel {
    shared: Arc<Shared>,
    hello: Mutex<Receiver<()>>,
}

#[derive(Debug)]
struct Shared {
    writer: Mutex<UnixStream>,
    sessions: Mutex<Sessions>,
}

#[derive(Debug, Default)]
struct Sessions {
    last: u32,
    open: HashMap<u32, Sender<Event>>,
    gone: bool,
}

/// A poisoned lock means that another thread panicked; the maps stay usable.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn send(&self, session: u32, kind: u8, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len()).context("a frame is at most 4 GiB")?;
        let mut frame = Vec::with_capacity(9 + payload.len());
        frame.extend_from_slice(&session.to_le_bytes());
        frame.push(kind);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(payload);
        locked(&self.writer).write_all(&frame).context("the guest is gone")
    }
}

impl Channel {
    pub(super) fn new(stream: UnixStream) -> Result<Self> {
        let mut reader = stream.try_clone()?;
        let shared = Arc::new(Shared {
            writer: Mutex::new(stream),
            sessions: Mutex::default(),
        });
        let (tell, hello) = channel();
        let for_reader = Arc::clone(&shared);
        std::thread::spawn(move || {
            // Whatever ends the stream ends every session; each says so by its missing status.
            let _ = read_frames(&mut reader, &for_reader, &tell);
            let mut sessions = locked(&for_reader.sessions);
            sessions.gone = true;
            sessions.open.clear();
        });
        Ok(Self {
            shared,
            hello: Mutex::new(hello),
        })
    }

    /// Waits until the guest's end has started.
    pub(super) fn hello(&self, within: Duration) -> Result<()> {
        match locked(&self.hello).recv_timeout(within) {
            Ok(()) => Ok(()),
            Err(RecvTimeoutError::Timeout) => bail!("the guest took no commands within {} s", within.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("the guest ended while it started"),
        }
    }

    /// Gives a restored guest the time and randomness of its own.
    pub(super) fn refresh(&self, seconds: f64, seed: &str) -> Result<Running> {
        self.open(
            b'T',
            serde_json::json!({"seconds": seconds, "seed": seed})
                .to_string()
                .as_bytes(),
        )
    }

    pub(super) fn start(&self, argv: &[&str], env: &[(&str, &str)], cwd: Option<&str>) -> Result<Running> {
        let env: serde_json::Map<String, serde_json::Value> = env
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.into()))
            .collect();
        let request = serde_json::json!({"argv": argv, "env": env, "cwd": cwd});
        self.open(b'R', request.to_string().as_bytes())
    }

    fn open(&self, kind: u8, payload: &[u8]) -> Result<Running> {
        let (sender, events) = channel();
        let session = {
            let mut sessions = locked(&self.shared.sessions);
            if sessions.gone {
                bail!("the guest is gone");
            }
            sessions.last += 1;
            let session = sessions.last;
            sessions.open.insert(session, sender);
            session
        };
        self.shared.send(session, kind, payload)?;
        Ok(Running {
            shared: Arc::clone(&self.shared),
            session,
            events,
        })
    }
}

fn read_frames(reader: &mut UnixStream, shared: &Shared, hello: &Sender<()>) -> Result<()> {
    loop {
        let mut head = [0u8; 9];
        reader.read_exact(&mut head)?;
        let [s0, s1, s2, s3, kind, l0, l1, l2, l3] = head;
        let session = u32::from_le_bytes([s0, s1, s2, s3]);
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > 1 << 24 {
            bail!("a frame of {length} bytes");
        }
        let mut payload = vec![0; length];
        reader.read_exact(&mut payload)?;
        let event = match kind {
            b'H' => {
                // Nobody may be waiting (a restored guest said hello long ago).
                let _ = hello.send(());
                continue;
            }
            b'O' => Event::Stdout(payload),
            b'E' => Event::Stderr(payload),
            b'X' => Event::Exit(String::from_utf8_lossy(&payload).parse()?),
            other => bail!("a frame of unknown kind {other}"),
        };
        let mut sessions = locked(&shared.sessions);
        // A dropped Running no longer listens.
        if let Some(sender) = sessions.open.get(&session) {
            let _ = sender.send(event.clone());
        }
        if matches!(event, Event::Exit(_)) {
            sessions.open.remove(&session);
        }
    }
}

/// A command that runs in the guest.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    session: u32,
    events: Receiver<Event>,
}

impl Running {
    /// The next thing that it does; `None` when the guest ended without a status, or after the status.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would hide that the end without Exit is a failure"
    )]
    pub fn next(&mut self) -> Option<Event> {
        self.events.recv().ok()
    }

    /// Like [`Running::next`] with a time limit.
    ///
    /// # Errors
    /// When nothing happens in time.
    pub fn next_within(&mut self, limit: Duration) -> Result<Option<Event>> {
        match self.events.recv_timeout(limit) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(anyhow!("nothing happened within {limit:?}")),
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When the guest ends without a status.
    pub fn wait(self) -> Result<Output> {
        self.collect(None)
    }

    /// Waits for the end, at most `limit`; then it is killed.
    ///
    /// # Errors
    /// When it takes longer (the text has its output so far), or the guest ends without a status.
    pub fn wait_within(self, limit: Duration) -> Result<Output> {
        self.collect(Some(limit))
    }

    fn collect(mut self, limit: Option<Duration>) -> Result<Output> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        // Whoever only waits gives no input; the guest may have ended already, then the status is missing below.
        let _ = self.close_input();
        let mut output = Output {
            status: -1,
            stdout: Vec::new(),
            stderr: Vec::new(),
        };
        loop {
            let event = match deadline {
                None => self.next(),
                Some(deadline) => match self.next_within(deadline.saturating_duration_since(Instant::now())) {
                    Ok(event) => event,
                    Err(_) => {
                        // It may end at this very moment; either way it took too long.
                        let _ = self.kill();
                        bail!(
                            "the command did not end within {:?}: {output}",
                            limit.unwrap_or_default()
                        );
                    }
                },
            };
            match event {
                Some(Event::Stdout(bytes)) => output.stdout.extend(bytes),
                Some(Event::Stderr(bytes)) => output.stderr.extend(bytes),
                Some(Event::Exit(status)) => {
                    output.status = status;
                    return Ok(output);
                }
                None => bail!("the guest ended before the status of the command arrived; so far: {output}"),
            }
        }
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn input(&mut self, bytes: &[u8]) -> Result<()> {
        self.input_writer().write_all(bytes).context("the guest is gone")
    }

    /// Ends its standard input.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn close_input(&mut self) -> Result<()> {
        self.shared.send(self.session, b'I', b"")
    }

    /// A writer for its standard input that another thread can use.
    pub fn input_writer(&self) -> Input {
        Input {
            shared: Arc::clone(&self.shared),
            session: self.session,
        }
    }

    /// Kills its process group with SIGKILL.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.shared.send(self.session, b'K', b"")
    }
}

/// The standard input of a command in the guest.
#[derive(Debug)]
pub struct Input {
    shared: Arc<Shared>,
    session: u32,
}

impl Input {
    /// Ends the input.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn close(self) -> Result<()> {
        self.shared.send(self.session, b'I', b"")
    }
}

impl Write for Input {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for chunk in bytes.chunks(1 << 16) {
            self.shared
                .send(self.session, b'I', chunk)
                .map_err(std::io::Error::other)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
