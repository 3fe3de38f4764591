#!/usr/bin/env python3
"""Draws the overview of the dashboard from the metrics of running replicas, for the documents:

    tests/tools/dashboard-picture.py PICTURE.png MINUTES HOST:PORT...

Prometheus scrapes the admin listeners (`make demo-shell` keeps two replicas running) for that many
minutes, and each panel of charts/ecr-injector/files/dashboard.json shows what its own queries
return. Grafana isn't needed, so colours and fonts differ from its. PROMETHEUS names the program of
Prometheus; matplotlib has to be installed.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from datetime import datetime, timezone
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.dates as dates
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
SCRAPE_SECONDS = 2
# What Grafana fills in: four scrapes, all clusters, all namespaces.
VARIABLES = {
    "$__rate_interval": f"{4 * SCRAPE_SECONDS}s",
    "$cluster": ".*",
    "$namespace": ".*",
}
UNITS = {"ops": "per second", "s": "seconds", "short": ""}


def free_port():
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


class Prometheus:
    """A Prometheus that scrapes targets into a folder, until it is left."""

    def __init__(self, folder, targets):
        self.address = f"127.0.0.1:{free_port()}"
        config = Path(folder) / "prometheus.yml"
        labels = {"cluster": "demo", "namespace": "ecr-injector"}
        scrape = {
            "job_name": "ecr-injector",
            "static_configs": [{"targets": targets, "labels": labels}],
        }
        interval = {"scrape_interval": f"{SCRAPE_SECONDS}s"}
        # JSON is YAML.
        config.write_text(json.dumps({"global": interval, "scrape_configs": [scrape]}))
        program = os.environ.get("PROMETHEUS", "prometheus")
        self.process = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={self.address}",
                "--log.level=error",
            ]
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def query(self, expression, start, end):
        """Returns the series of a query: their labels, times and values."""
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        step = {"start": start, "end": end, "step": SCRAPE_SECONDS}
        text = urllib.parse.urlencode({"query": expression, **step})
        with urllib.request.urlopen(f"http://{self.address}/api/v1/query_range?{text}") as answer:
            found = json.load(answer)["data"]["result"]
        for series in found:
            at, values = zip(*series["values"])
            times = [datetime.fromtimestamp(second, timezone.utc) for second in at]
            yield series["metric"], times, [float(value) for value in values]


def name_of(legend, labels):
    return re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label.group(1), ""), legend or "")


def duration(seconds):
    if seconds > 10 * 365 * 86400:
        return "more than 10 years"
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def draw(panel, axes, series):
    axes.set_title(panel["title"], loc="left", fontsize=10)
    if panel["type"] == "stat":
        axes.axis("off")
        latest = [values[-1] for _, _, values in series]
        unit = panel["fieldConfig"]["defaults"]["unit"]
        text = "no data" if not latest else duration(latest[0]) if unit == "s" else f"{latest[0]:g}"
        axes.text(0, 0.35, text, fontsize=20, transform=axes.transAxes)
        return
    shown = [line for line in series if any(value > 0 for value in line[2])]
    for name, times, values in shown:
        axes.plot(times, values, label=name, linewidth=1.2)
    if not shown:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
    axes.set_ylabel(UNITS[panel["fieldConfig"]["defaults"]["unit"]], fontsize=8)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if shown:
        axes.legend(fontsize=7, loc="upper left")


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    picture, minutes, targets = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
    panels = json.loads((ROOT / "charts/ecr-injector/files/dashboard.json").read_text())["panels"]
    overview = [panel for panel in panels if panel["type"] != "row"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in overview)
    figure = plt.figure(figsize=(14, height * 0.45), layout="constrained")
    grid = figure.add_gridspec(height, 24)
    with tempfile.TemporaryDirectory() as folder, Prometheus(folder, targets) as prometheus:
        start = time.time()
        time.sleep(minutes * 60)
        for panel in overview:
            series = [
                (name_of(target.get("legendFormat"), labels), times, values)
                for target in panel["targets"]
                for labels, times, values in prometheus.query(target["expr"], start, time.time())
            ]
            at = panel["gridPos"]
            axes = grid[at["y"] : at["y"] + at["h"], at["x"] : at["x"] + at["w"]]
            draw(panel, figure.add_subplot(axes), series)
    figure.savefig(picture, dpi=70)


main()
