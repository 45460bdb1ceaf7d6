"""People's own pictures: in Market-1501's layout, in a folder an identity, with or without a split, or in a CSV."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from datasets.base import SPAN, ReIDDataset, Sample, heldout_split
from datasets.layouts import MARKET_FOLDERS, read_layout
from datasets.own_files import SPLITS, Picture, read_csv, read_folders
from utils.errors import UserError

WHOLE = re.compile(r"-?[0-9]{1,18}")
NO_CAMERAS = (
    "no camera labels, so that every image counts as its own camera: images taken one after another by the same camera "
    "count as matches, which makes scores higher than a cross-camera test's"
)


def own(path: str | Path, test_share: float, split_seed: int, camera_pattern: str) -> ReIDDataset:
    """List the pictures of a folder or a CSV file.

    A folder holds bounding_box_train, query and bounding_box_test as Market-1501's does; or a folder an identity, in
    which a folder a camera may be; or train, and test or query and gallery, each with a folder an identity. A CSV has a
    header with path and pid, and may have camid and split. Else cameras come from `camera_pattern` where each file name
    has it. Identities and cameras may be any words (see `numbers`).

    Without a split, about `test_share` of the identities, drawn by `split_seed`, are kept for the test (0: none, 1:
    all). Query and gallery of a test side come from `ask`. Raises UserError that says what is missing.
    """
    pattern, path = _compiled(camera_pattern), Path(path)
    if not 0 <= test_share <= 1:
        raise UserError(f"--test-share must lie between 0 and 1, not {test_share}")
    place = Path(os.path.abspath(path))  # "." has no name
    if any((path / MARKET_FOLDERS[split]).is_dir() for split in ("train", "gallery")):
        return read_layout(place.name, path)
    pictures = sorted(read_folders(path) if path.is_dir() else read_csv(path))
    pids, cameras = numbers(p.who for p in pictures), _cameras(pictures, pattern)
    names = {pid: who for who, pid in pids.items() if who != str(pid)}
    sides: dict[str, list[Sample]] = {split: [] for split in ("", *SPLITS)}
    for picture, camid in zip(pictures, cameras or range(1, len(pictures) + 1), strict=True):
        sides[picture.split].append(Sample(picture.path, pids[picture.who], camid))
    notes = [] if cameras else [NO_CAMERAS]
    if sides[""]:
        every = {s.pid for s in sides[""]}
        drawn = draw_identities({pids[p.who]: p.who for p in pictures}, test_share, split_seed, str(path))
        sides["train"] = [s for s in sides[""] if s.pid not in drawn]
        sides["test"] = [s for s in sides[""] if s.pid in drawn]
        share = f"{len(drawn)} of {len(every)} identities for the test"
        notes.insert(0, f"own split by identity (seed {split_seed}), {share}")
    query, gallery = _test_side(sides, str(path))
    tested = {s.pid for s in query + gallery}
    if shared := tested & {s.pid for s in sides["train"]}:
        notes.append(f"{len(shared)} of {len(tested)} test identities are trained on too")
    name = place.name if path.is_dir() else place.stem
    facts = {"drawn": bool(sides[""]), "cameras": bool(cameras), "names": names}
    return ReIDDataset(name, sides["train"], query, gallery, test_note="; ".join(notes) if query else "", **facts)


def numbers(words: Iterable[str]) -> dict[str, int]:
    """A number for each word. Whole numbers from 1 up keep theirs, if all words are such; else all words are numbered
    from 1 in their order, in which numbers come first and by their value. 007 is 7 in both cases."""
    keys = {word: int(word) if WHOLE.fullmatch(word) else word for word in words}
    if all(isinstance(key, int) and 0 < key < SPAN for key in keys.values()):
        return keys
    order = sorted(set(keys.values()), key=lambda key: (isinstance(key, str), key))
    places = {key: place for place, key in enumerate(order, 1)}
    return {word: places[key] for word, key in keys.items()}


def draw_identities(people: Mapping[int, str], share: float, seed: int, where: str) -> set[int]:
    """About a `share` of the identities, pid to name: at least one, and all but two, unless it is 0 or 1.

    Each is drawn by its own name and the seed alone, so that nobody changes sides when others come or go: those who
    were trained on stay out of the test. Raises UserError where there are fewer than three.
    """
    if share in (0, 1):
        return set(people) if share else set()
    if len(people) < 3:
        raise UserError(
            f"{where} holds {len(people)} identities, and a split needs three or more, two to train on and one to "
            "test; add some, or use all to train with --test-share 0, or to test with --test-share 1"
        )
    lots = {pid: _lot(name, seed) for pid, name in people.items()}
    order = sorted(people, key=lambda pid: (lots[pid], pid))
    count = sum(lot < share for lot in lots.values())
    return set(order[: min(max(count, 1), len(order) - 2)])


def _lot(name: str, seed: int) -> float:
    """A number from 0 to 1 that follows from the name, in which 007 is 7, and the seed."""
    key = str(int(name)) if WHOLE.fullmatch(name) else name
    digest = hashlib.sha256(f"{seed}\0{key}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def ask(samples: list[Sample], where: str) -> tuple[list[Sample], list[Sample]]:
    """Test images to query and gallery by `heldout_split`. Where that finds no query, as when each image is its own
    camera, one query an identity: its first image by path, if another camera has seen it too.

    Raises UserError where nobody was seen by two cameras.
    """
    try:
        return heldout_split(samples)
    except UserError:
        pass  # what it advises is for held-out training identities
    cameras: dict[int, set[int]] = {}
    for s in samples:
        cameras.setdefault(s.pid, set()).add(s.camid)
    first = {s.pid: s for s in sorted(samples, reverse=True) if len(cameras[s.pid]) > 1}
    if not first:
        raise UserError(
            f"{where}: none of {len(cameras)} test identities has images under two cameras (two images, where cameras "
            "are unknown), so no query has a match; add images, or leave the test out (--test-share 0, if the split is "
            "made here)"
        )
    query = sorted(first.values())
    return query, sorted(set(samples) - set(query))


def _test_side(sides: dict[str, list[Sample]], where: str) -> tuple[list[Sample], list[Sample]]:
    """Query and gallery as they were given, or those of the test side. Both may be empty."""
    query, gallery = sides["query"], sides["gallery"]
    if sides["test"] and (query or gallery):
        raise UserError(f"{where} has test beside query or gallery; give either test, or query and gallery")
    if bool(query) != bool(gallery):
        missing, given = ("gallery", "query") if query else ("query", "gallery")
        raise UserError(f"{where} has {given} but no {missing}; add it, or call both of them test to have them chosen")
    return ask(sides["test"], where) if sides["test"] else (query, gallery)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--camera-pattern {pattern!r} is no regular expression: {error}") from error
    if not compiled.groups:
        raise UserError(rf"--camera-pattern {pattern!r} has no group to take the camera from, like the one of _c(\d+)")
    return compiled


def _cameras(pictures: list[Picture], pattern: re.Pattern[str]) -> list[int]:
    """A camera a picture, or an empty list where they are unknown."""
    words = [p.camera for p in pictures]
    if any(words) and not all(words):
        without, given = (next(p.path for p in pictures if bool(p.camera) == has) for has in (False, True))
        raise UserError(f"{without} lies in no camera's folder, but {given} does; make folders for all or for none")
    if not all(words):
        found = [pattern.search(os.path.basename(p.path)) for p in pictures]
        words = [match[1] for match in found if match and match[1]]
        if 0 < len(words) < len(pictures):
            odd = next(p.path for p, match in zip(pictures, found, strict=True) if not (match and match[1]))
            warnings.warn(f"{odd} has no camera by --camera-pattern, so none is taken from the names", stacklevel=3)
    if len(words) < len(pictures):
        return []
    number = numbers(words)
    return [number[word] for word in words]
