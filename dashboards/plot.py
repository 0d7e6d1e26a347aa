#!/usr/bin/python3
"""Draws the panels of the dashboard's section Traffic and Connections from what a
Prometheus has, in the rows in which they are there, for README.md: no Grafana is
needed. Needs matplotlib.

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
places = [panel["gridPos"] for panel in panels]
rows = [[place["w"] for place in places if place["y"] == y]
        for y in sorted({place["y"] for place in places})]
figure = pyplot.figure(figsize=(13, 3 * len(rows)), layout="constrained")
axes = []
for row, widths in zip(figure.subfigures(len(rows)), rows):
    axes.extend(row.subplots(1, len(widths), gridspec_kw={"width_ratios": widths}))
now = time.time()
for axis, panel in zip(axes, panels):
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
