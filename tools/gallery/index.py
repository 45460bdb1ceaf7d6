"""An index: a folder with the features of pictures. `make_index` writes it; `add` and `remove` change it.

An entry is a picture, or a tracklet: pictures of one person from one camera, with the mean of their features.

The folder holds index.json (the model, the pictures, names and checksums of the other files), features.npy (N, D)
float32 with rows of length 1 in the order of the entries, and for FAISS an engine. Rows are only appended to
features.npy, and index.json is written last, so that it matches the files that it names even if a program is stopped.
"""

import io
import json
import math
import os
import re
import time
import zlib
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from config.config import DataSettings
from datasets.folder import list_pictures
from datasets.own import read_csv
from processor.extractor import FeatureExtractor
from tools.gallery.engines import build_engine, load_faiss, nearest, search_engine
from utils.errors import Stopped, UserError
from utils.files import lock_directory, reading, write_atomically, write_rows
from utils.logging import log
from utils.lookup import load

FORMAT = "PlainReID index 2"
DATA = re.compile(r"features(\.\d+)?\.npy|engine(\.\d+)?\.faiss")
FIX = "remove the index and index again"
SAVE_SECONDS = 60  # while features are computed, the index is saved this often
COPIED = 1024  # rows that are copied at a time
CAMERA = re.compile(DataSettings.camera_pattern)  # in the name of a file
LISTED = 10  # unreadable files that a message names


class File(NamedTuple):
    """An entry; `size` and `changed` show whether its content has changed."""

    path: str  # relative to the index's root, with / as separator; of a tracklet: its folder, or CSV/PID/CAMID/TRACK
    size: int  # bytes; of a tracklet: of all its pictures
    changed: int  # last change of any kind, in ns since 1970 (a renamed file keeps its mtime)
    picture: str = ""  # of a tracklet: its first picture, relative to the root
    camera: str = ""  # empty: unknown
    time: float = 0  # seconds since 1970, or in the unit of the CSV


class Where(NamedTuple):
    """Which entries a search may find."""

    camera: str = ""  # empty: all
    after: float = -math.inf  # the earliest time
    before: float = math.inf  # the latest time

    def keeps(self, file: File) -> bool:
        return self.camera in ("", file.camera) and self.after <= file.time <= self.before


EVERYWHERE = Where()


@dataclass
class Index:
    """The entries of an index, and their features, which are read at first use. `save` writes changes to the disk."""

    directory: Path
    about: dict[str, Any]  # plain values: model and preprocessing, root, file names and checksums, threshold
    files: list[File]  # N entries
    ids: list[int]  # N ascending numbers of the entries in an engine; none is used twice

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
            # Not with np.load: a stopped program may have left a header with more rows than the file has.
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
        with reading(path, "ask with --exact, or index again with --engine hnsw"):
            if zlib.crc32(np.memmap(path, np.uint8, "r")) != self.about["engine"]["crc"]:
                raise ValueError("its checksum is wrong")
            if self.about["engine"]["kind"] != "hnsw":  # written by an older version
                raise ValueError(f"its kind is {self.about['engine']['kind']}")
            return load_faiss().read_index(str(path))

    def find(
        self, query: torch.Tensor, k: int, exact: bool = False, where: Where = EVERYWHERE
    ) -> list[tuple[float, File]]:
        """The k nearest entries to a query (1, D) with their cosines, in descending order; exact with `where`."""
        files, rows = self.files, slice(None)
        if where != EVERYWHERE:
            rows = [row for row, file in enumerate(self.files) if where.keeps(file)]
            files = [self.files[row] for row in rows]
        if where != EVERYWHERE or exact or self.engine is None:
            value, found = nearest(query, torch.from_numpy(self.features[rows]), k)
        else:
            value, found = search_engine(self.engine, query.numpy(), k, np.array(self.ids))
        pairs = zip(value[0].tolist(), found[0].tolist(), strict=True)
        return [(cosine, files[place]) for cosine, place in pairs if place >= 0]

    def missing(self, files: Sequence[File]) -> list[File]:
        """Return the files that are not in the index, or changed. Camera and time of the others are updated."""
        rows = {file.path: row for row, file in enumerate(self.files)}
        missing = []
        for file in files:
            row = rows.get(file.path)
            if row is None or self.files[row][:3] != file[:3]:
                missing.append(file)
            else:
                self.files[row] = file
        return missing

    def finish(self, wanted: Sequence[File] | None = None) -> None:
        """Remove entries that a later one of the same path replaces, and entries that are not `wanted`."""
        last = {file.path: row for row, file in enumerate(self.files)}
        kept = {file[:3] for file in (self.files if wanted is None else wanted)}
        self.drop([row for row, file in enumerate(self.files) if last[file.path] != row or file[:3] not in kept])

    def entries(self) -> list[File]:
        return self.files

    def drop_paths(self, paths: Set[str]) -> None:
        self.drop([row for row, file in enumerate(self.files) if file.path in paths])

    def append(self, files: Sequence[File], features: np.ndarray) -> None:
        """Add entries with their features (M, D) float32, to the engine too. They overwrite rows that are not saved.

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
            error.filename = error.filename or str(path)  # the error of a full disk names no file
            raise
        ids = range(self.about["next_id"], self.about["next_id"] + len(files))
        if self.engine is not None:
            self.engine.add_with_ids(np.ascontiguousarray(features), np.array(ids))
        self.files += files
        self.ids += ids
        self.about |= {"next_id": ids.stop, "crc": zlib.crc32(np.ascontiguousarray(features), self.about["crc"])}
        self.__dict__.pop("features", None)

    def drop(self, rows: Sequence[int]) -> None:
        """Remove entries; the features of the others are copied to a new file."""
        if not rows:
            return
        features, kept = self.features, np.setdiff1d(np.arange(len(self)), rows).tolist()
        name = unused(self.directory, "features", ".npy")
        blocks = (features[kept[i : i + COPIED]] for i in range(0, len(kept), COPIED))
        write_rows(self.directory / name, len(kept), blocks)
        self.files, self.ids = [self.files[row] for row in kept], [self.ids[row] for row in kept]
        crc = zlib.crc32(np.load(self.directory / name, mmap_mode="r")) if kept else 0
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
        files = {"files": [file[:3] for file in self.files], "labels": [file[3:] for file in self.files]}
        text = json.dumps(self.about | {"ids": self.ids} | files)[1:].encode()
        write_atomically(self.directory / "index.json", lambda temporary: temporary.write_bytes(json_head(text) + text))
        named = (self.about.get("features"), self.about.get("engine", {}).get("file"))
        for path in self.directory.iterdir():
            if DATA.fullmatch(path.name) and path.name not in named:
                path.unlink()


def unused(directory: Path, stem: str, suffix: str) -> str:
    """Return the first of NAME.npy, NAME.1.npy, ... that does not exist."""
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
    """Read an index. Raises UserError if there is none, or if index.json is damaged or of another version."""
    directory = Path(directory)
    path = directory / "index.json"
    if not path.is_file():
        raise UserError(f"there is no index {directory}; make one: python tools/search.py index FOLDER --output NAME")
    with reading(path, FIX):
        head, text = path.read_bytes().split(b", ", 1)
        if head + b", " != json_head(text):
            raise ValueError("its checksum is wrong")
        about = json.loads(b"{" + text)
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']}")
        files, ids = about.pop("files"), about.pop("ids")
        labels = about.pop("labels", [()] * len(files))  # indexes of older versions have none
        files = [File(*file, *label) for file, label in zip(files, labels, strict=True)]
    kind = load("tools.gallery.milvus:MilvusIndex") if "uri" in about else Index
    return kind(directory, about, files, ids)


@contextmanager
def changing(directory: str | Path, create: bool = False) -> Iterator[Index | None]:
    """Yield the index, locked against other programs; None if it does not exist and `create` is true.

    Raises UserError as `read_index` does, and if another program is changing the index.
    """
    if not create:
        read_index(directory)  # so that no folder is created for the lock if there is no index
    with lock_directory(directory) as locked:
        if not locked:
            raise UserError(f"another program is writing {directory}; wait for it to end")
        yield None if create and not Path(directory, "index.json").exists() else read_index(directory)


def extractor_of(index: Index, checkpoint: str = "", **options: Any) -> FeatureExtractor:
    """Load the model that made an index, from the checkpoint that the index names, or from `checkpoint`.

    options: those of FeatureExtractor. Raises UserError if the checkpoint is gone or holds another model.
    """
    stored, made_by = index.about["model"], index.about["checkpoint"]
    if not checkpoint and not Path(made_by).is_file():
        raise UserError(f"{index.directory} was made with {made_by}, which is gone; give its new path as --checkpoint")
    extractor = FeatureExtractor(checkpoint or made_by, flip=index.about["flip"], **options)
    if stored != extractor.fingerprint:
        raise UserError(
            f"{index.directory} was made with another model ({made_by}) than {extractor.checkpoint}, so their "
            "features cannot be compared; give its own --checkpoint, or index again"
        )
    return extractor


def place_of(root: str | Path, path: str) -> Path:
    """Resolve a path from os.path.relpath; it may contain .. even if `root` is a link or does not exist."""
    return Path(os.path.normpath(os.path.join(root, path)))


def list_files(root: Path, places: Sequence[str | Path], tracklets: bool = False) -> dict[File, list[Path]]:
    """Return entries with their pictures, sorted by path relative to `root`, from folders, pictures and CSV files.

    A CSV has a column path, and may have pid, camid, time and track; all pictures of a track are one entry.
    tracklets: all pictures of a folder are one entry. Raises UserError as `list_pictures` and `read_csv` do, and if
    `places` is empty.
    """
    if not places:
        raise UserError("no picture is named; name pictures or folders of pictures")
    relative = lambda path: Path(os.path.relpath(os.path.abspath(path), root)).as_posix()  # noqa: E731
    groups: dict[str, dict[str, tuple[Path, str, str]]] = {}  # by entry and picture: path, camera and time
    for place in map(Path, places):
        if place.suffix.lower() == ".csv" and place.is_file():
            for picture in read_csv(place, ("path",)):
                parts = (relative(place), picture.identity, picture.camera, picture.track)
                name = "/".join(filter(None, parts)) if picture.track else relative(picture.path)
                label = (Path(picture.path), picture.camera, picture.time)
                groups.setdefault(name, {})[relative(picture.path)] = label
            continue
        for path in list_pictures(place):
            camera = CAMERA.search(path.name)
            label = (path, camera[1] if camera else "", "")
            groups.setdefault(relative(path.parent if tracklets else path), {})[relative(path)] = label
    found = {}
    for name, members in sorted(groups.items()):
        first, (path, camera, time_) = next(iter(members.items()))
        try:
            all_of = [path.stat() for path, *_ in members.values()]
        except OSError:
            all_of = []  # it will be listed with the files that cannot be read
        changed = max((max(status.st_mtime_ns, status.st_ctime_ns) for status in all_of), default=0)
        when = seconds(time_, str(path)) if time_ else min((status.st_mtime for status in all_of), default=0)
        file = File(name, sum(s.st_size for s in all_of), changed, "" if first == name else first, camera, when)
        found[file] = [path for path, *_ in members.values()]
    return found


def seconds(text: str, where: str) -> float:
    """Convert a time, a number or like 2026-01-31T12:00, to a number. Raises UserError that names `where`."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise UserError(f"{where}: {text!r} is not a time; give a number, or a date like 2026-01-31T12:00") from error


def compute(index: Index, extractor: FeatureExtractor, files: dict[File, list[Path]]) -> tuple[int, int]:
    """Append the entries that the index lacks; return their number, and the number of entries that it has already.

    Pictures that cannot be read are left out and listed. Raises UserError if none can be read. On Ctrl-C, what was
    computed is saved, and Stopped is raised.
    """
    missing = index.missing(list(files))
    kept = len(files) - len(missing)
    if 0 < len(missing) < len(files):
        log.info("%d of %d pictures already have their features", kept, len(files))
    bad: dict[int, str] = {}
    pictures = [(entry, path) for entry, file in enumerate(missing) for path in files[file]]
    ends = np.cumsum([len(files[file]) for file in missing])
    sums: dict[int, list[np.ndarray]] = {}  # features of the pictures of entries that are not appended yet
    done, saved = 0, time.monotonic()

    def append(stop: float) -> int:
        """Append the entries whose pictures end before this place."""
        ready = [entry for entry in sums if ends[entry] <= stop]
        if ready:
            index.append([missing[entry] for entry in ready], np.stack([mean(sums.pop(entry)) for entry in ready]))
        return len(ready)

    try:
        for places, features in extractor.batches([path for _, path in pictures], bad):
            for place, feature in zip(places, features.numpy(), strict=True):
                sums.setdefault(pictures[place][0], []).append(feature)
            done += append(places[-1] + 1)
            if time.monotonic() - saved > SAVE_SECONDS:
                index.save()
                saved = time.monotonic()
        done += append(math.inf)
    except KeyboardInterrupt as stop:
        if done:
            index.save()
        kept += done
        raise Stopped(f"stopped; {kept} of {len(files)} are saved; repeat the command to continue", 130) from stop
    if bad:
        reasons = "; ".join(list(bad.values())[:LISTED])
        more = f"; and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
        log.warning("warning: pictures that cannot be read and are left out: %d (%s%s)", len(bad), reasons, more)
    if not kept + done:
        raise UserError("none of the pictures can be read; see the reasons above")
    return done, kept


def mean(features: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of unit features, scaled to length 1; a single feature is returned as it is."""
    total = np.sum(features, axis=0, dtype=np.float64)
    return features[0] if len(features) == 1 else (total / max(np.linalg.norm(total), 1e-30)).astype(np.float32)


def make_index(
    extractor: FeatureExtractor, places: Sequence[str | Path], output: str | Path, engine: str = "exact",
    uri: str = "", tracklets: bool = False,
) -> Index:  # fmt: skip
    """Write the features of all pictures in folders, files and CSV files (see `list_files`) to the index `output`.

    Features of unchanged pictures that `output` holds are kept if its folder and model are the same. uri: of the
    database, for milvus. Raises UserError as `list_files` and `compute` do and if `output` is not an index, Stopped on
    Ctrl-C.
    """
    if engine == "hnsw":
        load_faiss()  # fails before hours of work, not after
    output = Path(output)
    others = (path.name for path in output.glob("[!.]*") if path.name != "index.json")
    if output.is_file() or not all(map(DATA.fullmatch, others)):
        raise UserError(f"{output} exists and is not an index; give --output the name of a new folder")
    root = Path(os.path.commonpath([os.path.abspath(place) for place in places]))
    root = root if root.is_dir() else root.parent
    files = list_files(root, places, tracklets)
    with changing(output, create=True) as old:
        index = reuse_or_start(old, extractor, root, output, uri if engine == "milvus" else "")
        index.about["tracklets"] = tracklets or any(file.picture for file in files)
        computed, _ = compute(index, extractor, files)
        index.finish(list(files))
        if engine == "hnsw":
            log.info("building %s", engine)
            index.engine = build_engine(index.features, np.array(index.ids))
        if engine != "exact":
            index.about["engine"] = {"kind": engine}
        index.about["complete"] = True
        index.save()
    kind = "tracklets" if index.about["tracklets"] else "pictures"
    log.info("%s in %s: %d, of which computed now: %d", kind, output, len(index), computed)
    return index


def reuse_or_start(old: Index | None, extractor: FeatureExtractor, root: Path, output: Path, uri: str) -> Index:
    """Return the old index without its engine if its folder, model and database are the same; else an empty one, which
    replaces it when it is saved. A threshold of the same model is kept."""
    about = {"format": FORMAT, "model": extractor.fingerprint, "flip": extractor.flip, "half": extractor.half}
    same_model = old is not None and all(old.about[name] == value for name, value in about.items())
    about |= {"checkpoint": str(extractor.checkpoint.absolute()), "root": str(root), "complete": False}
    if same_model and old.about["root"] == str(root) and old.about.get("uri", "") == uri:
        old.about.pop("engine", None)
        old.about |= about
        return old
    if same_model and "threshold" in old.about:
        about["threshold"] = old.about["threshold"]
    about |= {"dim": extractor.width}
    if uri:
        return load("tools.gallery.milvus:MilvusIndex")(output, about | {"uri": uri}, [], [])
    about |= {"features": unused(output, "features", ".npy"), "crc": 0, "next_id": 0}
    return Index(output, about, files=[], ids=[])


def add(index: Index, extractor: FeatureExtractor, places: Sequence[str | Path]) -> None:
    """Add pictures; changed ones replace the old ones. Raises as `list_files` and `compute` do."""
    files = list_files(Path(index.about["root"]), places, index.about.get("tracklets", False))
    index.finish()  # an `add` that was stopped may have left replaced entries
    before, (computed, present) = len(index), compute(index, extractor, files)
    index.finish()
    index.save()
    added = len(index) - before
    counts = (added, computed - added, present, index.directory, len(index))
    log.info("added: %d, replaced: %d, present already: %d; pictures in %s: %d", *counts)


def remove(index: Index, names: Sequence[str]) -> None:
    """Remove pictures. names: pictures or folders, as in the index or as paths on the disk.

    Raises UserError, and removes nothing, if a name matches no picture.
    """
    if not names:
        raise UserError("no picture is named; name pictures or folders to remove")
    paths, root, before = [file.path for file in index.entries()], Path(index.about["root"]), len(index)
    found = {name: rows_named(paths, root, name) for name in names}
    for name, rows in found.items():
        if not rows:
            raise UserError(f"{index.directory} holds no picture called {name}, and none in a folder of that name")
    index.drop_paths({paths[row] for rows in found.values() for row in rows})
    index.save()
    log.info("removed: %d; pictures in %s: %d", before - len(index), index.directory, len(index))


def rows_named(paths: Sequence[str], root: Path, name: str) -> list[int]:
    """Rows of a picture, or of the pictures in a folder: by its path in the index, else by its path on the disk."""
    if not name:
        return []
    on_disk = os.path.relpath(os.path.abspath(name), root)
    for tried in (os.path.normpath(name), on_disk):
        found = [row for row, path in enumerate(paths) if path == tried or path.startswith(f"{tried}/")]
        if found:
            return found
    return [row for row, path in enumerate(paths) if on_disk == "." and not path.startswith("../")]
