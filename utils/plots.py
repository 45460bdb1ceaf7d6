"""Curves of training runs. matplotlib is imported only when something is drawn, as training imports this file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import reading, write_atomically

METRICS = "metrics.jsonl"
PANELS = {  # title: key in an epoch's entry
    "loss": "loss",
    "accuracy on training batches": "accuracy",
    "learning rate": "lr",
    "mAP (%)": "mAP",
    "Rank-1 (%)": "rank1",
    "training speed (images/s)": "images_per_second",
}
SCORES = ("mAP", "rank1")
# keys of an epoch's entry that are not parts of its loss
NO_LOSS = {"epoch", "loss", "accuracy", "grad_norm", "lr", "images_per_second", "data_wait", "memory_gb"}
NO_LOSS |= {"scores", "by_camera"}
COLOURS = ("#2b6cb0", "#d95f02", "#1a9641", "#7b3294", "#d7191c", "#8c6d31", "#e7298a", "#17becf", "#666666", "#000000")


def read_history(directory: str | Path) -> tuple[list[dict[str, Any]], str]:
    """The entries of a run's metrics.jsonl, one per epoch, and a sentence if the last line is damaged and left out,
    otherwise "".

    If an epoch occurs twice, the later line counts. Raises UserError if the file is missing or empty, or if another
    line is damaged.
    """
    path = Path(directory) / METRICS
    with reading(path, "name a run's directory"):
        lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    entries, problem = {}, ""
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            entries[int(entry["epoch"])] = entry
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number} is not the entry of an epoch; restore or remove it") from error
            problem = f"{path}: the last line is damaged and left out"
    if not entries:
        raise UserError(f"{path} holds no epoch yet; wait for the first one to end")
    return [entries[epoch] for epoch in sorted(entries)], problem


def plot_curves(runs: Mapping[str, Sequence[dict[str, Any]]], path: str | Path) -> None:
    """Write a PNG of loss, accuracy, learning rate, mAP, Rank-1 and speed over the epochs.

    runs: entries as in metrics.jsonl or a run's `history`, by the name of the run. A single run also shows the parts of
    its loss and the scores of other protocols than the plain one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(runs) // 3)
    below = 0.65 + 0.22 * rows  # inches, for the legend
    height = 6 + below
    figure = Figure(figsize=(12, height), dpi=110)
    FigureCanvasAgg(figure)
    axes, last = figure.subplots(2, 3).flat, max(entry["epoch"] for entries in runs.values() for entry in entries)
    for axis, (title, key) in zip(axes, PANELS.items(), strict=True):
        lines = [line(entries, key) for entries in runs.values()]
        for number, points in enumerate(lines):
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": ("-", "--", ":")[number // len(COLOURS) % 3]}
            axis.plot(*points, marker="o", markersize=3 if len(points[0]) <= 40 else 0, linewidth=1.5, **style)
        if len(runs) == 1:
            _draw_more(axis, next(iter(runs.values())), key)
        _finish(axis, title, lines, last)
    figure.subplots_adjust(
        left=0.05, right=0.985, top=1 - 0.35 / height, bottom=below / height, wspace=0.17, hspace=0.3
    )
    first = figure.axes[0].get_lines()[: len(runs)]
    names = [plain(name if len(name) <= 40 else f"{name[:17]}…{name[-22:]}") for name in runs]
    figure.legend(first, names, loc="lower center", ncols=min(len(runs), 3), fontsize=9, frameon=False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def plain(words: str) -> str:
    """Text that matplotlib shows literally: $ starts no formula, a leading _ hides nothing from a legend, and invalid
    UTF-8 in a file name is escaped."""
    return " " * words.startswith("_") + words.encode(errors="backslashreplace").decode().replace("$", r"\$")


def loss_parts(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the losses in the sum."""
    return list(dict.fromkeys(name for entry in entries for name in entry if name not in NO_LOSS))


def line(entries: Sequence[dict[str, Any]], key: str, protocol: str = "plain") -> tuple[list[int], list[float]]:
    """Epochs and values of a key, where it is finite."""
    points = []
    for entry in entries:
        value = entry.get("scores", {}).get(protocol, {}).get(key) if key in SCORES else entry.get(key)
        if isinstance(value, (int, float)) and math.isfinite(value):
            points.append((entry["epoch"], value))
    return [epoch for epoch, _ in points], [value for _, value in points]


def _draw_more(axis, entries: Sequence[dict[str, Any]], key: str) -> None:
    """For a single run: parts of the loss, and scores of other protocols."""
    if key == "loss":
        more = {name: line(entries, name) for name in loss_parts(entries)}
    elif key in SCORES:
        protocols = dict.fromkeys(name for entry in entries for name in entry.get("scores", {}) if name != "plain")
        more = {name: line(entries, key, name) for name in protocols}
    else:
        return
    axis.get_lines()[0].set_label("sum" if key == "loss" else "plain")
    more = {name: points for name, points in more.items() if points[0]}
    for (name, points), colour in zip(more.items(), COLOURS[1:] * len(more), strict=False):
        axis.plot(*points, marker="o", markersize=3, linewidth=1, color=colour, label=plain(name))
    if more:
        axis.legend(fontsize=8, frameon=False)


def _finish(axis, title: str, lines: Sequence[tuple[list[int], list[float]]], last: int) -> None:
    """Title, axes and ticks; an empty panel says so."""
    values = [value for _, points in lines for value in points]
    axis.set_title(title, fontsize=10)
    axis.tick_params(labelsize=8)
    axis.grid(color="#e5e5e5", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right") if values else axis.spines:
        axis.spines[side].set_visible(False)
    if not values:
        axis.set(xticks=[], yticks=[])
        axis.text(0.5, 0.5, "nothing yet", transform=axis.transAxes, ha="center", color="#888888", fontsize=9)
        return
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("epoch", fontsize=8)
    axis.set_xlim(-0.04 * max(last, 1), 1.04 * max(last, 1))
    if title == "learning rate" and min(values) > 0 and max(values) > 5 * min(values):
        axis.set_yscale("log")
    elif title != "loss":
        axis.set_ylim(bottom=0)
