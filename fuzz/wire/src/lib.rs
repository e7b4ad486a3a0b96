//! Fuzz targets of the boundaries that build in a minute: kernel events, evidence, the control socket, REST bodies.
//!
//! Owns one function per target; each is given any bytes and says by a panic that a promise was broken. It must never
//! change a parser: where a parser's crate is heavy (aya, tonic), its source file itself is compiled here.
#![forbid(unsafe_code)]

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

mod evidence;
mod lifecycles;
mod log;
mod spools;

pub use evidence::{envelope, statement, text};
pub use lifecycles::lifecycle;
pub use log::{bundle, log};
pub use spools::spool;

/// As in guard-agent, without aya.
#[path = "../../../guard-agent/src/kernel/btf.rs"]
mod btf;
#[path = "../../../guard-agent/src/kernel/file_key.rs"]
mod file_key;
#[path = "../../../guard-agent/src/kernel/offsets.rs"]
mod offsets;
#[expect(dead_code, reason = "all of the module is compiled, only the decoder is run")]
#[path = "../../../guard-agent/src/kernel/ring.rs"]
mod ring_decoder;
#[path = "../../../guard-agent/src/kernel/told.rs"]
mod told;

/// As in guard-proto, without tonic.
#[path = "../../../guard-proto/src/control.rs"]
pub mod control_types;
#[path = "../../../guard-proto/src/limits.rs"]
pub mod limits;
#[path = "../../../guard-proto/src/rest.rs"]
pub mod rest_types;

/// One record of the kernel's ring. As it comes, and with its header made right so that the fields behind it are
/// reached.
pub fn ring(data: &[u8]) {
    use guard_common::{
        ABI_VERSION, AskAddress, AskExec, AskFile, AskUnix, Cgroup, Ended, Parked, Resolved, Signal, event,
    };

    check_event(data);
    let Some((kind, body)) = data.split_first() else { return };
    let kinds = [
        (event::ASK_EXEC, size_of::<AskExec>()),
        (event::ASK_ADDRESS, size_of::<AskAddress>()),
        (event::ASK_UNIX, size_of::<AskUnix>()),
        (event::ASK_FILE, size_of::<AskFile>()),
        (event::RESOLVED, size_of::<Resolved>()),
        (event::ENDED, size_of::<Ended>()),
        (event::PARKED, size_of::<Parked>()),
        (event::SIGNAL, size_of::<Signal>()),
        (event::CGROUP_MADE, size_of::<Cgroup>()),
        (event::CGROUP_GONE, size_of::<Cgroup>()),
    ];
    let (kind, size) = kinds[usize::from(*kind) % kinds.len()];
    let mut bytes = body.to_vec();
    bytes.resize(size, 0);
    bytes[0..2].copy_from_slice(&ABI_VERSION.to_le_bytes());
    bytes[2..4].copy_from_slice(&kind.to_le_bytes());
    bytes[4..8].copy_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
    check_event(&bytes);
}

fn check_event(bytes: &[u8]) {
    use guard_common::{AskExec, AskHead, ask_flag::PATH_WHOLE};
    use ring_decoder::{Event, Subject, decode};
    use std::os::unix::ffi::OsStrExt;

    let event = match decode(bytes) {
        Ok(event) => event,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    // Only exact sizes are events.
    assert!(decode(&bytes[..bytes.len() - 1]).is_err());
    if let Event::Ask(ask) = event {
        assert!(ask.tid > 0 && ask.tgid > 0 && ask.label > 0);
        assert!(i32::try_from(ask.tid).is_ok() && i32::try_from(ask.tgid).is_ok());
        assert!(ask.comm.len() <= 16 && !ask.comm.contains(&0));
        let flags = std::mem::offset_of!(AskExec, head) + std::mem::offset_of!(AskHead, flags);
        let whole = bytes[flags] & (PATH_WHOLE as u8) != 0;
        let (path, nameless) = match &ask.what {
            Subject::Exec { path, unlinked, .. } => (path.as_ref(), *unlinked),
            Subject::Unix { path, .. } => (path.as_ref(), false),
            Subject::File { change, .. } => {
                let absolute = |path: &std::path::Path| path.as_os_str().as_bytes().starts_with(b"/");
                assert!(change.second.as_deref().is_none_or(absolute));
                assert!(change.below_root.as_deref().is_none_or(absolute));
                assert!(change.path.is_none() || change.below_root.is_none());
                (change.path.as_ref(), false)
            }
            Subject::Address { .. } | Subject::Abstract { .. } => (None, false),
        };
        if let Some(path) = path {
            let path = path.as_os_str().as_bytes();
            assert!(!path.is_empty() && !path.contains(&0));
            // A name alone is allowed for a file that has none any more; it is no path, and no rule may take it for one.
            assert!(path.starts_with(b"/") || nameless);
            assert!(!path.starts_with(b"/") || !path.windows(2).any(|pair| pair == b"//"));
            assert_eq!(path.starts_with(b"/"), whole);
        }
    }
}

/// The kernel's type information, from which the offsets come that every program reads by.
pub fn btf(data: &[u8]) {
    use btf::Btf;

    let btf = match Btf::parse(data) {
        Ok(btf) => btf,
        Err(error) => {
            evidence::shown_safely(&error.to_string());
            return;
        }
    };
    if let Err(error) = offsets::resolve(&btf) {
        evidence::shown_safely(&error.to_string());
    }
    let names = ["s", "a", "b", "c", "task_struct", "pid", "file", "f_inode", ""];
    for name in names {
        let size = btf.size_of(name);
        assert_eq!(size, btf.size_of(name));
        for member in names {
            let any = btf.offset(name, member, 0);
            // A width that is wanted never finds what is not there, nor something elsewhere.
            for width in [1, 4, 8] {
                if let Ok(offset) = btf.offset(name, member, width) {
                    assert_eq!(any, Ok(offset), "{name}.{member}");
                }
            }
        }
        let _ = btf.has_function(name);
    }
}

/// A line of the control socket, either way.
pub fn control(data: &[u8]) {
    same_again::<control_types::ControlRequest>(data);
    same_again::<control_types::ControlReply>(data);
    if let Ok(text) = std::str::from_utf8(data)
        && limits::is_label(text)
    {
        // A label is a path component, part of a unit name and of a URL.
        assert!(text.len() <= limits::LABEL_BYTES);
        assert!(!text.contains(['/', '\\', '%', ' ', '@']) && text != "." && text != ".." && !text.starts_with('-'));
    }
}

/// A body of the REST API, either way.
pub fn rest(data: &[u8]) {
    use rest_types::*;

    same_again::<AnswerBody>(data);
    same_again::<SetupBody>(data);
    same_again::<LoginBody>(data);
    same_again::<NewUser>(data);
    same_again::<LabelBody>(data);
    same_again::<NewToken>(data);
    same_again::<Page<Request>>(data);
    same_again::<Page<RecordView>>(data);
    same_again::<Page<Host>>(data);
    same_again::<Session>(data);
    same_again::<Problem>(data);
    same_again::<Status>(data);
}

/// What was read is written so that it is read alike.
fn same_again<T: DeserializeOwned + Serialize + Debug>(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(data) else {
        return;
    };
    let Ok(json) = serde_json::to_vec(&value) else {
        panic!("cannot be written: {value:?}")
    };
    match serde_json::from_slice::<T>(&json) {
        Ok(again) => assert_eq!(format!("{value:?}"), format!("{again:?}")),
        Err(error) => panic!("cannot be read again: {error}: {value:?}"),
    }
}
