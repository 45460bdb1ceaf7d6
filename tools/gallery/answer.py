"""The answer of `tools/search.py ask`, and the similarity from which on two pictures count as of the same person."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.images import read_whole
from utils.errors import UserError, printable
from utils.pictures import QUERY, RIGHT, Tile, draw_rows
from utils.plots import shorten
from utils.roc import PairCounter

COLUMNS, MIN_COLUMNS = 10, 6  # tiles per row; the minimum leaves room for the title
MAX_QUERIES, MAX_HITS = 5, 50  # drawn
BELOW, GONE = "#b8b8b8", 235  # frame of hits below the threshold; gray level of pictures that cannot be read
FPR = 1e-3
RELIABLE = 10_000  # pairs of different people, of which FPR accepts ten


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
        lines.append(f"{rank:>4}  {hit.similarity:>10.3f}  {word}{printable(hit.name)}")
    return "\n".join(lines)


def draw_answer(output: Path, queries: Sequence[str], hits: Sequence[Hit], title: str) -> None:
    """A PNG of the query pictures, and below them the hits, with green frames from the threshold on."""
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
    colour = {True: RIGHT, False: BELOW, None: QUERY}[hit.same]
    return Tile(image, f"{words}\n{shorten(os.path.splitext(hit.name)[0])}", colour)


# ---- thresholds


def find_thresholds(counter: PairCounter) -> dict[str, tuple[float, float, float]]:
    """By their rule, thresholds and the shares of pairs of one person (TPR) and of others (FPR) that they accept.

    Raises ValueError if there is no pair of one person or none of different people.
    """
    if not counter.number.all():
        missing = "of different people" if counter.number[0] else "of one person under two cameras"
        raise ValueError(f"there are no two pictures {missing}")
    tpr, fpr = counter.rates()
    found = {"equal error rate": counter.equal_error(), f"FPR {FPR:g}": counter.at_fpr(FPR)}
    return {rule: (-float(counter.thresholds[i]), tpr[i], fpr[i]) for rule, i in found.items()}


def threshold_table(counter: PairCounter) -> str:
    """The similarities of both kinds of pairs, one line per threshold, and a warning if there are too few pairs."""
    lines = []
    for kind, name in enumerate(("of one person", "of different people")):
        low, middle, high = (-float(counter.thresholds[counter.quantile(kind, 1 - q)]) for q in (0.05, 0.5, 0.95))
        number = f"{counter.number[kind]:>13,} pairs {name:<19}"
        lines.append(f"{number} similarity {middle:.3f}, nine of ten {low:.3f} to {high:.3f}")
    lines.append(f"{'':<17} threshold  of one person accepted  of different people accepted")
    for rule, (value, tpr, fpr) in find_thresholds(counter).items():
        lines.append(f"{rule:<17} {value:>9.3f} {100 * tpr:>20.2f} % {100 * fpr:>26.3f} %")
    if counter.number[1] < RELIABLE:
        lines.append(f"FPR 1e-3 is a guess with fewer than {RELIABLE:,} pairs of different people; use more pictures")
    return "\n".join(lines)
