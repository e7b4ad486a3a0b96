//! Who is at the other end of a control connection.
//!
//! Owns the credentials that the kernel noted when the peer connected. It is given a socket. It must never take one
//! process for another that has its number by now: a descriptor of the process tells, where the kernel has one to give.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::UnixStream;

use crate::labels::Labels;

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) pid: u32,
    /// Since Linux 6.5.
    descriptor: Option<OwnedFd>,
}

impl Peer {
    pub(super) fn of(stream: &UnixStream) -> Result<Self, String> {
        let credentials = stream
            .peer_cred()
            .map_err(|e| format!("it is not known who asks: {e}"))?;
        let pid = credentials
            .pid()
            .and_then(|pid| u32::try_from(pid).ok())
            .filter(|pid| *pid > 0)
            .ok_or("it is not known who asks: its process is in another PID namespace")?;
        Ok(Self {
            uid: credentials.uid(),
            pid,
            descriptor: getsockopt(stream, sockopt::PeerPidfd).ok(),
        })
    }

    /// An error when the peer is labelled, or when that cannot be found out.
    pub(super) fn refuse_labelled(&self, labels: &Labels) -> Result<(), String> {
        let unknown = || "it is not known who asks: its process is gone".to_owned();
        let cgroup = crate::enrich::cgroup(self.pid).ok_or_else(unknown)?;
        if !self.is_alive() {
            return Err(unknown());
        }
        match labels.above(&cgroup) {
            None => Ok(()),
            Some((_, label)) => Err(format!("a labelled process (`{label}`) may not speak to the agent")),
        }
    }

    /// Whether the process that connected still has its number.
    pub(super) fn is_alive(&self) -> bool {
        let Some(descriptor) = &self.descriptor else {
            return fs::exists(format!("/proc/{}", self.pid)).unwrap_or(false);
        };
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd())).unwrap_or_default();
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
        pid.is_some_and(|pid| pid.trim() == self.pid.to_string())
    }
}
