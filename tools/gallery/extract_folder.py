"""The features of any folder of pictures: `python tools/extract_features.py FOLDER [--output NAME]`.

Pictures in folders below are included; other files are skipped and counted, unreadable pictures listed. The output is
an index: NAME/features.npy, (N, D) float32 with rows of length 1, and NAME/index.json with "files", whose entries begin
with the path relative to FOLDER. `tools/search.py` can search it. A stopped program continues when it is run again, and
the features of unchanged pictures are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from config.cli import parse_options
from processor.checkpoint import LAST, find_checkpoint
from tools.search import IndexCommand
from utils.errors import UserError
from utils.logging import setup_logging


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


def main(args: Sequence[str]) -> None:
    options = parse_options(args, IndexCommand, __doc__, "folder")
    if not options.output:
        run = find_checkpoint(options.checkpoint, options.log_dir).parent
        options.output = str(run / f"features_{Path(options.folder).resolve().name}")
    setup_logging()
    options.run()
