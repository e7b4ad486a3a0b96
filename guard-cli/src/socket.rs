//! The agent's control socket: one JSON line each way.
//!
//! Owns connecting, line limits and the words for failures. It is given requests of `guard_proto::control`. It must
//! never wait for an agent that does not answer without an end in sight.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use guard_evidence::text::defuse;
use guard_proto::control::{ControlReply, ControlRequest};
use guard_proto::limits::CONTROL_LINE_BYTES;

use crate::failure::Failure;

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// `/run/guard/agent.sock`, or what `GUARD_SOCKET` says.
pub(crate) fn path() -> PathBuf {
    std::env::var_os("GUARD_SOCKET")
        .filter(|p| !p.is_empty())
        .map_or_else(|| "/run/guard/agent.sock".into(), PathBuf::from)
}

/// A connection to the agent.
#[derive(Debug)]
pub(crate) struct Agent {
    reader: BufReader<UnixStream>,
    /// What to say when it does not answer in time.
    late: String,
}

impl Agent {
    pub(crate) fn connect() -> Result<Self, Failure> {
        let path = path();
        let stream = UnixStream::connect(&path).map_err(|e| {
            let what = format!("no answer from the agent at {}", path.display());
            match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    Failure::unknown(format!("{what}: it is not running"))
                        .next("sudo systemctl start guard-agent")
                        .no_agent()
                }
                io::ErrorKind::PermissionDenied => Failure::unknown(format!("{what}: permission denied")).next(
                    "run as root or as a member of the group that agent.toml names; labelled processes never may",
                ),
                _ => Failure::unknown(format!("{what}: {e}")),
            }
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            reader: BufReader::new(stream),
            late: "the agent does not answer".to_owned(),
        })
    }

    /// Sends a request and reads its answer; a refusal is a failure.
    pub(crate) fn ask(&mut self, request: &ControlRequest) -> Result<ControlReply, Failure> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        if line.len() > CONTROL_LINE_BYTES {
            return Err(Failure::usage(format!(
                "too large for the agent: {} bytes, at most {CONTROL_LINE_BYTES}",
                line.len()
            )));
        }
        // A peer that is refused at once may be hung up on before it has written: the reason is there to be read.
        let written = self.reader.get_mut().write_all(&line);
        match self.next() {
            Ok(Some(ControlReply::Refused { error })) => Err(Failure::no(defuse(&error))),
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(Failure::unknown(match written {
                Err(e) => format!("the agent hung up: {e}"),
                Ok(()) => "the agent hung up without an answer".to_owned(),
            })
            .next("journalctl -u guard-agent")),
            Err(failure) => Err(failure),
        }
    }

    /// The next line of the agent; `None` when it hung up.
    pub(crate) fn next(&mut self) -> Result<Option<ControlReply>, Failure> {
        let mut line = Vec::new();
        let limit = CONTROL_LINE_BYTES as u64 + 1;
        match (&mut self.reader).take(limit).read_until(b'\n', &mut line) {
            Ok(0) => Ok(None),
            Ok(_) if line.last() != Some(&b'\n') => Err(Failure::unknown("the agent's answer is cut or too long")),
            Ok(_) => parse(&line).map(Some),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(Failure::unknown(&*self.late).next("journalctl -u guard-agent"))
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(e) => Err(Failure::unknown(format!("the agent's socket: {e}"))),
        }
    }

    /// From now on an answer that takes longer is the failure `late`.
    pub(crate) fn within(&mut self, limit: Duration, late: String) -> Result<(), Failure> {
        self.late = late;
        Ok(self.reader.get_ref().set_read_timeout(Some(limit))?)
    }

    /// From now on [`Agent::next`] waits as long as it takes.
    pub(crate) fn wait_forever(&self) -> Result<(), Failure> {
        Ok(self.reader.get_ref().set_read_timeout(None)?)
    }
}

fn parse(line: &[u8]) -> Result<ControlReply, Failure> {
    serde_json::from_slice(line).map_err(|e| {
        Failure::unknown(format!(
            "the agent answered something this version does not understand: {e}"
        ))
    })
}

/// Asks one question.
pub(crate) fn ask(request: &ControlRequest) -> Result<ControlReply, Failure> {
    Agent::connect()?.ask(request)
}

/// The answer was none that belongs to the question.
pub(crate) fn unexpected() -> Failure {
    Failure::unknown("the agent answered another question: `guard` and the agent are of different versions")
}
