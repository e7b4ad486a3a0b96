//! An agent that answers as scripted, on a socket of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};

use guard_proto::control::{ControlReply, ControlRequest, RunEvent};

/// Answers every request with what `script` gives, one connection per thread; keeps watchers and gives them back.
pub(crate) fn start(
    dir: &Path,
    script: impl Fn(&ControlRequest) -> Vec<ControlReply> + Send + Sync + 'static,
) -> (PathBuf, Receiver<ControlRequest>) {
    let path = dir.join("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (send, receive) = channel();
    let script = std::sync::Arc::new(script);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (script, send) = (script.clone(), send.clone());
            std::thread::spawn(move || serve(stream.unwrap(), &*script, &send));
        }
    });
    (path, receive)
}

fn serve(
    mut stream: UnixStream,
    script: &dyn Fn(&ControlRequest) -> Vec<ControlReply>,
    seen: &std::sync::mpsc::Sender<ControlRequest>,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        let request: ControlRequest = serde_json::from_str(&line).unwrap();
        // Whether a test still asks or not.
        seen.send(request.clone()).ok();
        for reply in script(&request) {
            if matches!(reply, ControlReply::Event(RunEvent::Approved { .. })) {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            let mut line = serde_json::to_vec(&reply).unwrap();
            line.push(b'\n');
            // A peer may have gone.
            stream.write_all(&line).ok();
        }
    }
}
