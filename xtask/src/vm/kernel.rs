//! Debian's kernels of several suites, fetched and checked by a private apt, without touching the machine's own.
//! Given a series. Never pins a version that will vanish from the archive: the newest of the series is taken once and kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};

use crate::run;

/// A kernel series that Guard is tested on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// `6.12`
    pub series: &'static str,
    /// Suites of the main archive that carry it.
    suites: &'static [&'static str],
    /// The suite of the security archive that carries it.
    security: Option<&'static str>,
    /// Ways to get it, the first one best: package names up to the version, all of which are needed.
    packages: &'static [&'static [&'static str]],
}

/// One package has all of it.
const WHOLE: &[&str] = &["linux-image-"];
/// In newer suites the image package is empty and depends on these.
const PARTS: &[&str] = &["linux-binary-", "linux-modules-", "linux-base-"];

const TABLE: [Kernel; 4] = [
    Kernel {
        series: "6.1",
        suites: &["bookworm"],
        security: Some("bookworm-security"),
        packages: &[WHOLE],
    },
    Kernel {
        series: "6.12",
        suites: &["trixie"],
        security: Some("trixie-security"),
        packages: &[WHOLE],
    },
    Kernel {
        series: "6.18",
        suites: &["trixie-backports"],
        security: None,
        packages: &[WHOLE],
    },
    Kernel {
        series: "7.2",
        suites: &["sid"],
        security: None,
        packages: &[PARTS],
    },
];

/// The highest series that the archive has, whichever that is.
const NEWEST: Kernel = Kernel {
    series: "newest",
    suites: &["trixie-backports", "sid"],
    security: None,
    packages: &[PARTS, WHOLE],
};

impl Kernel {
    /// The kernel of `cargo xtask vm` without `--kernel`.
    pub const DEFAULT: Self = TABLE[1];

    /// All series.
    pub fn all() -> &'static [Self] {
        &TABLE
    }
}

impl FromStr for Kernel {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        TABLE
            .iter()
            .chain([&NEWEST])
            .find(|kernel| kernel.series == text)
            .copied()
            .ok_or_else(|| {
                let known: Vec<_> = TABLE.iter().map(|kernel| kernel.series).collect();
                anyhow!(
                    "no kernel series {text}: the tested ones are {} (or newest: the highest of the archive)",
                    known.join(", ")
                )
            })
    }
}

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// `6.12.117+deb13-cloud-amd64`
    pub release: String,
    /// The boot image.
    pub vmlinuz: PathBuf,
    /// `lib/modules/<release>` as a directory.
    pub modules: PathBuf,
    /// The same as an erofs image of `lib/modules`.
    pub modules_image: PathBuf,
}

/// The archive no longer has a series.
#[derive(Debug)]
struct Gone(&'static str);

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "gone: the archive has no {} cloud kernel any more", self.0)
    }
}

impl std::error::Error for Gone {}

/// The release of a kernel that is in the cache or can be brought there; `None` when the archive no longer has the series.
///
/// # Errors
/// When the archive cannot be reached, or a package does not unpack.
pub fn available(kernel: Kernel) -> Result<Option<String>> {
    let cache = crate::paths::cache()?;
    match fetch(&cache, kernel) {
        Ok(fetched) => Ok(Some(fetched.release)),
        Err(error) if error.is::<Gone>() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Brings a kernel into the cache, or finds it there.
///
/// # Errors
/// When the archive cannot be reached, no longer has the series, or a package does not unpack.
pub fn fetch(cache: &Path, kernel: Kernel) -> Result<Fetched> {
    let dir = cache.join("kernels").join(kernel.series);
    if let Ok(found) = open(&dir) {
        return Ok(found);
    }
    let _lock = run::lock(&cache.join("kernels").join(format!("{}.lock", kernel.series)))?;
    if let Ok(found) = open(&dir) {
        return Ok(found);
    }
    run::progress(format!("fetching a {} kernel from Debian's archive", kernel.series));
    let work = cache.join("kernels").join(format!("{}.new", kernel.series));
    remove(&work)?;
    fs::create_dir_all(&work)?;
    build(&work, kernel).with_context(|| format!("cannot fetch a {} kernel", kernel.series))?;
    remove(&dir)?;
    fs::rename(&work, &dir)?;
    open(&dir)
}

fn open(dir: &Path) -> Result<Fetched> {
    let release = fs::read_to_string(dir.join("release"))?;
    Ok(Fetched {
        vmlinuz: dir.join("vmlinuz"),
        modules: dir.join("lib/modules").join(&release),
        modules_image: dir.join("modules.erofs"),
        release,
    })
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn build(work: &Path, kernel: Kernel) -> Result<()> {
    let apt = PrivateApt::new(work, kernel)?;
    run::quiet(apt.command("apt-get").arg("update"))?;
    let names = run::output(apt.command("apt-cache").args(["pkgnames", "linux-"]))?;
    let names = String::from_utf8_lossy(&names);
    let (release, packages) = choose(&names, kernel).ok_or(Gone(kernel.series))?;
    run::progress(format!("downloading {}", packages.join(" ")));
    run::quiet(apt.command("apt-get").arg("download").args(&packages).current_dir(work))?;
    let unpacked = work.join("unpacked");
    for entry in fs::read_dir(work)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "deb") {
            run::quiet(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&unpacked))?;
            fs::remove_file(&path)?;
        }
    }
    // Packages differ in lib against usr/lib.
    let modules = [unpacked.join("usr/lib/modules"), unpacked.join("lib/modules")]
        .into_iter()
        .find(|dir| dir.is_dir())
        .ok_or_else(|| anyhow!("{} has no modules", packages.join(" ")))?;
    fs::create_dir_all(work.join("lib"))?;
    fs::rename(modules, work.join("lib/modules"))?;
    let vmlinuz = [
        unpacked.join("boot").join(format!("vmlinuz-{release}")),
        work.join("lib/modules").join(&release).join("vmlinuz"),
    ]
    .into_iter()
    .find(|file| file.is_file())
    .ok_or_else(|| anyhow!("{} has no boot image", packages.join(" ")))?;
    fs::copy(vmlinuz, work.join("vmlinuz"))?;
    fs::remove_dir_all(unpacked)?;
    fs::remove_dir_all(apt.dir)?;
    run::quiet(Command::new(tool("depmod")).arg("-b").arg(work).arg(&release))?;
    run::quiet(
        Command::new("mkfs.erofs")
            .args(["-zlz4", "-T0"])
            .arg(work.join("modules.erofs"))
            .arg(work.join("lib/modules")),
    )?;
    // Written last: its presence says that the rest is whole.
    fs::write(work.join("release"), release)?;
    Ok(())
}

/// A program that Debian keeps in sbin, which is not on everybody's PATH.
pub(super) fn tool(name: &str) -> PathBuf {
    let sbin = Path::new("/usr/sbin").join(name);
    if sbin.exists() { sbin } else { name.into() }
}

/// The release and packages of the newest kernel of the series among package names, one per line.
fn choose(names: &str, kernel: Kernel) -> Option<(String, Vec<String>)> {
    let of_series = |release: &str| {
        release.ends_with("-cloud-amd64")
            && (kernel == NEWEST && release.starts_with(|first: char| first.is_ascii_digit())
                || release
                    .strip_prefix(kernel.series)
                    .is_some_and(|rest| rest.starts_with(['.', '-', '+', '~'])))
    };
    let (release, packages) = kernel
        .packages
        .iter()
        // Of equal ones the last is the maximum, and the first way is the best.
        .rev()
        .filter_map(|packages| {
            let release = names
                .lines()
                .filter_map(|name| name.strip_prefix(packages.first()?))
                .filter(|release| of_series(release))
                .filter(|release| {
                    packages
                        .iter()
                        .all(|prefix| names.lines().any(|name| name.strip_prefix(prefix) == Some(release)))
                })
                .max_by_key(|release| version(release))?;
            Some((release, packages))
        })
        .max_by_key(|(release, _)| version(release))?;
    Some((
        release.to_owned(),
        packages.iter().map(|prefix| format!("{prefix}{release}")).collect(),
    ))
}

/// The numbers of a version, for comparing: `6.12.117+deb13.1` is 6, 12, 117, 13, 1.
fn version(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

struct PrivateApt {
    dir: PathBuf,
}

impl PrivateApt {
    fn new(work: &Path, kernel: Kernel) -> Result<Self> {
        let dir = work.join("apt");
        for sub in ["lists/partial", "cache/archives/partial", "state"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        let archive = Archive::of_machine();
        let mut sources = String::new();
        for suite in kernel.suites {
            sources.push_str(&archive.line(&archive.main, suite));
        }
        if let Some(suite) = kernel.security {
            sources.push_str(&archive.line(&archive.security, suite));
        }
        fs::write(dir.join("sources.list"), sources)?;
        Ok(Self { dir })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-q");
        let at = |name: &str, sub: &str| format!("{name}={}", self.dir.join(sub).display());
        for option in [
            at("Dir::Etc::sourcelist", "sources.list"),
            at("Dir::State", "state"),
            at("Dir::State::lists", "lists"),
            at("Dir::Cache", "cache"),
            "Dir::Etc::sourceparts=/dev/null".into(),
            "Dir::Etc::preferences=/dev/null".into(),
            "Dir::Etc::preferencesparts=/dev/null".into(),
            "Dir::State::status=/dev/null".into(),
            "Acquire::Languages=none".into(),
            "APT::Architecture=amd64".into(),
            "APT::Architectures=amd64".into(),
            "APT::Sandbox::User=root".into(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }
}

/// Where Debian's archive is and which keys sign it.
pub(super) struct Archive {
    pub(super) main: String,
    pub(super) security: String,
    pub(super) keys: String,
}

impl Archive {
    /// As the machine's own sources have it, so that its mirror is used; else Debian's own.
    pub(super) fn of_machine() -> Self {
        let mut archive = Self {
            main: "http://deb.debian.org/debian".into(),
            security: "http://deb.debian.org/debian-security".into(),
            keys: "/usr/share/keyrings/debian-archive-keyring.gpg".into(),
        };
        let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") else {
            return archive;
        };
        let mut texts: Vec<_> = entries
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|ext| ext == "sources"))
            .filter_map(|entry| fs::read_to_string(entry.path()).ok())
            .collect();
        texts.sort();
        for text in texts {
            archive.learn(&text);
        }
        archive
    }

    fn learn(&mut self, text: &str) {
        for stanza in text.split("\n\n") {
            let field = |name: &str| {
                stanza.lines().find_map(|line| {
                    let (key, value) = line.split_once(':')?;
                    (key.eq_ignore_ascii_case(name)).then(|| value.trim().to_owned())
                })
            };
            let first =
                |value: Option<String>| value.and_then(|value| value.split_whitespace().next().map(str::to_owned));
            let (Some(uri), Some(suites)) = (first(field("URIs")), field("Suites")) else {
                continue;
            };
            // Other vendors' archives have no Debian suite.
            let is = |wanted: &str| suites.split_whitespace().any(|suite| suite == wanted);
            if is("bookworm") || is("trixie") || is("sid") {
                self.main = uri;
            } else if is("bookworm-security") || is("trixie-security") {
                self.security = uri;
            } else {
                continue;
            }
            if let Some(keys) = field("Signed-By").filter(|keys| keys.starts_with('/')) {
                self.keys = keys;
            }
        }
    }

    pub(super) fn line(&self, uri: &str, suite: &str) -> String {
        format!("deb [signed-by={}] {uri} {suite} main\n", self.keys)
    }
}

/// The archive's lines for a whole system of `suite`.
pub(super) fn system_sources(suite: &str) -> Result<String> {
    if suite.is_empty() || !suite.bytes().all(|byte| byte.is_ascii_lowercase()) {
        bail!("{suite:?} is no Debian suite");
    }
    let archive = Archive::of_machine();
    Ok(archive.line(&archive.main, suite) + &archive.line(&archive.security, &format!("{suite}-security")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series_is_chosen_by_number_not_by_letter() {
        let names = "linux-image-6.12.90+deb13-cloud-amd64\nlinux-image-6.12.117+deb13-cloud-amd64\n\
                     linux-image-6.12.115+deb13.1-cloud-amd64\nlinux-image-6.120.1-cloud-amd64\n\
                     linux-image-6.12.200+deb13-amd64\nlinux-image-cloud-amd64\nlinux-headers-6.12.300-cloud-amd64";
        let (release, packages) = choose(names, Kernel::DEFAULT).unwrap();
        assert_eq!(release, "6.12.117+deb13-cloud-amd64");
        assert_eq!(packages, ["linux-image-6.12.117+deb13-cloud-amd64"]);
    }

    #[test]
    fn a_kernel_in_three_packages_needs_all_three() {
        let kernel: Kernel = "7.2".parse().unwrap();
        let half = "linux-binary-7.2.2-cloud-amd64\nlinux-modules-7.2.2-cloud-amd64\n";
        assert_eq!(choose(half, kernel), None);
        let whole = format!("{half}linux-base-7.2.2-cloud-amd64\nlinux-binary-7.2.3-cloud-amd64");
        assert_eq!(choose(&whole, kernel).unwrap().0, "7.2.2-cloud-amd64");
    }

    #[test]
    fn the_newest_is_the_highest_of_any_series_and_in_parts_when_there_are_any() {
        let kernel: Kernel = "newest".parse().unwrap();
        let names = "linux-image-6.18.9-cloud-amd64\nlinux-image-10.1.2-cloud-amd64\nlinux-image-cloud-amd64\n";
        assert_eq!(choose(names, kernel).unwrap().1, ["linux-image-10.1.2-cloud-amd64"]);
        let names = format!(
            "{names}linux-binary-10.1.2-cloud-amd64\nlinux-modules-10.1.2-cloud-amd64\nlinux-base-10.1.2-cloud-amd64\n"
        );
        assert_eq!(choose(&names, kernel).unwrap().1[0], "linux-binary-10.1.2-cloud-amd64");
        assert_eq!(choose("", kernel), None);
    }

    #[test]
    fn an_unknown_series_names_the_known_ones() {
        let text = "5.4".parse::<Kernel>().unwrap_err().to_string();
        assert_eq!(
            text,
            "no kernel series 5.4: the tested ones are 6.1, 6.12, 6.18, 7.2 (or newest: the highest of the archive)"
        );
    }

    #[test]
    fn the_machines_mirror_is_used() {
        let mut archive = Archive {
            main: "a".into(),
            security: "b".into(),
            keys: "c".into(),
        };
        archive.learn(
            "Types: deb\nURIs: https://mirror.example.org/debian\nSuites: bookworm bookworm-updates\nSigned-By: /k.gpg\n\n\
             Types: deb\nURIs: https://other.example.org/x\nSuites: nodistro\nSigned-By: /other.gpg\n",
        );
        assert_eq!(
            (archive.main.as_str(), archive.security.as_str(), archive.keys.as_str()),
            ("https://mirror.example.org/debian", "b", "/k.gpg")
        );
    }
}
