"""Write a test split's features to files: `python tools/extract_features.py [CKPT] [--flip] [--part 1/2]`.

The directory holds qf.npy and gf.npy (features of query and gallery, float32) and qp, gp, qc, gc (pids and cameras);
`tools/score_features.py DIRECTORY` scores them. Only one batch at a time is in memory. Several machines or GPUs can
each extract a part (--part 1/4, --part 2/4, ...); the parts are joined when the directory is first read.

With a folder that is not a run (it holds no last.pth) as the first word, the features of its pictures are written:
`python tools/extract_features.py FOLDER [--output feats]`; FOLDER --help lists its options.
"""

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from config import Config
from config.cli import typed_command
from config.options import parse_options
from datasets.loaders import TestLoader
from datasets.make import short_name, test_name
from model import ReIDModel
from processor.checkpoint import LAST, find_checkpoint
from processor.evaluate import feature_batches
from processor.test import parse_test, prepare_test
from tools.gallery.index import read_index
from tools.score_features import ABOUT, ARRAYS, part_name, remove_parts
from tools.search import IndexCommand
from utils.errors import UserError, run
from utils.files import write_atomically, write_json, write_rows
from utils.logging import log, setup_logging

FOLDER_HELP = """The features of any folder of pictures: `python tools/extract_features.py FOLDER [--output NAME]`.

Pictures in folders below are included; other files are skipped and counted, unreadable pictures listed. The output is
an index: NAME/features.npy, (N, D) float32 with rows of length 1, and NAME/index.json with "files", whose entries begin
with the path relative to FOLDER. `tools/search.py` can search it. With NAME.npz, the arrays `features` and `paths` are
also written to that file. A stopped program continues when it is run again, and
the features of unchanged pictures are kept."""


@dataclass
class Options:
    part: str = "1/1"  # part of the images, and the number of parts: 2/4 is the second of four
    output: str = ""  # directory for the files (empty: features_... in the run's directory)


def write_features(
    cfg: Config, path: str | Path, model: ReIDModel, loader: TestLoader, device: torch.device, flip: bool = False
) -> None:
    """Write the embeddings of a split (with `flip` the flipped ones) to a .npy file (N, D) float32, batch by batch."""
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
        raise UserError(f"{word} is a folder, and a run in log/ too; give ./{word} or log/{word}")
    return True


def extract_folder(args: Sequence[str]) -> None:
    """The program for a folder of pictures."""
    options = parse_options(args, IndexCommand, FOLDER_HELP, "folder")
    if not options.output:
        run = find_checkpoint(options.checkpoint, options.log_dir).parent
        options.output = str(run / f"features_{Path(options.folder).resolve().name}")
    file = Path(options.output)
    options.output = str(file.with_suffix("")) if file.suffix == ".npz" else options.output
    setup_logging()
    options.run()
    if file.suffix == ".npz":  # a copy in one file
        index = read_index(options.output)
        paths = np.array([path for path, *_ in index.files])
        write_atomically(file, lambda part: np.savez(part.open("wb"), features=index.features, paths=paths))


def main() -> None:
    if sys.argv[1:] and is_folder_of_pictures(sys.argv[1]):
        return extract_folder(sys.argv[1:])
    cfg, options, stored = parse_test(None, os.environ, __doc__, Options)
    match = re.fullmatch(r"(\d+)/(\d+)", options.part)
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise UserError(f"--part must be such as 1/4, 2/4, 3/4 or 4/4, not {options.part}")
    test = prepare_test(cfg, stored)
    dataset = short_name(test_name(cfg))
    name = f"features_{test.what}_{dataset}" + ("_flip" if cfg.eval.flip else "")
    directory = Path(options.output or test.directory / name)
    fewest = min(len(loader.samples) for loader in (test.query, test.gallery))
    if parts > fewest:
        raise UserError(f"--part {options.part}: {fewest} images cannot be cut into {parts} parts, at most {fewest}")
    for array, loader in (("qf", test.query), ("gf", test.gallery)):
        path = directory / part_name(array, part, parts)
        write_features(cfg, path, test.model, loader.part(part - 1, parts), test.device, cfg.eval.flip)
        if parts == 1:
            remove_parts(directory, array)
    ids = (test.query.pids, test.gallery.pids, test.query.camids, test.gallery.camids)
    for array, values in zip(ARRAYS[2:], ids, strict=True):
        write_rows(directory / f"{array}.npy", len(values), [values])
    about = {"checkpoint": str(stored[0]) if stored else None, "flip": cfg.eval.flip, "dataset": dataset}
    about["camera_names"] = test.dataset.camera_names
    write_json(directory / ABOUT, about | {"note": test.note, "command": typed_command()})
    log.info("features written to %s", directory)


if __name__ == "__main__":
    run(main)
