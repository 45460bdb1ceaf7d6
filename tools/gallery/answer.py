"""The answer of `tools/search.py ask`, as a table and a picture."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.images import read_whole
from utils.errors import UserError, printable
from utils.pictures import QUERY, RIGHT, Tile, draw_rows
from utils.plots import shorten

COLUMNS, MIN_COLUMNS = 10, 6  # tiles per row; the minimum leaves room for the title
MAX_QUERIES, MAX_HITS = 5, 50  # drawn
BELOW, GONE = "#b8b8b8", 235  # frame color of other hits; gray level of pictures that cannot be read


class Hit(NamedTuple):
    path: Path  # of a tracklet: its first picture
    name: str  # as in the index
    similarity: float
    answer: str  # same, different or unknown person; empty without a threshold


def hit_table(hits: Sequence[Hit]) -> str:
    """One line per hit."""
    known = hits[0].answer != ""
    lines = ["rank  similarity  " + ("person     " if known else "") + "picture"]
    for rank, hit in enumerate(hits, 1):
        word = f"{hit.answer:<9}  " if known else ""
        lines.append(f"{rank:>4}  {hit.similarity:>10.3f}  {word}{printable(hit.name)}")
    return "\n".join(lines)


def draw_answer(output: Path, queries: Sequence[str], hits: Sequence[Hit], title: str) -> None:
    """A PNG of the query pictures, and below them the hits, with green frames for the same person."""
    asked = [Tile(read_whole(q, 256), shorten(Path(q).stem), QUERY) for q in queries[:MAX_QUERIES]]
    tiles = [tile_of(rank, hit) for rank, hit in enumerate(hits[:MAX_HITS], 1)]
    rows = [(title, asked)] + [("", tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)]
    width = max(MIN_COLUMNS, *(len(row) for _, row in rows))
    draw_rows(output, rows, [""] * width)


def tile_of(rank: int, hit: Hit) -> Tile:
    words = f"{rank} · {hit.similarity:.3f}"
    try:
        image = read_whole(hit.path, 256)
    except UserError:  # moved or removed since it was indexed
        image, words = np.full((2, 1, 3), GONE, np.uint8), f"{words}, gone"
    colour = {"same": RIGHT, "": QUERY}.get(hit.answer, BELOW)
    return Tile(image, f"{words}\n{shorten(os.path.splitext(hit.name)[0])}", colour)
