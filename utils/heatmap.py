"""Heat maps as pictures: laid over images, and in rows with a colour bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from utils.files import write_atomically
from utils.pictures import Tile
from utils.plots import plain

TILE = 2.2  # inches, the longer side of an image
GAP, SPACE = 0.14, 0.16  # inches between columns, and what an empty word adds
WORDS = 0.72  # inches of title and caption, above and below an image


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB, half the image and half the map (h, w) in colours, from 0 (and less) to the map's maximum.

    A map with nothing above 0 is all in the lowest colour.
    """
    height, width = image.shape[:2]
    heat = cv2.resize(np.asarray(heat, np.float32), (width, height), interpolation=cv2.INTER_LINEAR).clip(0)
    levels = (255 * heat / max(heat.max(), 1e-12)).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(image, 0.5, colours, 0.5, 0)


def draw_heat_rows(path: str | Path, rows: Sequence[tuple[str, Sequence[Tile | None]]], columns: Sequence[str]) -> None:
    """Write a PNG of rows (title, tiles) under the words of the columns, and a colour bar.

    All images have one shape. None leaves a place empty; a column without a word is only a space between others.
    """
    image = next(tile.image for _, tiles in rows for tile in tiles if tile)
    tall, wide = (TILE * side / max(image.shape[:2]) for side in image.shape[:2])
    steps = [max(wide, 1.0) + GAP if name else SPACE for name in columns]
    head = 0.2 + 0.17 * max(name.count("\n") + 1 for name in columns)
    width, height = 0.15 + sum(steps) + 0.75, head + (tall + WORDS) * len(rows)
    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)

    def axis_at(x: float, y: float, w: float, h: float):
        """Inches from the upper left corner."""
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    for number, (title, tiles) in enumerate(rows):
        y = head + (tall + WORDS) * number + 0.24
        figure.text(0.15 / width, 1 - (y - 0.06) / height, plain(title), fontsize=8, va="bottom", color="#222222")
        for column, tile in enumerate(tiles):
            if tile:
                _draw(axis_at(0.15 + sum(steps[:column]), y, wide, tall), tile)
    for column, name in enumerate(columns):
        middle = (0.15 + sum(steps[:column]) + wide / 2) / width
        figure.text(middle, 1 - (head - 0.04) / height, name, fontsize=8.5, ha="center", va="bottom", weight="bold")
    place = axis_at(width - 0.62, head + 0.24, 0.13, tall)
    bar = figure.colorbar(ScalarMappable(cmap="turbo"), cax=place, ticks=[0, 1])
    bar.ax.set_yticklabels(["0", "most"], fontsize=7.5)
    bar.set_label("each map by itself", fontsize=7.5, labelpad=-8)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def _draw(axis, tile: Tile) -> None:
    axis.imshow(tile.image, aspect="auto", interpolation="bilinear")
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set(edgecolor=tile.colour, linewidth=2)
    axis.set_xlabel(plain(tile.caption), fontsize=7.5, labelpad=3, color="#222222")
