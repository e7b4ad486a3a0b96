//! `guard doctor`: whether this host can hold actions.
//!
//! The agent knows best; without it, what can be seen from outside is looked at and the rest is said to be unknown.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use guard_evidence::text::{defuse, visible_fold};
use guard_proto::control::{ControlReply, ControlRequest, Finding, FindingState};

use crate::args::{Global, Output};
use crate::failure::{Failure, NO, UNKNOWN};
use crate::{output, socket};

pub(super) fn run(global: &Global) -> Result<ExitCode, Failure> {
    let (findings, from_agent) = match socket::ask(&ControlRequest::Doctor {}) {
        Ok(ControlReply::Doctor { findings }) => (findings, None),
        Ok(_) => return Err(socket::unexpected()),
        Err(failure) => (without_agent(Path::new("/")), Some(failure)),
    };
    match global.output {
        Output::Json => output::json(
            &serde_json::json!({ "agent_answered": from_agent.is_none(), "findings": findings }),
            false,
        )?,
        Output::Table => print(&findings)?,
    }
    if let Some(failure) = &from_agent {
        output::note(&format!(
            "{failure}\nguard: without the agent only what is seen from outside was checked"
        ));
    }
    Ok(if findings.iter().any(|f| f.state == FindingState::Bad) {
        ExitCode::from(NO)
    } else if from_agent.is_some() {
        ExitCode::from(UNKNOWN)
    } else {
        ExitCode::SUCCESS
    })
}

fn print(findings: &[Finding]) -> Result<(), Failure> {
    let width = findings
        .iter()
        .map(|f| words(&f.name).chars().count())
        .max()
        .unwrap_or(0)
        .max(24)
        + 2;
    for finding in findings {
        let mark = match finding.state {
            FindingState::Ok => "ok  ".to_owned(),
            FindingState::Warn => output::styled(output::BOLD, "warn"),
            FindingState::Bad => output::styled(output::RED, "BAD "),
        };
        output::line(&format!(
            "{mark}  {:<width$}{}",
            defuse(words(&finding.name)),
            defuse(&finding.text)
        ))?;
        for (n, remedy) in finding.remedy.iter().flat_map(|r| r.lines()).enumerate() {
            let arrow = if n == 0 { "→" } else { " " };
            output::line(&format!("      {:<width$}{arrow} {}", "", defuse(remedy)))?;
        }
    }
    Ok(())
}

/// The agent's stable names as people read them; JSON keeps the names.
fn words(name: &str) -> &str {
    match name {
        "bpf-lsm" => "BPF LSM",
        "btf" => "BTF",
        "cgroup2" => "cgroup v2",
        "bpffs" => "BPF file system",
        other => other,
    }
}

/// Why no agent can enforce here, and the remedy; `None`: nothing that is known.
pub(super) fn cannot_enforce(root: &Path) -> Option<(String, String)> {
    let found = bpf_lsm(root);
    (found.state == FindingState::Bad).then(|| {
        (
            format!("`bpf` is {}", found.text),
            found.remedy.unwrap_or_default().replace('\n', "\n    "),
        )
    })
}

fn finding(name: &str, state: FindingState, text: String, remedy: Option<String>) -> Finding {
    Finding {
        name: name.to_owned(),
        state,
        text,
        remedy,
    }
}

fn bpf_lsm(root: &Path) -> Finding {
    let active = fs::read_to_string(root.join("sys/kernel/security/lsm")).ok();
    match active.as_deref().map(str::trim) {
        Some(lsm) if lsm.split(',').any(|name| name == "bpf") => finding(
            "BPF LSM",
            FindingState::Ok,
            format!("active ({})", visible_fold(lsm, 80)),
            None,
        ),
        Some(lsm) => finding(
            "BPF LSM",
            FindingState::Bad,
            format!("missing from the active list ({})", visible_fold(lsm, 80)),
            Some(format!(
                "add  lsm={lsm},bpf  to the kernel command line:\n\
                 sudo sed -i 's/^GRUB_CMDLINE_LINUX=\"/&lsm={lsm},bpf /' /etc/default/grub && sudo update-grub && sudo reboot",
                lsm = visible_fold(lsm, 200),
            )),
        ),
        None => finding(
            "BPF LSM",
            FindingState::Warn,
            "cannot be seen: securityfs is not mounted or not readable".to_owned(),
            Some("sudo mount -t securityfs securityfs /sys/kernel/security".to_owned()),
        ),
    }
}

/// What a process without rights sees of the kernel's abilities below `root`.
fn without_agent(root: &Path) -> Vec<Finding> {
    let read = |path: &str| {
        fs::read_to_string(root.join(path))
            .ok()
            .map(|text| text.trim().to_owned())
    };
    let exists = |path: &str| root.join(path).exists();
    let mut out = Vec::new();

    let kernel = read("proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned());
    out.push(match version(&kernel) {
        Some(v) if v >= (6, 1) => finding(
            &format!("kernel {}", visible_fold(&kernel, 40)),
            FindingState::Ok,
            "supported or newer".to_owned(),
            None,
        ),
        _ => finding(
            &format!("kernel {}", visible_fold(&kernel, 40)),
            FindingState::Bad,
            "older than 6.1, the oldest that is tested".to_owned(),
            Some("install a newer kernel".to_owned()),
        ),
    });

    out.push(bpf_lsm(root));

    out.push(if exists("sys/kernel/btf/vmlinux") {
        finding(
            "kernel types (BTF)",
            FindingState::Ok,
            "/sys/kernel/btf/vmlinux".to_owned(),
            None,
        )
    } else {
        finding(
            "kernel types (BTF)",
            FindingState::Bad,
            "no /sys/kernel/btf/vmlinux".to_owned(),
            Some("use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions do".to_owned()),
        )
    });

    out.push(if exists("sys/fs/cgroup/cgroup.controllers") {
        finding(
            "cgroup v2",
            FindingState::Ok,
            "mounted at /sys/fs/cgroup".to_owned(),
            None,
        )
    } else {
        finding(
            "cgroup v2",
            FindingState::Bad,
            "not mounted at /sys/fs/cgroup".to_owned(),
            Some("boot with  systemd.unified_cgroup_hierarchy=1".to_owned()),
        )
    });

    out.push(match read("proc/sys/kernel/yama/ptrace_scope").as_deref() {
        None => finding("ptrace", FindingState::Ok, "Yama is not active".to_owned(), None),
        Some("3") => finding(
            "ptrace",
            FindingState::Bad,
            "Yama scope 3: nobody may trace until the next boot, so nothing can be held for people".to_owned(),
            Some("set kernel.yama.ptrace_scope to 2 or less in /etc/sysctl.d and reboot".to_owned()),
        ),
        Some(scope) => finding(
            "ptrace",
            FindingState::Ok,
            format!("Yama scope {}: fine for root", visible_fold(scope, 8)),
            None,
        ),
    });

    out.push(finding(
        "self-test",
        FindingState::Warn,
        "not run: only the agent can load programs".to_owned(),
        None,
    ));
    out
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_follow_the_kernel() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let state = |name: &str| {
            let findings = without_agent(root.path());
            let found = findings.iter().find(|f| f.name.starts_with(name)).unwrap();
            (found.state, found.remedy.clone().unwrap_or_default())
        };
        assert_eq!(state("cgroup v2").0, FindingState::Bad);
        assert_eq!(state("BPF LSM").0, FindingState::Warn);
        write("proc/sys/kernel/osrelease", "6.12.117+deb13-amd64\n");
        write("sys/kernel/security/lsm", "lockdown,yama,apparmor");
        write("sys/kernel/btf/vmlinux", "");
        write("sys/fs/cgroup/cgroup.controllers", "");
        write("proc/sys/kernel/yama/ptrace_scope", "3\n");
        assert_eq!(state("kernel 6.12").0, FindingState::Ok);
        assert_eq!(state("BPF LSM").0, FindingState::Bad);
        assert!(state("BPF LSM").1.contains("lsm=lockdown,yama,apparmor,bpf"));
        let (why, remedy) = cannot_enforce(root.path()).unwrap();
        assert_eq!(why, "`bpf` is missing from the active list (lockdown,yama,apparmor)");
        assert!(remedy.contains("lsm=lockdown,yama,apparmor,bpf"), "{remedy}");
        assert_eq!(state("kernel types").0, FindingState::Ok);
        assert_eq!(state("cgroup v2").0, FindingState::Ok);
        assert_eq!(state("ptrace").0, FindingState::Bad);
        write("sys/kernel/security/lsm", "lockdown,yama,bpf");
        assert_eq!(cannot_enforce(root.path()), None);
        write("proc/sys/kernel/osrelease", "5.10.0\n");
        assert_eq!(state("BPF LSM").0, FindingState::Ok);
        assert_eq!(state("kernel 5.10").0, FindingState::Bad);
    }
}
