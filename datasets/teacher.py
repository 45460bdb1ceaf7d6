"""The features of a teacher, one row per training image, as `tools/extract_features.py --split train` writes them."""

import json
from pathlib import Path

import numpy as np

from datasets.base import Sample, fingerprint
from utils.errors import UserError
from utils.files import reading

FIX = "write it with tools/extract_features.py --split train and the data settings of this run"


def read_teacher(path: str | Path, samples: list[Sample], kept: np.ndarray) -> tuple[np.ndarray, str]:
    """Read features (N, D) float32 of the images with the indices `kept` (N,) in `samples`, and the teacher's name.

    The file has one row for each of `samples`, also for unreadable ones. A .json file next to it may name the
    teacher ("model") and hold the `fingerprint` of its images. Raises UserError for a file of other images.
    """
    with reading(path, FIX):
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        if getattr(rows, "ndim", 0) != 2 or rows.dtype.kind != "f":
            raise ValueError("not a .npy file of floating-point numbers (images, width)")
    about, side = {}, Path(path).with_suffix(".json")
    if side.exists():
        with reading(side, FIX):
            about = dict(json.loads(side.read_text()))
    if len(rows) != len(samples):
        raise UserError(f"--teacher {path} has {len(rows)} rows for {len(samples)} training images; {FIX}")
    if about.get("images") not in (None, fingerprint(samples)):
        raise UserError(f"--teacher {path} holds features of other images, or in another order; {FIX}")
    rows = np.asarray(rows[kept], np.float32)
    bad = kept[~np.isfinite(rows).all(1)]
    if len(bad):
        raise UserError(f"--teacher {path}: the row of {samples[bad[0]].path} has NaN or inf; {FIX}")
    return rows, str(about.get("model") or Path(path).stem)
