"""The features of any folder of pictures: `python tools/extract_features.py FOLDER [--output feats.npz]`.

Pictures in folders below count too; other files are passed over and counted, unreadable pictures listed. The .npz holds
`features` (N, D) float32 of length 1 and `paths` (N,) relative to FOLDER; `tools/search.py` can ask it. A program that
was stopped goes on where it was when it is run again, and what an older output has of unchanged pictures is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from processor import FeatureExtractor
from processor.checkpoint import LAST
from processor.indexing import index
from utils.errors import UserError
from utils.logging import setup_logging


@dataclass
class Options:
    folder: tyro.conf.Positional[str]  # its pictures, and those of all folders in it
    output: str = ""  # file of the features; empty: features_FOLDER.npz in the run's directory
    checkpoint: str = ""  # a file, a run's directory or name; empty: the newest run
    log_dir: str = "log"  # directory that holds all runs
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: cuda where there is one, else cpu
    batch_size: int = 64  # pictures at a time
    workers: int = 4  # threads that read and decode pictures
    half: bool = False  # compute in float16 on a GPU, in bfloat16 on a CPU
    flip: bool = False  # the mean of each picture's and its mirror image's feature


def is_folder_of_pictures(word: str) -> bool:
    """Whether the first word of a command means the folder of that name, and not a run or a checkpoint.

    Raises UserError where it could mean both.
    """
    folder = Path(word)
    if not folder.is_dir() or (folder / LAST).is_file():
        return False
    if folder.name == word and (Path("log") / word / LAST).is_file():
        raise UserError(f"{word} is a folder, and a run in log/ too; say ./{word} or log/{word}")
    return True


def main(args: Sequence[str]) -> None:
    options = tyro.cli(Options, description=__doc__, prog="extract_features.py", args=args)
    setup_logging()
    how = {name: getattr(options, name) for name in ("device", "batch_size", "half", "flip", "workers", "log_dir")}
    extractor = FeatureExtractor(options.checkpoint, **how)
    name = Path(options.folder).resolve().name
    index(extractor, [options.folder], options.output or extractor.checkpoint.parent / f"features_{name}.npz")
