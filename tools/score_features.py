"""Score features stored in files: `python tools/score_features.py FILE.npz|DIRECTORY [--rerank] [--protocol ...]`.

The features may come from any program. The arrays are qf (Q, D) and gf (G, D), the query and gallery features, with
pids qp, gp and cameras qc, gc, in FILE.npz or as DIRECTORY/qf.npy and so on. Files in a directory are memory-mapped, so
they may be larger than the memory. All settings of test.py that concern scores are available.
"""

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from config.cli import parse_settings, split_first, typed_command
from processor.environment import pick_device
from processor.evaluate import RANDOM_GALLERIES, report, score_features, scores_note
from processor.optional_scores import drop_undefined
from utils.errors import UserError, run
from utils.files import check_unpacked_size, reading, write_json, write_rows
from utils.logging import log, setup_logging

ABOUT = "about.json"  # in a directory: where the features come from, and the note on their scores
ARRAYS = ("qf", "gf", "qp", "gp", "qc", "gc")
WANTED = "it must hold the arrays qf (Q, D), gf (G, D), qp (Q,), gp (G,), qc (Q,) and gc (G,)"


@dataclass
class Options:
    output: str = ""  # JSON file for the scores (empty: only print them)


class StoredFeatures(NamedTuple):
    """Features (Q, D) and (G, D), and the four id arrays that `evaluate` takes."""

    query: torch.Tensor
    gallery: torch.Tensor
    ids: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    note: str = ""  # caveat on all their scores
    camera_names: dict[int, str] = {}  # noqa: RUF012
    name: str = "plain"  # name of their scores; "flip": each is the mean of an image's and its mirror image's features


def read_features(path: str | Path) -> StoredFeatures:
    """Read the arrays of a file or directory; gallery images of pid -1 are dropped.

    Parts such as gf.2of3.npy are joined first. Raises UserError if something is missing or does not fit.
    """
    path, note, names, kind = Path(path), "", {}, "plain"
    with reading(path, WANTED):
        if path.is_dir():
            if (path / ABOUT).is_file():
                about = json.loads((path / ABOUT).read_text())
                note, kind = str(about["note"]), "flip" if about.get("flip") else "plain"
                names = {int(camid): str(name) for camid, name in about.get("camera_names", {}).items()}
            for name in ARRAYS[:2]:
                join_parts(path, name)
            # "c": changes would stay in memory, so torch does not warn that the file is not writable
            arrays = [np.load(path / f"{name}.npy", mmap_mode="c") for name in ARRAYS]
        else:
            check_unpacked_size(path, most=16)  # compressed features keep a third of their size or more
            with open(path, "rb") as file:
                stored = np.load(file)
                arrays = [stored[name] for name in ARRAYS]
    qf, gf, qp, gp, qc, gc = arrays
    fit = qf.ndim == gf.ndim == 2 and qf.shape[1] == gf.shape[1] and qf.dtype.kind == gf.dtype.kind == "f"
    if not fit or not qp.shape == qc.shape == qf.shape[:1] or not gp.shape == gc.shape == gf.shape[:1]:
        found = ", ".join(f"{name} {a.dtype} {a.shape}" for name, a in zip(ARRAYS, arrays, strict=True))
        raise UserError(f"the arrays of {path} do not fit each other ({found}); {WANTED}")
    kept = np.asarray(gp) != -1
    if not kept.all():
        log.info("%s: %d gallery images of pid -1 left out (junk)", path, (~kept).sum())
        gf, gp, gc = gf[kept], gp[kept], gc[kept]
    return StoredFeatures(torch.from_numpy(qf), torch.from_numpy(gf), (qp, gp, qc, gc), note, names, kind)


def part_name(name: str, part: int, parts: int) -> str:
    """Return the file name of part 1, 2, ... of `parts` of an array."""
    return f"{name}.npy" if parts == 1 else f"{name}.{part}of{parts}.npy"


def join_parts(directory: Path, name: str) -> None:
    """Replace NAME.1of3.npy, NAME.2of3.npy and NAME.3of3.npy by NAME.npy, one part at a time, if there are parts.

    Raises UserError if a part is missing, or if there are parts of two divisions.
    """
    found = (re.fullmatch(rf"{name}\.\d+of(\d+)\.npy", p.name) for p in directory.iterdir())
    totals = {int(match[1]) for match in found if match}
    if not totals:
        return
    if len(totals) > 1:
        raise UserError(f"{directory} holds parts of {name} from several divisions (of {sorted(totals)}); delete old")
    (total,) = totals
    paths = [directory / part_name(name, i, total) for i in range(1, total + 1)]
    if missing := [p.name for p in paths if not p.is_file()]:
        raise UserError(f"{directory} lacks {', '.join(missing)}; extract these parts first")
    parts = [np.load(p, mmap_mode="r") for p in paths]
    write_rows(directory / f"{name}.npy", sum(map(len, parts)), parts)
    remove_parts(directory, name)


def remove_parts(directory: Path, name: str) -> None:
    """Delete the parts of an array that has been written as a whole."""
    for p in directory.glob(f"{name}.*of*.npy"):
        p.unlink()


def main() -> None:
    name, args = split_first(None)
    cfg, options = parse_settings(args, Config(), os.environ, __doc__, Options, sections=("eval",))
    if not name:
        raise UserError("name the features to score: an .npz, or a directory written by tools/extract_features.py")
    setup_logging()
    cfg = drop_undefined(cfg) if cfg.eval.protocol in RANDOM_GALLERIES else cfg
    query, gallery, ids, note, cameras, kind = read_features(name)
    log.info("%s: %d queries in %d images", name, len(query), len(gallery))
    device = pick_device(cfg.run.device)
    # bytes of two matrices of distances, and of the features in float32
    needed = 8 * len(query) * len(gallery) + 2 * (query.nbytes + gallery.nbytes)
    if device.type != "cpu" and needed > torch.cuda.mem_get_info(device)[0]:
        log.info("too large for %s; scoring on the CPU", device)
        device = torch.device("cpu")
    inference = score_features(cfg, {kind: (query.to(device), gallery.to(device))}, ids)
    note = scores_note(cfg, note)
    record = {"features": name, "command": typed_command(), "note": note, **report(inference, note, cameras)}
    if options.output:
        write_json(options.output, record)
        log.info("written to %s", options.output)


if __name__ == "__main__":
    run(main)
