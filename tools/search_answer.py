"""How tools/search.py answers: a table and a picture of what is most similar."""

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
from utils.threshold import Counts, Operating

NARROWEST, WIDE = 6, 10  # tiles in a row, the fewest because of the words above them
MOST_QUERIES, MOST_DRAWN = 5, 50
BELOW, GONE = "#b8b8b8", 235  # frame of what is below the threshold, gray of a picture that cannot be read any more
FEW = 10_000  # pairs, of which ten may be accepted
LETTERS = 17  # of a name under a tile


class Hit(NamedTuple):
    path: Path
    name: str  # as the index lists it
    similarity: float
    same: bool | None  # at least at the threshold; None without one


def hit_table(hits: Sequence[Hit]) -> str:
    """A line a hit."""
    known = hits[0].same is not None
    lines = ["rank  similarity  " + ("same person  " if known else "") + "picture"]
    for rank, hit in enumerate(hits, 1):
        word = f"{'yes' if hit.same else 'no':<11}  " if known else ""
        lines.append(f"{rank:>4}  {hit.similarity:>10.3f}  {word}{hit.name}")
    return "\n".join(lines)


def threshold_table(counts: Counts, found: dict[str, Operating]) -> str:
    """How similar pairs of the two kinds are, a line a threshold, and how far that can be trusted."""
    lines = []
    for name, of in (("of one person", counts.same), ("of different people", counts.others)):
        low, middle, high = (counts.quantile(share, of) for share in (0.05, 0.5, 0.95))
        lines.append(f"{of.sum():>13,} pairs {name:<19} similarity {middle:.3f}, nine of ten {low:.3f} to {high:.3f}")
    lines.append(f"{'':<17} threshold  of one person accepted  of different people accepted")
    for name, point in found.items():
        lines.append(f"{name:<17} {point.threshold:>9.3f} {100 * point.tpr:>20.2f} % {100 * point.fpr:>26.3f} %")
    if counts.others.sum() < FEW:
        lines.append(f"with fewer than {FEW:,} pairs of different people, FPR 1e-3 is a guess; take more pictures")
    return "\n".join(lines)


def draw_answer(output: Path, queries: Sequence[str], hits: Sequence[Hit], title: str) -> None:
    """A PNG with the pictures that were asked with, and below them the hits, framed green from the threshold on."""
    asked = [Tile(read_image(q, 256, 128), _short(Path(q).name), QUERY) for q in queries[:MOST_QUERIES]]
    tiles = [_tile(rank, hit) for rank, hit in enumerate(hits[:MOST_DRAWN], 1)]
    rows = [(title, asked)] + [("", tiles[i : i + WIDE]) for i in range(0, len(tiles), WIDE)]
    width = max(NARROWEST, *(len(tiles) for _, tiles in rows))
    blank = Tile(np.full((256, 128, 3), 255, np.uint8), "", "#ffffff")
    rows = [(words, [*tiles, *[blank] * (width - len(tiles))]) for words, tiles in rows]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box in its place says as much
        draw_rows(output, rows, [""] * width)


def _tile(rank: int, hit: Hit) -> Tile:
    words = f"{rank} · {hit.similarity:.3f}"
    try:
        image = read_image(hit.path, 256, 128)
    except UserError:  # moved or removed since it was indexed
        image, words = np.full((256, 128, 3), GONE, np.uint8), f"{words}, gone"
    colour = {True: RIGHT, False: BELOW, None: QUERY}[hit.same]
    return Tile(image, f"{words}\n{_short(hit.name)}", colour)


def _short(name: str) -> str:
    """A path without its ending and, where it is wider than a tile, without its middle."""
    name = os.path.splitext(os.fsencode(name).decode(errors="replace"))[0]
    name = name if len(name) <= LETTERS else f"{name[: LETTERS // 2]}…{name[-(LETTERS // 2) :]}"
    return name.replace("$", r"\$")  # which would begin a formula
