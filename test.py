"""Test a model: `python test.py [CKPT] [--flip] [--rerank] [--metric euclidean]` (default: the latest run).

CKPT is a run, a checkpoint, or a model in an .onnx or .xml file. Give several to compare them.
"""

import os

from config.cli import split_names, typed_command
from processor.test import do_test, parse_test
from utils.errors import run
from utils.lookup import load


def main() -> None:
    names, settings = split_names()
    results = {}
    for name in names or [""]:
        cfg, _, stored = parse_test([name, *settings] if name else settings, os.environ, __doc__)
        if tested := do_test(cfg, stored, command=typed_command()):
            results[name] = [tested[1].record | {"best": None}]
    if len(results) > 1:
        load("tools.compare:log_comparison")(results)


if __name__ == "__main__":
    run(main)
