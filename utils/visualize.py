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
    """One picture of a row: (H, W, 3) uint8 RGB, the words under it, and the colour of its frame."""

    image: np.ndarray
    caption: str
    colour: str


def draw_rows(path: str | Path, rows: Sequence[tuple[str, Sequence[Tile]]], columns: Sequence[str]) -> np.ndarray:
    """Write a PNG with one row of framed tiles a query: rows are (title, tiles), columns the words at the top.

    Gives its pixels too, (H, W, 3) uint8 RGB.
    """
    # inches a tile (a 1:2 picture and two lines of words), and above all
    wide, tall, head = 1.0, 2.62, 0.29 + 0.16 * max(name.count("\n") + 1 for name in columns)
    figure = Figure(figsize=(wide * 1.12 * len(columns) + 0.3, tall * len(rows) + head), dpi=110)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    height = figure.get_figheight()
    figure.subplots_adjust(
        left=0.02, right=0.98, top=1 - (head + 0.15) / height, bottom=0.4 / height, wspace=0.12, hspace=0.36
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (title, tiles) in enumerate(rows):
        axes[number, 0].text(
            0, 1.035, title, transform=axes[number, 0].transAxes, fontsize=8, ha="left", va="bottom", color="#222222"
        )
        for axis, tile in zip(axes[number], tiles, strict=False):
            _draw_tile(axis, tile)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.text(0.5, 1.11, name, transform=axis.transAxes, fontsize=9, ha="center", va="bottom", weight="bold")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def _draw_tile(axis, tile: Tile) -> None:
    axis.set_axis_on()
    axis.imshow(tile.image, aspect="auto", interpolation="bilinear")
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_edgecolor(tile.colour)
        side.set_linewidth(3)
    axis.set_xlabel(tile.caption, fontsize=7.5, labelpad=3, color="#222222")
