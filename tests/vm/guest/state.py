#!/usr/bin/python3
"""What a host looks like to those who share it: all that a fault could have left behind.

One thing a line, in an order that does not change. No counters and no times of day: they move whatever
anybody does. Few programs are run, for each costs an emulated processor a tenth of a second.
"""
import os
import re
import stat
import subprocess
import zlib

CONF = ["/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv6/conf"]
LIMITS = {
    "cgroup.freeze": "0", "cpu.max": "max 100000", "cpu.weight": "100", "memory.high": "max",
    "memory.max": "max", "io.max": "", "pids.max": "max", "cpuset.cpus": "",
}
NOT_FILES = (
    "/proc", "/sys", "/dev", "/var/log", "/var/lib/vervet", "/root", "/tmp", "/opt/test", "/var/lib/systemd",
    "/run/test", "/run/systemd", "/run/udev", "/run/log", "/run/user",
)


def said(where, *command):
    """Lines of a program in a network namespace (None: the host's own)."""
    inside = ["ip", "netns", "exec", where] if where else []
    result = subprocess.run([*inside, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return [line.strip() for line in result.stdout.decode(errors="replace").splitlines() if line.strip()]


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace").strip()
    except OSError:
        return None


def network(where):
    name = where or "host"
    links = said(where, "ip", "-o", "link", "show")
    for line in links:
        line = re.sub(r"^\d+: | qlen \d+| state \w+", "", line)
        print("link", name, line)
    for line in said(where, "ip", "-o", "addr", "show", "scope", "global"):
        print("address", name, re.sub(r"^\d+: |valid_lft.*", "", line))
    for line in said(where, "ip", "route", "show", "table", "all"):
        print("route", name, line)
    # `tc` numbers what it was not told to number as it likes.
    for line in said(where, "tc", "qdisc", "show"):
        print("qdisc", name, line)
    devices = [re.split(r"[:@]", line.split(": ", 1)[1])[0] for line in links]
    asked = [f"filter show dev {device} {side}" for device in devices for side in ("ingress", "egress")]
    os.makedirs("/run/test", exist_ok=True)
    batch = "/run/test/batch"
    with open(batch, "w") as file:
        file.write("\n".join(asked) + "\n")
    for line in said(where, "tc", "-force", "-batch", batch):
        print("filter", name, line)
    os.unlink(batch)
    for line in said(where, "nft", "-s", "list", "ruleset"):
        print("nft", name, line)
    if where is None:
        for top in CONF:
            for device in sorted(os.listdir(top)):
                for key in sorted(os.listdir(f"{top}/{device}")):
                    if key != "stable_secret":
                        print("sysctl", name, f"{top}/{device}/{key}", read(f"{top}/{device}/{key}"))


def cgroups():
    for directory, _, files in os.walk("/sys/fs/cgroup"):
        if directory == "/sys/fs/cgroup":
            continue
        for file in sorted(set(files) & set(LIMITS)):
            value = read(f"{directory}/{file}")
            if value not in (None, LIMITS[file]):
                print("cgroup", f"{directory}/{file}", " ".join(value.split()))


def processes():
    """Who is stopped, and the limits of who serves: every process of a unit."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        status, group = read(f"/proc/{pid}/status"), read(f"/proc/{pid}/cgroup")
        name = re.search(r"^Name:\s+(.*)$", status or "", re.M)
        state = re.search(r"^State:\s+(\w)", status or "", re.M)
        if not name or not state or "VmSize" not in status:
            continue
        if state.group(1) in "Tt":
            print("stopped", group, name.group(1))
        if name.group(1) != "(udev-worker)" and not re.search("qemu-guest-agent|vervet", group or ""):
            limits = read(f"/proc/{pid}/limits")
            nice = (read(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
            if limits and len(nice) > 17:
                print("process", group, name.group(1), f"limits {zlib.crc32(limits.encode()):08x}",
                      f"nice {nice[16]} policy {nice[38]} oom {read(f'/proc/{pid}/oom_score_adj')}")


def units():
    for line in said(None, "systemctl", "list-units", "--type=service", "--no-legend", "--plain",
                     "--state=active,activating,deactivating,failed"):
        unit, _, active, sub = line.split()[:4]
        if not unit.startswith(("user@", "session", "systemd-tmpfiles-clean", "user-runtime")):
            print("unit", unit, active, sub)


def files(top, device):
    """What there is, whose, with what rights; the content of what is small."""
    for entry in sorted(os.scandir(top), key=lambda entry: entry.name):
        # The private /tmp of a service has a new name after each start.
        if entry.path in NOT_FILES or entry.name.startswith("systemd-private-"):
            continue
        try:
            info = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        what = f"{stat.filemode(info.st_mode)} {info.st_uid}:{info.st_gid}"
        if stat.S_ISDIR(info.st_mode):
            print("file", entry.path, what)
            if info.st_dev in device:
                files(entry.path, device)
        elif stat.S_ISLNK(info.st_mode):
            print("file", entry.path, what, os.readlink(entry.path))
        elif entry.path.startswith(("/etc/", "/usr/local/")) and stat.S_ISREG(info.st_mode):
            print("file", entry.path, what, f"{zlib.crc32(open(entry.path, 'rb').read()):08x}")
        else:
            print("file", entry.path, what, info.st_size if stat.S_ISREG(info.st_mode) else "")


network(None)
for namespace in sorted(line.split()[0] for line in said(None, "ip", "netns", "list")):
    network(namespace)
cgroups()
processes()
units()
files("/", {os.stat("/").st_dev, os.stat("/run").st_dev})
