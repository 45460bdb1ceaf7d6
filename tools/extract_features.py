"""Write a test split's features to files: `python tools/extract_features.py [CKPT] [--flip] [--part 1/2]`.

The directory holds qf.npy and gf.npy (features of query and gallery, float32) and qp qc gp gc (pids and cameras), which
`tools/score_features.py DIRECTORY` scores. No more than a batch is in memory. Several machines or GPUs can make one
part of it each (--part 1/4, --part 2/4, ...); whoever reads the directory first joins them.

With a folder that is no run (it holds no last.pth) as the first word, the features of its pictures are written, whoever
is on them: `python tools/extract_features.py FOLDER [--output feats.npz]`, see tools/extract_folder.py.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from config.cli import typed_command
from datasets.make import short_name, test_name
from processor.evaluate import write_features
from processor.features import ABOUT, ARRAYS, part_name, remove_parts
from processor.test import parse_test, prepare_test
from tools.extract_folder import is_folder_of_pictures
from tools.extract_folder import main as extract_folder
from utils.errors import UserError, run
from utils.files import write_json, write_rows
from utils.logging import log


@dataclass
class ExtractConfig(Config):
    part: str = "1/1"  # which part of the images to take, of how many: 2/4 is the second of four
    output: str = ""  # directory of the files; empty: features_... in the run's directory

    def _bad_ranges(self):
        yield from super()._bad_ranges()
        match = re.fullmatch(r"(\d+)/(\d+)", self.part)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            yield f"--part must be such as 1/4, 2/4, 3/4 or 4/4, not {self.part}"


def main() -> None:
    if sys.argv[1:] and is_folder_of_pictures(sys.argv[1]):
        return extract_folder(sys.argv[1:])
    cfg, stored = parse_test(None, os.environ, "extract_features.py [CKPT]", ExtractConfig)
    test = prepare_test(cfg, stored)
    dataset = short_name(test_name(cfg))
    name = f"features_{test.what}_{dataset}" + ("_flip" if cfg.eval.flip else "")
    directory = Path(cfg.output) if cfg.output else test.directory / name
    part, parts = map(int, cfg.part.split("/"))
    fewest = min(len(loader.samples) for loader in (test.query, test.gallery))
    if parts > fewest:
        raise UserError(f"--part {cfg.part}: {fewest} images cannot be cut into {parts} parts; take {fewest} at most")
    for array, loader in (("qf", test.query), ("gf", test.gallery)):
        path = directory / part_name(array, part, parts)
        write_features(cfg, path, test.model, loader.part(part - 1, parts), test.device, cfg.eval.flip)
        if parts == 1:
            remove_parts(directory, array)
    ids = (test.query.pids, test.gallery.pids, test.query.camids, test.gallery.camids)
    for array, values in zip(ARRAYS[2:], ids, strict=True):
        write_rows(directory / f"{array}.npy", len(values), [values])
    about = {"checkpoint": str(stored[0]) if stored else None, "flip": cfg.eval.flip, "dataset": dataset}
    write_json(directory / ABOUT, about | {"note": test.note, "command": typed_command()})
    log.info("features written to %s", directory)


if __name__ == "__main__":
    run(main)
