"""The answer of `tools/search.py ask`: a table and a picture of the most similar images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.images import read_image
from utils.errors import UserError
from utils.pictures import QUERY, RIGHT, Tile, draw_rows

COLUMNS, MIN_COLUMNS = 10, 6  # tiles per row; the minimum leaves room for the title
MAX_QUERIES, MAX_HITS = 5, 50  # drawn
BELOW, GONE = "#b8b8b8", 235  # frame of hits below the threshold; gray level of pictures that cannot be read
CAPTION = 17  # letters of a name under a tile


class Hit(NamedTuple):
    path: Path
    name: str  # as in the index
    similarity: float
    same: bool | None  # at least at the threshold; None without one


def hit_table(hits: Sequence[Hit]) -> str:
    """One line per hit."""
    known = hits[0].same is not None
    lines = ["rank  similarity  " + ("same person  " if known else "") + "picture"]
    for rank, hit in enumerate(hits, 1):
        word = f"{'yes' if hit.same else 'no':<11}  " if known else ""
        lines.append(f"{rank:>4}  {hit.similarity:>10.3f}  {word}{hit.name}")
    return "\n".join(lines)


def draw_answer(output: Path, queries: Sequence[str], hits: Sequence[Hit], title: str) -> None:
    """A PNG of the query pictures, and below them the hits, with green frames from the threshold on."""
    asked = [Tile(read_image(q, 256, 128), shorten(Path(q).name), QUERY) for q in queries[:MAX_QUERIES]]
    tiles = [tile_of(rank, hit) for rank, hit in enumerate(hits[:MAX_HITS], 1)]
    rows = [(title, asked)] + [("", tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)]
    width = max(MIN_COLUMNS, *(len(row) for _, row in rows))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # letters without a font become boxes
        draw_rows(output, rows, [""] * width)


def tile_of(rank: int, hit: Hit) -> Tile:
    words = f"{rank} · {hit.similarity:.3f}"
    try:
        image = read_image(hit.path, 256, 128)
    except UserError:  # moved or removed since it was indexed
        image, words = np.full((256, 128, 3), GONE, np.uint8), f"{words}, gone"
    colour = {True: RIGHT, False: BELOW, None: QUERY}[hit.same]
    return Tile(image, f"{words}\n{shorten(hit.name)}", colour)


def shorten(name: str) -> str:
    """A path without its suffix and, if it is wider than a tile, without its middle."""
    name = os.path.splitext(os.fsencode(name).decode(errors="replace"))[0]
    return name if len(name) <= CAPTION else f"{name[: CAPTION // 2]}…{name[-(CAPTION // 2) :]}"
