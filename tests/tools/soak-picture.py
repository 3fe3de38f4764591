#!/usr/bin/env python3
"""Draws the figures of a soak (`make soak-long`) from its file:

    tests/tools/soak-picture.py SOAK.csv PICTURE.png

matplotlib has to be installed.
"""

import csv
import itertools
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAN = float("nan")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], newline="") as file:
        rows = list(csv.DictReader(file))
    minutes = [float(row["minutes"]) for row in rows]

    def column(name):
        return [float(row[name]) if row[name] else NAN for row in rows]

    figure, axes = plt.subplots(4, sharex=True, figsize=(12, 10), layout="constrained")
    memory, handles, life, work = axes
    memory.plot(minutes, column("resident_mib"), label="resident")
    memory.plot(minutes, column("anonymous_mib"), label="anonymous")
    memory.plot(minutes, column("other_anonymous_mib"), label="anonymous, the other replica")
    memory.set_ylabel("MiB")
    handles.plot(minutes, column("descriptors"), label="file descriptors")
    handles.plot(minutes, column("threads"), label="threads")
    life.plot(minutes, column("least_left_seconds"), label="until the first credential expires")
    life.axhline(300, color="tab:red", linewidth=1, label="too little to rely on")
    life.set_ylabel("seconds")
    work.plot(minutes, column("refreshes"), label="pull secrets written")
    work.plot(minutes, column("pods"), label="Pods stored")
    work.plot(minutes, column("pods_without"), label="Pods stored without the reference")
    work.set_xlabel("minutes; shaded: a fault")
    for at in axes:
        at.set_ylim(bottom=0)
        at.grid(alpha=0.3)
        at.legend(fontsize=8, loc="center left")
    # Each fault lasts half of its time.
    for fault, of_fault in itertools.groupby(rows, key=lambda row: row["fault"]):
        times = [float(row["minutes"]) for row in of_fault]
        if fault == "None":
            continue
        middle = times[len(times) // 2]
        for at in axes:
            at.axvspan(times[0], middle, color="tab:orange", alpha=0.12, linewidth=0)
        if len(minutes) < 200:
            memory.text(times[0], 0, f" {fault}", fontsize=6, rotation=90, va="bottom")
    figure.savefig(sys.argv[2], dpi=80)


main()
