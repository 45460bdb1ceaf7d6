"""Curves of training runs. matplotlib is imported only when something is drawn."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.files import write_atomically
from utils.lookup import load

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
COMMON = {*map(chr, range(32, 127)), *"\n·…±"}  # characters that every font has
COLOURS = ("#2b6cb0", "#d95f02", "#1a9641", "#7b3294", "#d7191c", "#8c6d31", "#e7298a", "#17becf", "#666666", "#000000")


def plot_curves(runs: Mapping[str, Sequence[dict[str, Any]]], path: str | Path) -> None:
    """Write a PNG of loss, accuracy, learning rate, mAP, Rank-1 and speed over the epochs.

    runs: entries as in metrics.jsonl or a run's `history`, by the name of the run. A single run also shows the parts of
    its loss and the scores of other protocols than the plain one.
    """
    from matplotlib.figure import Figure

    below = 0.65 + 0.22 * -(-len(runs) // 3)  # inches, for the legend
    height = 6 + below
    figure = Figure(figsize=(12, height), dpi=110)
    last = max(1, *(entry["epoch"] for entries in runs.values() for entry in entries))
    for axis, (title, key) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        lines = [line(entries, key) for entries in runs.values()]
        for number, points in enumerate(lines):
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": ("-", "--", ":")[number // len(COLOURS) % 3]}
            axis.plot(*points, marker="o", markersize=3 if len(points[0]) <= 40 else 0, linewidth=1.5, **style)
        if len(runs) == 1:
            _draw_more(axis, next(iter(runs.values())), key)
        axis.set_title(title, fontsize=10)
        values = [value for _, points in lines for value in points]
        if not values:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.text(0.5, 0.5, "nothing yet", transform=axis.transAxes, ha="center", color="#888888", fontsize=9)
            continue
        axis.tick_params(labelsize=8)
        axis.grid(color="#e5e5e5", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("epoch", fontsize=8)
        axis.set_xlim(-0.04 * last, 1.04 * last)
        if key == "lr" and min(values) > 0 and max(values) > 5 * min(values):
            axis.set_yscale("log")
        elif key != "loss":
            axis.set_ylim(bottom=0)
    figure.subplots_adjust(0.05, below / height, 0.985, 1 - 0.35 / height, wspace=0.17, hspace=0.3)
    names = [plain(shorten(name, 40)) for name in runs]
    handles = figure.axes[0].get_lines()[: len(runs)]
    figure.legend(handles, names, loc="lower center", ncols=min(len(runs), 3), fontsize=9, frameon=False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def _draw_more(axis, entries: Sequence[dict[str, Any]], key: str) -> None:
    """For a single run: parts of the loss, and scores of other protocols."""
    more = {}
    if key == "loss":
        more = {name: line(entries, name) for name in loss_parts(entries)}
    elif key in SCORES:
        names = dict.fromkeys(name for entry in entries for name in entry.get("scores", {}) if name != "plain")
        more = {name: line(entries, key, name) for name in names}
    more = {name: points for name, points in more.items() if points[0]}
    for (name, points), colour in zip(more.items(), COLOURS[1:] * len(more), strict=False):
        axis.plot(*points, marker="o", markersize=3, linewidth=1, color=colour, label=plain(name))
    if more:
        axis.get_lines()[0].set_label("sum" if key == "loss" else "plain")
        axis.legend(fontsize=8, frameon=False)


def plain(words: str) -> str:
    """Return text that matplotlib shows literally: $ starts no formula, and a leading _ hides no label in a legend.
    Characters that no installed font has, such as invalid UTF-8 in a file name, are escaped."""
    words = "".join(c if c in COMMON else load("utils.fonts:drawable")(c) for c in words)
    return " " * words.startswith("_") + words.replace("$", r"\$")


def shorten(name: str, most: int = 17) -> str:
    """Return a name of at most `most` letters: a longer one keeps only its two ends."""
    return name if len(name) <= most else f"{name[: (most - 1) // 2]}…{name[-(most // 2) :]}"


def loss_parts(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the losses in the sum."""
    return list(dict.fromkeys(name for entry in entries for name in entry if name not in NO_LOSS))


def line(entries: Sequence[dict[str, Any]], key: str, protocol: str = "plain") -> tuple[list[int], list[float]]:
    """Return the epochs and values of a key, where it is finite."""
    values = {e["epoch"]: (e.get("scores", {}).get(protocol, {}) if key in SCORES else e).get(key) for e in entries}
    finite = {epoch: v for epoch, v in values.items() if isinstance(v, (int, float)) and math.isfinite(v)}
    return list(finite), list(finite.values())
