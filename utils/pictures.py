"""Pictures of rows of images: ranked lists, answers of a search, heat maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from utils.files import write_atomically
from utils.plots import plain

RIGHT, WRONG, QUERY = "#1a9641", "#d7191c", "#404040"
# in inches: longer side of an image, gap between columns, width of an empty column, captions of a row, margin
TILE, GAP, SPACE, WORDS, MARGIN = 2.0, 0.12, 0.16, 0.66, 0.15
BAR = 0.6  # inches of the color bar and its label
GRAY, EMPTY = "#222222", "#eeeeee"


@dataclass
class Tile:
    """One picture of a row: (H, W, 3) uint8 RGB in its true shape, the words under it, and the color of its frame."""

    image: np.ndarray
    caption: str
    colour: str


def remove_rows(directory: Path) -> None:
    """Remove pictures of queries, whose names begin like 001_ap099.9_, that an earlier call drew to a directory."""
    for path in directory.glob("[0-9][0-9][0-9]_ap[0-9][0-9][0-9].[0-9]_*.png"):
        path.unlink()


def draw_rows(
    path: str | Path, rows: Sequence[tuple[str, Sequence[Tile | None]]], columns: Sequence[str | None], bar: str = ""
) -> np.ndarray:
    """Write a PNG of rows of framed images: rows are (title, tiles), columns the titles at the top.

    All frames have the same shape, the median of the images' shapes; images are not distorted. A tile of None leaves
    its place empty; a column of None is a narrow space. bar: the label of a color bar from 0 to "most" ("": no bar).
    Returns the pixels, (H, W, 3) uint8 RGB.
    """
    ratio = float(np.median([np.divide(*tile.image.shape[:2]) for _, tiles in rows for tile in tiles if tile]))
    tall, wide = TILE * min(1, ratio), TILE * min(1, 1 / ratio)
    steps = [SPACE if name is None else max(wide, 1.0) + GAP for name in columns]
    left = MARGIN + np.cumsum([0, *steps])
    head = 0.2 + 0.17 * max(name.count("\n") + 1 for name in columns if name is not None)
    width, height = left[-1] + MARGIN + BAR * bool(bar), head + (tall + WORDS) * len(rows)
    figure = Figure(figsize=(width, height), dpi=110)
    canvas = FigureCanvasAgg(figure)

    def axis_at(x: float, y: float, w: float, h: float):
        """Place and size are in inches, from the upper left corner."""
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    def write(x: float, y: float, words: str, **style) -> None:
        figure.text(x / width, 1 - y / height, plain(words), va="bottom", **style)

    for number, (title, tiles) in enumerate(rows):
        top = head + (tall + WORDS) * number + 0.24
        write(MARGIN, top - 0.06, title, fontsize=8, color=GRAY)
        for x, tile in zip(left, tiles, strict=False):
            if tile is None:
                continue
            axis = axis_at(x, top, wide, tall)
            axis.imshow(tile.image, interpolation="bilinear")
            axis.set_aspect("equal", "datalim")
            axis.set_facecolor(EMPTY)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(edgecolor=tile.colour, linewidth=3)
            axis.set_xlabel(plain(tile.caption), fontsize=7.5, labelpad=3, color=GRAY)
    for x, name in zip(left, columns, strict=False):
        write(x + wide / 2, head - 0.04, name or "", fontsize=9, ha="center", weight="bold")
    if bar:
        place = axis_at(left[-1] + 0.03, head + 0.24, 0.13, tall)
        drawn = figure.colorbar(ScalarMappable(cmap="turbo"), cax=place, ticks=[0, 1])
        drawn.ax.set_yticklabels(["0", "most"], fontsize=7.5)
        drawn.set_label(bar, fontsize=7.5, labelpad=-8)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
    return np.asarray(canvas.buffer_rgba())[:, :, :3]
