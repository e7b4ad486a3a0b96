//! Container ids from cgroup paths.
//!
//! Owns the naming habits of Docker, containerd, CRI-O and Podman. It is given a path below the cgroup v2 root. It must
//! never take a part of a name for an id: only 64 hexadecimal digits are one.

/// The innermost container that the path names.
#[must_use]
pub fn container_id(cgroup: &str) -> Option<String> {
    const PREFIXES: [&str; 5] = ["docker-", "cri-containerd-", "crio-", "libpod-", "nerdctl-"];
    cgroup.rsplit('/').find_map(|part| {
        let part = part.strip_suffix(".scope").unwrap_or(part);
        let id = PREFIXES
            .iter()
            .find_map(|prefix| part.strip_prefix(prefix))
            .unwrap_or(part);
        let is_id = id.len() == 64 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        is_id.then(|| id.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let id = "0123456789abcdef".repeat(4);
        for path in [
            format!("/system.slice/docker-{id}.scope"),
            format!("/docker/{id}"),
            format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-{id}.scope"),
            format!("/kubepods/besteffort/pod1/{id}/inner"),
            format!("/machine.slice/libpod-{id}.scope/container"),
            format!("/kubepods.slice/crio-{id}.scope"),
        ] {
            assert_eq!(container_id(&path).as_deref(), Some(id.as_str()), "{path}");
        }
        for path in [
            "/",
            "",
            "/system.slice/ssh.service",
            "/docker-abc.scope",
            &format!("/x-{id}.scope"),
            &id.to_uppercase(),
        ] {
            assert_eq!(container_id(path), None, "{path}");
        }
    }
}
