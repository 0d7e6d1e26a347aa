#!/usr/bin/python3
"""Draws the panels of the dashboard's section Traffic and Connections from what a
Prometheus has, for README.md: no Grafana is needed. Needs matplotlib.

    dashboards/plot.py http://127.0.0.1:9090 SECONDS picture.png
"""
import json
import sys
import time
import urllib.parse
import urllib.request

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

server, seconds, picture = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with open(sys.path[0] + "/glowd.json", encoding="utf-8") as file:
    panels = [panel for panel in json.load(file)["panels"] if panel["type"] == "timeseries"][:8]
figure, axes = pyplot.subplots(4, 2, figsize=(11, 12), layout="constrained")
now = time.time()
for axis, panel in zip(axes.flat, panels):
    for target in panel["targets"]:
        expression = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "5s")
        query = {"query": expression, "start": now - seconds, "end": now, "step": 1}
        url = f"{server}/api/v1/query_range?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url) as answer:
            results = json.load(answer)["data"]["result"]
        for result in results:
            legend = target["legendFormat"]
            for name, value in result["metric"].items():
                legend = legend.replace("{{%s}}" % name, value)
            points = [(float(at) - now, float(value)) for at, value in result["values"]]
            axis.plot(*zip(*points), label=legend)
    axis.set_title(f"{panel['title']} [{panel['fieldConfig']['defaults']['unit']}]", fontsize=10)
    axis.set_ylim(bottom=0)
    axis.set_xlim(-seconds, 0)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, loc="upper left")
figure.savefig(picture, dpi=80)
