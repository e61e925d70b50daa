//! Containers: which one a cgroup belongs to, and what they are called.
//!
//! A cgroup's path carries the container's id (Docker, Podman, CRI-O, containerd under Kubernetes)
//! or its name (LXC, systemd-nspawn). Names of the others are in files of the runtimes; they are
//! read, no runtime is asked and no program is run.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Hexadecimal digits of an id.
const ID: usize = 64;
/// So many are enough to tell containers apart; `docker ps` shows them.
const SHORT: usize = 12;
/// A file that is longer is not one of a runtime's.
const LONGEST: u64 = 16 << 20;

/// What is below these components of a path, or behind these prefixes, is named and has no id.
const NAMED: [&str; 3] = ["lxc.payload.", "systemd-nspawn@", "machine-"];

/// The container that a cgroup belongs to: its id, or its name where it has none. The innermost.
#[must_use]
pub fn of_cgroup(path: &[u8]) -> Option<&str> {
    let path = std::str::from_utf8(path).ok()?;
    let mut parts = path.rsplit('/').filter(|part| !part.is_empty());
    parts.find_map(|part| id_in(part).or_else(|| name_in(part)))
}

/// `docker-ID.scope`, `libpod-ID.scope`, `crio-ID`, `cri-containerd-ID.scope`, or the id alone. The
/// monitors of Podman and CRI-O are not in the container.
fn id_in(part: &str) -> Option<&str> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let id = part.rsplit(['-', ':']).next().filter(|id| is_id(id))?;
    (!part.contains("conmon")).then_some(id)
}

fn name_in(part: &str) -> Option<&str> {
    let part = part.strip_suffix(".scope").or_else(|| part.strip_suffix(".service")).unwrap_or(part);
    let name = NAMED.iter().find_map(|prefix| part.strip_prefix(prefix))?;
    (!name.is_empty()).then_some(name)
}

fn is_id(text: &str) -> bool {
    text.len() == ID && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A container as people know it from lists: the beginning of its id, or its name.
#[must_use]
pub fn short(container: &str) -> &str {
    if is_id(container) { &container[..SHORT] } else { container }
}

/// The containers that a word means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meant {
    /// The id begins so.
    Id(String),
    /// One of these ids, or this name on the cgroup itself.
    Name { name: String, ids: BTreeSet<String> },
}

impl Meant {
    /// Looks a word up: twelve or more hexadecimal digits are an id, everything else is a name.
    /// `root` is `/` but for tests.
    #[must_use]
    pub fn look_up(root: &Path, word: &str) -> Self {
        if (SHORT..=ID).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Self::Id(word.to_ascii_lowercase());
        }
        let ids: BTreeSet<String> = docker(root, word)
            .into_iter()
            .chain(podman(root, word))
            .chain(kubernetes(root, word))
            .collect();
        Self::Name { name: word.to_owned(), ids }
    }

    /// Whether it means this container.
    #[must_use]
    pub fn is(&self, container: &str) -> bool {
        match self {
            Self::Id(prefix) => is_id(container) && container.starts_with(prefix.as_str()),
            Self::Name { name, ids } => container == name || ids.contains(container),
        }
    }
}

/// What is said when nothing is found of that name.
#[must_use]
pub fn unknown(word: &str) -> String {
    format!(
        "no container is called {word}: neither Docker's files, Podman's, Kubernetes' nor a cgroup has the \
         name; an id of at least {SHORT} digits works with every runtime"
    )
}

/// Docker: `config.v2.json` of each container has a `Name` with a slash before it.
fn docker(root: &Path, word: &str) -> Vec<String> {
    let directory = root.join("var/lib/docker/containers");
    let named = |id: &String| {
        let config = json(&directory.join(id).join("config.v2.json"));
        let name = config.as_ref().and_then(|config| config.get("Name")?.as_str().map(str::to_owned));
        name.is_some_and(|name| name.trim_start_matches('/') == word)
    };
    entries(&directory).into_iter().filter(|id| is_id(id)).filter(named).collect()
}

/// Podman, for root: a list with `id` and `names`, containers-storage(5).
fn podman(root: &Path, word: &str) -> Vec<String> {
    const LISTS: [&str; 4] = [
        "var/lib/containers/storage/overlay-containers/containers.json",
        "var/lib/containers/storage/overlay-containers/volatile-containers.json",
        "var/lib/containers/storage/vfs-containers/containers.json",
        "run/containers/storage/overlay-containers/volatile-containers.json",
    ];
    let lists = LISTS.iter().filter_map(|list| json(&root.join(list)));
    let all = lists.flat_map(|list| list.as_array().cloned().unwrap_or_default());
    let named = all.filter(|one| {
        let names = one.get("names").and_then(serde_json::Value::as_array);
        names.is_some_and(|names| names.iter().any(|name| name.as_str() == Some(word)))
    });
    named.filter_map(|one| one.get("id")?.as_str().map(str::to_owned)).collect()
}

/// Kubernetes: the kubelet links each log as `POD_NAMESPACE_CONTAINER-ID.log`. A container is meant
/// by `POD/CONTAINER`, or by `NAMESPACE/POD/CONTAINER`.
fn kubernetes(root: &Path, word: &str) -> Vec<String> {
    if !word.contains('/') {
        return Vec::new();
    }
    let meant = |log: &str| {
        let (labels, id) = log.strip_suffix(".log")?.rsplit_once('-').filter(|(_, id)| is_id(id))?;
        let [pod, namespace, container] = labels.split('_').collect::<Vec<_>>()[..] else { return None };
        let names = [format!("{pod}/{container}"), format!("{namespace}/{pod}/{container}")];
        names.iter().any(|name| name == word).then(|| id.to_owned())
    };
    entries(&root.join("var/log/containers")).iter().filter_map(|log| meant(log)).collect()
}

fn entries(directory: &Path) -> Vec<String> {
    let listed = fs::read_dir(directory).into_iter().flatten().flatten();
    listed.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// What cannot be read names nothing.
fn json(path: &PathBuf) -> Option<serde_json::Value> {
    let sound = fs::metadata(path).is_ok_and(|data| data.is_file() && data.len() <= LONGEST);
    sound.then(|| serde_json::from_slice(&fs::read(path).ok()?).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const B: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

    fn container(path: &str) -> Option<String> {
        of_cgroup(path.as_bytes()).map(str::to_owned)
    }

    #[test]
    fn every_runtime_writes_the_id_on_the_path() {
        for path in [
            format!("/system.slice/docker-{A}.scope"),
            format!("/docker/{A}"),
            format!("/docker/{A}/inner/{}", "x".repeat(3)),
            format!("/machine.slice/libpod-{A}.scope/container"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-pod1_2.slice/cri-containerd-{A}.scope"
            ),
            format!("/kubepods/burstable/pod0-1/{A}"),
            format!("/kubepods.slice/crio-{A}.scope"),
            format!("/system.slice/containerd.service/kubepods-pod1:cri-containerd:{A}"),
            format!("/docker/{B}/docker/{A}"),
        ] {
            assert_eq!(container(&path).as_deref(), Some(A), "{path}");
        }
        for path in [
            "/".to_owned(),
            "/system.slice/docker.service".to_owned(),
            format!("/machine.slice/libpod-conmon-{A}.scope"),
            format!("/x/{}", &A[..40]),
        ] {
            assert_eq!(container(&path), None, "{path}");
        }
        assert_eq!(container("/lxc.payload.web/init.scope").as_deref(), Some("web"));
        assert_eq!(container("/machine.slice/machine-web.scope/payload").as_deref(), Some("web"));
        assert_eq!(short(A), "0123456789ab");
    }

    #[test]
    fn names_are_found_in_the_files_of_the_runtimes() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: String, text: String| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(format!("var/lib/docker/containers/{A}/config.v2.json"), "{\"Name\":\"/web\"}".to_owned());
        write(format!("var/lib/docker/containers/{B}/config.v2.json"), "not json".to_owned());
        let list = format!("[{{\"id\":\"{B}\",\"names\":[\"shop\"]}}]");
        write("var/lib/containers/storage/overlay-containers/containers.json".to_owned(), list);
        write(format!("var/log/containers/pod-1_default_api-{B}.log"), String::new());
        let meant = |word: &str| Meant::look_up(root.path(), word);
        assert!(meant("web").is(A) && !meant("web").is(B));
        assert!(meant("shop").is(B) && !meant("shop").is(A));
        assert!(meant("pod-1/api").is(B) && meant("default/pod-1/api").is(B));
        assert!(!meant("api").is(B));
        assert!(meant(&A[..12]).is(A) && meant(A).is(A) && !meant(&A[..12]).is(B));
        assert!(meant("payload").is("payload"));
    }
}
