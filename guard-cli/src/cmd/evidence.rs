//! `guard evidence`: records, bundles, and whether they hold.

use std::fs;
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use guard_evidence::bundle::{self, Bundle, Manifest};
use guard_evidence::checkpoint::CHECKPOINT_BYTES;
use guard_evidence::dsse;
use guard_evidence::ocsf;
use guard_evidence::record::Statement;
use guard_evidence::statement::{sha256_hex, summary};
use guard_evidence::text::{defuse, visible};
use guard_evidence::trust::{HostTrust, TRUST_BYTES, Trust};
use guard_evidence::verify::{Asked, Examined, Level, Report, Section, Status, TrustSource, examine};
use guard_proto::rest::RecordView;

use crate::args::{Evidence, EvidenceFilter, EvidenceList, Global, Output};
use crate::client::{Client, segment};
use crate::failure::{Failure, NO, UNKNOWN};
use crate::{output, profile, report};

pub(super) async fn run(global: &Global, command: Evidence) -> Result<ExitCode, Failure> {
    match command {
        Evidence::List(args) => list(global, &args).await,
        Evidence::Show { digest, envelope } => show(global, &digest, envelope).await,
        Evidence::Export { dir, out, filter } => match dir.or(out) {
            Some(dir) => export(global, &dir, &filter).await,
            None => Err(Failure::usage("where to?").next("guard evidence export DIR")),
        },
        Evidence::Verify {
            bundle,
            trust,
            part,
            since,
            ocsf,
            report,
        } => {
            let wanted = Wanted { ocsf, report };
            verify(global, &bundle, trust.as_deref(), part, since.as_deref(), &wanted)
        }
        Evidence::Trust => {
            let client = Client::signed_in(&global.profile)?;
            let bytes = client.bytes("/trust").await?;
            Trust::parse(&bytes).map_err(|e| Failure::unknown(format!("{}: {e}", client.base())))?;
            output::raw(&bytes)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn query(filter: &EvidenceFilter) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut query = Vec::new();
    query.extend(filter.host.as_ref().map(|host| ("host", host.clone())));
    query.extend(filter.label.as_ref().map(|label| ("label", label.clone())));
    for (name, time) in [("from", &filter.from), ("to", &filter.to)] {
        if let Some(time) = time {
            query.push((name, output::parse_time(time)?));
        }
    }
    Ok(query)
}

async fn list(global: &Global, args: &EvidenceList) -> Result<ExitCode, Failure> {
    let mut query = query(&args.filter)?;
    query.extend(args.request.as_ref().map(|id| ("request", id.clone())));
    query.extend(args.kind.as_ref().map(|kind| ("kind", kind.clone())));
    let client = Client::signed_in(&global.profile)?;
    let items: Vec<RecordView> = client.pages("/evidence", &query, usize::from(args.limit)).await?;
    let heading = ["INDEX", "AT", "HOST", "SEQ", "KIND", "WHAT", "DIGEST"];
    output::list(global.output, &items, Some("no records"), &heading, 5, |r| {
        vec![
            r.index.to_string(),
            output::local(&r.at),
            visible(&r.host),
            format!("{}/{}", r.epoch, r.sequence),
            visible(&r.kind),
            defuse(&r.summary),
            r.digest.chars().take(12).filter(char::is_ascii_hexdigit).collect(),
        ]
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn show(global: &Global, digest: &str, envelope: bool) -> Result<ExitCode, Failure> {
    let client = Client::signed_in(&global.profile)?;
    let wanted = digest.to_ascii_lowercase();
    if wanted.len() < 6 || wanted.len() > 64 || !wanted.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(
            Failure::usage(format!("`{}` is not a digest: 6 to 64 hex digits", visible(digest)))
                .next("guard evidence list"),
        );
    }
    let wanted = if wanted.len() == 64 {
        wanted
    } else {
        complete(&client, &wanted).await?
    };
    let bytes = client.bytes(&format!("/evidence/{}", segment(&wanted))).await?;
    if sha256_hex(&bytes) != wanted {
        return Err(Failure::no(format!(
            "the console sent a record that does not have the digest {wanted}"
        )));
    }
    if envelope {
        output::raw(&bytes)?;
        return Ok(ExitCode::SUCCESS);
    }
    let parsed = dsse::parse(&bytes).map_err(|e| Failure::no(format!("record {wanted}: {e}")))?;
    let statement = Statement::from_payload(parsed.unverified_payload())
        .map_err(|e| Failure::no(format!("record {wanted}: {e}")))?;
    // JSON escapes controls; what is left of the invisible is made visible below for people.
    let text = serde_json::to_string_pretty(&statement)?;
    if global.output == Output::Json {
        output::json(&statement, false)?;
    } else {
        output::line(&summary(&statement))?;
        output::line("")?;
        output::fields(&[("digest", vec![wanted]), ("key", vec![visible(parsed.key_id())])])?;
        output::line(&text.lines().map(visible).collect::<Vec<_>>().join("\n"))?;
        output::note("guard: the digest matches; signatures are checked by `guard evidence export` and `verify`");
    }
    Ok(ExitCode::SUCCESS)
}

async fn complete(client: &Client, begin: &str) -> Result<String, Failure> {
    let items: Vec<RecordView> = client.pages("/evidence", &[], 1000).await?;
    let mut found = items
        .into_iter()
        .filter(|r| r.digest.starts_with(begin))
        .map(|r| r.digest);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => {
            Err(Failure::no(format!("no record among the newest 1000 begins with {begin}")).next("guard evidence list"))
        }
        (Some(_), Some(_)) => {
            Err(Failure::usage(format!("several records begin with {begin}")).next("give more of the digest"))
        }
    }
}

/// Fetches a bundle and unpacks it: whole or not at all.
async fn export(global: &Global, dir: &Path, filter: &EvidenceFilter) -> Result<ExitCode, Failure> {
    let query = query(filter)?;
    let shown = dir.display();
    let occupied = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(Failure::usage(format!("{shown}: {e}"))),
    };
    if occupied {
        return Err(Failure::usage(format!("{shown} is not empty")).next("give a folder that does not exist yet"));
    }
    let client = Client::signed_in(&global.profile)?;
    let at = |e: io::Error| Failure::unknown(format!("{shown}: {e}"));
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut tar = tempfile::tempfile_in(parent).map_err(at)?;
    let mut stream = client.stream("/evidence/bundle", &query).await?;
    while let Some(chunk) = stream
        .chunk()
        .await
        .map_err(|e| Failure::unknown(crate::failure::chain(&e)))?
    {
        tar.write_all(&chunk).map_err(at)?;
    }
    tar.rewind().map_err(at)?;
    let partial = tempfile::Builder::new()
        .prefix(".guard-bundle-")
        .tempdir_in(parent)
        .map_err(at)?;
    let unpacked = partial.path().join("bundle");
    let bad = |e: bundle::BundleError| Failure::unknown(format!("the bundle that {} sent: {e}", client.base()));
    bundle::unpack(io::BufReader::new(tar), &unpacked).map_err(bad)?;
    let mut bundle = Bundle::open(&unpacked).map_err(bad)?;
    // From the console itself, over the pinned connection: what `verify` on this machine compares the bundle with.
    let trust = client.bytes("/trust").await?;
    profile::save_trust(&global.profile, &trust)?;
    let trust = Trust::parse(&trust).map_err(|e| Failure::unknown(format!("{}: {e}", client.base())))?;
    for_others(&mut bundle, &trust)?;
    fs::rename(&unpacked, dir).map_err(at)?;
    match global.output {
        Output::Json => output::json(
            &serde_json::json!({ "dir": dir, "records": bundle.manifest.records }),
            false,
        )?,
        Output::Table => {
            output::line(&format!("{} records in {shown}", bundle.manifest.records))?;
            output::note(&format!(
                "  → guard evidence verify {shown}   (elsewhere: with --trust TRUST.json, made by guard evidence trust)"
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Adds what is made of the records to a bundle that came just now: for other tools, which verify nothing.
fn for_others(bundle: &mut Bundle, trust: &Trust) -> Result<(), Failure> {
    let asked = if bundle.manifest.filter.is_all() {
        Asked::WholeLog
    } else {
        Asked::Part
    };
    let examined = examine(bundle, trust, TrustSource::Given, asked, None);
    let page = report::html(&examined, &bundle.manifest, trust, FROM_CONSOLE);
    let page = page.map_err(|e| Failure::unknown(e.to_string()))?;
    let failed = |e: bundle::BundleError| Failure::unknown(e.to_string());
    bundle
        .add_ocsf(|mut out| ocsf::write(&examined, trust, &mut out))
        .map_err(failed)?;
    bundle.add_report(&page).map_err(failed)
}

/// Whose keys a report rests on.
const FROM_CONSOLE: &str = "as the console vouched for them when the bundle was exported";
const GIVEN: &str = "given to whoever verified the bundle, apart from it";
const KEPT: &str = "as the console vouched for them at the last export of whoever verified the bundle";
const FROM_BUNDLE: &str = "those that came with the bundle: they prove nothing";

/// What else is to be made of the records.
struct Wanted {
    ocsf: Option<PathBuf>,
    report: Option<PathBuf>,
}

impl Wanted {
    fn write(&self, judged: &Judged) -> Result<(), Failure> {
        let Judged::Examined(judged) = judged else {
            for file in [&self.ocsf, &self.report].into_iter().flatten() {
                output::note(&format!("guard: {} was not written", file.display()));
            }
            return Ok(());
        };
        if let Some(file) = &self.ocsf {
            write_whole(file, |out| {
                ocsf::write(&judged.examined, &judged.trust, out).map(|_| ())
            })?;
        }
        if let Some(file) = &self.report {
            let page = report::html(&judged.examined, &judged.manifest, &judged.trust, judged.keys);
            let page = page.map_err(|e| Failure::unknown(e.to_string()))?;
            write_whole(file, |out| out.write_all(page.as_bytes()))?;
        }
        Ok(())
    }
}

/// A file that is there as a whole or not at all.
fn write_whole(
    file: &Path,
    write: impl FnOnce(&mut io::BufWriter<&fs::File>) -> io::Result<()>,
) -> Result<(), Failure> {
    let at = |e: io::Error| Failure::usage(format!("{}: {e}", file.display()));
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let made = tempfile::NamedTempFile::new_in(parent.unwrap_or(Path::new("."))).map_err(at)?;
    let mut out = io::BufWriter::new(made.as_file());
    write(&mut out).and_then(|()| out.flush()).map_err(at)?;
    drop(out);
    made.persist(file).map_err(|e| at(e.error))?;
    Ok(())
}

fn verify(
    global: &Global,
    path: &Path,
    trust: Option<&Path>,
    part: bool,
    since: Option<&Path>,
    wanted: &Wanted,
) -> Result<ExitCode, Failure> {
    let since = since
        .map(|path| read_at_most(path, CHECKPOINT_BYTES as u64))
        .transpose()?;
    let given = trust.map(read_trust).transpose()?;
    // A tar file is unpacked beside nothing of the user's.
    let mut unpacked = None;
    let opened = if path.is_dir() {
        Bundle::open(path)
    } else {
        let file = fs::File::open(path).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))?;
        let dir = tempfile::tempdir()?;
        let inside = dir.path().join("bundle");
        unpacked = Some(dir);
        bundle::unpack(io::BufReader::new(file), &inside).and_then(|()| Bundle::open(&inside))
    };
    let judged = opened.map_or_else(
        |e| Judged::Nothing(guard_evidence::verify::unreadable(&e)),
        |bundle| {
            let kept = if given.is_none() {
                kept_trust(global, &bundle)
            } else {
                None
            };
            let keys = given.map(|trust| (trust, GIVEN)).or(kept.map(|trust| (trust, KEPT)));
            judge(&bundle, keys, part, since.as_deref())
        },
    );
    drop(unpacked);
    wanted.write(&judged)?;
    let report = judged.report();
    match global.output {
        Output::Json => output::json(report, false)?,
        Output::Table => print_report(report)?,
    }
    Ok(match report.status {
        Status::Valid => ExitCode::SUCCESS,
        Status::Invalid => ExitCode::from(NO),
        Status::Incomplete => ExitCode::from(UNKNOWN),
    })
}

enum Judged {
    Examined(Box<Known>),
    /// Nothing in it can be told.
    Nothing(Report),
}

/// A bundle that could be judged, and by what.
struct Known {
    examined: Examined,
    manifest: Manifest,
    trust: Trust,
    /// Where they came from, in words.
    keys: &'static str,
}

impl Judged {
    fn report(&self) -> &Report {
        match self {
            Self::Examined(known) => &known.examined.report,
            Self::Nothing(report) => report,
        }
    }
}

/// `given`: the keys, and where they came from.
fn judge(bundle: &Bundle, given: Option<(Trust, &'static str)>, part: bool, since: Option<&[u8]>) -> Judged {
    let asked = if part { Asked::Part } else { Asked::WholeLog };
    let by = |trust: Trust, source, keys| {
        Judged::Examined(Box::new(Known {
            examined: examine(bundle, &trust, source, asked, since),
            manifest: bundle.manifest.clone(),
            trust,
            keys,
        }))
    };
    if let Some((trust, keys)) = given {
        return by(trust, TrustSource::Given, keys);
    }
    let inside = bundle
        .trust()
        .map_err(|e| e.to_string())
        .and_then(|bytes| Trust::parse(&bytes).map_err(|e| e.to_string()));
    match inside {
        Ok(trust) => by(trust, TrustSource::Bundle, FROM_BUNDLE),
        Err(why) => Judged::Nothing(guard_evidence::verify::without_trust(&why)),
    }
}

/// The keys that the console of this sign-in vouched for when it was last asked, if they can speak for this bundle.
fn kept_trust(global: &Global, bundle: &Bundle) -> Option<Trust> {
    let path = profile::trust_path(&global.profile).ok()?;
    let kept = read_trust(&path).ok()?;
    let inside = Trust::parse(&bundle.trust().ok()?).ok()?;
    let knows = |host: &HostTrust| kept.hosts.iter().any(|known| known.id == host.id);
    if kept.console.origin != inside.console.origin || !inside.hosts.iter().all(knows) {
        return None;
    }
    output::note(&format!(
        "  keys: as the console vouched for them, in {}",
        path.display()
    ));
    Some(kept)
}

pub(super) fn read_trust(path: &Path) -> Result<Trust, Failure> {
    let file: PathBuf = if path.is_dir() {
        path.join("trust.json")
    } else {
        path.to_owned()
    };
    let bytes = read_at_most(&file, TRUST_BYTES)?;
    Trust::parse(&bytes).map_err(|e| Failure::usage(format!("{}: {e}", file.display())))
}

fn read_at_most(file: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let read = || -> io::Result<Vec<u8>> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        fs::File::open(file)?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|e| Failure::usage(format!("{}: {e}", file.display())))
}

/// Findings of a section that are printed; `-o json` has all.
const SHOWN: usize = 20;

fn print_report(report: &Report) -> Result<(), Failure> {
    for section in &report.sections {
        print_section(section)?;
    }
    let word = match report.status {
        Status::Valid => output::styled(output::BOLD, "VALID"),
        Status::Incomplete => {
            output::styled(output::RED, "INCOMPLETE") + ": nothing is wrong, but not everything can be told"
        }
        Status::Invalid => output::styled(output::RED, "INVALID"),
    };
    output::line(&format!("result       {word}"))
}

fn print_section(section: &Section) -> Result<(), Failure> {
    let word = match section.status {
        Status::Valid => "valid",
        Status::Incomplete => "← INCOMPLETE",
        Status::Invalid => "← INVALID",
    };
    output::line(format!("{:<12} {}   {word}", section.name, section.summary).trim_end())?;
    let mut worst: Vec<_> = section.findings.iter().collect();
    worst.sort_by_key(|f| std::cmp::Reverse(f.level));
    for finding in worst.iter().take(SHOWN) {
        let level = match finding.level {
            Level::Note => "note",
            Level::Incomplete => "INCOMPLETE",
            Level::Invalid => "INVALID",
        };
        let place = match (&finding.file, finding.epoch, finding.sequence) {
            (Some(file), Some(epoch), Some(sequence)) => format!("{file} (epoch {epoch}, seq {sequence}): "),
            (Some(file), ..) => format!("{file}: "),
            _ => String::new(),
        };
        output::line(&format!("{:<12} {level}: {place}{}", "", finding.text))?;
    }
    let more = section.findings.len().saturating_sub(SHOWN) as u64 + section.more_findings;
    if more > 0 {
        output::line(&format!("{:<12} and {more} more; -o json has them", ""))?;
    }
    Ok(())
}
