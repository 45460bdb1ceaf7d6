"""Draw where a model looks: `python tools/heatmap.py [CKPT] [--sort worst|best|random] [--num N]`, or on your own
pictures: `python tools/heatmap.py [CKPT] --pictures A.jpg B.jpg FOLDER`.

A row has an image, its activation map, what makes it look like the training identity that scores highest, and what
makes both images of a pair similar (Grad-CAM, see processor/heatmap.py): a query of the test split with its best right
and its best wrong match, an own picture with the first one. The file of an image has a row a branch more, where the
model has several. A map tells which places of the last layer count; each of these has seen much of the image around.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from datasets.folder import find_pictures
from model import make_model
from processor.checkpoint import rebuild_model
from processor.environment import pick_device
from processor.evaluate import do_inference
from processor.ranked_lists import choose_queries
from processor.test import Stored, TestJob, parse_test, prepare_test
from tools.heatmap_columns import Looker, Shown, columns
from utils.errors import UserError, run
from utils.heatmap import draw_heat_rows
from utils.logging import log, setup_logging
from utils.metrics import ranked_order
from utils.visualize import RIGHT, WRONG

ALONE = ["activation", "looks like"]
PAIR = ["{0}: like\nthe {1}", "{1}: like\nthe {0}"]  # of the words for an image and for another
WORD = {"right match": "match", "wrong match": "match", "first picture": "first"}
OTHER = "#2b6cb0"  # frame of the picture that others are paired with
MOST = 10  # images in the overview


class Job(NamedTuple):
    """A file to draw: an image, and the others that it is paired with (None: an empty place)."""

    name: str
    title: str
    image: Shown
    others: list[Shown | None]


@dataclass
class HeatmapConfig(Config):
    pictures: tuple[str, ...] = ()  # image files and folders of your own; empty: queries of the test split
    sort: Literal["worst", "best", "random"] = "worst"  # queries with the lowest AP, with the highest, or any
    num: int = 5  # queries to draw; own pictures are all drawn
    output: str = ""  # directory of the files; empty: results/heatmaps_... in the run's directory

    def _bad_ranges(self):
        yield from super()._bad_ranges()
        if self.num < 1:
            yield f"--num must be at least 1, not {self.num}"
        if self.protocol in ("single_shot", "vehicle_id") and not self.pictures:
            yield f"--protocol {self.protocol} has many random galleries, so no one ranked list to draw; leave it out"


def own_pictures(places: Sequence[str]) -> list[str]:
    """Image files, and those in folders. Raises UserError for a folder without any and for what is not there."""
    paths = []
    for place in places:
        if not os.path.isdir(place):
            paths.append(place)  # whoever reads it says what is wrong with it
            continue
        found, others = find_pictures(place)
        if not found:
            raise UserError(f"{place} holds no picture and {others} other files; name a folder of images, or images")
        if others:
            log.info("%s: %d files that are no pictures left out", place, others)
        paths += [str(Path(place) / name) for name in found]
    return paths


def best_matches(test: TestJob, index: int, distance: np.ndarray) -> list[Shown | None]:
    """The nearest gallery image of the query's person under another camera, and the nearest of somebody else."""
    query, gallery = test.query, test.gallery
    same = gallery.pids == query.pids[index]
    order = ranked_order(distance, query.pids[index], query.camids[index], gallery.pids, gallery.camids)
    found = []
    for right, colour in ((True, RIGHT), (False, WRONG)):
        ranks = np.flatnonzero(same[order] == right)
        if not len(ranks):
            found.append(None)
            continue
        g = order[ranks[0]]
        who = f"pid {gallery.pids[g]}" if gallery.pids[g] else "distractor"
        caption = f"{who}, cam {gallery.camids[g]}\nrank {ranks[0] + 1} of {len(order)}"
        found.append(Shown(gallery.samples[g].path, caption, colour))
    return found


def of_queries(cfg: HeatmapConfig, stored: Stored | None) -> tuple[Looker, Path, list[Job]]:
    """Queries of the test split, each with its best right and wrong match."""
    cfg.eval.protocol = (
        "standard" if cfg.eval.protocol == "auto" else cfg.eval.protocol
    )  # one ranked list a query, whatever the set
    test = prepare_test(cfg, stored)
    inference = do_inference(test.cfg, test.model, test.query, test.gallery, test.device)
    ap = list(inference.scores.values())[-1].ap
    chosen = choose_queries(ap, cfg.sort, cfg.num, cfg.run.seed)
    jobs = []
    for place, (i, distance) in enumerate(zip(chosen, inference.distance(test.cfg, chosen), strict=True), 1):
        sample = test.query.samples[i]
        name = f"{place:03}_ap{100 * ap[i]:05.1f}_{Path(sample.path).stem}"
        image = Shown(sample.path, f"pid {sample.pid}\ncam {sample.camid}")
        jobs.append(Job(name, f"AP {100 * ap[i]:.1f} %", image, best_matches(test, i, distance.cpu().numpy())))
    return Looker(test.cfg, test.model, test.device, people(test.state)), test.directory, jobs


def of_pictures(cfg: HeatmapConfig, stored: Stored | None) -> tuple[Looker, Path, list[Job]]:
    """Own pictures, each with the first of them."""
    setup_logging()
    paths, device = own_pictures(cfg.pictures), pick_device(cfg.run.device)
    if stored:
        model, directory = rebuild_model(stored[1], stored[0], cfg), stored[0].parent
    else:
        model, directory = make_model(cfg, num_classes=2), Path(cfg.run.log_dir) / "weights"
    jobs = []
    for place, path in enumerate(paths, 1):
        others = [Shown(paths[0], "", OTHER) if place > 1 else None] if len(paths) > 1 else []
        title = path if len(path) <= 60 else "…" + path[-59:]
        jobs.append(Job(f"{place:03}_{Path(path).stem}", title, Shown(path, ""), others))
    return Looker(cfg, model.to(device).eval(), device, people(stored[1] if stored else {})), directory, jobs


def people(state: dict[str, Any]) -> list[int]:
    """Training identities in the order of their class labels."""
    labels = state.get("labels", {})
    return sorted(labels, key=labels.get)


def main() -> None:
    cfg, stored = parse_test(None, os.environ, "heatmap.py [CKPT]", HeatmapConfig)
    looker, directory, jobs = (of_pictures if cfg.pictures else of_queries)(cfg, stored)
    directory = Path(cfg.output or directory / "results" / f"heatmaps_{'pictures' if cfg.pictures else cfg.sort}")
    image, others = ("picture", ["first picture"]) if cfg.pictures else ("query", ["right match", "wrong match"])
    titles = [image, *ALONE[: 2 if looker.people else 1]]
    for other in others[: len(jobs[0].others)]:
        titles += ["", other, *(words.format(image, WORD[other]) for words in PAIR)]
    overview = []
    for job in jobs:
        made = columns(looker, job.image, job.others)
        rows = [[column[row] for column in made] for row in range(looker.rows)]
        words = [job.title, *(f"branch {row} of {looker.rows - 1}" for row in range(1, looker.rows))]
        draw_heat_rows(directory / f"{job.name}.png", list(zip(words, rows, strict=True)), titles)
        overview.append((job.title, rows[0]))
    draw_heat_rows(directory / "overview.png", overview[:MOST], titles)
    images = "image" if len(jobs) == 1 else "images"
    log.info("heat maps of %d %s and overview.png written to %s", len(jobs), images, directory)


if __name__ == "__main__":
    run(main)
