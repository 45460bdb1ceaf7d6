"""Train a ReID model: `python train.py [PRESET] [--setting value ...]`; see --help for every setting."""

import os

from config.cli import parse_train, typed_command
from utils.errors import run


def main() -> None:
    cfg = parse_train(None, os.environ)
    from processor import do_train  # not sooner: torch takes seconds to import, and --help needs none of it

    do_train(cfg, command=typed_command())


if __name__ == "__main__":
    run(main)
