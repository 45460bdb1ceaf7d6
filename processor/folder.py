"""Features of all pictures of a folder, kept in parts on the way, so that a program that was stopped goes on there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from datasets.folder import File, find_pictures, place_of, state_of
from processor.extractor import FeatureExtractor
from utils.errors import Stopped, UserError
from utils.files import write_json, write_rows
from utils.logging import log

PART = 1024  # pictures whose features are kept at a time
LISTED = 10  # unreadable files that a message names
Rows = dict[File, tuple[np.ndarray, int]]  # of a file: the array that holds its feature, and the row


def files_of(root: Path, places: Sequence[str | Path]) -> list[File]:
    """Pictures of folders, and picture files, by their place relative to `root`, each once and in order. Says how many
    other files the folders hold. Raises UserError for a place that is not there, a folder without pictures, and none.
    """
    if not places:
        raise UserError("no picture is named; name folders of pictures, or pictures")
    found = {}
    for place in map(Path, places):
        if not place.exists():
            raise UserError(f"there is no {place}; name a folder of pictures or a picture")
        names, others = find_pictures(place) if place.is_dir() else ([""], 0)
        if others:
            log.info("files in %s that are no pictures by their names, left out: %d", place, others)
        if not names:
            raise UserError(f"{place} and the folders in it hold no picture (a run's directory would hold a last.pth)")
        for name in names:
            relative = os.path.relpath(os.path.abspath(place / name), root)
            found[relative] = state_of(place / name, Path(relative).as_posix())
    return sorted(found.values())


def compute(extractor: FeatureExtractor, root: Path, files: Sequence[File], rows: Rows, parts: Path) -> int:
    """Add the features of those files that `rows` lacks to it, kept in the directory `parts` as they are made; gives
    how many were read. What an earlier run of the same model left there is taken first.

    Files that cannot be read are left out and listed. Raises UserError where none is left, Stopped on Ctrl-C.
    """
    recipe = [extractor.fingerprint, extractor.flip, extractor.half]
    rows.update(_kept(parts, recipe))
    missing = [file for file in files if file not in rows]
    if 0 < len(missing) < len(files):
        log.info("%d of %d pictures have their features already", len(files) - len(missing), len(files))
    waiting: list[tuple[list[File], torch.Tensor]] = []
    bad: dict[int, str] = {}
    try:
        for places, features in extractor.batches([place_of(root, file.path) for file in missing], bad):
            waiting.append(([missing[place] for place in places], features))
            if sum(len(some) for some, _ in waiting) >= PART:
                _keep(parts, recipe, waiting, rows)
    except KeyboardInterrupt as stop:
        _keep(parts, recipe, waiting, rows)
        done = sum(file in rows for file in files)
        raise Stopped(f"stopped; {done} of {len(files)} are kept, the same command goes on from there", 130) from stop
    _keep(parts, recipe, waiting, rows)
    if bad:
        reasons = "; ".join(list(bad.values())[:LISTED])
        more = f"; and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
        log.warning("warning: pictures that cannot be read, left out: %d (%s%s)", len(bad), reasons, more)
    if len(bad) == len(files):
        raise UserError("none of the pictures can be read; what is wrong with them stands above")
    return len(missing) - len(bad)


def gather(rows: Rows, files: Sequence[File], parts: Path) -> np.ndarray:
    """Features (N, D) of files, mapped from one file in `parts`: more than the memory holds, if need be."""
    blocks = (files[i : i + PART] for i in range(0, len(files), PART))
    stacks = (np.stack([array[row] for array, row in map(rows.__getitem__, block)]) for block in blocks)
    write_rows(parts / "all.npy", len(files), stacks)
    return np.load(parts / "all.npy", mmap_mode="r")


def rows_of(features: np.ndarray, files: Iterable[File]) -> Rows:
    """Each file with its row."""
    return {file: (features, row) for row, file in enumerate(files)}


@contextmanager
def parts_of(output: Path) -> Iterator[Path]:
    """A directory for what is made on the way to `output`, beside it; removed at the end, unless that comes early."""
    parts = output.with_name(f".{output.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    try:
        yield parts
        for path in (*parts.glob("*.npy"), *parts.glob("*.json"), *parts.glob(".*.tmp")):
            path.unlink()
    finally:
        with suppress(OSError):  # it is not empty
            parts.rmdir()


def _keep(parts: Path, recipe: list, waiting: list[tuple[list[File], torch.Tensor]], rows: Rows) -> None:
    """Write what is waiting as one part, and note its rows. The .json is written last and makes the part valid."""
    if waiting:
        files = [file for some, _ in waiting for file in some]
        path = parts / f"{len(list(parts.glob('*.json'))):06}.npy"
        write_rows(path, len(files), (features.numpy() for _, features in waiting))
        write_json(path.with_suffix(".json"), {"recipe": recipe, "files": files})
        rows.update(rows_of(np.load(path, mmap_mode="r"), files))
        waiting.clear()


def _kept(parts: Path, recipe: list) -> Rows:
    """What earlier runs left; parts of another model or of other settings stay where they are, and are not used."""
    rows: Rows = {}
    for record in sorted(parts.glob("*.json")):
        try:
            about = json.loads(record.read_text())
            if about["recipe"] == recipe:
                features = np.load(record.with_suffix(".npy"), mmap_mode="r")
                rows.update(rows_of(features, [File(*file) for file in about["files"]]))
        except (OSError, ValueError, LookupError, TypeError):
            continue  # not ours, or damaged: its pictures are computed again
    return rows
