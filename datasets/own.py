"""Read your own pictures: Market-1501's layout, one folder per identity with or without a split, or a CSV file."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from datasets.base import PID_OFFSET, ReIDDataset, Sample, heldout_split, join_notes
from datasets.layouts import IMAGES, MARKET_FOLDERS, read_layout
from utils.errors import UserError
from utils.files import reading

# Formats that cannot be read here are listed like the others, so that they are refused by name, not overlooked.
PICTURES = IMAGES | {".heic", ".heif", ".avif", ".gif", ".jp2", ".jxl", ".dng", ".cr2", ".nef"}
SPLITS = ("train", "query", "gallery", "test")
INTEGER = re.compile(r"-?[0-9]{1,18}")
NO_CAMERAS = (
    "no camera labels, so that every image counts as its own camera: images taken one after another by the same camera "
    "count as matches, which makes scores higher than a cross-camera test's"
)


class Picture(NamedTuple):
    path: str
    identity: str
    camera: str = ""  # empty: unknown
    split: str = ""  # one of SPLITS; empty: none was given


def own(path: str | Path, test_share: float, split_seed: int, camera_pattern: str) -> ReIDDataset:
    """List the pictures of a folder or a CSV file.

    A folder holds bounding_box_train, query and bounding_box_test as Market-1501's does; or one folder per identity,
    which may hold one folder per camera; or train, and test or query and gallery, each with folders of identities. A
    CSV has a header with path and pid, and may have camid and split. Otherwise cameras come from `camera_pattern` if
    every file name matches it. Identities and cameras may be any words (see `to_numbers`).

    Without a split, about `test_share` of the identities, drawn by `split_seed`, are kept for the test (0: none, 1:
    all). Query and gallery of a test side come from `choose_queries`. Raises UserError that says what is missing.
    """
    path = Path(path)
    absolute = Path(os.path.abspath(path))  # "." has no name
    name = absolute.name if path.is_dir() else absolute.stem
    if not 0 <= test_share <= 1:
        raise UserError(f"--test-share must be between 0 and 1, not {test_share}")
    if any((path / MARKET_FOLDERS[split]).is_dir() for split in ("train", "gallery")):
        return read_layout(name, path)
    pictures = sorted(read_folders(path) if path.is_dir() else read_csv(path))
    pids, cameras = to_numbers(p.identity for p in pictures), _cameras(pictures, camera_pattern)
    sides: dict[str, list[Sample]] = {split: [] for split in ("", *SPLITS)}
    for picture, camid in zip(pictures, cameras or range(1, len(pictures) + 1), strict=True):
        sides[picture.split].append(Sample(picture.path, pids[picture.identity], camid))
    note = ""
    if sides[""]:
        drawn = draw_identities({pids[p.identity]: p.identity for p in pictures}, test_share, split_seed, str(path))
        sides["train"] = [s for s in sides[""] if s.pid not in drawn]
        sides["test"] = [s for s in sides[""] if s.pid in drawn]
        share = f"{len(drawn)} of {len({s.pid for s in sides['']})} identities for the test"
        note = f"own split by identity (seed {split_seed}), {share}"
    query, gallery = _test_side(sides, str(path))
    tested = {s.pid for s in query + gallery}
    shared = tested & {s.pid for s in sides["train"]}
    note = join_notes(note, "" if cameras else NO_CAMERAS)
    if shared:
        note = join_notes(note, f"{len(shared)} of {len(tested)} test identities are also trained on")
    return ReIDDataset(
        name,
        sides["train"],
        query,
        gallery,
        drawn=bool(sides[""]),
        cameras=bool(cameras),
        names={pid: identity for identity, pid in pids.items() if identity != str(pid)},
        test_note=note if query else "",
    )


# ---- folders and CSV files


def read_folders(path: Path) -> list[Picture]:
    """The pictures in one folder per identity, or in those below train, query, gallery and test if these exist.

    Raises UserError where there are no such folders, or pictures lie too deep.
    """
    given = {folder.name.lower(): folder for folder in _list_folder(path)[0]}
    splits = [split for split in SPLITS if split in given]
    if not splits:
        return _read_identities(path, "")
    others = sorted(folder.name for name, folder in given.items() if name not in splits)
    if others:
        warnings.warn(
            f"{path}: {', '.join(others)} next to {', '.join(splits)} is left out; what to test on must be named test",
            stacklevel=2,
        )
    return [picture for split in splits for picture in _read_identities(given[split], split)]


def _read_identities(base: Path, split: str) -> list[Picture]:
    pictures = []
    people, stray = _list_folder(base)
    for person in people:
        cameras, images = _list_folder(person)
        pictures += [Picture(image, person.name, "", split) for image in images]
        for camera in cameras:
            deeper, images = _list_folder(camera)
            pictures += [Picture(image, person.name, camera.name, split) for image in images]
            for image in (image for folder in deeper for image in _list_folder(folder)[1]):
                raise UserError(
                    f"{image} lies too deep; {base} may hold one folder per identity, these one folder per camera, and "
                    "no further folders"
                )
    if not pictures:
        raise UserError(
            f"{base} has no folder of an identity with images in it; give one folder per identity, like "
            f"{base / 'ALICE' / '1.jpg'}, or a CSV file with a header, like path,pid,camid and below it "
            f"{base / '1.jpg'},ALICE,CAM1"
        )
    if stray:
        warnings.warn(
            f"{len(stray)} images outside the identities' folders are left out, such as {stray[0]}", stacklevel=2
        )
    return pictures


def _list_folder(folder: Path) -> tuple[list[Path], list[str]]:
    """Folders and images in a folder, by name, without hidden ones and links to a folder that holds the link."""
    folders, images = [], []
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if name.startswith("."):
            continue
        if path.suffix.lower() in PICTURES:
            images.append(str(path))
        elif path.is_dir() and not (path.is_symlink() and folder.resolve().is_relative_to(path.resolve())):
            folders.append(path)
    return folders, images


def read_csv(path: Path) -> list[Picture]:
    """The pictures that a CSV lists, each once. Raises UserError that names the line."""
    with reading(path, "give a folder, or a CSV saved as UTF-8"):
        text = path.read_text(encoding="utf-8-sig")
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    found: dict[str, tuple[int, Picture]] = {}  # by absolute path, with the line
    try:
        rows.fieldnames = header = [name.strip().lower() for name in rows.fieldnames or []]
        if not {"path", "pid"} <= set(header) or any(header.count(c) > 1 for c in ("path", "pid", "camid", "split")):
            raise UserError(f"{path} must begin with a line that names its columns once, like path,pid,camid,split")
        for row in rows:
            picture = _parse_row(row, f"{path}, line {rows.line_num}", path.parent)
            if picture:
                line, same = found.setdefault(os.path.abspath(picture.path), (rows.line_num, picture))
                if same[1:] != picture[1:]:
                    raise UserError(
                        f"{path}, line {rows.line_num}: {picture.path} is on line {line} with other labels; keep one"
                    )
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.reader.line_num}: {error}") from error
    for column in ("camera", "split"):
        empty = [line for line, picture in found.values() if not getattr(picture, column)]
        if 0 < len(empty) < len(found):
            raise UserError(f"{path}, line {empty[0]}: the {column} is empty; give it on all lines, or on none")
    if not any(map(os.path.exists, found)):
        first = f"such as {next(iter(found))}; paths are relative to the CSV's folder" if found else "it has no rows"
        raise UserError(f"{path} lists no image that exists: {first}")
    return [picture for _, picture in found.values()]


def _parse_row(row: dict, where: str, folder: Path) -> Picture | None:
    """The picture of one row of csv.DictReader, or None for a blank line. `where` is for error messages."""
    extra = [cell for cell in row.pop(None, []) if cell.strip()]  # cells beyond the header's
    cells = {column: (value or "").strip() for column, value in row.items()}
    if not any(cells.values()) and not extra:
        return None
    if extra or None in row.values():
        raise UserError(f"{where}: it has more or fewer columns than the header; put paths with commas in quotes")
    if not cells["path"] or not cells["pid"]:
        raise UserError(f"{where}: path or pid is empty")
    split = cells.get("split", "").lower()
    if split not in ("", *SPLITS):
        raise UserError(f"{where}: the split {cells['split']!r} is not one of {', '.join(SPLITS)}")
    image = folder / cells["path"].replace("\\", "/")  # as Windows writes paths
    return Picture(str(image), cells["pid"], cells.get("camid", ""), split)


# ---- labels


def to_numbers(words: Iterable[str]) -> dict[str, int]:
    """A number for each word. If all words are whole numbers from 1 up, they keep them; otherwise all words are
    numbered from 1 in order, in which numbers come first and by value. 007 is 7 in both cases."""
    keys = {word: int(word) if INTEGER.fullmatch(word) else word for word in words}
    if all(isinstance(key, int) and 0 < key < PID_OFFSET for key in keys.values()):
        return keys
    order = sorted(set(keys.values()), key=lambda key: (isinstance(key, str), key))
    places = {key: place for place, key in enumerate(order, 1)}
    return {word: places[key] for word, key in keys.items()}


def _cameras(pictures: list[Picture], pattern: str) -> list[int]:
    """The camera of each picture, or an empty list where they are unknown."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--camera-pattern {pattern!r} is not a regular expression: {error}") from error
    if not compiled.groups:
        raise UserError(rf"--camera-pattern {pattern!r} needs a group around the camera, like the one in _c(\d+)")
    words = [p.camera for p in pictures]
    if any(words) and not all(words):
        without, given = (next(p.path for p in pictures if bool(p.camera) == has) for has in (False, True))
        raise UserError(f"{without} is in no camera's folder, but {given} is; make such folders for all or for none")
    if not all(words):
        matches = [compiled.search(os.path.basename(p.path)) for p in pictures]
        words = [(match[1] or "") if match else "" for match in matches]
        if any(words) and not all(words):
            without = pictures[words.index("")].path
            warnings.warn(f"{without} has no camera by --camera-pattern, so no name's is used", stacklevel=2)
    if not all(words):
        return []
    number = to_numbers(words)
    return [number[word] for word in words]


# ---- the split


def draw_identities(people: Mapping[int, str], share: float, seed: int, where: str) -> set[int]:
    """About a `share` of the identities, pid to name: at least one, and all but two, unless it is 0 or 1.

    Each is drawn by its own name and the seed alone, so that no one changes sides when others are added or removed:
    those who were trained on stay out of the test. Raises UserError where there are fewer than three.
    """
    if share in (0, 1):
        return set(people) if share else set()
    if len(people) < 3:
        raise UserError(
            f"{where} has {len(people)} identities, and a split needs three or more, two to train on and one to test; "
            "add some, or use all to train with --test-share 0, or to test with --test-share 1"
        )
    values = {pid: _uniform(name, seed) for pid, name in people.items()}
    order = sorted(people, key=lambda pid: (values[pid], pid))
    count = sum(value < share for value in values.values())
    return set(order[: min(max(count, 1), len(order) - 2)])


def _uniform(name: str, seed: int) -> float:
    """A number in [0, 1) that follows from the name, in which 007 is 7, and the seed."""
    key = str(int(name)) if INTEGER.fullmatch(name) else name
    digest = hashlib.sha256(f"{seed}\0{key}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _test_side(sides: dict[str, list[Sample]], where: str) -> tuple[list[Sample], list[Sample]]:
    """Query and gallery as they were given, or chosen from the test side. Both may be empty."""
    query, gallery = sides["query"], sides["gallery"]
    if sides["test"] and (query or gallery):
        raise UserError(f"{where} has test next to query or gallery; give either test, or query and gallery")
    if bool(query) != bool(gallery):
        missing, given = ("gallery", "query") if query else ("query", "gallery")
        raise UserError(f"{where} has {given} but no {missing}; add it, or name both of them test to have them chosen")
    return choose_queries(sides["test"], where) if sides["test"] else (query, gallery)


def choose_queries(samples: list[Sample], where: str) -> tuple[list[Sample], list[Sample]]:
    """Test images to query and gallery by `heldout_split`. If that finds no query, as when each image is its own
    camera, the query is the first image by path of each identity that two cameras have seen.

    Raises UserError where no identity was seen by two cameras.
    """
    try:
        return heldout_split(samples)
    except UserError:
        pass  # its advice is for held-out training identities
    cameras: dict[int, set[int]] = {}
    for s in samples:
        cameras.setdefault(s.pid, set()).add(s.camid)
    first = {s.pid: s for s in sorted(samples, reverse=True) if len(cameras[s.pid]) > 1}
    if not first:
        raise UserError(
            f"{where}: none of {len(cameras)} test identities has images under two cameras (two images, where cameras "
            "are unknown), so no query has a match; add images, or leave out the test (--test-share 0, if the split is "
            "drawn here)"
        )
    query = sorted(first.values())
    return query, sorted(set(samples) - set(query))
