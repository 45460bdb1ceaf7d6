"""Making a file of features, and adding pictures to it and removing them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.folder import File
from processor.extractor import FeatureExtractor
from processor.folder import compute, files_of, gather, parts_of, rows_of
from processor.gallery import ARRAYS, Gallery, arrays_of, check_model, new_about, read_gallery, write_gallery, writing
from utils.engines import build_engine, load_faiss, remove_from_engine
from utils.errors import UserError
from utils.logging import log


def index(
    extractor: FeatureExtractor, places: Sequence[str | Path], output: str | Path, engine: str = "exact"
) -> Gallery:
    """Write the features of all pictures in folders (or of picture files) to `output`; gives what was written.

    Features that `output` has of unchanged files are taken over, and so is its threshold. Raises UserError where
    nothing can be read, or `output` is a file of another kind, Stopped on Ctrl-C.
    """
    if engine != "exact":
        load_faiss()  # missing: before hours of work, not after
    output = Path(output)
    if output.is_dir():
        raise UserError(f"{output} is a folder; give --output a file, like {output / 'gallery.idx'}")
    root = Path(os.path.abspath(places[0])) if len(places) == 1 else common_folder(places)
    root = root if root.is_dir() else root.parent
    with writing(output), parts_of(output) as parts:
        before = read_gallery(output) if output.exists() else None
        about, rows = new_about(extractor, root), {}
        if before and all(before.about[name] == about[name] for name in ("model", "flip", "half")):
            about |= {name: before.about[name] for name in ("threshold",) if name in before.about}
            if before.about["root"] == about["root"]:
                rows = rows_of(before.features, before.files())
        files = files_of(root, places)
        computed = compute(extractor, root, files, rows, parts)
        files = [file for file in files if file in rows]
        about["next_id"] = len(files)
        gallery = Gallery(gather(rows, files, parts), *arrays_of(files), np.arange(len(files)), about)
        with_engine(gallery, engine)
        write_gallery(output, gallery)
    log.info("pictures in %s: %d, of which computed now: %d", output, len(files), computed)
    return gallery


def with_engine(gallery: Gallery, kind: str) -> None:
    """Build the FAISS index of this kind; exact needs none."""
    gallery.engine = None
    gallery.about.pop("engine", None)
    if kind != "exact":
        log.info("building %s", kind)
        gallery.engine = build_engine(kind, np.asarray(gallery.features), gallery.ids)
        gallery.about["engine"] = {"kind": kind}


def add(extractor: FeatureExtractor, places: Sequence[str | Path], path: str | Path) -> Gallery:
    """Add pictures to the file at `path`, its engine included; those that changed since take the place of the old.

    Raises UserError as `index` does, and where the file is of another model.
    """
    path = Path(path)
    with writing(path), parts_of(path) as parts:
        before = read_gallery(path, engine=True)
        check_model(path, before, extractor)
        root = Path(before.about["root"])
        before_files = before.files()
        files, rows = files_of(root, places), rows_of(before.features, before_files)
        compute(extractor, root, files, rows, parts)
        there = set(before_files)
        new = [file for file in files if file in rows and file not in there]
        paths = {file.path for file in new}
        old = [row for row, file in enumerate(before_files) if file.path in paths]
        gallery = without(before, old)
        if new:
            extend(gallery, gather(rows, new, parts), new)
            write_gallery(path, gallery)
    counts = (len(new) - len(old), len(old), sum(file in there for file in files), path, len(gallery))
    log.info("added: %d, replaced: %d, there already: %d; pictures in %s: %d", *counts)
    return gallery


def extend(gallery: Gallery, features: np.ndarray, files: Sequence[File]) -> None:
    """Put rows at the end, into the engine too."""
    first = gallery.about["next_id"]
    ids = np.arange(first, first + len(files))
    more = (features, *arrays_of(files), ids)
    for name, rows in zip(ARRAYS, more, strict=True):
        setattr(gallery, name, np.concatenate([getattr(gallery, name), rows]))
    gallery.about["next_id"] = first + len(files)
    if gallery.engine is not None:
        gallery.engine.add_with_ids(np.ascontiguousarray(features), ids)


def remove(names: Sequence[str], path: str | Path) -> Gallery:
    """Take pictures out of the file at `path`: names as it lists them, or places on the disk, of pictures or folders.

    Raises UserError, and removes nothing, where a name is of none.
    """
    if not names:
        raise UserError("no picture is named; name those to remove, or folders of them")
    path = Path(path)
    with writing(path):
        before = read_gallery(path, engine=True)
        rows: set[int] = set()
        paths = before.paths.tolist()
        for name in names:
            found = rows_named(paths, Path(before.about["root"]), name)
            if not found:
                raise UserError(f"{path} holds no picture called {name}, and none in a folder of that name")
            rows.update(found)
        gallery = without(before, sorted(rows))
        write_gallery(path, gallery)
    log.info("removed: %d; pictures in %s: %d", len(rows), path, len(gallery))
    return gallery


def rows_named(paths: Sequence[str], root: Path, name: str) -> list[int]:
    """Rows of a picture, or of the pictures in a folder: by its path in the file, else by its place on the disk."""
    for tried in (os.path.normpath(name), os.path.relpath(os.path.abspath(name), root)):
        found = [row for row, path in enumerate(paths) if path == tried or path.startswith(f"{tried}/")]
        if found:
            return found
    return list(range(len(paths))) if tried == "." else []


def without(gallery: Gallery, rows: Sequence[int]) -> Gallery:
    """The same less these rows; its engine is changed in place."""
    if not rows:
        return replace(gallery, about=dict(gallery.about))
    kept = np.setdiff1d(np.arange(len(gallery)), rows)
    if gallery.engine is not None:
        remove_from_engine(gallery.engine, gallery.ids[list(rows)])
    return Gallery(*(getattr(gallery, name)[kept] for name in ARRAYS), dict(gallery.about), gallery.engine)


def common_folder(places: Sequence[str | Path]) -> Path:
    return Path(os.path.commonpath([os.path.abspath(place) for place in places]))
