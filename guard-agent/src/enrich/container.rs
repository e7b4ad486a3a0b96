//! Containers from cgroup paths and, for image and name, from the runtimes' own files.
//!
//! Owns the naming habits of Docker, containerd, CRI-O and Podman. It is given a path below the cgroup v2 root. It must
//! never take a part of a name for an id (only 64 hexadecimal digits are one), and never ask a runtime: that may wait for
//! a process which we hold.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use guard_evidence::record::Container;
use guard_evidence::text::Text;
use serde_json::Value;

/// Largest file of a runtime that is read, in bytes.
const STATE_BYTES: u64 = 4 << 20;
const TEXT_BYTES: usize = 512;

/// The innermost container that the path names.
#[must_use]
pub fn container_id(cgroup: &str) -> Option<String> {
    of_path(cgroup).map(|container| container.id)
}

/// What the path alone tells of it.
pub(super) fn of_path(cgroup: &str) -> Option<Container> {
    const PREFIXES: [(&str, &str); 5] = [
        ("docker-", "docker"),
        ("cri-containerd-", "containerd"),
        ("nerdctl-", "containerd"),
        ("crio-", "cri-o"),
        ("libpod-", "podman"),
    ];
    let mut parts = cgroup.rsplit('/');
    let (id, runtime) = parts.find_map(|part| {
        let part = part.strip_suffix(".scope").unwrap_or(part);
        let (id, runtime) = PREFIXES
            .iter()
            .find_map(|(prefix, runtime)| Some((part.strip_prefix(prefix)?, Some(*runtime))))
            .unwrap_or((part, None));
        let is_id = id.len() == 64 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        is_id.then(|| (id.to_owned(), runtime))
    })?;
    let mut pod = None;
    let mut under_docker = false;
    for part in parts {
        pod = pod.or_else(|| pod_of(part));
        under_docker |= part == "docker";
    }
    Some(Container {
        id,
        runtime: runtime.or(under_docker.then_some("docker")).map(str::to_owned),
        pod,
        image: None,
        name: None,
    })
}

/// `kubepods-burstable-pod<uid with _>.slice` or `pod<uid>`.
fn pod_of(part: &str) -> Option<String> {
    let part = part.strip_suffix(".slice").unwrap_or(part);
    let uid = match part.strip_prefix("kubepods") {
        Some(rest) => rest.rsplit('-').next()?.strip_prefix("pod")?,
        None => part.strip_prefix("pod")?,
    };
    let uid = uid.replace('_', "-");
    let fine = (1..=64).contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    fine.then_some(uid)
}

/// The innermost systemd unit that the path names.
pub(super) fn unit(cgroup: &str) -> Option<Text> {
    cgroup
        .rsplit('/')
        .find(|part| part.ends_with(".service") || part.ends_with(".scope"))
        .map(Text::from)
}

/// Image and name, from what the runtime keeps below `root` (`/` but for tests). Blocks.
pub(super) fn complete(container: &mut Container, root: &Path) {
    let id = container.id.clone();
    let runtime = container.runtime.clone();
    let of = |name: &str| runtime.as_deref().is_none_or(|runtime| runtime == name);
    let found = of("docker")
        .then(|| docker(root, &id))
        .flatten()
        .or_else(|| of("podman").then(|| podman(root, &id)).flatten())
        .or_else(|| of("containerd").then(|| containerd(root, &id)).flatten())
        .or_else(|| of("cri-o").then(|| crio(root, &id)).flatten());
    if let Some((runtime, image, name)) = found {
        container.runtime = Some(runtime.to_owned());
        container.image = image.as_deref().map(text);
        container.name = name.as_deref().map(text);
    }
}

fn text(value: &str) -> Text {
    let mut end = value.len().min(TEXT_BYTES);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    Text::from(&value[..end])
}

type Found = (&'static str, Option<String>, Option<String>);

fn json(path: PathBuf) -> Option<Value> {
    let file = File::open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(STATE_BYTES + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= STATE_BYTES)
        .then(|| serde_json::from_slice(&bytes).ok())
        .flatten()
}

fn string(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn docker(root: &Path, id: &str) -> Option<Found> {
    let state = json(root.join(format!("var/lib/docker/containers/{id}/config.v2.json")))?;
    let name = string(&state["Name"]).map(|name| name.trim_start_matches('/').to_owned());
    Some(("docker", string(&state["Config"]["Image"]), name))
}

fn podman(root: &Path, id: &str) -> Option<Found> {
    let storage = root.join("var/lib/containers/storage");
    let containers = json(storage.join("overlay-containers/containers.json"))?;
    let state = containers.as_array()?.iter().find(|state| state["id"] == id)?;
    // What storage knows of a container is JSON inside of a string.
    let metadata: Value = string(&state["metadata"])
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    let name = string(&metadata["name"]).or_else(|| string(&state["names"][0]));
    Some(("podman", string(&metadata["image-name"]), name))
}

/// Of containerd: the runtime's bundle, in whichever namespace has this id.
fn containerd(root: &Path, id: &str) -> Option<Found> {
    let tasks = root.join("run/containerd/io.containerd.runtime.v2.task");
    let state = ["k8s.io", "moby", "default"]
        .iter()
        .find_map(|namespace| json(tasks.join(namespace).join(id).join("config.json")))?;
    let of = |name: &str| string(&state["annotations"][name]);
    Some((
        "containerd",
        of("io.kubernetes.cri.image-name"),
        of("io.kubernetes.cri.container-name").or_else(|| of("nerdctl/name")),
    ))
}

fn crio(root: &Path, id: &str) -> Option<Found> {
    let bundle = root.join(format!(
        "run/containers/storage/overlay-containers/{id}/userdata/config.json"
    ));
    let state = json(bundle)?;
    let of = |name: &str| string(&state["annotations"][name]);
    Some((
        "cri-o",
        of("io.kubernetes.cri-o.ImageName").or_else(|| of("io.kubernetes.cri-o.Image")),
        of("io.kubernetes.container.name"),
    ))
}

/// For the fuzzer: any text as the path of a cgroup.
pub(super) fn fuzz_path(path: &str) {
    let _ = unit(path);
    if let Some(container) = of_path(path) {
        // It becomes part of the paths of the runtimes' files.
        assert!(container.id.len() == 64 && container.id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert!(container.pod.is_none_or(|pod| pod.len() <= 64 && !pod.contains('/')));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let id = "0123456789abcdef".repeat(4);
        for (path, runtime) in [
            (format!("/system.slice/docker-{id}.scope"), Some("docker")),
            (format!("/docker/{id}"), Some("docker")),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-{id}.scope"
                ),
                Some("containerd"),
            ),
            (format!("/kubepods/besteffort/pod1/{id}/inner"), None),
            (format!("/machine.slice/libpod-{id}.scope/container"), Some("podman")),
            (format!("/kubepods.slice/crio-{id}.scope"), Some("cri-o")),
        ] {
            assert_eq!(container_id(&path).as_deref(), Some(id.as_str()), "{path}");
            assert_eq!(of_path(&path).unwrap().runtime.as_deref(), runtime, "{path}");
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

    #[test]
    fn pods_and_units() {
        let id = "ab".repeat(32);
        let pod = |path: &str| of_path(&format!("{path}/{id}")).unwrap().pod;
        assert_eq!(
            pod("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0d1a_2b.slice").as_deref(),
            Some("0d1a-2b")
        );
        assert_eq!(pod("/kubepods/burstable/pod12-ab").as_deref(), Some("12-ab"));
        assert_eq!(pod("/kubepods/burstable/podx\u{202E}"), None);
        assert_eq!(pod("/a"), None);
        assert_eq!(unit("/a.slice/b.service/c").unwrap().display(), "b.service");
        assert_eq!(unit("/a.slice"), None);
    }

    #[test]
    fn image_and_name_are_the_runtimes_word() {
        let root = tempfile::tempdir().unwrap();
        let id = "ab".repeat(32);
        let put = |path: String, content: Value| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content.to_string()).unwrap();
        };
        let found = |cgroup: String| {
            let mut container = of_path(&cgroup).unwrap();
            complete(&mut container, root.path());
            (
                container.runtime.unwrap_or_default(),
                container.image.map(|text| text.display()).unwrap_or_default(),
                container.name.map(|text| text.display()).unwrap_or_default(),
            )
        };
        let words = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(found(format!("/docker/{id}")), words("docker", "", ""));
        put(
            format!("var/lib/docker/containers/{id}/config.v2.json"),
            serde_json::json!({"Name": "/web", "Config": {"Image": "debian:13"}}),
        );
        assert_eq!(found(format!("/docker/{id}")), words("docker", "debian:13", "web"));
        put(
            "var/lib/containers/storage/overlay-containers/containers.json".to_owned(),
            serde_json::json!([{"id": id, "names": ["n"], "metadata": "{\"image-name\":\"docker.io/x:1\",\"name\":\"agent\"}"}]),
        );
        assert_eq!(
            found(format!("/machine.slice/libpod-{id}.scope")),
            words("podman", "docker.io/x:1", "agent")
        );
        put(
            format!("run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}/config.json"),
            serde_json::json!({"annotations": {
                "io.kubernetes.cri.image-name": "r.example.org/a\u{202E}:1", "io.kubernetes.cri.container-name": "c"}}),
        );
        assert_eq!(
            found(format!("/k/cri-containerd-{id}.scope")),
            words("containerd", "r.example.org/a⟨U+202E⟩:1", "c")
        );
        std::fs::write(
            root.path()
                .join(format!("var/lib/docker/containers/{id}/config.v2.json")),
            "{",
        )
        .unwrap();
        assert_eq!(
            found(format!("/system.slice/docker-{id}.scope")),
            words("docker", "", "")
        );
    }
}
