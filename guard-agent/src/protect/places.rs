//! Which places are protected.
//!
//! Owns the lists. It is given the configuration; it looks at nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use guard_common::protect::{NAME_BYTES, NameKey, Protected, flag, kind};

use super::patience::{Place, Sort};
use super::{Settings, What, hidden, kept};

/// Below every home: profiles of browsers, which hold cookies of the console, and saved secrets.
pub(super) const IN_HOMES: &[(&str, What)] = &[
    (".config/guard", hidden(kind::SIGN_IN)),
    (".local/share/keyrings", hidden(kind::SIGN_IN)),
    (".mozilla", hidden(kind::BROWSER)),
    (".config/chromium", hidden(kind::BROWSER)),
    (".config/google-chrome", hidden(kind::BROWSER)),
    (".config/google-chrome-beta", hidden(kind::BROWSER)),
    (".config/google-chrome-unstable", hidden(kind::BROWSER)),
    (".config/BraveSoftware", hidden(kind::BROWSER)),
    (".config/microsoft-edge", hidden(kind::BROWSER)),
    (".config/vivaldi", hidden(kind::BROWSER)),
    (".config/opera", hidden(kind::BROWSER)),
    (".config/mozilla", hidden(kind::BROWSER)),
    ("snap/firefox", hidden(kind::BROWSER)),
    ("snap/chromium", hidden(kind::BROWSER)),
    (".var/app/org.mozilla.firefox", hidden(kind::BROWSER)),
    (".var/app/org.chromium.Chromium", hidden(kind::BROWSER)),
    (".var/app/com.google.Chrome", hidden(kind::BROWSER)),
    (".var/app/com.brave.Browser", hidden(kind::BROWSER)),
    (".var/app/com.microsoft.Edge", hidden(kind::BROWSER)),
    (".var/app/com.vivaldi.Vivaldi", hidden(kind::BROWSER)),
    (".var/app/com.opera.Opera", hidden(kind::BROWSER)),
];

/// Executables and units: labelled tasks may run and read them.
const KEPT: &[&str] = &[
    "/usr/bin/guard",
    "/usr/bin/guard-agent",
    "/usr/bin/guard-console",
    "/usr/local/bin/guard",
    "/usr/local/bin/guard-agent",
    "/usr/local/bin/guard-console",
    "/etc/systemd/system/guard-agent.service",
    "/etc/systemd/system/guard-agent.service.d",
    "/etc/systemd/system/guard-console.service",
    "/etc/systemd/system/guard-console.service.d",
    "/run/systemd/system/guard-agent.service.d",
    "/run/systemd/system/guard-console.service.d",
    "/usr/lib/systemd/system/guard-agent.service",
    "/usr/lib/systemd/system/guard-console.service",
    "/usr/local/lib/systemd/system/guard-agent.service",
    "/usr/local/lib/systemd/system/guard-console.service",
];

/// What others run later because it is written there: as themselves, outside the workload. Readable.
const LATER: &[&str] = &[
    "/etc/crontab",
    "/etc/anacrontab",
    "/etc/cron.d",
    "/etc/cron.hourly",
    "/etc/cron.daily",
    "/etc/cron.weekly",
    "/etc/cron.monthly",
    "/etc/cron.yearly",
    "/var/spool/cron",
    "/var/spool/anacron",
    "/var/spool/at",
    "/etc/systemd",
    "/run/systemd/system",
    "/run/systemd/user",
    "/run/systemd/transient",
    "/run/systemd/generator",
    "/usr/lib/systemd",
    "/usr/local/lib/systemd",
    "/etc/init.d",
    "/etc/rc.local",
    "/etc/udev/rules.d",
    "/run/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/etc/xdg/autostart",
];

/// What the policy lets every label reach has its name here: nobody gives another socket such a name.
const LOG: &str = "/run/systemd/journal";

/// Where the socket may be without that whole directory being ours.
const SHARED: &[&str] = &["/", "/run", "/var/run", "/tmp", "/var/tmp", "/dev/shm"];

/// What is at a fixed place on this host, Guard's own first.
pub(super) fn fixed(settings: &Settings) -> Vec<Place> {
    let agent = hidden(kind::AGENT);
    let mut own: Vec<(PathBuf, What)> = ["/etc/guard", "/run/guard", "/var/lib/guard-agent", "/run/guard-agent"]
        .iter()
        .map(|path| (PathBuf::from(path), agent))
        .collect();
    for path in ["/var/lib/guard-console", "/run/guard-console"] {
        own.push((path.into(), hidden(kind::CONSOLE)));
    }
    for path in [
        &settings.config_file,
        &settings.policy_file,
        &settings.state_dir,
        &settings.pin_directory,
    ] {
        own.push((path.clone(), agent));
    }
    if let Some(parent) = settings.socket.parent()
        && !SHARED.iter().any(|shared| Path::new(shared) == parent)
    {
        own.push((parent.to_owned(), agent));
    }
    own.extend(KEPT.iter().map(|path| (PathBuf::from(path), kept(kind::PROGRAM))));
    own.push((LOG.into(), kept(kind::LOG)));
    own.extend(std::env::current_exe().ok().map(|path| (path, kept(kind::PROGRAM))));
    let own = own.into_iter().map(|(path, what)| Place {
        path,
        sort: Sort::Own(what),
    });
    let configured = settings
        .paths
        .iter()
        .filter(|path| path.is_absolute())
        .map(|path| Place {
            path: path.clone(),
            sort: Sort::Configured(hidden(kind::CONFIGURED)),
        });
    let later = LATER.iter().map(|path| Place {
        path: path.into(),
        sort: Sort::Configured(kept(kind::LATER)),
    });
    own.chain(configured).chain(later).collect()
}

/// The configured paths below every home, without their `~/`.
pub(super) fn in_homes(paths: &[PathBuf]) -> Vec<(PathBuf, What)> {
    let configured = paths
        .iter()
        .filter_map(|path| path.strip_prefix("~").ok())
        .map(|path| (path.to_owned(), hidden(kind::CONFIGURED)));
    IN_HOMES
        .iter()
        .map(|(path, what)| (PathBuf::from(path), *what))
        .chain(configured)
        .collect()
}

/// Names that count before anything has them: so that nobody can be quicker than the agent when a sign-in or a profile
/// comes into being.
pub(super) fn names(paths: &[PathBuf]) -> HashMap<NameKey, Protected> {
    let mut all = HashMap::new();
    for (path, what) in in_homes(paths) {
        let parts: Vec<&[u8]> = path.iter().map(std::os::unix::ffi::OsStrExt::as_bytes).collect();
        // A name that does not fit is protected when it is there.
        let Some(keys) = parts.iter().map(|part| padded(part)).collect::<Option<Vec<_>>>() else {
            continue;
        };
        match keys[..] {
            [name] => add(
                &mut all,
                [0; NAME_BYTES],
                name,
                what.flags | flag::BELOW_HOME,
                what.kind,
            ),
            [.., parent, name] => {
                add(&mut all, [0; NAME_BYTES], name, flag::PAIR, what.kind);
                // Guard's own directory is nothing that a workload has elsewhere; other people's names may be.
                let where_ = match (parts.len(), what.kind) {
                    (2, kind::BROWSER | kind::CONFIGURED) => flag::TWO_BELOW_HOME,
                    _ => 0,
                };
                add(&mut all, parent, name, what.flags | where_, what.kind);
                add(&mut all, [0; NAME_BYTES], keys[0], flag::FIRST, kind::SIGN_IN);
            }
            [] => {}
        }
    }
    all
}

fn add(all: &mut HashMap<NameKey, Protected>, parent: [u8; NAME_BYTES], name: [u8; NAME_BYTES], flags: u32, kind: u32) {
    let entry = all
        .entry(NameKey { parent, name })
        .or_insert(Protected { flags: 0, kind });
    entry.flags |= flags;
}

/// With at least two NULs behind it: a longer name that the kernel cut to fit has one.
fn padded(name: &[u8]) -> Option<[u8; NAME_BYTES]> {
    let mut bytes = [0; NAME_BYTES];
    bytes.get_mut(..name.len())?.copy_from_slice(name);
    (!name.is_empty() && name.len() + 2 <= NAME_BYTES).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(all: &HashMap<NameKey, Protected>, parent: &str, name: &str) -> Option<Protected> {
        let pad = |text: &str| {
            let mut bytes = [0; NAME_BYTES];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            bytes
        };
        let key = NameKey {
            parent: pad(parent),
            name: pad(name),
        };
        all.get(&key).copied()
    }

    #[test]
    fn every_home_place_has_a_name_in_the_kernel() {
        let all = names(&[]);
        for (path, what) in IN_HOMES {
            let mut parts = path.rsplit('/');
            let (name, parent) = (parts.next().unwrap(), parts.next());
            let found = look(&all, parent.unwrap_or(""), name).unwrap();
            assert!(found.flags & flag::HIDE != 0, "{path}");
            assert_eq!(found.kind, what.kind, "{path}");
            if parent.is_some() {
                assert!(look(&all, "", name).unwrap().flags & flag::PAIR != 0, "{path}");
                let first = path.split('/').next().unwrap();
                assert!(look(&all, "", first).unwrap().flags & flag::FIRST != 0, "{path}");
            }
        }
        // A sign-in counts wherever a directory is called so; a browser's profile in homes only.
        assert_eq!(look(&all, ".config", "guard").unwrap().flags, flag::HIDE);
        assert_eq!(look(&all, "", ".mozilla").unwrap().flags, flag::HIDE | flag::BELOW_HOME);
        assert_eq!(
            look(&all, "snap", "firefox").unwrap().flags,
            flag::HIDE | flag::TWO_BELOW_HOME
        );
        assert!(all.len() < 500, "the kernel's table is small");
    }

    #[test]
    fn configured_paths_are_of_homes_or_of_the_host() {
        let paths = [PathBuf::from("~/.ssh"), PathBuf::from("/srv/secret")];
        assert_eq!(
            look(&names(&paths), "", ".ssh"),
            Some(Protected {
                flags: flag::HIDE | flag::BELOW_HOME,
                kind: kind::CONFIGURED
            })
        );
        let last = in_homes(&paths).pop().unwrap();
        assert_eq!(last, (PathBuf::from(".ssh"), hidden(kind::CONFIGURED)));
    }

    #[test]
    fn what_others_run_later_is_readable_and_stops_no_start() {
        let settings = Settings {
            free: Vec::new(),
            config_file: "/etc/guard/agent.toml".into(),
            policy_file: "/etc/guard/policy.cedar".into(),
            state_dir: "/var/lib/guard-agent".into(),
            socket: "/run/guard/agent.sock".into(),
            pin_directory: "/sys/fs/bpf/guard".into(),
            paths: Vec::new(),
            addresses: Vec::new(),
            console: None,
        };
        let all = fixed(&settings);
        for path in LATER {
            let place = all.iter().find(|place| place.path == Path::new(path)).unwrap();
            assert_eq!(place.sort, Sort::Configured(kept(kind::LATER)), "{path}");
        }
    }

    #[test]
    fn a_name_that_the_kernel_may_have_cut_never_matches() {
        assert!(padded(&[b'a'; 30]).is_some());
        assert!(padded(&[b'a'; 31]).is_none());
        assert!(padded(&[b'a'; 300]).is_none());
        assert!(padded(b"").is_none());
    }
}
