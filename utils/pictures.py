"""Pictures of ranked lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from utils.files import write_atomically

RIGHT, WRONG, QUERY = "#1a9641", "#d7191c", "#404040"


@dataclass
class Tile:
    """One image of a row: (H, W, 3) uint8 RGB, the caption below it, and the color of its frame."""

    image: np.ndarray
    caption: str
    colour: str


def draw_rows(path: str | Path, rows: Sequence[tuple[str, Sequence[Tile]]], columns: Sequence[str]) -> np.ndarray:
    """Write a PNG with one row of framed tiles per query: rows are (title, tiles), columns the words at the top.

    Returns its pixels, (H, W, 3) uint8 RGB.
    """
    # inches per tile (a 1:2 image and two lines of text), and above all
    width, height, head = 1.0, 2.62, 0.29 + 0.16 * max(name.count("\n") + 1 for name in columns)
    figure = Figure(figsize=(width * 1.12 * len(columns) + 0.3, height * len(rows) + head), dpi=110)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    inches = figure.get_figheight()
    figure.subplots_adjust(
        left=0.02, right=0.98, top=1 - (head + 0.15) / inches, bottom=0.4 / inches, wspace=0.12, hspace=0.36
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (title, tiles) in enumerate(rows):
        words = {"transform": axes[number, 0].transAxes, "fontsize": 8, "va": "bottom", "color": "#222222"}
        axes[number, 0].text(0, 1.035, title, **words)
        for axis, tile in zip(axes[number], tiles, strict=False):
            axis.set_axis_on()
            axis.imshow(tile.image, aspect="auto", interpolation="bilinear")
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set(edgecolor=tile.colour, linewidth=3)
            axis.set_xlabel(tile.caption, fontsize=7.5, labelpad=3, color="#222222")
    for axis, name in zip(axes[0], columns, strict=True):
        axis.text(0.5, 1.11, name, transform=axis.transAxes, fontsize=9, ha="center", va="bottom", weight="bold")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
    return np.asarray(canvas.buffer_rgba())[:, :, :3]
