"""An index: a folder with the features of pictures, which `make_index` writes, `add` and `remove` change.

The folder holds index.json (the model, the pictures, names and checksums of the other files), features.npy (N, D)
float32 with rows of length 1 in the order of the pictures, and for FAISS an engine. Rows are only appended to
features.npy, and index.json is written last: whatever stops a program, index.json fits the files that it names.
"""

import io
import json
import os
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from datasets.folder import list_pictures
from processor.extractor import FeatureExtractor
from tools.gallery.engines import build_engine, load_faiss, nearest, read_engine, search_engine
from utils.errors import Stopped, UserError
from utils.files import lock_directory, reading, write_atomically, write_rows
from utils.logging import log

FORMAT = "PlainReID index 2"
DATA = re.compile(r"features(\.\d+)?\.npy|engine(\.\d+)?\.faiss")
FIX = "remove the index and index again"
SAVE_SECONDS = 60  # while features are computed, the index is saved this often
COPIED = 1024  # rows that are copied at a time
LISTED = 10  # unreadable files that a message names


class File(NamedTuple):
    """A picture, and what changes when its content does."""

    path: str  # relative to the index's root, with / as separator
    size: int  # bytes
    changed: int  # nanoseconds since 1970 of its last change of any kind: a file that is renamed keeps its mtime


@dataclass
class Index:
    """The pictures of an index and, read at first use, their features. Changes are valid on the disk after `save`."""

    directory: Path
    about: dict[str, Any]  # plain values: model and preprocessing, root, file names and checksums, threshold
    files: list[File]  # N pictures, their paths relative to about["root"]
    ids: list[int]  # N ascending numbers by which an engine knows the pictures; none is used twice

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def features(self) -> np.ndarray:
        """(N, D) float32, memory-mapped. Raises UserError if the file is damaged."""
        path = self.directory / self.about["features"]
        shape = (len(self), self.about["dim"])
        if not self.files:
            return np.empty(shape, np.float32)
        with reading(path, FIX):
            # Not by np.load, as a stopped program may have left a header with more rows than the file has.
            # "c": writable in memory only, as torch warns of arrays that are not writable
            rows = np.memmap(path, "<f4", "c", len(npy_header(*shape)), shape)
            if zlib.crc32(rows) != self.about["crc"]:
                raise ValueError("its checksum is wrong")
        return rows

    @cached_property
    def engine(self) -> Any:
        """The FAISS index; None for exact search. Raises UserError if the file is damaged."""
        if "engine" not in self.about:
            return None
        path = self.directory / self.about["engine"]["file"]
        with reading(path, "ask with --exact, or index again"):
            if zlib.crc32(np.memmap(path, np.uint8, "r")) != self.about["engine"]["crc"]:
                raise ValueError("its checksum is wrong")
        return read_engine(path, self.about["dim"])

    def search(self, query: torch.Tensor, k: int, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Cosines (Q, K) of the k nearest pictures in descending order, and their rows; -1 for what was not found."""
        if exact or self.engine is None:
            value, row = nearest(query, torch.from_numpy(self.features), k)
            return value.numpy(), row.numpy()
        return search_engine(self.engine, query.numpy(), k, np.array(self.ids))

    def append(self, files: Sequence[File], features: np.ndarray) -> None:
        """Add pictures with their features (M, D) float32, to the engine too. They overwrite rows that were not saved.

        Raises OSError on a full disk.
        """
        path, width = self.directory / self.about["features"], self.about["dim"]
        try:
            with open(path, "r+b" if path.exists() else "wb") as file:
                file.write(npy_header(len(self) + len(files), width))
                file.seek(4 * width * len(self), os.SEEK_CUR)
                file.write(np.ascontiguousarray(features, "<f4").data)
                file.truncate()
        except OSError as error:
            error.filename = error.filename or str(path)  # a full disk names none
            raise
        ids = range(self.about["next_id"], self.about["next_id"] + len(files))
        if self.engine is not None:
            self.engine.add_with_ids(np.ascontiguousarray(features), np.array(ids))
        self.files += files
        self.ids += ids
        self.about |= {"next_id": ids.stop, "crc": zlib.crc32(np.ascontiguousarray(features), self.about["crc"])}
        self.__dict__.pop("features", None)

    def drop(self, rows: Sequence[int]) -> None:
        """Remove pictures; the features of the others are copied to a new file."""
        if not rows:
            return
        features, kept = self.features, np.setdiff1d(np.arange(len(self)), rows).tolist()
        name, crc = unused(self.directory, "features", ".npy"), 0
        blocks = [kept[i : i + COPIED] for i in range(0, len(kept), COPIED)]
        write_rows(self.directory / name, len(kept), (features[block] for block in blocks))
        for block in blocks:
            crc = zlib.crc32(features[block], crc)
        self.files, self.ids = [self.files[row] for row in kept], [self.ids[row] for row in kept]
        self.about |= {"features": name, "crc": crc}
        self.__dict__.pop("features", None)

    def save(self) -> None:
        """Write the engine, if it was read or built, then index.json, and remove the files that it no longer names."""
        if self.__dict__.get("engine") is not None:
            path = self.directory / unused(self.directory, "engine", ".faiss")
            write_atomically(path, lambda temporary: load_faiss().write_index(self.engine, str(temporary)))
            self.about["engine"] |= {"file": path.name, "crc": zlib.crc32(np.memmap(path, np.uint8, "r"))}
        if self.files:
            with open(self.directory / self.about["features"], "rb") as file:
                os.fsync(file.fileno())
        text = json.dumps(self.about | {"ids": self.ids, "files": self.files})[1:].encode()
        write_atomically(self.directory / "index.json", lambda temporary: temporary.write_bytes(json_head(text) + text))
        named = (self.about["features"], self.about.get("engine", {}).get("file"))
        for path in self.directory.iterdir():
            if DATA.fullmatch(path.name) and path.name not in named:
                path.unlink()


def unused(directory: Path, stem: str, suffix: str) -> str:
    """The first of NAME.npy, NAME.1.npy, ... that does not exist."""
    names = (f"{stem}{f'.{number}' * bool(number)}{suffix}" for number in count())
    return next(name for name in names if not (directory / name).exists())


def npy_header(rows: int, width: int) -> bytes:
    """The beginning of a .npy file; NumPy pads it to the same length for any number of rows."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})
    return header.getvalue()


def json_head(text: bytes) -> bytes:
    """The beginning of index.json: the checksum of the text that follows."""
    return b'{"checksum": %10d, ' % zlib.crc32(text)


def read_index(directory: str | Path) -> Index:
    """Raises UserError if there is no index, or index.json is damaged or of another version."""
    directory = Path(directory)
    path = directory / "index.json"
    if directory.is_file():
        raise UserError(f"{directory} is a file and no index, or one of an older version; index again to a folder")
    if not path.is_file():
        raise UserError(f"there is no index {directory}; make one: python tools/search.py index FOLDER --output NAME")
    with reading(path, FIX):
        head, text = path.read_bytes().split(b", ", 1)
        if head + b", " != json_head(text):
            raise ValueError("its checksum is wrong")
        about = json.loads(b"{" + text)
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']}")
        return Index(directory, about, files=[File(*file) for file in about.pop("files")], ids=about.pop("ids"))


@contextmanager
def changing(directory: str | Path, create: bool = False) -> Iterator[Index | None]:
    """The index, which no other program changes meanwhile; None if it does not exist and `create`.

    Raises UserError as `read_index` does, and if another program is changing the index.
    """
    if not create:
        read_index(directory)  # so that no folder is made for the lock if there is none
    with lock_directory(directory) as locked:
        if not locked:
            raise UserError(f"another program is writing {directory}; wait for it to end")
        yield None if create and not Path(directory, "index.json").exists() else read_index(directory)


def extractor_of(index: Index, checkpoint: str = "", **options: Any) -> FeatureExtractor:
    """The model that made an index, from the checkpoint that did, or from `checkpoint`.

    options: as FeatureExtractor has them. Raises UserError if the checkpoint is gone or holds another model.
    """
    stored, made_by = index.about["model"], index.about["checkpoint"]
    if not checkpoint and not Path(made_by).is_file():
        raise UserError(f"{index.directory} was made by {made_by}, which is gone; give its new place as --checkpoint")
    extractor = FeatureExtractor(checkpoint or made_by, flip=index.about["flip"], **options)
    if stored != extractor.fingerprint:
        raise UserError(
            f"{index.directory} is of another model (that of {made_by}) than {extractor.checkpoint}, so their "
            "features cannot be compared; give its own --checkpoint, or index again"
        )
    return extractor


def place_of(root: str | Path, path: str) -> Path:
    """Where a path from os.path.relpath leads, also one with .. in it if `root` is a link or does not exist."""
    return Path(os.path.normpath(os.path.join(root, path)))


def list_files(root: Path, places: Sequence[str | Path]) -> list[File]:
    """Pictures of folders, and picture files, each once, sorted by their path relative to `root`.

    Raises UserError as `list_pictures` does, and if there is no place.
    """
    if not places:
        raise UserError("no picture is named; name folders of pictures, or pictures")
    found = {}
    for path in (path for place in places for path in list_pictures(place)):
        relative = Path(os.path.relpath(os.path.abspath(path), root)).as_posix()
        try:
            status = path.stat()
            found[relative] = File(relative, status.st_size, max(status.st_mtime_ns, status.st_ctime_ns))
        except OSError:
            found[relative] = File(relative, 0, 0)  # it is listed with the files that cannot be read
    return sorted(found.values())


def compute(index: Index, extractor: FeatureExtractor, files: Sequence[File]) -> int:
    """Append the files that the index lacks; returns their number.

    Files that cannot be read are left out and listed. Raises UserError if none can be read. On Ctrl-C, what was
    computed is saved, and Stopped is raised.
    """
    present, before = set(index.files), len(index)
    missing = [file for file in files if file not in present]
    if 0 < len(missing) < len(files):
        log.info("%d of %d pictures have their features already", len(files) - len(missing), len(files))
    bad: dict[int, str] = {}
    paths, saved = [place_of(index.about["root"], file.path) for file in missing], time.monotonic()
    try:
        for places, features in extractor.batches(paths, bad):
            index.append([missing[place] for place in places], features.numpy())
            if time.monotonic() - saved > SAVE_SECONDS:
                index.save()
                saved = time.monotonic()
    except KeyboardInterrupt as stop:
        if len(index) > before:
            index.save()
        done = len(files) - len(missing) + len(index) - before
        raise Stopped(f"stopped; {done} of {len(files)} are kept, the same command continues from there", 130) from stop
    if bad:
        reasons = "; ".join(list(bad.values())[:LISTED])
        more = f"; and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
        log.warning("warning: pictures that cannot be read, left out: %d (%s%s)", len(bad), reasons, more)
    if len(bad) == len(files):
        raise UserError("none of the pictures can be read; see the reasons above")
    return len(missing) - len(bad)


def make_index(
    extractor: FeatureExtractor, places: Sequence[str | Path], output: str | Path, engine: str = "exact"
) -> Index:
    """Write the features of all pictures in folders (or of picture files) to the index `output`.

    The features that `output` has of unchanged pictures are kept, if it is of the same folder and model. Raises
    UserError as `list_files` and `compute` do and if `output` is no index, Stopped on Ctrl-C.
    """
    if engine != "exact":
        load_faiss()  # missing: before hours of work, not after
    output = Path(output)
    others = (path.name for path in output.glob("[!.]*") if path.name != "index.json")
    if output.is_file() or not all(map(DATA.fullmatch, others)):
        raise UserError(f"{output} is something else than an index; give --output the name of a new folder")
    root = Path(os.path.commonpath([os.path.abspath(place) for place in places]))
    root = root if root.is_dir() else root.parent
    files = list_files(root, places)
    with changing(output, create=True) as old:
        index = reuse_or_start(old, extractor, root, output)
        computed, wanted = compute(index, extractor, files), set(files)
        index.drop([row for row, file in enumerate(index.files) if file not in wanted])
        if engine != "exact":
            log.info("building %s", engine)
            index.engine = build_engine(index.features, np.array(index.ids))
            index.about["engine"] = {"kind": engine}
        index.about["complete"] = True
        index.save()
    log.info("pictures in %s: %d, of which computed now: %d", output, len(index), computed)
    return index


def reuse_or_start(old: Index | None, extractor: FeatureExtractor, root: Path, output: Path) -> Index:
    """The old index without its engine, if it is of the same folder and model; else an empty one, which replaces it
    when it is saved. The threshold of the same model is kept."""
    about = {"format": FORMAT, "model": extractor.fingerprint, "flip": extractor.flip, "half": extractor.half}
    same_model = old is not None and all(old.about[name] == value for name, value in about.items())
    about |= {"checkpoint": str(extractor.checkpoint.absolute()), "root": str(root), "complete": False}
    if same_model and old.about["root"] == str(root):
        old.about.pop("engine", None)
        old.about |= about
        return old
    if same_model and "threshold" in old.about:
        about["threshold"] = old.about["threshold"]
    about |= {"features": unused(output, "features", ".npy"), "dim": extractor.width, "crc": 0, "next_id": 0}
    return Index(output, about, files=[], ids=[])


def add(index: Index, extractor: FeatureExtractor, places: Sequence[str | Path]) -> None:
    """Add pictures; those that changed since replace the old ones. Raises as `list_files` and `compute` do."""
    files, present = list_files(Path(index.about["root"]), places), set(index.files)
    computed = compute(index, extractor, files)
    last = {file.path: row for row, file in enumerate(index.files)}
    replaced = [row for row, file in enumerate(index.files) if last[file.path] != row]
    index.drop(replaced)
    index.save()
    counts = (computed - len(replaced), len(replaced), sum(file in present for file in files), index.directory)
    log.info("added: %d, replaced: %d, present already: %d; pictures in %s: %d", *counts, len(index))


def remove(index: Index, names: Sequence[str]) -> None:
    """Remove pictures: names as in the index, or places on the disk, of pictures or folders.

    Raises UserError, and removes nothing, if a name is of none.
    """
    if not names:
        raise UserError("no picture is named; name those to remove, or folders of them")
    paths, root, before = [file.path for file in index.files], Path(index.about["root"]), len(index)
    found = {name: rows_named(paths, root, name) for name in names}
    for name, rows in found.items():
        if not rows:
            raise UserError(f"{index.directory} holds no picture called {name}, and none in a folder of that name")
    index.drop(sorted(set().union(*found.values())))
    index.save()
    log.info("removed: %d; pictures in %s: %d", before - len(index), index.directory, len(index))


def rows_named(paths: Sequence[str], root: Path, name: str) -> list[int]:
    """Rows of a picture, or of the pictures in a folder: by its path in the index, else by its place on the disk."""
    if not name:
        return []
    on_disk = os.path.relpath(os.path.abspath(name), root)
    for tried in (os.path.normpath(name), on_disk):
        found = [row for row, path in enumerate(paths) if path == tried or path.startswith(f"{tried}/")]
        if found:
            return found
    return [row for row, path in enumerate(paths) if on_disk == "." and not path.startswith("../")]
