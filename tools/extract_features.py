"""Write a test split's features to files: `python tools/extract_features.py [CKPT] [--flip] [--part 1/2]`.

The directory holds qf.npy and gf.npy (query and gallery features, float32) and qp, gp, qc, gc (pids and cameras).
Score them with `tools/score_features.py DIRECTORY`. Only one batch at a time is in memory. Several machines or GPUs can
each extract a part (--part 1/4, --part 2/4, ...); the parts are joined when the directory is first read.

`--split train` writes the features from which `train.py --teacher FILE` distills: those of the training split, one row
per image, and a .json file that records which images they belong to.

If the first argument is a folder that is not a run (it has no last.pth), the features of its pictures are written:
`python tools/extract_features.py FOLDER [--output feats]`; FOLDER --help lists the options.
"""

import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from config import Config
from config.cli import typed_command
from config.options import parse_options
from datasets.base import fingerprint
from datasets.loaders import TestLoader, with_pixel_range
from datasets.make import make_dataset, short_name, test_name, train_names
from model import ReIDModel
from processor.checkpoint import LAST, find_checkpoint, results_directory
from processor.environment import pick_device
from processor.evaluate import feature_batches
from processor.precision import configure_torch
from processor.test import Stored, parse_test, prepare_test, tested_model
from tools.gallery.index import read_index
from tools.score_features import ABOUT, ARRAYS, part_name, remove_parts
from tools.search import IndexCommand
from utils.errors import UserError, run
from utils.files import reading, write_atomically, write_json, write_rows
from utils.logging import log, setup_logging

FOLDER_HELP = """Write the features of a folder of pictures: `python tools/extract_features.py FOLDER [--output NAME]`.

Pictures in subfolders are included. Other files are skipped and counted, and unreadable pictures listed. The output is
an index: NAME/features.npy, (N, D) float32 with rows of length 1, and NAME/index.json with "files", whose entries begin
with the path relative to FOLDER. `tools/search.py` can search it. With NAME.npz, the arrays `features` and `paths` are
also written to that file. If the program is stopped, run it again to continue; the
features of unchanged pictures are kept."""


@dataclass
class Options:
    split: Literal["test", "train"] = "test"  # images: query and gallery, or the training split for --teacher
    part: str = "1/1"  # part of the images, and the number of parts: 2/4 is the second of four
    output: str = ""  # directory for the files, or .npy file with --split train (empty: in the run's directory)


def write_features(
    cfg: Config, path: str | Path, model: ReIDModel, loader: TestLoader, device: torch.device, flip: bool = False
) -> None:
    """Write the embeddings of a split (with `flip`, averaged ones) to a .npy file (N, D) float32, batch by batch."""
    batches = feature_batches(cfg, model, loader, device, flip)
    rows = ((flipped if flip else plain).cpu().numpy() for plain, flipped in batches)
    with contextlib.closing(batches):  # resets the model's mode if writing fails
        write_rows(path, len(loader.samples), rows)


def is_folder_of_pictures(word: str) -> bool:
    """Whether the first word of a command means a folder of pictures, and not a run or a checkpoint.

    Raises UserError if it could mean both.
    """
    folder = Path(word)
    if not folder.is_dir() or (folder / LAST).is_file():
        return False
    if folder.name == word and (Path("log") / word / LAST).is_file():
        raise UserError(f"{word} is a folder and also a run in log/; give ./{word} or log/{word}")
    return True


def extract_folder(args: Sequence[str]) -> None:
    """The program for a folder of pictures."""
    options = parse_options(args, IndexCommand, FOLDER_HELP, "folder")
    if not options.output:
        run = results_directory(find_checkpoint(options.checkpoint, options.log_dir), options.log_dir)
        options.output = str(run / f"features_{Path(options.folder).resolve().name}{'_flip' * options.flip}")
    file = Path(options.output)
    options.output = str(file.with_suffix("")) if file.suffix == ".npz" else options.output
    setup_logging()
    options.run()
    if file.suffix == ".npz":  # a copy in one file
        index = read_index(options.output)
        paths = np.array([path for path, *_ in index.files])
        arrays = {"features": index.features, "paths": paths, "flip": options.flip}
        write_atomically(file, lambda part: np.savez(part.open("wb"), **arrays))


def extract_teacher(cfg: Config, options: Options, stored: Stored | None) -> None:
    """Write the features of the training split by the settings' model; unreadable images get a row of NaN."""
    if options.part != "1/1":
        raise UserError(f"--part {options.part} is for --split test; leave it out")
    setup_logging()
    device = pick_device(cfg.run.device)
    configure_torch(cfg, device)
    model, _, path, name = tested_model(cfg, stored, device)
    dataset = make_dataset(cfg)
    loader = TestLoader(with_pixel_range(cfg, dataset), dataset.train, "train")
    # one array from the start: small arrays between the large ones of each batch would fragment the heap
    rows = np.full((len(dataset.train), model.embedding_dim), np.nan, np.float32)
    places = iter(loader.images.kept)
    for plain, flipped in feature_batches(cfg, model, loader, device, cfg.eval.flip):
        rows[list(itertools.islice(places, len(plain)))] = (flipped if cfg.eval.flip else plain).cpu()
    name_of_set = "+".join(map(short_name, train_names(cfg)))
    file = Path(options.output or path.parent / f"teacher_{name_of_set}.npy")
    write_rows(file, len(rows), [rows])
    about = {"model": name, "images": fingerprint(dataset.train), "dataset": name_of_set, "flip": cfg.eval.flip}
    write_json(file.with_suffix(".json"), about | {"command": typed_command()})
    log.info("%d rows of %d values written to %s", *rows.shape, file)


def main() -> None:
    if sys.argv[1:] and is_folder_of_pictures(sys.argv[1]):
        return extract_folder(sys.argv[1:])
    cfg, options, stored = parse_test(None, os.environ, __doc__, Options)
    if options.split == "train":
        return extract_teacher(cfg, options, stored)
    match = re.fullmatch(r"(\d+)/(\d+)", options.part)
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise UserError(f"--part must be like 1/4, 2/4, 3/4 or 4/4, not {options.part}")
    test = prepare_test(cfg, stored)
    dataset = short_name(test_name(cfg))
    name = f"features_{test.what}_{dataset}" + ("_flip" if cfg.eval.flip else "")
    directory = Path(options.output or test.directory / name)
    fewest = min(len(loader.samples) for loader in (test.query, test.gallery))
    about = {"checkpoint": str(stored[0]) if stored else None, "flip": cfg.eval.flip, "dataset": dataset}
    if parts > 1 and (directory / ABOUT).is_file():
        with reading(directory / ABOUT, "remove it"):
            before = json.loads((directory / ABOUT).read_text())
        if differ := [name for name in ("flip", "dataset") if before.get(name) != about[name]]:
            raise UserError(f"{directory} holds features with another {' and '.join(differ)}; give another --output")
    if parts > fewest:
        raise UserError(f"--part {options.part}: {fewest} images cannot be split into {parts} parts, at most {fewest}")
    for array, loader in (("qf", test.query), ("gf", test.gallery)):
        path = directory / part_name(array, part, parts)
        write_features(cfg, path, test.model, loader.part(part - 1, parts), test.device, cfg.eval.flip)
        if parts == 1:
            remove_parts(directory, array)
    ids = (test.query.pids, test.gallery.pids, test.query.camids, test.gallery.camids)
    for array, values in zip(ARRAYS[2:], ids, strict=True):
        write_rows(directory / f"{array}.npy", len(values), [values])
    about |= {"camera_names": test.dataset.camera_names, "note": test.note, "command": typed_command()}
    write_json(directory / ABOUT, about)
    flipped = " (flip: each is the mean of an image and its mirror image; --no-flip for plain ones)"
    log.info("features written to %s%s", directory, flipped * cfg.eval.flip)


if __name__ == "__main__":
    run(main)
