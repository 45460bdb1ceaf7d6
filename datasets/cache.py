"""All pictures of a split, decoded once: into a file that is mapped into memory and kept for the next run.

The system keeps a mapped file in memory as long as there is room, and all processes share it. Where there can be no
file, the pictures are kept in memory if they fit, and else decoded at every use.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from config import Config
from datasets.cache_files import in_use, locked, make_room
from datasets.images import read_image
from utils.errors import UserError
from utils.files import write_json, write_rows
from utils.logging import log

BLOCK = 64  # images decoded at a time
LISTED = 10  # unreadable files that a message names


class Images:
    """The pictures at `paths`, at the input size of the settings, by index.

    Every file is decoded once before anything else is done, so that a bad one shows at the start, not in the middle
    of an epoch. Raises UserError that lists those which cannot be decoded, or with --on-bad-image skip leaves them out:
    `bad` says why, and `kept` are the indices into `paths` of the others, which all later indices count.
    """

    def __init__(self, cfg: Config, paths: Sequence[str], name: str):
        self.cfg, self.name, self.paths = cfg, name, list(paths)
        self.pool = ThreadPoolExecutor(cfg.data.workers, thread_name_prefix=f"read-{name}")
        self.bytes = len(self.paths) * cfg.data.height * cfg.data.width * 3
        self.pictures: np.ndarray | None = None  # (N, height, width, 3) uint8 of all paths; None: decoded at every use
        try:
            bad = self._stored()
        except (OSError, NotImplementedError) as error:  # the second where a file system cannot lock
            reason = getattr(error, "strerror", None) or error
            log.warning("warning: no cache of %s in --cache-dir %s: %s", name, self.directory, reason)
            bad = self._in_memory()
        self.refuse(bad)
        self.bad = bad
        self.kept = np.setdiff1d(np.arange(len(self.paths)), list(bad))

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def directory(self) -> Path:
        return Path(self.cfg.data.cache_dir or Path(self.cfg.data.data_root) / ".cache")

    def read(self, indices: Sequence[int] | np.ndarray, pin: bool = False) -> torch.Tensor:
        """(B, height, width, 3) uint8 RGB of the images at `indices`; pin: in memory that a GPU can copy from."""
        rows = self.kept[list(indices)]  # refuses what is no index
        batch = torch.empty(
            (len(rows), self.cfg.data.height, self.cfg.data.width, 3), dtype=torch.uint8, pin_memory=pin
        )
        if self.pictures is not None:
            np.take(self.pictures, rows, axis=0, out=batch.numpy(), mode="clip")  # clip: the mode without a copy
            return batch
        for place, image in enumerate(self.pool.map(self._decode, (self.paths[row] for row in rows))):
            batch[place] = torch.from_numpy(image)
        return batch

    def batches(
        self, index_batches: Iterable[np.ndarray], pin: bool = False
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """(indices, images) for each batch of indices, the next one read while the current one is used."""
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as ahead:
            waiting = None
            for indices in index_batches:
                coming = (indices, ahead.submit(self.read, indices, pin))
                if waiting:
                    yield waiting[0], waiting[1].result()
                waiting = coming
            if waiting:
                yield waiting[0], waiting[1].result()

    def _decode(self, path: str) -> np.ndarray:
        return read_image(path, self.cfg.data.height, self.cfg.data.width)

    # ---- the cache

    def _stored(self) -> dict[int, str]:
        """Map the file of these pictures, made first where there is none; gives the bad ones with their reasons."""
        if self.cfg.data.disk_gb == 0 or self.bytes == 0:
            return self._in_memory()
        pictures, record = (self.directory / f"{self.name}-{self._digest()}{end}" for end in (".npy", ".json"))
        bad, small = self._open(pictures, record), self.bytes <= self.cfg.data.cache_gb * 1e9
        if bad is None and not (small and self.bytes > self._room()):
            self.directory.mkdir(parents=True, exist_ok=True)
            with locked(self.directory):
                bad = self._open(pictures, record)  # another program may have made it meanwhile
                if bad is None:
                    self._build(pictures, record)
                    bad = self._open(pictures, record)
        return self._in_memory() if self.pictures is None and small else bad

    def _open(self, pictures: Path, record: Path) -> dict[int, str] | None:
        """The bad ones of a valid cache; None where there is none.

        The record is written last and makes the file valid: what a build that was killed leaves behind has none.
        """
        try:
            about = json.loads(record.read_text())
            bad = dict(about["bad"])
            if about["cached"]:
                shape = (len(self.paths), self.cfg.data.height, self.cfg.data.width, 3)
                mapped = np.asarray(np.lib.format.open_memmap(pictures, mode="c"))
                if mapped.shape != shape or mapped.dtype != np.uint8:
                    return None
                self.pictures = mapped
                if self.bytes <= self.cfg.data.cache_gb * 1e9 and hasattr(os, "posix_fadvise"):
                    with open(pictures, "rb") as file:  # have it read in order now, not at random later
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            elif self.bytes <= self._room():
                return None  # there was less then
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        with suppress(OSError):  # of somebody else's
            os.utime(record)  # the least recently used go first
        return bad

    def _room(self) -> float:
        """Bytes that a new file may have: what this program uses already stays, or its splits would take turns."""
        return self.cfg.data.disk_gb * 1e9 - in_use(self.directory)

    def _digest(self) -> str:
        """Of all that the pictures depend on: the files (place, size, time of change), the input size, the decoder."""
        digest = hashlib.sha256(f"1 {cv2.__version__} {self.cfg.data.height} {self.cfg.data.width}\n".encode())
        for path in self.paths:
            try:
                about = os.stat(path)
                # The time of the last change of any kind: a file renamed to another or made readable keeps its mtime.
                state = f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}"
            except (OSError, ValueError):
                state = "missing"
            digest.update(f"{os.path.abspath(path)}\0{state}\n".encode(errors="surrogatepass"))
        return digest.hexdigest()[:16]

    def _build(self, pictures: Path, record: Path) -> None:
        """Decode all into the file if there may be one that large, else only to see whether they can be decoded."""
        bad: dict[int, str] = {}
        cached = self.bytes <= self._room()
        make_room(self.directory, self.cfg.data.disk_gb * 1e9 - cached * self.bytes)
        with closing(self._decode_all(bad)) as blocks:
            if cached:
                write_rows(pictures, len(self.paths), blocks)
            else:
                deque(blocks, maxlen=0)
        try:
            write_json(record, {"cached": cached, "bad": list(bad.items())})
        except OSError:
            pictures.unlink(missing_ok=True)  # of no use to anybody
            raise

    def _in_memory(self) -> dict[int, str]:
        """The same without a file: kept in memory if they fit there."""
        bad: dict[int, str] = {}
        fits = self.bytes <= self.cfg.data.cache_gb * 1e9
        pictures = np.empty((len(self.paths), self.cfg.data.height, self.cfg.data.width, 3), np.uint8) if fits else None
        with closing(self._decode_all(bad)) as blocks:
            for number, block in enumerate(blocks):
                if fits:
                    pictures[number * BLOCK : number * BLOCK + len(block)] = block
        self.pictures = pictures
        return bad

    def _decode_all(self, bad: dict[int, str]) -> Iterator[np.ndarray]:
        """All pictures in blocks, with progress; those that cannot be decoded are black, and noted in `bad`.

        Raises UserError after the last where there are any and they are not to be skipped.
        """

        def attempt(index: int) -> np.ndarray:
            try:
                return self._decode(self.paths[index])
            except UserError as error:
                bad[index] = str(error)
                return np.zeros((self.cfg.data.height, self.cfg.data.width, 3), np.uint8)

        def block(start: int) -> list[Future]:
            return [self.pool.submit(attempt, i) for i in range(start, min(start + BLOCK, len(self.paths)))]

        bar = tqdm(total=len(self.paths), desc=f"read {self.name}", unit="img", leave=False, disable=None)
        now, coming = [], block(0)
        try:
            with closing(bar):
                for start in range(0, len(self.paths), BLOCK):
                    now, coming = coming, block(start + BLOCK)
                    yield np.stack([future.result() for future in now])
                    bar.update(len(now))
        finally:  # stopped: without this, the program would decode what it has asked for before it ends
            for future in (*now, *coming):
                future.cancel()
        self.refuse(bad)

    def refuse(self, bad: dict[int, str]) -> None:
        """Raises UserError that lists the files that cannot be decoded, unless these are to be skipped."""
        if bad and self.cfg.data.on_bad_image == "refuse":
            raise UserError(
                f"{len(bad)} of {len(self.paths)} {self.name} images cannot be used: {listed(bad)}. "
                "--on-bad-image skip goes on without them"
            )


def listed(bad: dict[int, str]) -> str:
    """The first words said of images, and how many there are beyond these."""
    more = f" (and {len(bad) - LISTED} more)" if len(bad) > LISTED else ""
    return "; ".join(bad[index] for index in sorted(bad)[:LISTED]) + more
