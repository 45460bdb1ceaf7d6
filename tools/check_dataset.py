"""Look a dataset over before training on it: `python tools/check_dataset.py DATASET [--data-root data]`.

DATASET is a name as for --dataset, or a folder or .csv file of your own pictures. Prints images, identities and cameras
of each split, images an identity and a camera, the sizes of the pictures, files that cannot be decoded, equal files,
identities in both training and test, and queries without a match; draws a sheet of some identities. The exit code is 1
where there is something to mend.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from datasets.base import ReIDDataset, Sample
from datasets.check import SIDES, SPLITS, File, counts, equal_files, look_at_all, problems, sizes
from datasets.images import read_image
from datasets.make import find_dataset, short_name
from utils.errors import run
from utils.logging import log, setup_logging
from utils.pictures import QUERY, RIGHT, Tile, draw_rows

COLOURS = {"train": "#2b6cb0", "query": QUERY, "gallery": RIGHT}  # of the frames on the sheet
WIDE = 8  # images of an identity on the sheet
LISTED = 10  # cases of each kind of problem that are printed


@dataclass
class Options:
    dataset: tyro.conf.Positional[str]  # a dataset's name, or a folder or .csv file of your own pictures
    data_root: str = os.environ.get("REID_DATA") or "data"  # directory that holds the datasets
    test_share: float = 0.5  # own pictures without a split: share of the identities that are kept for the test
    split_seed: int = 0  # own pictures without a split, CUHK03's classic protocol: which random split
    camera_pattern: str = Config.camera_pattern  # own pictures: what finds the camera's number in a file name
    people: int = 10  # identities on the sheet
    output: str = ""  # file of the sheet; empty: log/check_DATASET.png
    workers: int = 4  # threads that read and decode images


def draw_sheet(path: Path, dataset: ReIDDataset, files: dict[str, File], people: int) -> None:
    """Images of some identities, all taken at even distances; half of the identities are those of training."""
    rows = []
    for side, splits in SIDES.items():
        by_pid: dict[int, list[tuple[str, Sample]]] = defaultdict(list)
        for split in splits:
            for s in getattr(dataset, split):
                if s.pid and not files[s.path].error:
                    by_pid[s.pid].append((split, s))
        for pid in spread(sorted(by_pid), -(-people // 2)):
            tiles = []
            for split, s in spread(by_pid[pid], WIDE):
                camera = f"\ncam {s.camid}" if dataset.cameras else ""
                tiles.append(Tile(read_image(s.path, 256, 128), split + camera, COLOURS[split]))
            rows.append((f"{dataset.called(pid)}: {len(by_pid[pid])} images, {side}", tiles))
    if rows:
        draw_rows(path, rows, [""] * WIDE)
        log.info("sheet of identities: %s", path)


def spread(items: list, number: int) -> list:
    """At most `number` of the items, at even distances."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, number).astype(int))] if items else []


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    setup_logging()
    names = ("data_root", "test_share", "split_seed", "camera_pattern", "workers")
    cfg = Config(dataset=options.dataset, **{name: getattr(options, name) for name in names}).check()
    dataset = find_dataset(options.dataset, cfg)
    log.info("%s, scored by protocol %s\n%s", dataset.name, dataset.protocol, "\n".join(counts(dataset)))
    for note in filter(None, (dataset.train_note, dataset.test_note)):
        log.info("note: %s", note)
    files = look_at_all(sorted({s.path for split in SPLITS for s in getattr(dataset, split)}), options.workers)
    log.info("%s", "\n".join(sizes(files)))
    sheet = Path(options.output or Path("log") / f"check_{short_name(options.dataset)}.png")
    draw_sheet(sheet, dataset, files, max(options.people, 0))
    equal = equal_files(dataset, files)
    log.info("%d files looked at, %d groups of equal files, some of which may be meant", len(files), len(equal))
    found = problems(dataset, files)
    for kind, cases in found.items():
        log.info("PROBLEM: %d %s\n  %s", len(cases), kind, "\n  ".join(cases[:LISTED]))
        if len(cases) > LISTED:
            log.info("  and %d more", len(cases) - LISTED)
    if found:
        sys.exit(1)
    log.info("nothing to mend")


if __name__ == "__main__":
    run(main)
