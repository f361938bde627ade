# SPDX-License-Identifier: AGPL-3.0-or-later
"""The page at `/_lb/status`: numbers, and a plot over time. It loads nothing but `/_lb/status.json`."""

from __future__ import annotations

from typing import Final

PAGE: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>synapse-lb proxy</title>
<meta name="viewport" content="width=device-width">
<style>
:root { color-scheme: light dark; --http: #c0562b; --wire: #1f7a6d; --line: #8886; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.25rem; font-weight: 600; }
.big { font-size: 2.6rem; font-weight: 650; line-height: 1.1; }
.muted { opacity: .7; }
svg { width: 100%; height: auto; margin: 1rem 0 .25rem; }
svg text { font-size: 12px; fill: currentColor; opacity: .75; }
table { border-collapse: collapse; }
td { padding: .15rem 1.5rem .15rem 0; border-bottom: 1px solid var(--line); }
td + td { text-align: right; font-variant-numeric: tabular-nums; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .35em 0 1em; }
</style>
</head>
<body>
<h1>synapse-lb proxy</h1>
<div class="big" id="saving">&ndash;</div>
<div class="muted" id="line">Nothing has come yet.</div>
<svg viewBox="0 0 800 300" role="img" aria-label="Bytes over time">
  <g id="grid"></g>
  <path id="http" fill="none" stroke="var(--http)" stroke-width="2.5"></path>
  <path id="wire" fill="none" stroke="var(--wire)" stroke-width="2.5"></path>
</svg>
<div class="muted">
  <span class="key" style="background:var(--http);margin-left:0"></span>as HTTP and JSON
  <span class="key" style="background:var(--wire)"></span>on the wire
</div>
<table id="numbers"></table>
<script>
"use strict";
const rows = [
  ["Requests", "requests"], ["over CoAP", "requests_coap"], ["left out by --lean", "requests_dropped"],
  ["over HTTPS", "requests_https"], ["failed", "requests_failed"], ["Bytes on the wire", "wire_bytes"],
  ["Bytes as HTTP and JSON", "http_bytes"], ["Bytes over HTTPS", "https_bytes"],
  ["Associations", "associations"], ["Observations of /sync", "observations"],
  ["Datagrams sent", "datagrams_sent"], ["Datagrams received", "datagrams_received"],
];
const $ = id => document.getElementById(id);
const bytes = n => n < 1e4 ? n + " B" : n < 1e7 ? (n / 1e3).toFixed(1) + " kB" : (n / 1e6).toFixed(1) + " MB";
const SVG = "http://www.w3.org/2000/svg";
const [left, right, top_, bottom] = [70, 790, 10, 270];

function text(parent, x, y, anchor, content) {
  const node = document.createElementNS(SVG, "text");
  node.setAttribute("x", x); node.setAttribute("y", y); node.setAttribute("text-anchor", anchor);
  node.textContent = content;
  parent.append(node);
}

function plot(samples) {
  const first = samples[0][0], last = Math.max(samples[samples.length - 1][0], first + 10);
  const most = Math.max(1000, ...samples.map(s => Math.max(s[2], s[3])));
  const x = t => left + (right - left) * (t - first) / (last - first);
  const y = n => bottom - (bottom - top_) * n / most;
  const path = column => samples.map((s, i) =>
    (i ? "L" : "M") + x(s[0]).toFixed(1) + " " + y(s[column]).toFixed(1)).join("");
  $("wire").setAttribute("d", path(2));
  $("http").setAttribute("d", path(3));
  const grid = $("grid");
  grid.replaceChildren();
  for (let i = 0; i <= 4; i++) {
    const line = document.createElementNS(SVG, "path");
    line.setAttribute("d", `M${left} ${y(most * i / 4)}H${right}`);
    line.setAttribute("stroke", "var(--line)");
    grid.append(line);
    text(grid, left - 8, y(most * i / 4) + 4, "end", bytes(Math.round(most * i / 4)));
    const t = first + (last - first) * i / 4;
    text(grid, x(t), 290, i ? (i == 4 ? "end" : "middle") : "start",
      t < 600 ? Math.round(t) + " s" : Math.round(t / 60) + " min");
  }
}

async function refresh() {
  try {
    const status = await (await fetch("/_lb/status.json", {cache: "no-store"})).json();
    const saved = status.saving_percent;
    $("saving").textContent = saved === null ? "\\u2013" :
      saved >= 0 ? saved.toFixed(1) + " % saved" : (-saved).toFixed(1) + " % more";
    $("line").textContent = `${bytes(status.wire_bytes)} on the wire, ` +
      `${bytes(status.http_bytes)} as HTTP and JSON, in ${Math.round(status.uptime_seconds / 60)} minutes`;
    $("numbers").replaceChildren(...rows.map(([name, key]) => {
      const row = document.createElement("tr");
      for (const content of [name, status[key].toLocaleString("en")]) {
        const cell = document.createElement("td");
        cell.textContent = content;
        row.append(cell);
      }
      return row;
    }));
    const now = [status.uptime_seconds, status.requests, status.wire_bytes, status.http_bytes];
    plot([...status.samples, now]);
  } catch (error) {
    $("line").textContent = "The proxy does not answer.";
  }
  setTimeout(refresh, 5000);
}
refresh();
</script>
</body>
</html>
"""
