"""Features stored in files with their ids: FILE.npz, or DIRECTORY/qf.npy and so on, which are memory-mapped.

qf (Q, D) and gf (G, D) are the features of query and gallery, qp (Q,) and gp (G,) their pids, qc and gc their cameras.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from utils.errors import UserError
from utils.files import reading, write_rows
from utils.logging import log

ABOUT = "about.json"  # in a directory: what the features are of, and the note on their scores
ARRAYS = ("qf", "gf", "qp", "gp", "qc", "gc")
WANTED = "it must hold the arrays qf (Q, D), gf (G, D), qp (Q,), gp (G,), qc (Q,) and gc (G,)"


class StoredFeatures(NamedTuple):
    """Features (Q, D) and (G, D), and the four id arrays that `evaluate` takes."""

    query: torch.Tensor
    gallery: torch.Tensor
    ids: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    note: str = ""  # caveat that belongs to all scores of them
    camera_names: dict[int, str] = {}  # noqa: RUF012


def read_features(path: str | Path) -> StoredFeatures:
    """Read the arrays of a file or directory; gallery images of pid -1 are dropped.

    Parts such as gf.2of3.npy are joined first. Raises UserError if something is missing or does not fit.
    """
    path, note, names = Path(path), "", {}
    with reading(path, WANTED):
        if path.is_dir():
            if (path / ABOUT).is_file():
                about = json.loads((path / ABOUT).read_text())
                note = str(about["note"])
                names = {int(camid): str(name) for camid, name in about.get("camera_names", {}).items()}
            for name in ARRAYS[:2]:
                join_parts(path, name)
            # "c": changes would stay in memory, so torch does not warn that the file is not writable
            arrays = [np.load(path / f"{name}.npy", mmap_mode="c") for name in ARRAYS]
        else:
            with open(path, "rb") as file:
                stored = np.load(file)
                arrays = [stored[name] for name in ARRAYS]
    qf, gf, qp, gp, qc, gc = arrays
    fit = qf.ndim == gf.ndim == 2 and qf.shape[1] == gf.shape[1] and qf.dtype.kind == gf.dtype.kind == "f"
    if not fit or not qp.shape == qc.shape == qf.shape[:1] or not gp.shape == gc.shape == gf.shape[:1]:
        found = ", ".join(f"{name} {a.dtype} {a.shape}" for name, a in zip(ARRAYS, arrays, strict=True))
        raise UserError(f"the features {path} do not fit each other ({found}); {WANTED}")
    kept = np.asarray(gp) != -1
    if not kept.all():
        log.info("%s: %d gallery images of pid -1 left out (junk)", path, (~kept).sum())
        gf, gp, gc = gf[kept], gp[kept], gc[kept]
    return StoredFeatures(torch.from_numpy(qf), torch.from_numpy(gf), (qp, gp, qc, gc), note, names)


def part_name(name: str, part: int, parts: int) -> str:
    """File of part 1, 2, ... of `parts` of an array."""
    return f"{name}.npy" if parts == 1 else f"{name}.{part}of{parts}.npy"


def join_parts(directory: Path, name: str) -> None:
    """Replace NAME.1of3.npy, NAME.2of3.npy and NAME.3of3.npy by NAME.npy, one part at a time; without parts, nothing.

    Raises UserError if a part is missing, or if there are parts of two divisions.
    """
    found = (re.fullmatch(rf"{name}\.\d+of(\d+)\.npy", p.name) for p in directory.iterdir())
    totals = {int(match[1]) for match in found if match}
    if not totals:
        return
    if len(totals) > 1:
        raise UserError(f"{directory} holds parts of several divisions of {name} (of {sorted(totals)}); delete the old")
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
