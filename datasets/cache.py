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
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from config import Config
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
        self.pool = ThreadPoolExecutor(cfg.workers, thread_name_prefix=f"read-{name}")
        self.bytes = len(self.paths) * cfg.height * cfg.width * 3
        self.pictures: np.ndarray | None = None  # (N, height, width, 3) uint8 of all paths; None: decoded at every use
        try:
            bad = self._stored()
        except OSError as error:
            log.warning("warning: %s: no cache in %s", error.strerror or error, self.directory)
            bad = self._in_memory()
        self.refuse(bad)
        self.bad = bad
        self.kept = np.setdiff1d(np.arange(len(self.paths)), list(bad))

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def directory(self) -> Path:
        return Path(self.cfg.cache_dir or Path(self.cfg.data_root) / ".cache")

    def read(self, indices: Sequence[int] | np.ndarray, pin: bool = False) -> torch.Tensor:
        """(B, height, width, 3) uint8 RGB of the images at `indices`; pin: in memory that a GPU can copy from."""
        rows = self.kept[np.asarray(indices, dtype=np.int64)]
        batch = torch.empty((len(rows), self.cfg.height, self.cfg.width, 3), dtype=torch.uint8, pin_memory=pin)
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
        return read_image(path, self.cfg.height, self.cfg.width)

    # ---- the cache

    def _stored(self) -> dict[int, str]:
        """Map the file of these pictures, made first where there is none; gives the bad ones with their reasons."""
        if self.cfg.disk_gb == 0:
            return self._in_memory()
        pictures, record = (self.directory / f"{self.name}-{self._digest()}{end}" for end in (".npy", ".json"))
        bad = self._open(pictures, record)
        if bad is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            with locked(self.directory):
                bad = self._open(pictures, record)  # another program may have made it meanwhile
                if bad is None:
                    self._build(pictures, record)
                    bad = self._open(pictures, record)
        return bad

    def _open(self, pictures: Path, record: Path) -> dict[int, str] | None:
        """The bad ones of a valid cache; None where there is none.

        The record is written last and makes the file valid: what a build that was killed leaves behind has none.
        """
        try:
            about = json.loads(record.read_text())
            if about["cached"]:
                self.pictures = np.asarray(np.load(pictures, mmap_mode="c"))
                if self.bytes <= self.cfg.cache_gb * 1e9 and hasattr(os, "posix_fadvise"):
                    with open(pictures, "rb") as file:  # have it read in order now, not at random later
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            elif self.bytes <= self.cfg.disk_gb * 1e9:
                return None  # there was less room then
        except (FileNotFoundError, ValueError):
            return None
        with suppress(OSError):  # of somebody else's
            os.utime(record)  # the least recently used go first
        return dict(about["bad"])

    def _digest(self) -> str:
        """Of all that the pictures depend on: the files (place, size, time of change), the input size, the decoder."""
        digest = hashlib.sha256(f"1 {cv2.__version__} {self.cfg.height} {self.cfg.width}\n".encode())
        for path in self.paths:
            try:
                about = os.stat(path)
                state = f"{about.st_size} {about.st_mtime_ns}"
            except OSError:
                state = "missing"
            digest.update(f"{os.path.abspath(path)}\0{state}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def _build(self, pictures: Path, record: Path) -> None:
        """Decode all into the file if there may be one that large, else only to see whether they can be decoded."""
        bad: dict[int, str] = {}
        limit = self.cfg.disk_gb * 1e9
        cached = self.bytes <= limit
        make_room(self.directory, limit - cached * self.bytes)
        with closing(self._decode_all(bad)) as blocks:
            if cached:
                write_rows(pictures, len(self.paths), blocks)
            else:
                deque(blocks, maxlen=0)
        write_json(record, {"cached": cached, "bad": list(bad.items())})

    def _in_memory(self) -> dict[int, str]:
        """The same without a file: kept in memory if they fit there."""
        bad: dict[int, str] = {}
        fits = self.bytes <= self.cfg.cache_gb * 1e9
        pictures = np.empty((len(self.paths), self.cfg.height, self.cfg.width, 3), np.uint8) if fits else None
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
                return np.zeros((self.cfg.height, self.cfg.width, 3), np.uint8)

        def block(start: int) -> list[Future]:
            return [self.pool.submit(attempt, i) for i in range(start, min(start + BLOCK, len(self.paths)))]

        bar = tqdm(total=len(self.paths), desc=f"read {self.name}", unit="img", leave=False, disable=None)
        coming = block(0)
        try:
            with closing(bar):
                for start in range(0, len(self.paths), BLOCK):
                    now, coming = coming, block(start + BLOCK)
                    yield np.stack([future.result() for future in now])
                    bar.update(len(now))
        finally:  # stopped: without this, the program would decode what it has asked for before it ends
            for future in coming:
                future.cancel()
        self.refuse(bad)

    def refuse(self, bad: dict[int, str]) -> None:
        """Raises UserError that lists the files that cannot be decoded, unless these are to be skipped."""
        if bad and self.cfg.on_bad_image == "refuse":
            more = f" (and {len(bad) - LISTED} more)" if len(bad) > LISTED else ""
            listed = "; ".join(bad[index] for index in sorted(bad)[:LISTED])
            raise UserError(
                f"{len(bad)} of {len(self.paths)} {self.name} images cannot be used: {listed}{more}. "
                "--on-bad-image skip goes on without them"
            )


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One program at a time fills a cache: a second waits, and then finds the files of the first."""
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        log.info("another program is filling %s; waiting for it", directory)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def make_room(directory: Path, limit: float) -> None:
    """Remove what killed builds left, and the least recently used files until the rest has no more than `limit` bytes.

    To be called with the directory locked.
    """
    unfinished = [path for path in directory.glob("*-*.npy") if not path.with_suffix(".json").is_file()]
    for path in (*unfinished, *directory.glob(".*.tmp")):
        path.unlink()
    used = 0
    for record in sorted(directory.glob("*-*.json"), key=lambda path: -path.stat().st_mtime):
        pictures = record.with_suffix(".npy")
        used += pictures.stat().st_size if pictures.is_file() else 0
        if used > limit:
            record.unlink()
            pictures.unlink(missing_ok=True)
