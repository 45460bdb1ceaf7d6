"""What own pictures are read from: folders of identities, and CSV files."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datasets.layouts import IMAGES
from utils.errors import UserError

SPLITS = ("train", "query", "gallery", "test")
COLUMNS = ("path", "pid", "camid", "split")
# Pictures that cannot be read here. They are listed like the others, so that they are refused by name, not overlooked.
PICTURES = IMAGES | {".heic", ".heif", ".avif", ".gif", ".jp2", ".jxl", ".dng", ".cr2", ".nef"}


class Picture(NamedTuple):
    path: str
    who: str
    camera: str = ""  # empty: unknown
    split: str = ""  # one of SPLITS; empty: none was given


def read_folders(path: Path) -> list[Picture]:
    """The pictures of a folder an identity, or of those in train, query, gallery and test, where there are such.

    Raises UserError where there are no such folders, or pictures lie too deep.
    """
    given = {folder.name.lower(): folder for folder in _inside(path)[0]}
    splits = [split for split in SPLITS if split in given]
    if not splits:
        return _read_identities(path)
    if others := sorted(set(given) - set(splits)):
        beside = ", ".join(given[name].name for name in others)
        warnings.warn(
            f"{path}: {beside} beside {', '.join(splits)} is left out; what to test on is called test", stacklevel=2
        )
    return [p._replace(split=split) for split in splits for p in _read_identities(given[split])]


def _read_identities(base: Path) -> list[Picture]:
    pictures = []
    people, stray = _inside(base)
    for person in people:
        cameras, images = _inside(person)
        pictures += [Picture(image, person.name) for image in images]
        for camera in cameras:
            deeper, images = _inside(camera)
            pictures += [Picture(image, person.name, camera.name) for image in images]
            deep = [image for folder in deeper for image in _inside(folder)[1]]
            if deep:
                raise UserError(
                    f"{deep[0]} lies too deep; in {base} there may be a folder an identity, in these a folder a camera"
                    ", and no further folders"
                )
    if not pictures:
        raise UserError(
            f"{base} holds no folder an identity with images in it; accepted are such folders, like "
            f"{base / 'ALICE' / '1.jpg'}, or a CSV file with a header, like path,pid,camid and below it "
            f"{base / '1.jpg'},ALICE,CAM1"
        )
    if stray:
        warnings.warn(f"{len(stray)} images in no identity's folder are left out, {stray[0]} for one", stacklevel=2)
    return pictures


def _inside(folder: Path) -> tuple[list[Path], list[str]]:
    """Folders and images in a folder, by name. What is hidden, or a link back up to where one is, is left out."""
    folders, images = [], []
    with os.scandir(folder) as entries:
        for entry in sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name):
            path = Path(entry.path)
            if entry.is_symlink() and path.is_dir():  # is_dir of an entry raises where a link leads to itself
                if not folder.resolve().is_relative_to(path.resolve()):
                    folders.append(path)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif path.suffix.lower() in PICTURES:
                images.append(entry.path)
    return folders, images


def read_csv(path: Path) -> list[Picture]:
    """The pictures that a CSV lists, each once. Raises UserError that names the line."""
    first: dict[str, tuple[int, Picture]] = {}
    for line, cells in _rows(path):
        picture = _picture(path, line, cells)
        before, same = first.setdefault(os.path.abspath(picture.path), (line, picture))
        if same[1:] != picture[1:]:
            raise UserError(
                f"{path}, line {line}: {cells['path']} is on line {before} already, with another pid, camid or split; "
                "leave one of them out"
            )
    if not first:
        raise UserError(f"{path} has no line below its header; list an image on each")
    for field, column in (("camera", "camid"), ("split", "split")):
        empty = [line for line, picture in first.values() if not getattr(picture, field)]
        if 0 < len(empty) < len(first):
            raise UserError(f"{path}, line {empty[0]}: {column} is empty; fill it in on all lines, or on none")
    if not any(map(os.path.exists, first)):
        hint = f"; the first would be {next(iter(first))}, as paths are relative to the CSV's folder" if first else ""
        raise UserError(f"{path} lists no image that exists{hint}")
    return [picture for _, picture in first.values()]


def _picture(path: Path, line: int, cells: dict[str, str]) -> Picture:
    if not cells["path"] or not cells["pid"]:
        raise UserError(f"{path}, line {line}: path or pid is empty")
    split = cells.get("split", "").lower()
    if split not in ("", *SPLITS):
        raise UserError(f"{path}, line {line}: split {cells['split']!r} is none of {', '.join(SPLITS)}")
    image = path.parent / cells["path"].replace("\\", "/")  # as Windows writes them
    return Picture(str(image), cells["pid"], cells.get("camid", ""), split)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column, of the lines that are not empty."""
    text, header = _read_text(path), None
    delimiter = max(",;\t", key=text.lstrip().partition("\n")[0].count)
    rows = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if header is None:
                header = [cell.lower() for cell in cells]
                _check_header(path, header, delimiter.join(row))
                continue
            while len(cells) > len(header) and not cells[-1]:
                cells.pop()
            if len(cells) != len(header):
                raise UserError(
                    f"{path}, line {rows.line_num}: {len(cells)} columns instead of {len(header)}; a path that holds "
                    f"{delimiter!r} must stand in quotation marks"
                )
            yield rows.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}") from error


def _check_header(path: Path, header: list[str], found: str) -> None:
    if not {"path", "pid"} <= set(header) or any(header.count(column) > 1 for column in COLUMNS):
        raise UserError(
            f"{path} must begin with a line that names its columns once each, like path,pid,camid,split (the last two "
            f"may be absent), and not with {found!r}"
        )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8; own pictures are a folder, or a CSV saved as UTF-8") from error
