"""Score features that lie in files: `python tools/score_features.py FILE.npz|DIRECTORY [--rerank] [--protocol ...]`.

They may come from any program: arrays qf (Q, D) and gf (G, D), the features of query and gallery, and their pids qp, gp
and cameras qc, gc, as FILE.npz or as DIRECTORY/qf.npy, ... The latter are memory-mapped, so they may be larger than the
memory. All settings of test.py that concern scores are understood; the scores are also written to --output.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from config.cli import parse_settings, split_first, typed_command
from processor.environment import pick_device
from processor.evaluate import report, score_features, scores_note
from processor.features import StoredFeatures, read_features
from utils.errors import UserError, run
from utils.files import write_json
from utils.logging import log, setup_logging


@dataclass
class ScoreConfig(Config):
    output: str = ""  # JSON file that takes the scores; empty: they are printed only


def on_device(stored: StoredFeatures, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and gallery on a GPU if they and two matrices of distances fit into its memory, else where they are."""
    if device.type == "cpu":
        return stored.query, stored.gallery
    needed = 8 * len(stored.query) * len(stored.gallery) + 2 * (stored.query.nbytes + stored.gallery.nbytes)
    if needed > torch.cuda.mem_get_info(device)[0]:
        log.info("too large for %s, scored on the CPU", device)
        return stored.query, stored.gallery
    return stored.query.to(device), stored.gallery.to(device)


def main() -> None:
    name, args = split_first(None)
    cfg = parse_settings(ScoreConfig(), args, os.environ, "score_features.py FILE.npz|DIRECTORY")
    if not name:
        raise UserError("name the features to score: an .npz, or a directory that tools/extract_features.py wrote")
    setup_logging()
    stored = read_features(name)
    log.info("%s: %d queries in %d images", name, len(stored.query), len(stored.gallery))
    features = on_device(stored, pick_device(cfg.run.device))
    inference = score_features(cfg, {"plain": features}, stored.ids)
    note = scores_note(cfg, stored.note)
    record = {"features": name, "command": typed_command(), "note": note}
    record |= report(inference, note)
    if cfg.output:
        write_json(cfg.output, record)
        log.info("written to %s", cfg.output)


if __name__ == "__main__":
    run(main)
