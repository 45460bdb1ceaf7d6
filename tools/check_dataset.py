"""Check a dataset before training on it: `python tools/check_dataset.py DATASET [--data-root data]`.

DATASET is a name as for --dataset, or a folder or .csv file of your own pictures. Prints the images, identities and
cameras of each split, images per identity and per camera, image sizes, and problems: files that cannot be decoded,
identical files, identities in both training and test, queries without a match, and what train.py would refuse or warn
about. Also draws a sheet of some identities. The exit code is 1 if there is something to fix.

With --checkpoint RUN, it also uses a trained model to find pictures that probably have the wrong name, because the most
similar pictures have another name. It lists them in a CSV file and draws them on a separate sheet.
"""

import hashlib
import os
import sys
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from config.config import SETTINGS, DataSettings, Folders, option
from config.options import parse_options
from datasets.base import MOST_CAMERAS, ONE_IDENTITY, ReIDDataset, Sample
from datasets.images import decode_bytes, read_bytes, read_whole
from datasets.loaders import with_pixel_range
from datasets.make import DATASETS, find_dataset, make_dataset, short_name
from datasets.own_recipe import choose_settings
from datasets.sampler import make_sampler
from datasets.subsets import spread
from tools.tables import text_table
from utils.errors import UserError, printable, run
from utils.files import write_csv
from utils.logging import log, setup_logging
from utils.lookup import load
from utils.pictures import QUERY, RIGHT, WRONG, Tile, draw_rows

SIDES = {"train": "training", "query": "test", "gallery": "test"}  # of the splits
COLOURS = {"train": "#2b6cb0", "query": QUERY, "gallery": RIGHT}  # of the frames on the sheet
COLUMNS = 8  # images per identity on the sheet
MAX_CASES = 10  # cases printed per kind of problem
NEAREST = 3  # most similar pictures of a name, whose mean similarity counts
MARGIN = 0.1  # cosine: a picture is listed if another name is at least so much more similar than its own
MOST_DRAWN = 20  # listed pictures on the sheet


@dataclass
class Options:
    dataset: str  # a dataset's name, or a folder or .csv file of your own pictures
    data_root: str = ""  # directory of the datasets (default: the environment variable REID_DATA, else data)
    test_share: float = 0.5  # own pictures without a split: share of the identities that are kept for the test
    split_seed: int = 0  # number of the random split (own pictures without a split, CUHK03's classic protocol)
    camera_pattern: str = DataSettings.camera_pattern  # own pictures: regular expression of the camera in a file name
    folders: Folders = "auto"  # own pictures: meaning of nested folders, the outer folder first
    batch_size: int = 0  # batch size that the training images must fill (0: the one that train.py chooses)
    images_per_id: int = DataSettings.images_per_id  # images of each identity in a batch of train.py
    checkpoint: str = ""  # run or checkpoint whose model searches for wrong names (empty: no search)
    people: int = 10  # number of identities on the sheet
    output: str = ""  # file of the sheet; empty: log/check_DATASET.png
    workers: int = 4  # threads that read and decode images


class File(NamedTuple):
    width: int
    height: int
    digest: str  # hash of its bytes
    error: str = ""  # why it cannot be decoded


def inspect(path: str) -> File:
    try:
        data = read_bytes(path)
        height, width = decode_bytes(path, data).shape[:2]
        return File(width, height, hashlib.sha1(data).hexdigest())
    except UserError as error:
        return File(0, 0, path, str(error))


def describe(dataset: ReIDDataset) -> list[str]:
    """Return images per identity and per camera of each split, as lines of text."""
    lines, cameras = [dataset.describe()], defaultdict(lambda: {split: [] for split in SIDES})
    for split in SIDES:
        samples = getattr(dataset, split)
        images = sorted(Counter(s.pid for s in samples if s.pid).values())
        if images:
            row = f"{images[0]} to {images[-1]}, median {images[len(images) // 2]}, mean {np.mean(images):.1f}"
            lines.append(f"{split}: images per identity {row}; {sum(s.pid == 0 for s in samples)} distractors")
        for s in samples:
            cameras[s.camid][split].append(s.pid)
    if dataset.cameras and len(cameras) <= MOST_CAMERAS:
        rows = [["camera", *(title for split in SIDES for title in (f"{split} img", "ids"))]]
        for camera, pids in sorted(cameras.items()):
            numbers = (str(number) for p in pids.values() for number in (len(p), len(set(p) - {0})))
            rows.append([str(dataset.camera_names.get(camera, camera)), *numbers])
        lines.append(text_table(rows))
    return lines


def describe_sizes(files: dict[str, File]) -> str:
    """Return a table of quantiles of width, height and height:width."""
    rows = [[f"{len(files)} files", "least", "5 %", "median", "95 %", "most"]]
    sizes = np.array([(f.width, f.height, f.height / f.width) for f in files.values() if not f.error])
    for name, values, digits in zip(("width", "height", "height:width"), sizes.T, (0, 0, 2), strict=bool(len(sizes))):
        rows.append([name, *(f"{q:.{digits}f}" for q in np.quantile(values, (0, 0.05, 0.5, 0.95, 1)))])
    return text_table(rows)


def find_problems(dataset: ReIDDataset, files: dict[str, File]) -> dict[str, list[str]]:
    """Return the cases of each kind of problem."""
    groups, cameras = defaultdict(set), defaultdict(set)  # digest to images; pid to its cameras in the gallery
    for split in SIDES:
        for s in getattr(dataset, split):
            groups[files[s.path].digest].add((split, *s))
    for s in dataset.gallery:
        cameras[s.pid].add(s.camid)
    found = defaultdict(list, {"files that cannot be decoded": [f.error for f in files.values() if f.error]})
    for group in groups.values():
        splits, paths, pids, _ = (sorted(set(values)) for values in zip(*group, strict=True))
        sides = {SIDES[split] for split in splits}
        if len(paths) > 1 and len(pids) > 1:
            found["equal files of different identities"].append(" = ".join(paths))
        if len(paths) > 1 and len(sides) > 1:
            found["equal files in training and test"].append(" = ".join(paths))
        own = {s[2:] for s in group if s[0] == "query"}
        copies = [path for split, path, *labels in group if split == "gallery" and own - {tuple(labels)}]
        found["gallery images that are copies of queries and never count as their match"] += copies
    both = {s.pid for s in dataset.train} & {s.pid for s in dataset.query + dataset.gallery} - {0}
    found["identities in both training and test"] = [dataset.name_of(pid) for pid in sorted(both)]
    if dataset.protocol == "standard":
        alone = [s.path for s in dataset.query if not cameras[s.pid] - {s.camid}]
        found["queries without a match under another camera"] = alone
    return {kind: cases for kind, cases in found.items() if cases}


def try_to_train(typed: dict[str, Any]) -> tuple[dict[str, Any], str, list[str]]:
    """Return the settings that train.py would choose, the note on its scores, and its error, if any. Warns as train.py
    would."""
    chosen = {}
    try:
        chosen = choose_settings(typed)
        cfg = Config(**chosen | typed).check()
        dataset = make_dataset(cfg)
        if ONE_IDENTITY in dataset.test_note:
            warnings.warn(ONE_IDENTITY, stacklevel=2)
        make_sampler(cfg, dataset.train)
    except UserError as error:
        return chosen, "", [str(error)]
    return chosen, dataset.note, []


def doubt_names(features: torch.Tensor, pids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each picture's most similar other identity, and how much more similar it is than the own: (N,) each.

    features (N, D) of length 1. The similarity to an identity is the mean cosine to its NEAREST most similar pictures,
    without the picture itself. NaN for an identity's only picture.
    """
    own, best, found = torch.full((len(pids),), torch.nan), torch.full((len(pids),), -torch.inf), pids.copy()
    for pid in np.unique(pids):
        mine = np.flatnonzero(pids == pid)
        cosine = features @ features[mine].T
        other = cosine.topk(min(NEAREST, len(mine))).values.mean(1)
        other[mine] = -torch.inf
        found[(other > best).numpy()] = pid
        best = torch.maximum(best, other)
        if len(mine) > 1:
            own[mine] = cosine[mine].fill_diagonal_(-torch.inf).topk(min(NEAREST, len(mine) - 1)).values.mean(1)
    return found, (best - own).numpy()


def list_wrong_names(dataset: ReIDDataset, samples: list[Sample], checkpoint: str, workers: int, output: Path) -> int:
    """Write a table and draw a sheet of the pictures whose names a model doubts, the most doubtful first; return the
    number of pictures drawn."""
    extractor = load("processor.extractor:FeatureExtractor")(checkpoint, workers=workers)
    features, pids = extractor([s.path for s in samples]), np.array([s.pid for s in samples])
    found, scores = doubt_names(features, pids)
    listed = [i for i in np.argsort(-scores, kind="stable") if scores[i] >= MARGIN]
    names = [(dataset.name_of(pids[i]), dataset.name_of(found[i])) for i in listed]
    table = [(samples[i].path, *pair, f"{scores[i]:.3f}") for i, pair in zip(listed, names, strict=True)]
    write_csv(output.with_suffix(".csv"), [("path", "name", "suggested", "score"), *table])
    log.info("%d of %d pictures probably have the wrong name: %s", len(table), len(samples), output.with_suffix(".csv"))
    for path, name, other, score in table[:MAX_CASES]:
        log.info("  %s: %s, suggested %s, score %s", path, name, other, score)
    rows = []
    for i, (name, other) in list(zip(listed, names, strict=True))[:MOST_DRAWN]:
        order = np.argsort(-(features @ features[i]).numpy(), kind="stable")
        order = order[order != i]
        tiles: list[Tile | None] = [tile(dataset, samples[i], QUERY)]
        for pid, colour in ((pids[i], WRONG), (found[i], RIGHT)):
            near = [tile(dataset, samples[k], colour) for k in order[pids[order] == pid][:NEAREST]]
            tiles += [None, *near, *[None] * (NEAREST - len(near))]
        rows.append((f"{name}, suggested {other}, score {scores[i]:.2f}: {samples[i].path}", tiles))
    if rows:
        draw_rows(output, rows, ["picture", None, "its name", "", "", None, "suggested name", "", ""])
        log.info("sheet of the first %d: %s", len(rows), output)
    return len(rows)


def tile(dataset: ReIDDataset, sample: Sample, colour: str) -> Tile:
    caption = f"{dataset.name_of(sample.pid)}\n{dataset.camera_of(sample.camid)}"
    return Tile(read_whole(sample.path, 256), caption.strip(), colour)


def draw_sheet(path: Path, dataset: ReIDDataset, files: dict[str, File], people: int) -> None:
    """Draw images of evenly spaced identities, half of the identities from the training side."""
    by_pid, rows = {"training": defaultdict(list), "test": defaultdict(list)}, []
    for split, side in SIDES.items():
        for s in getattr(dataset, split):
            if s.pid and not files[s.path].error:
                by_pid[side][s.pid].append((split, s))
    for side, images in by_pid.items():
        for pid in spread(sorted(images), -(-people // 2)):
            tiles = []
            for split, s in spread(images[pid], COLUMNS):
                title = f"{split}\n{dataset.camera_of(s.camid)}".strip()
                tiles.append(Tile(read_whole(s.path, 256), title, COLOURS[split]))
            rows.append((f"{dataset.name_of(pid)}: {len(images[pid])} images, {side}", tiles))
    if rows:
        draw_rows(path, rows, [""] * COLUMNS)
        log.info("sheet of identities: %s", path)


def main() -> None:
    options = parse_options(None, Options, __doc__, positional="dataset", ranges={"people": "[0, inf)"})
    setup_logging()
    typed = {name: value for name, value in vars(options).items() if name in SETTINGS}
    if not options.batch_size:
        del typed["batch_size"]
    typed["data_root"] = options.data_root or os.environ.get("REID_DATA") or "data"
    cfg = Config(**typed).check()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = find_dataset(options.dataset, cfg)
        chosen, note, refused = {}, dataset.note, []
        if options.dataset not in DATASETS:
            log.disabled = True  # find_dataset has logged the same already
            chosen, note, refused = try_to_train(typed)
            log.disabled = False
    warned = list(dict.fromkeys(str(warning.message) for warning in caught))
    log.info("%s, scored by protocol %s", dataset.name, dataset.protocol)
    log.info("\n".join(describe(dataset)))
    if note:
        log.info("note: %s", note)
    if chosen:
        why = chosen.pop("preset_note")
        values = " ".join(f"{option(name)} {value}" for name, value in chosen.items())
        log.info("train.py without a preset uses %s (%s)", values, why)
    paths = sorted({s.path for s in dataset.train + dataset.query + dataset.gallery})
    with ThreadPoolExecutor(options.workers) as pool:
        progress = tqdm(pool.map(inspect, paths), "check", len(paths), leave=False, disable=None)
        files = dict(zip(paths, progress, strict=True))
    log.info(describe_sizes(files))
    sheet = Path(options.output or Path("log") / f"check_{short_name(options.dataset)}.png")
    draw_sheet(sheet, dataset, files, options.people)
    doubts = 0
    if options.checkpoint:
        samples = [s for s in dict.fromkeys(dataset.train + dataset.query + dataset.gallery) if s.pid]
        samples = [s for s in samples if not files[s.path].error]
        wrong = sheet.with_name(f"{sheet.stem}_names.png")
        doubts = list_wrong_names(dataset, samples, options.checkpoint, options.workers, wrong)
    with_pixel_range(cfg, dataset)  # logs if there are images of more than 8 bits
    found = find_problems(dataset, files)
    for kind, cases in (("warnings of train.py", warned), ("refusals of train.py", refused)):
        if cases and options.dataset not in DATASETS:
            found[kind] = cases
        for case in cases if options.dataset in DATASETS else ():
            log.warning("warning: %s", case)
    for kind, cases in found.items():
        log.info("\n  ".join([f"PROBLEM: {len(cases)} {kind}", *map(printable, cases[:MAX_CASES])]))
    if found:
        sys.exit(1)
    log.info("nothing %sto fix", "else " * bool(doubts))


if __name__ == "__main__":
    run(main)
