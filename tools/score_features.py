"""Score features stored in files: `python tools/score_features.py FILE.npz|DIRECTORY [--rerank] [--protocol ...]`.

They may come from any program: arrays qf (Q, D) and gf (G, D), the features of query and gallery, with their pids qp,
gp and cameras qc, gc, in FILE.npz or as DIRECTORY/qf.npy and so on. The latter are memory-mapped, so they may be larger
than the memory. All settings of test.py that concern scores are available.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from config import Config
from config.cli import parse_settings, split_first, typed_command
from processor.environment import pick_device
from processor.evaluate import report, score_features, scores_note
from tools.features import read_features
from utils.errors import UserError, run
from utils.files import write_json
from utils.logging import log, setup_logging


@dataclass
class Options:
    output: str = ""  # JSON file for the scores (empty: only print them)


def main() -> None:
    name, args = split_first(None)
    cfg, options = parse_settings(args, Config(), os.environ, __doc__, Options, sections=("eval",))
    if not name:
        raise UserError("name the features to score: an .npz, or a directory written by tools/extract_features.py")
    setup_logging()
    query, gallery, ids, note, cameras = read_features(name)
    log.info("%s: %d queries in %d images", name, len(query), len(gallery))
    device = pick_device(cfg.run.device)
    # two matrices of distances, and the features in float32
    needed = 8 * len(query) * len(gallery) + 2 * (query.nbytes + gallery.nbytes)
    if device.type != "cpu" and needed > torch.cuda.mem_get_info(device)[0]:
        log.info("too large for %s, scored on the CPU", device)
        device = torch.device("cpu")
    inference = score_features(cfg, {"plain": (query.to(device), gallery.to(device))}, ids)
    note = scores_note(cfg, note)
    record = {"features": name, "command": typed_command(), "note": note, **report(inference, note, cameras)}
    if options.output:
        write_json(options.output, record)
        log.info("written to %s", options.output)


if __name__ == "__main__":
    run(main)
