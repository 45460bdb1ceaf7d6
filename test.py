"""Test a model: `python test.py [CKPT] [--flip] [--rerank] [--metric euclidean]`; without CKPT, the newest run."""

import os

from config import Config
from config.cli import typed
from processor.test import do_test, parse_test
from utils.errors import run


def main() -> None:
    cfg, stored = parse_test(None, os.environ, "test.py [CKPT]", Config)
    do_test(cfg, stored, command=typed())


if __name__ == "__main__":
    run(main)
