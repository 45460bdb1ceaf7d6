"""Test a model: `python test.py [CKPT] [--flip] [--rerank] [--metric euclidean]`; without CKPT, the latest run."""

import os

from config.cli import typed_command
from processor.test import do_test, parse_test
from utils.errors import run


def main() -> None:
    cfg, _, stored = parse_test(None, os.environ, __doc__)
    do_test(cfg, stored, command=typed_command())


if __name__ == "__main__":
    run(main)
