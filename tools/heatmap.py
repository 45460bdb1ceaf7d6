"""Draw where a model looks: `python tools/heatmap.py [CKPT] [--sort worst|best|random] [--num N]`, or for your own
pictures: `python tools/heatmap.py [CKPT] --pictures A.jpg B.jpg FOLDER`.

Each row shows an image, its activation map, what makes it look like the training identity with the highest score, and
what makes a pair of images similar (Grad-CAM, see tools/gradcam.py). A query of the test split is paired with its best
correct and its best wrong match, your own picture with the first one. For a model of several branches, an image's file
has one more row per branch. A map shows which positions of the last layer count; each sees much of the image around it.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from datasets.augment import normalise
from datasets.folder import list_pictures
from datasets.images import read_input, read_whole
from model import ReIDModel
from processor.checkpoint import FILES
from processor.environment import pick_device
from processor.evaluate import do_inference
from processor.precision import layout
from processor.ranked_lists import choose_queries
from processor.test import Stored, TestJob, parse_test, prepare_test, tested_model
from tools.gradcam import activation_maps, class_maps, overlay, similarity_maps
from utils.errors import UserError, run
from utils.logging import log, setup_logging
from utils.metrics import ranked_order
from utils.pictures import QUERY, RIGHT, WRONG, Tile, draw_rows, remove_rows

OTHER = "#2b6cb0"  # frame of the picture that others are paired with
OVERVIEW = 10  # most images in the overview
LONGEST = 256  # pixels of the longer side of an image
BAR = "each map on its own scale"


@dataclass
class Options:
    pictures: tuple[str, ...] = ()  # image files and folders of your own (empty: queries of the test split)
    sort: Literal["worst", "best", "random"] = "worst"  # queries with the lowest AP, with the highest, or any
    num: int = 5  # queries to draw (your own pictures are all drawn)
    output: str = ""  # directory of the files (empty: results/heatmaps_... in the run's directory)


@dataclass
class Source:
    """A model, and what is needed to draw its maps."""

    cfg: Config
    model: ReIDModel
    device: torch.device
    names: dict[int, str]  # names of the classes; empty: the classifier is untrained
    directory: Path  # directory of the run

    @property
    def rows(self) -> int:
        """One for the whole model, and one per branch if there are several."""
        branches = len(self.model.branches)
        return branches + 1 if branches > 1 else 1


class Picture(NamedTuple):
    """An image to draw: its file, the text below it, and the color of its frame."""

    path: str
    caption: str
    colour: str = QUERY


class Job(NamedTuple):
    """A file to draw: an image, and the others that it is paired with (None: an empty place)."""

    name: str
    title: str
    image: Picture
    others: list[Picture | None]


def best_matches(test: TestJob, index: int, distance: np.ndarray) -> list[Picture | None]:
    """The query's nearest gallery image of the same identity under another camera, and the nearest of another one."""
    query, gallery = test.query, test.gallery
    order = ranked_order(distance, query.pids[index], query.camids[index], gallery.pids, gallery.camids)
    right = gallery.pids[order] == query.pids[index]
    found: list[Picture | None] = []
    for kind, colour in ((right, RIGHT), (~right, WRONG)):
        if not kind.any():
            found.append(None)
            continue
        rank = kind.argmax()  # the first
        caption = gallery.caption(order[rank], f"rank {rank + 1} of {len(order)}")
        found.append(Picture(gallery.samples[order[rank]].path, caption, colour))
    return found


def query_jobs(cfg: Config, options: Options, stored: Stored | None) -> tuple[Source, list[Job]]:
    """Queries of the test split, each with its best right and wrong match."""
    test = prepare_test(cfg, stored, ranked_lists=True)
    inference = do_inference(test.cfg, test.model, test.query, test.gallery, test.device)
    ap = list(inference.scores.values())[-1].ap
    chosen = choose_queries(ap, options.sort, options.num, cfg.run.seed)
    jobs = []
    for place, (i, distance) in enumerate(zip(chosen, inference.distance(test.cfg, chosen), strict=True), 1):
        sample = test.query.samples[i]
        name = f"{place:03}_ap{100 * ap[i]:05.1f}_{Path(sample.path).stem}"
        image = Picture(sample.path, test.query.caption(i))
        jobs.append(Job(name, f"AP {100 * ap[i]:.1f} %", image, best_matches(test, i, distance.cpu().numpy())))
    return Source(test.cfg, test.model, test.device, class_names(test.state), test.directory), jobs


def class_names(state: dict[str, Any]) -> dict[int, str]:
    """Map a checkpoint's class labels to the names of their identities."""
    names = state.get("names", {})
    return {label: names.get(pid, f"training pid {pid}") for pid, label in state.get("labels", {}).items()}


def picture_jobs(cfg: Config, options: Options, stored: Stored | None) -> tuple[Source, list[Job]]:
    """Own pictures, each paired with the first one."""
    setup_logging()
    paths = [str(path) for place in options.pictures for path in list_pictures(place)]
    device = pick_device(cfg.run.device)
    model, state, checkpoint, _ = tested_model(cfg, stored, device)
    source = Source(cfg, model, device, class_names(state), checkpoint.parent)
    jobs = []
    for place, path in enumerate(paths, 1):
        others = [Picture(paths[0], "", OTHER) if place > 1 else None] if len(paths) > 1 else []
        title = path if len(path) <= 60 else "…" + path[-59:]
        jobs.append(Job(f"{place:03}_{Path(path).stem}", title, Picture(path, ""), others))
    return source, jobs


def make_rows(source: Source, job: Job) -> list[tuple[Tile | None, ...]]:
    """The rows of the whole model and of its branches: the image alone, then each pair, empty without another image."""
    model, rows, present = source.model, source.rows, [job.image, *filter(None, job.others)]
    drawn = [read_whole(p.path, LONGEST) for p in present]
    pixels = np.stack([read_input(p.path, source.cfg.data) for p in present])
    images = normalise(torch.from_numpy(pixels).to(source.device)).contiguous(memory_format=layout(source.cfg))

    def filled(*tiles: Tile) -> list[Tile | None]:
        return [*tiles, *[None] * (rows - len(tiles))]

    def overlays(number: int, maps: torch.Tensor, captions: Sequence[str]) -> list[Tile | None]:
        """Overlay a picture with the mean of maps (n, h, w), then with each map, if the branches do not share one."""
        heats, tiles = [maps.mean(0), *(maps if len(maps) > 1 else ())], []
        for heat, caption in zip(heats[:rows], [*captions, *[""] * rows], strict=False):
            tiles.append(Tile(overlay(drawn[number], heat.cpu().numpy()), caption, present[number].colour))
        return filled(*tiles)

    picture = [filled(Tile(image, *of[1:])) for image, of in zip(drawn, present, strict=True)]
    maps = activation_maps(model, images[:1])[0]
    maps = maps - maps.amin((1, 2), keepdim=True)  # as torchreid draws them
    columns = [picture[0], overlays(0, maps, ["", *(f"map {i} of {len(maps)}" for i in range(1, rows))])]
    if source.names:
        maps, logits = class_maps(model, images[:1])
        share, label = logits[0].softmax(0).max(0)
        columns.append(overlays(0, maps[0], [f"{source.names[int(label)]}\nby {100 * share:.0f} %"]))
    number = 0
    for other in job.others:
        columns.append(filled())  # space
        if other is None:
            columns += [filled()] * 3
            continue
        number += 1
        *both, cosines = similarity_maps(model, images[:1], images[number : number + 1])
        captions = [f"cosine {c:.2f}" for c in (cosines[0].mean().item(), *cosines[0].tolist())]
        columns += [picture[number], *(overlays(i, m[0], captions) for i, m in zip((0, number), both, strict=True))]
    return list(zip(*columns, strict=True))


def column_titles(source: Source, options: Options, pairs: int) -> list[str | None]:
    """Return the column titles of an image with so many pairs; None is the space before each pair."""
    image, others = ("picture", ["first picture"]) if options.pictures else ("query", ["right match", "wrong match"])
    titles: list[str | None] = [image, "activation", *(["looks like"] if source.names else [])]
    for other in others[:pairs]:
        word = "first" if options.pictures else "match"
        titles += [None, other, f"{image}: like\nthe {word}", f"{word}: like\nthe {image}"]
    return titles


def main() -> None:
    cfg, options, stored = parse_test(None, os.environ, __doc__, Options, {"num": "[1, inf)"})
    if stored and stored[0].suffix in FILES:
        raise UserError(f"{stored[0]} has no feature maps; give a checkpoint")
    source, jobs = (picture_jobs if options.pictures else query_jobs)(cfg, options, stored)
    name = f"heatmaps_{'pictures' if options.pictures else options.sort}"
    directory = Path(options.output or source.directory / "results" / name)
    titles, overview = column_titles(source, options, len(jobs[0].others)), []
    remove_rows(directory)
    for job in jobs:
        rows = make_rows(source, job)
        words = [job.title, *(f"branch {row} of {source.rows - 1}" for row in range(1, source.rows))]
        draw_rows(directory / f"{job.name}.png", list(zip(words, rows, strict=True)), titles, BAR)
        overview.append((job.title, rows[0]))
    draw_rows(directory / "overview.png", overview[:OVERVIEW], titles, BAR)
    log.info("heat maps (%d) and overview.png written to %s", len(jobs), directory)


if __name__ == "__main__":
    run(main)
