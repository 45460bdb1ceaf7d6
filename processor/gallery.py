"""Features of pictures in one file: what `tools/extract_features.py FOLDER` writes and `tools/search.py` searches.

The file is an .npz, whatever its name ends with: `features` (N, D) float32 of length 1; `paths` (N,) of the pictures,
relative to about["root"]; `stamps` (N, 2) of the files, by which changed pictures are known; `ids` (N,), ascending and
never used twice; and `about`, JSON: the model, its preprocessing, and what was found out about it.
"""

from __future__ import annotations

import glob
import json
import math
import os
import re
import secrets
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from datasets.folder import File
from processor.extractor import FeatureExtractor
from utils.engines import read_engine, search_engine, write_engine
from utils.errors import UserError
from utils.files import write_atomically
from utils.nearest import nearest

FORMAT = "PlainReID features 1"
ARRAYS = ("features", "paths", "stamps", "ids")
NEEDED = {"model", "checkpoint", "flip", "half", "root", "next_id"}
# What NumPy, zipfile and json raise for files that are not what they should be.
DAMAGED = (OSError, ValueError, LookupError, EOFError, AttributeError, TypeError, NotImplementedError, MemoryError)
DAMAGED += (zipfile.BadZipFile, zlib.error)


@dataclass
class Gallery:
    features: np.ndarray  # (N, D) float32; of a file that was read, mapped
    paths: np.ndarray  # (N,) str, relative to about["root"]
    stamps: np.ndarray  # (N, 2) int64: bytes of each file, and nanoseconds of its last change
    ids: np.ndarray  # (N,) int64
    about: dict[str, Any]  # plain values
    engine: Any = None  # of FAISS, over the same rows

    def __len__(self) -> int:
        return len(self.ids)

    def files(self) -> list[File]:
        """The pictures as `datasets.folder` lists them."""
        return [File(path, *stamp) for path, stamp in zip(self.paths.tolist(), self.stamps.tolist(), strict=True)]

    def search(self, query: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Similarities (Q, K) of the k nearest, and their rows; K is at most N. An engine that has found less gives
        rows of -1 at the end."""
        if self.engine is not None:
            return search_engine(self.engine, query.numpy(), k, self.ids)
        return tuple(x.numpy() for x in nearest(query, torch.from_numpy(self.features), k))


def arrays_of(files: Sequence[File]) -> tuple[np.ndarray, np.ndarray]:
    """The paths and stamps of a Gallery."""
    paths, stamps = [file.path for file in files], [file[1:] for file in files]
    return np.array(paths, str), np.array(stamps, np.int64).reshape(len(files), 2)


def new_about(extractor: FeatureExtractor, root: Path) -> dict[str, Any]:
    """What a file of features of that model says of itself."""
    cfg = extractor.cfg
    about = {"format": FORMAT, "model": extractor.fingerprint, "checkpoint": str(extractor.checkpoint.absolute())}
    about |= {
        "backbone": cfg.model.backbone,
        "trained_on": cfg.data.dataset,
        "height": cfg.data.height,
        "width": cfg.data.width,
    }
    return about | {"flip": extractor.flip, "half": extractor.half, "root": str(root), "next_id": 0}


def read_gallery(path: str | Path, engine: bool = False) -> Gallery:
    """What `write_gallery` wrote, with `engine` also the FAISS index that lies beside it, where there is one.

    Raises UserError for a file that is missing, damaged or another. Nothing in it is run as code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no index {path}; make one with python tools/search.py index FOLDER --output {path}")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("no .npz")
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
        if about["format"] != FORMAT or not about.keys() >= NEEDED:
            raise ValueError(f"its format is {about['format']!r}")
        gallery = Gallery(*(_mapped(path, name) for name in ARRAYS), about)
        _check(gallery)
    except DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        mend = "name another, or remove it and index again"
        raise UserError(f"{path} is no file of features, or damaged ({reason}); {mend}") from error
    if engine and "engine" in about:
        beside = path.with_name(Path(about["engine"]["file"]).name)
        if not beside.is_file():
            raise UserError(f"{beside} is missing beside {path}; ask with --exact, or index again")
        gallery.engine = read_engine(beside, gallery.features.shape[1])
    return gallery


def _mapped(path: Path, name: str) -> np.ndarray:
    """An array of an uncompressed .npz, mapped: asking one question is not to read two gigabytes.

    "c": changes would stay in memory, so torch need not warn that the file is not writable.
    """
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        member = archive.getinfo(f"{name}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        file.seek(member.header_offset + 26)  # two lengths, and what they are the lengths of, before the array
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, by_column, kind = read[np.lib.format.read_magic(file)](file)
        if by_column or kind.hasobject or file.tell() + kind.itemsize * math.prod(shape) > path.stat().st_size:
            raise ValueError(f"{name} is {kind} {shape}")
        if 0 in (*shape, kind.itemsize):
            return np.empty(shape, kind)
        return np.asarray(np.memmap(file, kind, "c", file.tell(), shape))


def _check(gallery: Gallery) -> None:
    """Raises ValueError where the arrays do not fit each other."""
    features, ids, number = gallery.features, gallery.ids, len(gallery.ids)
    if features.ndim != 2 or features.dtype != np.float32 or ids.shape != (len(features),):
        raise ValueError(f"{features.dtype} features {features.shape} do not fit {ids.shape} numbers")
    if gallery.paths.shape != (number,) or gallery.stamps.shape != (number, 2) or gallery.paths.dtype.kind != "U":
        raise ValueError(f"{number} features do not fit {len(gallery.paths)} pictures")
    if ids.dtype != np.int64 or gallery.stamps.dtype != np.int64 or (np.diff(ids) <= 0).any():
        raise ValueError("its rows are not numbered as they should be")


def write_gallery(path: str | Path, gallery: Gallery) -> None:
    """Write the file atomically. An engine is written first, under a name of its own, by which the file calls it: a
    stop at any moment leaves the old two or the new two. Engines that are no longer called are removed."""
    path = Path(path)
    about = dict(gallery.about)
    if gallery.engine is not None:
        beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.faiss")
        about["engine"] = about["engine"] | {"file": beside.name}
        write_engine(beside, gallery.engine)
    arrays = {name: getattr(gallery, name) for name in ARRAYS}

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays, about=np.array(json.dumps(about)))

    write_atomically(path, write)
    for old in path.parent.glob(f"{glob.escape(path.name)}.????????.faiss"):
        if old.name != about.get("engine", {}).get("file"):
            old.unlink()


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """One program at a time changes a file of features. Raises UserError where another does."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
        probe.touch()  # raises OSError where nothing can be written at all
        probe.unlink()
        raise UserError(f"another program is writing {path}; wait for it to end") from error
    try:
        unfinished = re.compile(rf"\.{re.escape(path.name)}(\.[0-9a-f]{{8}}\.faiss)?\.\d+\.tmp")
        for left in path.parent.iterdir():  # by a program that was killed
            if unfinished.fullmatch(left.name):
                left.unlink()
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def check_model(path: str | Path, gallery: Gallery, extractor: FeatureExtractor) -> None:
    """Raises UserError where the features in the file at `path` are another model's."""
    stored, made_by = gallery.about["model"], gallery.about["checkpoint"]
    if stored != extractor.fingerprint:
        raise UserError(
            f"{path} was made by another model (weights {stored}, then in {made_by}) than {extractor.checkpoint} "
            f"(weights {extractor.fingerprint}), so their features cannot be compared; give its own --checkpoint, or "
            "index anew"
        )


def extractor_of(path: str | Path, gallery: Gallery, checkpoint: str = "", **how: Any) -> FeatureExtractor:
    """The model that made the features in the file at `path`, from the checkpoint that did, or from `checkpoint`.

    how: as FeatureExtractor takes it. Raises UserError where the checkpoint is gone, or is another model's by now.
    """
    made_by = gallery.about["checkpoint"]
    if not checkpoint and not Path(made_by).is_file():
        raise UserError(f"{path} was made by {made_by}, which is gone; say with --checkpoint where it is now")
    extractor = FeatureExtractor(checkpoint or made_by, flip=gallery.about["flip"], **how)
    check_model(path, gallery, extractor)
    return extractor
