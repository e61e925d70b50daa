//! What a selector finds: in a tree of files with every oddity, and among real processes.

#[path = "process_support/mod.rs"]
mod support;

use std::{fs, net::TcpListener, os::unix::fs::symlink, time::Duration};

use support::{Fake, Kid, TCP_HEAD, real};
use vervet::{
    config::{GroupPolicy, ReadySource, Removal},
    experiment::ProcessSelector,
    host::{HostError, linux::process::Processes},
};

fn select(change: impl FnOnce(&mut ProcessSelector)) -> ProcessSelector {
    let mut selector = ProcessSelector::default();
    change(&mut selector);
    selector
}

fn pids(processes: &Processes, change: impl FnOnce(&mut ProcessSelector)) -> Vec<u32> {
    let found = processes.find(&select(change), &[]).expect("found");
    found.iter().map(|candidate| candidate.id.pid).collect()
}

fn group(name: &str, members: ProcessSelector) -> GroupPolicy {
    let second = Duration::from_secs(1);
    GroupPolicy {
        name: name.into(),
        floor: 1,
        expected: None,
        members,
        ready: ReadySource::Process,
        poll: second,
        stale_after: second,
        settle: second,
        removal: Removal { at_once: 1, every: second },
        monkey: false,
        spare: Vec::new(),
    }
}

#[test]
fn names_with_spaces_and_parentheses() {
    let fake = Fake::new();
    fake.add(10, "a) S 1 (b", "x");
    fake.add(11, "tab\tand\nline", "x");
    fake.add(12, "a", "x");
    let processes = fake.processes();
    assert_eq!(pids(&processes, |s| s.name = Some("a) S 1 (b".into())), [10]);
    assert_eq!(pids(&processes, |s| s.name = Some("tab\tand\nline".into())), [11]);
    assert_eq!(pids(&processes, |s| s.name = Some("a".into())), [12]);
}

#[test]
fn a_unit_is_told_by_the_cgroup_whatever_hierarchy_has_it() {
    let fake = Fake::new();
    let in_cgroup = |pid: u32, content: &str| {
        let dir = fake.add(pid, "x", "x");
        fs::write(dir.join("cgroup"), content).expect("cgroup");
    };
    in_cgroup(10, "0::/system.slice/system-shop.slice/shop@1.service\n");
    in_cgroup(11, "0::/system.slice/system-shop.slice/shop@2.service/workers/3\n");
    // Hybrid: the unified hierarchy is there, systemd's own names the unit.
    in_cgroup(12, "12:pids:/y\n1:name=systemd:/system.slice/shop@3.service\n0::/\n");
    in_cgroup(13, "1:name=systemd:/system.slice/shop@4.service\n");
    in_cgroup(14, "0::/system.slice/shop.service (deleted)\n");
    let user = "user.slice/user-1000.slice/user@1000.service/app.slice/shop@9.service";
    in_cgroup(15, &format!("0::/{user}\n"));
    in_cgroup(16, "0::/shop@7.service.d/shop@7\n");
    fs::remove_file(fake.add(17, "x", "x").join("cgroup")).expect("removed");
    let processes = fake.processes();
    let of = |unit: &str| pids(&processes, |s| s.unit = Some(unit.into()));
    assert_eq!(of("shop@*.service"), [10, 11, 12, 13]);
    assert_eq!(of("shop@[12]"), [10, 11]);
    assert_eq!(of("shop"), [14]);
    assert_eq!(of("user@1000.service"), [15]);
    let found = processes.find(&select(|s| s.unit = Some("shop@2".into())), &[]).expect("found");
    assert_eq!(found[0].unit.as_deref(), Some("shop@2.service"));
}

#[test]
fn a_unit_is_one_instance_of_its_group_and_its_main_process_the_target() {
    let fake = Fake::new();
    for (pid, unit) in [(10, 1), (11, 2), (12, 1), (13, 2), (14, 2)] {
        let dir = fake.add(pid, "x", "x");
        fs::write(dir.join("cgroup"), format!("0::/system.slice/shop@{unit}.service\n"))
            .expect("cgroup");
    }
    let processes = fake.processes();
    let shop = group("shop", select(|s| s.unit = Some("shop@*.service".into())));
    assert!(shop.counts_units());
    let groups = [shop.clone()];
    let targets = |change: fn(&mut ProcessSelector)| -> Vec<u32> {
        let mut selector = select(|s| s.group = Some("shop".into()));
        change(&mut selector);
        let found = processes.find(&selector, &groups).expect("found");
        found.iter().map(|candidate| candidate.id.pid).collect()
    };
    let instances = processes.instances(&shop).expect("instances");
    let pids: Vec<Vec<u32>> =
        instances.iter().map(|one| one.processes.iter().map(|id| id.pid).collect()).collect();
    assert_eq!(pids, [vec![10, 12], vec![11, 13, 14]]);
    assert_eq!(targets(|_| {}), [10, 11]);
    // Whoever asks for more than the group means processes.
    assert_eq!(targets(|s| s.name = Some("x".into())), [10, 11, 12, 13, 14]);
    // What is left of a unit without its main process is no target, but still is the instance.
    fs::remove_dir_all(fake.root().join("10")).expect("removed");
    assert_eq!(targets(|_| {}), [11]);
    let instances = processes.instances(&shop).expect("instances");
    assert_eq!((instances[0].id.pid, instances[0].processes[0].pid), (10, 12));
    assert_eq!(processes.doubtful_units(), ["shop@1.service"]);
    processes.adopt_main("shop@1.service", 12).expect("adopted");
    assert_eq!(targets(|_| {}), [11, 12]);
}

#[test]
fn a_container_is_told_by_the_cgroup_whatever_hierarchy_has_it() {
    let fake = Fake::new();
    let id = "0123456789abcdef".repeat(4);
    for (pid, content) in [
        (10, format!("0::/system.slice/docker-{id}.scope\n")),
        (11, format!("12:pids:/docker/{id}\n0::/\n")),
        (12, "0::/system.slice/docker.service\n".to_owned()),
    ] {
        fs::write(fake.add(pid, "x", "x").join("cgroup"), content).expect("cgroup");
    }
    let processes = fake.processes();
    assert_eq!(pids(&processes, |s| s.container = Some(id[..12].into())), [10, 11]);
    assert_eq!(pids(&processes, |s| s.container = Some(id.clone())), [10, 11]);
    let unknown = processes.find(&select(|s| s.container = Some("vvtest-nobody".into())), &[]);
    assert!(matches!(&unknown, Err(HostError::NotFound(why)) if why.contains("id")), "{unknown:?}");
}

#[test]
fn kernel_threads_and_the_dead_never_match() {
    let fake = Fake::new();
    fake.add_raw(2, "kthreadd", 'S', 0x0020_8040, 5, "");
    fake.add_raw(20, "work", 'Z', 0, 6, "work");
    fake.add_raw(21, "work", 'S', 0, 7, "work");
    let processes = fake.processes();
    assert_eq!(pids(&processes, |s| s.user = Some("1000".into())), [21]);
    assert_eq!(pids(&processes, |s| s.name = Some("work".into())), [21]);
    assert_eq!(pids(&processes, |s| s.name = Some("kthreadd".into())), [0_u32; 0]);
    // An expression that matches the empty command line of a kernel thread.
    assert_eq!(pids(&processes, |s| s.cmdline = Some("^.*$".into())), [21]);
}

#[test]
fn every_key_must_match_and_order_is_by_start() {
    let fake = Fake::new();
    fake.add_raw(30, "work", 'S', 0, 900, "work --port 1");
    fake.add_raw(31, "work", 'S', 0, 100, "work --port 2");
    fake.add_raw(32, "rest", 'S', 0, 50, "work --port 2");
    let processes = fake.processes();
    assert_eq!(pids(&processes, |s| s.name = Some("work".into())), [31, 30]);
    assert_eq!(pids(&processes, |s| s.cmdline = Some("port [12]$".into())), [32, 31, 30]);
    let both = pids(&processes, |s| {
        s.name = Some("work".into());
        s.cmdline = Some("--port 2".into());
    });
    assert_eq!(both, [31]);
    let other_user = pids(&processes, |s| {
        s.name = Some("work".into());
        s.user = Some("1001".into());
    });
    assert_eq!(other_user, [0_u32; 0]);
}

#[test]
fn cgroups_match_below_but_not_beside() {
    let fake = Fake::new();
    fake.add(40, "a", "a");
    let other = fake.add(41, "b", "b");
    fs::write(other.join("cgroup"), "0::/system.slice/a.service-2\n").expect("cgroup");
    let none = fake.add(42, "c", "c");
    fs::write(none.join("cgroup"), "4:memory:/system.slice/a.service\n").expect("cgroup");
    let processes = fake.processes();
    for path in ["system.slice/a.service", "/system.slice/a.service/"] {
        assert_eq!(pids(&processes, |s| s.cgroup = Some(path.into())), [40]);
    }
    assert_eq!(pids(&processes, |s| s.cgroup = Some("/system.slice".into())), [40, 41]);
    assert_eq!(pids(&processes, |s| s.cgroup = Some("/".into())), [40, 41, 42]);
}

#[test]
fn executables_match_after_an_upgrade_too() {
    let fake = Fake::new();
    fake.add(50, "a", "a");
    let old = fake.add(51, "b", "b");
    fs::remove_file(old.join("exe")).expect("exe");
    symlink("/usr/bin/thing (deleted)", old.join("exe")).expect("exe");
    let gone = fake.add(52, "c", "c");
    fs::remove_file(gone.join("exe")).expect("exe");
    let found = pids(&fake.processes(), |s| s.exe = Some("/usr/bin/thing".into()));
    assert_eq!(found, [50, 51]);
}

#[test]
fn listeners_are_told_by_their_own_namespace() {
    let fake = Fake::new();
    let listens = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 777 1 0 100 0 0 10 0\n";
    let connected = "   1: 0100007F:1F91 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 778 1 0 100 0 0 10 0\n";
    for (pid, namespace) in [(60, "net:[1]"), (61, "net:[2]"), (62, "net:[1]")] {
        let dir = fake.add(pid, "serve", "serve");
        fs::remove_file(dir.join("ns/net")).expect("ns");
        symlink(namespace, dir.join("ns/net")).expect("ns");
        symlink("socket:[778]", dir.join("fd/4")).expect("fd");
        if namespace == "net:[1]" {
            fs::write(dir.join("net/tcp"), format!("{TCP_HEAD}{listens}{connected}")).expect("tcp");
        }
    }
    for pid in [60, 61] {
        symlink("socket:[777]", fake.root().join(format!("{pid}/fd/3"))).expect("fd");
    }
    let processes = fake.processes();
    let found = processes.listening_on(8080).expect("found");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].id.pid, found[0].listens.as_slice()), (60, &[8080_u16][..]));
    assert!(processes.listening_on(8081).expect("found").is_empty(), "connected, not listening");
}

#[test]
fn a_pidfile_names_one_process_of_its_own_time() {
    let fake = Fake::new();
    // Started at boot, and in about three years.
    fake.add_raw(70, "old", 'S', 0, 1, "old");
    fake.add_raw(71, "new", 'S', 0, 10_000_000_000, "new");
    let processes = fake.processes();
    let file = fake.root().join("pid");
    let named = |content: &str| {
        fs::write(&file, content).expect("pidfile");
        let selector = select(|s| s.pidfile = Some(file.to_string_lossy().into_owned()));
        processes.find(&selector, &[])
    };
    assert_eq!(named("70\n").expect("found").len(), 1);
    assert_eq!(named("71\n").expect("found").len(), 0, "began after the file was written");
    assert_eq!(named("99\n").expect("found").len(), 0, "is not there");
    for bad in ["", "x", "-1", "0", "70x", "99999999999"] {
        assert!(matches!(named(bad), Err(HostError::NotFound(_))), "{bad:?}");
    }
    let missing = select(|s| s.pidfile = Some("/nonexistent/pid".into()));
    assert!(matches!(processes.find(&missing, &[]), Err(HostError::NotFound(_))));
}

#[test]
fn a_group_is_its_members_and_the_rest_of_the_selector() {
    let fake = Fake::new();
    fake.add(80, "work", "work 1");
    fake.add(81, "work", "work 2");
    fake.add(82, "else", "work 2");
    let groups = [group("g", select(|s| s.name = Some("work".into())))];
    let processes = fake.processes();
    let find = |change: fn(&mut ProcessSelector)| processes.find(&select(change), &groups);
    assert_eq!(find(|s| s.group = Some("g".into())).expect("found").len(), 2);
    let second = find(|s| {
        s.group = Some("g".into());
        s.cmdline = Some("2$".into());
    });
    assert_eq!(second.expect("found")[0].id.pid, 81);
    assert!(matches!(find(|s| s.group = Some("h".into())), Err(HostError::NotFound(_))));
}

#[test]
fn nothing_is_asked_for_in_vain() {
    let processes = Fake::new().processes();
    for change in [
        |_: &mut ProcessSelector| {},
        |s: &mut ProcessSelector| s.cmdline = Some("(".into()),
        |s: &mut ProcessSelector| s.user = Some("no-such-user-here".into()),
        |s: &mut ProcessSelector| s.name = Some("longer-than-a-name-can-be".into()),
    ] {
        let error = processes.find(&select(change), &[]).expect_err("refused");
        assert!(matches!(error, HostError::NotFound(_)), "{error:?}");
    }
}

#[test]
fn a_table_that_is_not_one_is_an_error() {
    let fake = Fake::new();
    let dir = fake.add(90, "a", "a");
    fs::write(dir.join("stat"), "nonsense").expect("stat");
    let error = fake.processes().find(&select(|s| s.name = Some("a".into())), &[]);
    assert!(matches!(error, Err(HostError::Kernel { .. })), "{error:?}");
}

#[test]
fn real_processes_by_command_line_age_and_user() {
    let tag = format!("vvtest-find-{}", std::process::id());
    let (kid, _other) = (Kid::sleeper(&tag), Kid::sleeper("vvtest-other"));
    let processes = real();
    let found =
        processes.find(&select(|s| s.cmdline = Some(format!("^{tag} 600$"))), &[]).expect("found");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].id, found[0].name.as_str()), (kid.id(), "sleep"));
    assert_eq!(found[0].parent, std::process::id());
    let exact = |age: Option<Duration>| {
        pids(&processes, |s| {
            s.cmdline = Some(tag.clone());
            s.exe = fs::read_link("/usr/bin/sleep").map_or_else(
                |_| Some("/usr/bin/sleep".into()),
                |link| Some(link.to_string_lossy().into_owned()),
            );
            s.user = Some(found[0].uid.to_string());
            s.older_than = age;
        })
    };
    assert_eq!(exact(None), [kid.0.id()]);
    assert_eq!(exact(Some(Duration::from_hours(1))), [0_u32; 0]);
}

#[test]
fn a_real_listener_is_found_by_its_port() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = TcpListener::bind(address) else {
            eprintln!("SKIPPED: a_real_listener_is_found_by_its_port: no {address} here");
            continue;
        };
        let port = listener.local_addr().expect("address").port();
        let found = real().listening_on(port).expect("found");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].id.pid, std::process::id());
        assert!(found[0].listens.contains(&port));
    }
}

#[test]
fn no_kernel_thread_among_all_real_processes() {
    let all = real().find(&select(|s| s.user = Some("0".into())), &[]).expect("found");
    assert!(all.iter().all(|candidate| candidate.id.pid != 2 || candidate.parent != 0));
    let kernel = real().find(&select(|s| s.name = Some("kthreadd".into())), &[]).expect("found");
    assert!(kernel.is_empty());
}
