"""Read your own pictures: Market-1501's layout, one folder per identity with or without a split, or a CSV file."""

import csv
import hashlib
import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from config import Config
from datasets.base import ONE_CAMERA, PID_OFFSET, ReIDDataset, Sample, join_notes
from datasets.folder import find_pictures
from datasets.layouts import JUNK, MARKET_FOLDERS, drop_below, read_layout
from datasets.make import place, test_name, train_names, trains_on_all
from datasets.subsets import split_queries
from utils.errors import UserError
from utils.files import reading
from utils.logging import log

SPLITS = ("train", "query", "gallery", "test")
COLUMNS = ("camid", "split", "track", "time")  # optional columns of a CSV
VALIDATION = ("val", "valid", "validation")  # the test side if there is no other
INTEGER = re.compile(r"(-?[0-9]{1,18})(\.0+)?")  # 1.0 is how pandas writes 1 in a column with gaps
CAMERA_FOLDER = re.compile(r"(c|cam|camera)[ _-]?[0-9]+", re.IGNORECASE)
NO_CAMERAS = (
    "no camera labels, so that every image counts as its own camera: images taken one after another by the same camera "
    "count as matches, which makes scores higher than in a test across cameras"
)


class Picture(NamedTuple):
    path: str
    identity: str
    camera: str = ""  # empty: unknown
    split: str = ""  # one of SPLITS; empty: none was given
    track: str = ""  # pictures of one identity, camera and track are one tracklet; empty: unknown
    time: str = ""


def own(
    path: str | Path, test_share: float, split_seed: int, camera_pattern: str, folders: str = "auto"
) -> ReIDDataset:
    """List the pictures of a folder or a CSV file.

    A folder holds bounding_box_train, query and bounding_box_test, as in Market-1501; or one folder per identity, with
    camera folders inside or around them (see `read_folders`); or train, and test or query and gallery, each with such
    folders. A CSV has a header with path and pid, and may have camid, split, track and time. If these give no cameras,
    `camera_pattern` does, if every file name matches it; "none": cameras are ignored. Identities and cameras may be any
    words (see `to_numbers`); the identities 0 and -1 are distractors and junk, as in Market-1501.

    Without a split, about `test_share` of the identities, drawn by `split_seed`, are used for the test (0: none, 1:
    all). `split_queries` splits a test side into query and gallery. Raises UserError that says what is missing.
    """
    path = Path(path)
    absolute = Path(os.path.abspath(path))  # "." has no name
    name = absolute.name if path.is_dir() else absolute.stem
    if not 0 <= test_share <= 1:
        raise UserError(f"--test-share must be between 0 and 1, not {test_share}")
    if any((path / MARKET_FOLDERS[split]).is_dir() for split in ("train", "gallery")):
        return read_layout(name, path)
    pictures = sorted(read_folders(path, folders) if path.is_dir() else read_csv(path))
    special = {p.identity: key for p in pictures if (key := _key(p.identity)) in (JUNK, 0)}
    people = to_numbers(p.identity for p in pictures if p.identity not in special)
    pids, (camids, camera_names) = people | special, _cameras(pictures, camera_pattern)
    sides: dict[str, list[Sample]] = {split: [] for split in ("", *SPLITS)}
    for picture, camid in zip(pictures, camids, strict=True):
        sides[picture.split].append(Sample(picture.path, pids[picture.identity], camid))
    for split, samples in sides.items():
        lowest = 1 if split in ("train", "query") else 0
        sides[split] = drop_below(lowest, samples, f"{path}{split and ', '}{split}")
    drawn, note = bool(sides[""]), ""
    if drawn:
        tested = draw_identities(people, test_share, split_seed, str(path))
        share = f"{len(tested)} of {len(set(people.values()))} identities for the test"
        note = f"own split by identity (seed {split_seed}), {share}"
        sides["test"] = [s for s in sides[""] if tested and (s.pid in tested or s.pid == 0)]
        sides["train"] = [s for s in drop_below(0 if tested else 1, sides[""], str(path)) if s.pid not in {0, *tested}]
    query, gallery = _test_side(sides, str(path))
    tested = {s.pid for s in query + gallery} - {0}
    note = join_notes(note, NO_CAMERAS if camera_names is None else "")
    if shared := tested & {s.pid for s in sides["train"]}:
        note = join_notes(note, f"{len(shared)} of {len(tested)} test identities are also trained on")
    return ReIDDataset(
        name,
        sides["train"],
        query,
        gallery,
        drawn=drawn,
        cameras=camera_names is not None,
        names={pid: identity for identity, pid in people.items() if identity != str(pid)},
        camera_names=camera_names or {},
        tracks={p.path: p.track for p in pictures if p.track},
        test_note=note if query else "",
    )


# ---- folders and CSV files


def read_folders(path: Path, levels: str = "auto") -> list[Picture]:
    """List the pictures in one folder per identity, below train, query, gallery and test if any of these exists.

    levels: meaning of nested folders: identity_camera, camera_identity, site_identity (an identity is then called
    SITE/NAME), or auto, see `_guess_levels`. Raises UserError if there are no such folders, if `auto` cannot decide, or
    if pictures are nested too deeply.
    """
    given = {f.name.lower(): f for f in sorted(path.iterdir()) if f.is_dir() and f.name[0] != "."}
    splits = _name_splits(given, path)
    others = sorted(given[name].name for name in given.keys() - splits) if splits else []
    if others:
        warnings.warn(
            f"{path}: {', '.join(others)} next to {', '.join(splits)} is left out; the test folder must be named test",
            stacklevel=2,
        )
    bases = {given[name]: split for name, split in splits.items()} or {path: ""}
    found = [(split, *place) for base, split in bases.items() for place in _list_images(base)]
    nested = {(outer, inner) for _, outer, inner, _ in found if inner}
    if nested and levels == "auto":
        levels = _guess_levels(path, nested)
    if levels in ("camera_identity", "site_identity") and (outside := [f[3] for f in found if not f[2]]):
        raise UserError(f"{outside[0]} is not in the folder of an identity, as --folders {levels} expects; move it")
    pictures = []
    for split, outer, inner, image in found:
        identity, camera = (inner, outer) if levels == "camera_identity" else (outer, inner)
        if levels == "site_identity":
            identity, camera = f"{outer}/{inner}", ""
        pictures.append(Picture(image, identity, camera, split, os.path.dirname(image) if camera else ""))
    return pictures


def _name_splits(names: Iterable[str], where: Path) -> dict[str, str]:
    """Map names to splits; names that are no split, and a validation split next to a test split, are left out."""
    names = sorted(names)
    splits = {name: name for name in SPLITS if name in names}
    valid = [name for name in VALIDATION if name in names]
    if valid and list(splits) == ["train"]:
        log.info("%s: there is no test split, so %s is the test side", where, " and ".join(valid))
        splits |= dict.fromkeys(valid, "test")
    return splits


def _guess_levels(path: Path, nested: set[tuple[str, str]]) -> str:
    """Guess the meaning of nested folders. The level with names like cam1 is the camera; otherwise, if inner names are
    repeated under several outer folders, it is the level with fewer names. Raises UserError if they are not."""
    outer, inner = ({pair[side] for pair in nested} for side in (0, 1))
    cameras = [all(map(CAMERA_FOLDER.fullmatch, names)) for names in (outer, inner)]
    returning = sum(number > 1 for number in Counter(name for _, name in nested).values())
    example = "/".join(min(nested))
    if cameras == [False, True]:
        return "identity_camera"
    if cameras == [True, False] or (2 * returning >= len(inner) and len(outer) < len(inner)):
        log.info("%s: outer folders are cameras, inner ones identities (%s); if not, set --folders", path, example)
        return "camera_identity"
    if 2 * returning >= len(inner) or len(nested) < 2 * len(outer) or len(inner) < 3:
        return "identity_camera"
    raise UserError(
        f"{path} holds folders in folders, like {example}; say what the outer and the inner ones are with --folders "
        "identity_camera, --folders site_identity or --folders camera_identity"
    )


def _list_images(base: Path) -> list[tuple[str, str, str]]:
    """Return outer folder, inner folder ("": none) and path of each picture in the folders of `base`."""
    places = [(name.split("/"), f"{base}/{name}") for name in find_pictures(base)[0]]
    if deep := [image for parts, image in places if len(parts) > 3]:
        raise UserError(f"{deep[0]} lies too deep; {base} may only have identity folders with camera folders in them")
    found = [(parts[0], "".join(parts[1:-1]), image) for parts, image in places if len(parts) > 1]
    if not found:
        raise UserError(
            f"{base} has no folder of an identity with images in it; give one folder per identity, like "
            f"{base / 'ALICE' / '1.jpg'}, or a CSV file with a header, like path,pid,camid and below it "
            f"{base / '1.jpg'},ALICE,CAM1"
        )
    if stray := [image for parts, image in places if len(parts) == 1]:
        warnings.warn(f"{len(stray)} images outside identity folders are left out, such as {stray[0]}", stacklevel=2)
    return found


def read_csv(path: Path, needed: tuple[str, ...] = ("path", "pid")) -> list[Picture]:
    """List the pictures of a CSV file, each once. needed: required columns. Raises UserError that names the line."""
    with reading(path, "give a folder, or a CSV saved as UTF-8"):
        text = path.read_text(encoding="utf-8-sig")
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        table = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error
    (_, header), *rows = [(line, cells) for line, cells in table if any(cells)] or [(1, [])]
    header = [name.lower() for name in header]
    if not set(needed) <= set(header) or any(header.count(c) > 1 for c in ("path", "pid", *COLUMNS)):
        raise UserError(f"{path} must begin with a line that names its columns once, like path,pid,camid,split")
    found: dict[str, tuple[int, Picture]] = {}  # by absolute path, with the line
    for line, cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{path}, line {line}: its columns do not fit the header; put paths with commas in quotes")
        row = dict.fromkeys(COLUMNS, "") | {"pid": ""} | dict(zip(header, cells, strict=True))
        if not all(row[column] for column in needed):
            raise UserError(f"{path}, line {line}: {' or '.join(needed)} is empty")
        if row["split"].lower() not in ("", *SPLITS, *VALIDATION):
            raise UserError(f"{path}, line {line}: the split {row['split']!r} is not one of {', '.join(SPLITS)}")
        image = str(path.parent / row["path"].replace("\\", "/"))  # as Windows writes paths
        picture = Picture(image, row["pid"], row["camid"], row["split"].lower(), row["track"], row["time"])
        first, same = found.setdefault(os.path.abspath(image), (line, picture))
        if same[1:] != picture[1:]:
            raise UserError(f"{path}, line {line}: {image} is on line {first} with other labels; keep one")
    for column in ("camera", "split", "track", "time"):
        empty = [line for line, picture in found.values() if not getattr(picture, column)]
        if 0 < len(empty) < len(found):
            raise UserError(f"{path}, line {empty[0]}: the {column} is empty; give it on all lines, or on none")
    if not any(map(os.path.exists, found)):
        first = f"such as {next(iter(found))}; paths are relative to the CSV's folder" if found else "it has no rows"
        raise UserError(f"{path} lists no image that exists: {first}")
    splits = {"": ""} | _name_splits({picture.split for _, picture in found.values()}, path)
    if rest := [picture for _, picture in found.values() if picture.split not in splits]:
        warnings.warn(
            f"{len(rest)} images of the split {rest[0].split} are left out, such as {rest[0].path}; the test split "
            "must be named test",
            stacklevel=2,
        )
    return [p._replace(split=splits[p.split]) for _, p in found.values() if p.split in splits]


# ---- labels


def to_numbers(words: Iterable[str]) -> dict[str, int]:
    """Map each word to a number. If all words are whole numbers from 1 up, these are kept; otherwise all words are
    numbered from 1 in sorted order, numbers first and by value. 007 is 7 in both cases."""
    keys = {word: _key(word) for word in words}
    if all(isinstance(key, int) and 0 < key < PID_OFFSET for key in keys.values()):
        return keys
    order = sorted(set(keys.values()), key=lambda key: (isinstance(key, str), key))
    places = {key: place for place, key in enumerate(order, 1)}
    return {word: places[key] for word, key in keys.items()}


def _key(word: str) -> int | str:
    """Turn a whole number into an int, in any spelling: 007 and 7.0 are 7. Other words are returned unchanged."""
    match = INTEGER.fullmatch(word)
    return int(match[1]) if match else word


def _cameras(pictures: list[Picture], pattern: str) -> tuple[Iterable[int], dict[int, str] | None]:
    """Return each picture's camera, and camera names that are no numbers; None: unknown, each picture has its own."""
    unknown = range(1, len(pictures) + 1), None
    if pattern == "none":
        return unknown
    try:
        grouped = re.compile(pattern).groups > 0
    except re.error:
        grouped = False
    if not grouped:
        raise UserError(rf"--camera-pattern {pattern!r} is not a regular expression with a group, as in _c(\d+)")
    words = [p.camera for p in pictures]
    if any(words) and not all(words):
        without, given = (next(p.path for p in pictures if bool(p.camera) == has) for has in (False, True))
        raise UserError(f"{without} is in no camera's folder, but {given} is; make such folders for all or for none")
    if not any(words):
        matches = [re.search(pattern, os.path.basename(p.path)) for p in pictures]
        words = [(match[1] or "") if match else "" for match in matches]
        if any(words) and not all(words):
            without = pictures[words.index("")].path
            warnings.warn(f"{without} has no camera by --camera-pattern, so no file name's is used", stacklevel=2)
    if not all(words):
        return unknown
    number = to_numbers(words)
    return [number[word] for word in words], {n: word for word, n in number.items() if word != str(n)}


# ---- the split


def draw_identities(people: Mapping[str, int], share: float, seed: int, where: str) -> set[int]:
    """Draw about a `share` of the pids of `people`: at least one, and at most all but two, unless it is 0 or 1.

    Each draw depends only on the identity's name and the seed, so that no one changes sides when others are added or
    removed: identities that were trained on stay out of the test. Raises UserError for fewer than three identities.
    """
    values = {pid: _uniform(name, seed) for name, pid in people.items()}
    if share in (0, 1):
        return set(values) if share else set()
    if len(values) < 3:
        raise UserError(
            f"{where} has {len(values)} identities, and a split needs three or more, two to train on and one to test; "
            "add some, or use all for training with --test-share 0, or for testing with --test-share 1"
        )
    order = sorted(values, key=lambda pid: (values[pid], pid))
    count = sum(value < share for value in values.values())
    return set(order[: min(max(count, 1), len(order) - 2)])


def _uniform(name: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the name (007 is 7) and the seed only."""
    digest = hashlib.sha256(f"{seed}\0{_key(name)}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _test_side(sides: dict[str, list[Sample]], where: str) -> tuple[list[Sample], list[Sample]]:
    """Return query and gallery as given, or chosen from the test side. Both may be empty."""
    query, gallery = sides["query"], sides["gallery"]
    if sides["test"] and (query or gallery):
        raise UserError(f"{where} has test next to query or gallery; give either test, or query and gallery")
    if bool(query) != bool(gallery):
        missing, given = ("gallery", "query") if query else ("query", "gallery")
        raise UserError(f"{where} has {given} but no {missing}; add it, or put all in test to have both chosen")
    fix = f"add images; {ONE_CAMERA}; or leave out the test (--test-share 0, if the split is drawn here)"
    return split_queries(sides["test"], where, fix) if sides["test"] else (query, gallery)


def refuse_another_split(cfg: Config, trained: Config, dataset: ReIDDataset) -> None:
    """Raises UserError if `dataset`, the test set of `cfg`, was used for training with another split, by the settings
    `trained`: the test would include people that the model was trained on."""
    name = test_name(cfg)
    if not dataset.drawn or place(name) not in map(place, train_names(trained)):
        return
    if trains_on_all(trained):
        raise UserError(f"the model was trained on all of {name}; test it on other pictures")
    before = (trained.data.test_share, trained.data.split_seed)
    if (cfg.data.test_share, cfg.data.split_seed) != before:
        raise UserError(
            f"the model was trained on {name} with --test-share {before[0]} --split-seed {before[1]}; another split "
            "would test on people that it was trained on, so leave these settings as they were"
        )
