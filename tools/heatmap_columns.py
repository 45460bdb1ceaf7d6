"""The columns of tools/heatmap.py: one image's maps, and those of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from config import Config
from datasets.augment import normalise
from datasets.images import read_image
from model import ReIDModel
from processor.heatmap import activation_maps, class_maps, similarity_maps
from utils.heatmap import overlay
from utils.visualize import QUERY, Tile

SHARP = 256  # pixels, the height that images are drawn at
Column = list[Tile | None]  # a tile in the row of the whole model, then one in the row of each branch


@dataclass
class Looker:
    """A model, and what its maps are made with."""

    cfg: Config
    model: ReIDModel
    device: torch.device
    people: list[int]  # training identities in the order of their class labels; empty: the classifier is untrained

    @property
    def rows(self) -> int:
        """One of the whole model, and one a branch where it has several."""
        branches = len(self.model.branches)
        return branches + 1 if branches > 1 else 1


@dataclass
class Shown:
    """An image in a picture: its file, the words under it, and the colour of its frame."""

    path: str
    caption: str
    colour: str = QUERY


def columns(looker: Looker, image: Shown, others: Sequence[Shown | None]) -> list[Column]:
    """Those of an image alone, then for each of the others those of the pair. None: they stay empty."""
    chosen = [image, *filter(None, others)]
    height, width = looker.cfg.data.height, looker.cfg.data.width
    seen = [read_image(shown.path, height, width) for shown in chosen]
    pixels = [read_image(shown.path, SHARP, SHARP * width // height) for shown in chosen]  # those to draw on
    images = normalise(torch.from_numpy(np.stack(seen)).to(looker.device))
    if not looker.cfg.loop.channels_last:
        images = images.contiguous()
    made = alone(looker, image, pixels[0], images[:1])
    place = 0
    for other in others:
        made.append([None] * looker.rows)  # the space between
        if other is None:
            made += [[None] * looker.rows] * 3
        else:
            place += 1
            made += pair(looker, (image, other), (pixels[0], pixels[place]), images[[0, place]])
    return made


def alone(looker: Looker, shown: Shown, pixels: np.ndarray, image: torch.Tensor) -> list[Column]:
    """The image itself, its activation map and, with a trained classifier, the identity that it looks like."""
    rows, model = looker.rows, looker.model
    maps = activation_maps(model, image)[0]
    maps = maps - maps.amin((1, 2), keepdim=True)  # as torchreid draws them
    several = range(len(maps)) if len(maps) > 1 else []  # else all branches share the one
    words = ["", *(f"map {i} of {len(maps)}" for i in range(1, rows))]
    made = [
        [Tile(pixels, shown.caption, shown.colour)] + [None] * (rows - 1),
        drawn(one_a_row(maps, several, rows), pixels, shown.colour, words),
    ]
    if looker.people:
        maps, logits = class_maps(model, image)
        share, label = logits[0].softmax(0).max(0)
        words = [f"training pid {looker.people[label]}\nby {100 * share:.0f} %"] + [""] * (rows - 1)
        known = [number for number, branch in enumerate(model.branches) if branch.classifier is not None]
        made.append(drawn(one_a_row(maps[0], known, rows), pixels, shown.colour, words))
    return made


def pair(
    looker: Looker, shown: tuple[Shown, Shown], pixels: tuple[np.ndarray, np.ndarray], images: torch.Tensor
) -> list[Column]:
    """The second image, and what makes each of the two similar to the other."""
    rows = looker.rows
    first, second, cosines = similarity_maps(looker.model, images[:1], images[1:])
    numbers = [cosines[0].mean().item(), *cosines[0].tolist()][:rows]
    words = [f"cosine {number:.2f}" for number in numbers]
    made = [[Tile(pixels[1], shown[1].caption, shown[1].colour)] + [None] * (rows - 1)]
    for maps, image, colour in zip((first, second), pixels, (s.colour for s in shown), strict=True):
        made.append(drawn(one_a_row(maps[0], range(maps.shape[1]), rows), image, colour, words))
    return made


def one_a_row(maps: torch.Tensor, branches: Sequence[int], rows: int) -> list[np.ndarray | None]:
    """The mean of maps (n, h, w), then each in the row of its branch; None in rows that have none."""
    placed = {0: maps.mean(0)} | {branch + 1: heat for branch, heat in zip(branches, maps, strict=False)}
    return [placed[row].cpu().numpy() if row in placed else None for row in range(rows)]


def drawn(heats: Sequence[np.ndarray | None], image: np.ndarray, colour: str, words: Sequence[str]) -> Column:
    """The maps over an image."""
    pairs = zip(heats, words, strict=True)
    return [None if heat is None else Tile(overlay(image, heat), text, colour) for heat, text in pairs]
