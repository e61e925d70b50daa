#!/usr/bin/python3
"""How long faults outlive a deed, each as those who suffer from it see it. Knows nothing of vervet.

gone.py FAULT=WHERE [FAULT=WHERE …] -- DEED…

slow=PORT      answers over a connection that is open take longer than 50 ms
capped=PORT    of two connections, the second is refused
stopped=PID    the process is stopped (T)
frozen=UNIT    the processes of the unit are frozen (cgroup.events)
down=UNIT      the unit has no process

First every fault must be there. Then the deed is done: `kill PID…` sends SIGKILL, anything else is a program
and its arguments; none (`-- nothing`) only tells which ones are there. Prints `FAULT SECONDS` for each, on the
guest's own clock from the beginning of the deed, or `FAULT there` after 60 s; at last `deed CODE SECONDS`.
"""
import collections
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

PATIENCE = 60.0
SLOW = 0.05
LOOK = 0.01


def cgroup(unit):
    template = unit.partition("@")[0]
    places = [f"system.slice/system-{template}.slice/{unit}", f"system.slice/{unit}"]
    return next((path for path in (f"/sys/fs/cgroup/{each}" for each in places) if os.path.isdir(path)), None)


def events(unit, word):
    path = cgroup(unit)
    try:
        with open(f"{path}/cgroup.events") as file:
            return f"{word} 1" in file.read()
    except OSError:
        return False


class Slow:
    """A byte every few milliseconds over one connection; it is gone when a byte is back soon."""

    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", int(port)), timeout=PATIENCE)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.settimeout(LOOK)
        self.sent = collections.deque()

    def there(self):
        begun = time.monotonic()
        self.sock.sendall(b"x")
        self.sent.append(begun)
        try:
            back = len(self.sock.recv(4096))
        except (TimeoutError, socket.timeout):
            return True
        now = time.monotonic()
        youngest = [self.sent.popleft() for _ in range(back)][-1]
        time.sleep(max(0.0, LOOK - (now - begun)))
        return now - youngest > SLOW


class Capped:
    def __init__(self, port):
        self.place = ("127.0.0.1", int(port))

    def there(self):
        held = []
        try:
            for _ in range(2):
                held.append(socket.create_connection(self.place, timeout=0.2))
            return False
        except OSError:
            return True
        finally:
            for sock in held:
                # Reset at once: the cap counts connections that linger.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.close()
            time.sleep(LOOK)


class Stopped:
    def __init__(self, pid):
        self.pid = pid

    def there(self):
        time.sleep(LOOK)
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                return re.search(r"\) (\w)", file.read()).group(1) == "T"
        except OSError:
            return False


class Frozen:
    def __init__(self, unit):
        self.unit = unit

    def there(self):
        time.sleep(LOOK)
        return events(self.unit, "frozen")


class Down:
    def __init__(self, unit):
        self.unit = unit

    def there(self):
        time.sleep(LOOK)
        return not events(self.unit, "populated")


KINDS = {"slow": Slow, "capped": Capped, "stopped": Stopped, "frozen": Frozen, "down": Down}


def seen(fault, within):
    """Whether a fault shows within so many seconds."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        if fault.there():
            return True
    return False


def do(deed):
    if deed[0] == "kill":
        for pid in deed[1:]:
            os.kill(int(pid), signal.SIGKILL)
        return None
    return subprocess.Popen(deed, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def main(args):
    at = args.index("--")
    faults = {}
    for arg in args[:at]:
        kind, _, where = arg.partition("=")
        faults[arg] = KINDS[kind](where)
    deed = args[at + 1:]
    if deed == ["nothing"]:
        for name, fault in faults.items():
            print(name, "there" if seen(fault, 0.5) else "gone")
        return
    absent = [name for name, fault in faults.items() if not seen(fault, 5.0)]
    if absent:
        sys.exit(f"not there before the deed: {', '.join(absent)}")
    times, begin = {}, threading.Event()

    def watch(name, fault):
        begin.wait()
        while time.monotonic() < begun + PATIENCE:
            if not fault.there():
                times[name] = time.monotonic() - begun
                return

    threads = [threading.Thread(target=watch, args=each) for each in faults.items()]
    for thread in threads:
        thread.start()
    begun = time.monotonic()
    begin.set()
    child = do(deed)
    said = child.communicate()[1].decode() if child else ""
    done = time.monotonic() - begun
    for thread in threads:
        thread.join()
    for name in faults:
        print(name, f"{times[name]:.3f}" if name in times else "there")
    print("deed", child.returncode if child else 0, f"{done:.3f}", said)


main(sys.argv[1:])
