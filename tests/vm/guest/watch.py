#!/usr/bin/python3
"""Watches a floor from outside: how many instances of a unit are up, all the time. Knows nothing of vervet.

watch.py UNIT… -- SECONDS

Counts the units that have a live process, from the kernel alone (a cgroup that is populated and not
frozen), fifty
times a second. Prints the lowest and the highest count that it saw, how often it looked, and the time
between the two deaths that were closest to each other, in seconds (or none), and all deaths:
LOWEST HIGHEST LOOKS CLOSEST DEATHS
"""
import os
import sys
import time


def group(unit):
    """systemd's cgroup of a unit: below the slice of its template where it has one."""
    template, _, _ = unit.partition("@")
    slices = ["system.slice"]
    if "@" in unit:
        slices.append(f"system.slice/system-{template}.slice")
    return [f"/sys/fs/cgroup/{each}/{unit}/cgroup.events" for each in slices]


def up(files):
    for file in files:
        try:
            with open(file) as events:
                said = events.read()
                return "populated 1" in said and "frozen 1" not in said
        except OSError:
            continue
    return False


def main(args):
    at = args.index("--")
    files = {unit: group(unit) for unit in args[:at]}
    end = time.monotonic() + float(args[at + 1])
    lowest, highest, looks, deaths = len(files), 0, 0, []
    before = {unit: up(each) for unit, each in files.items()}
    while time.monotonic() < end:
        now = {unit: up(each) for unit, each in files.items()}
        for unit, alive in now.items():
            if before[unit] and not alive:
                deaths.append(time.monotonic())
        before = now
        count = sum(now.values())
        lowest, highest, looks = min(lowest, count), max(highest, count), looks + 1
        time.sleep(0.02)
    closest = min((b - a for a, b in zip(deaths, deaths[1:])), default=None)
    print(lowest, highest, looks, "none" if closest is None else f"{closest:.3f}", len(deaths))


main(sys.argv[1:])
