"""The picture of tools/embedding_plot.py: points by identity and camera, with their legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from datasets.base import Sample
from utils.files import write_atomically
from utils.plots import plain

MARKERS = "osD^vP*X<>phd8H"  # filled ones, which differ in outline
MOST_NAMED = 40  # identities in the legend


def draw_points(
    path: str | Path,
    points: np.ndarray,
    samples: Sequence[Sample],
    names: Mapping[int, str],
    cameras: bool,
    title: str,
    shares: Sequence[float] | None = None,
) -> None:
    """Write a PNG of points (N, 2), one a sample: its colour is that of its identity, whose name stands above all of
    its points, its marker that of its camera, if `cameras` are known and there are markers enough.

    names: pid to name, all that are drawn. shares: of the variance, for the axes of principal components.
    """
    pids, camids = np.array([s.pid for s in samples]), np.array([s.camid for s in samples])
    colours = dict(zip(names, palette(len(names)), strict=True))
    seen = np.unique(camids).tolist()
    known = cameras and len(seen) <= len(MARKERS)
    markers = dict(zip(seen, MARKERS, strict=False)) if known else dict.fromkeys(seen, "o")
    figure = Figure(figsize=(11, 7.6), dpi=110)
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0.066, 0.065, 0.614, 0.885))
    for camid, marker in markers.items():
        here = camids == camid
        edge = {"edgecolors": "white", "linewidths": 0.5}
        axis.scatter(*points[here].T, s=42, marker=marker, c=[colours[pid] for pid in pids[here]], **edge)
    for pid, name in names.items():
        words = axis.annotate(
            short(name.removeprefix("pid "), 13), above(points[pids == pid]), (0, 6), textcoords="offset points",
            fontsize=8, weight="bold", ha="center", color=[0.6 * c for c in colours[pid]],
        )  # fmt: skip
        words.set_path_effects([withStroke(linewidth=2, foreground="white")])
    axis.set_title(plain(title), fontsize=10, loc="left")
    axis.set_aspect("equal", adjustable="datalim")
    if shares is None:
        axis.set(xticks=[], yticks=[])  # coordinates of t-SNE have no unit
    else:
        axis.tick_params(labelsize=8)
        axis.set_xlabel(f"first principal component, {100 * shares[0]:.0f} % of the variance", fontsize=9)
        axis.set_ylabel(f"second, {100 * shares[1]:.0f} %", fontsize=9)
    _legends(figure, names, colours, markers if known else {}, cameras)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def above(points: np.ndarray) -> tuple[float, float]:
    """A place for the name of points (n, 2): their middle, above the nearest three quarters of them."""
    middle = np.median(points, axis=0)
    distance = np.linalg.norm(points - middle, axis=1)
    return middle[0], points[distance <= np.quantile(distance, 0.75), 1].max()


def palette(count: int) -> list[tuple[float, float, float]]:
    """Colours that differ: those made for 10 and 20 classes, beyond that hues around the circle in three shades."""
    if count <= 20:
        return [tuple(c[:3]) for c in colormaps["tab10" if count <= 10 else "tab20"].colors[:count]]
    hues = colormaps["hsv"](np.arange(count) / count)[:, :3]
    return [tuple(hue * (0.95, 0.7, 0.45)[number % 3]) for number, hue in enumerate(hues)]


def short(name: str, most: int) -> str:
    """Both ends of a name that is too long for its place."""
    half = most // 2
    return plain(name if len(name) <= most else f"{name[: most - 1 - half]}…{name[-half:]}")


def _legends(figure: Figure, names: Mapping[int, str], colours: Mapping, markers: Mapping[int, str], cameras: bool):
    """Identities, and below them cameras, to the right of the points."""
    place = {"loc": "upper left", "frameon": False, "fontsize": 8, "title_fontsize": 9, "alignment": "left", "ncols": 2}

    def legend(title: str, marks: Sequence[tuple[str, object, str]], top: float) -> None:
        dots = [Line2D([], [], marker=m, color=c, label=n, linestyle="", markersize=7) for m, c, n in marks]
        figure.legend(handles=dots, title=title, bbox_to_anchor=(0.685, top), **place)

    top = 0.965
    if len(names) <= MOST_NAMED:
        legend("identity", [("o", colours[pid], short(name, 11)) for pid, name in names.items()], top)
        top -= 0.055 + 0.0247 * -(-len(names) // 2)
    else:
        figure.text(0.695, top - 0.02, f"{len(names)} identities, a colour each", fontsize=9, va="top")
        top -= 0.06
    if markers:
        legend("camera", [(marker, "#555555", f"cam {camid}") for camid, marker in markers.items()], top)
    else:
        words = "more cameras than markers:\nthey are not told apart" if cameras else "cameras unknown"
        figure.text(0.695, top - 0.02, words, fontsize=9, va="top")
