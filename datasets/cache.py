"""The images of a split, decoded once into a file that later runs map into memory.

The operating system keeps a mapped file in memory while there is room, and processes share it. A split without a file
(--disk-gb 0, no room, no permission) is kept in memory if it fits there, and otherwise decoded again at every use.
"""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import chain, pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from config import Config
from datasets.images import read_input
from utils.errors import UserError
from utils.files import lock_directory, write_json, write_rows
from utils.logging import log

BLOCK = 256  # images decoded at a time
MAX_LISTED = 10  # unreadable files that a message names
DIGEST = "[0-9a-f]" * 16  # in our file names: other files in the directory are never removed
STARTED = time.time() - 1  # of this program; a second for file systems that round


class Images:
    """The images at `paths` by index, resized to the size of the settings.

    Every file is decoded once at the start. Raises UserError that lists the bad ones; with --on-bad-image skip they are
    left out, `bad` maps their indices to the reasons, and `kept` are the indices into `paths` of the others, which all
    later indices count.
    """

    def __init__(self, cfg: Config, paths: Sequence[str], name: str):
        self.cfg, self.name, self.paths = cfg, name, list(paths)
        self.height, self.width = cfg.data.height, cfg.data.width
        self.bytes = len(self.paths) * self.height * self.width * 3
        self.directory = Path(cfg.data.cache_dir or Path(cfg.data.data_root) / ".cache")
        self.pool = ThreadPoolExecutor(cfg.data.workers, thread_name_prefix=f"read-{name}")
        self.pictures: np.ndarray | None = None  # (N, height, width, 3) uint8 of all paths; None: decode at every use
        self.unchecked = np.zeros(len(self.paths), bool)  # images in a file whose checksum is not compared yet
        bad = None
        try:
            bad = self._from_file() if self.paths and cfg.data.disk_gb > 0 else None
        except OSError as error:
            log.warning("warning: no cache of %s in --cache-dir %s: %s", name, self.directory, error.strerror or error)
        self.bad: dict[int, str] = self._without_file() if bad is None else bad
        self._refuse(self.bad)
        self.kept = np.setdiff1d(np.arange(len(self.paths)), list(self.bad))

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def note(self) -> str:
        """How many images cannot be read; empty if all can."""
        return f"{len(self.bad)} unreadable {self.name} images left out" if self.bad else ""

    def read(self, indices: Sequence[int] | np.ndarray, pin: bool = False) -> torch.Tensor:
        """(B, height, width, 3) uint8 RGB of the images at `indices`; pin: in page-locked memory, for a GPU."""
        rows = self.kept[list(indices)]  # raises IndexError for what is not an index
        batch = torch.empty((len(rows), self.height, self.width, 3), dtype=torch.uint8, pin_memory=pin)
        if self.pictures is not None:
            self._check(rows)
            np.take(self.pictures, rows, axis=0, out=batch.numpy(), mode="clip")  # clip: the mode without a copy
        else:
            for place, image in enumerate(self.pool.map(self._decode, (self.paths[row] for row in rows))):
                batch[place] = torch.from_numpy(image)
        return batch

    def batches(
        self, index_batches: Iterable[np.ndarray], device: torch.device
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """(indices, images on `device`) per batch of indices; the next one is read while the current one is used."""
        pin = device.type == "cuda"  # a GPU copies from page-locked memory while the CPU prepares the next batch
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
            submitted = ((indices, thread.submit(self.read, indices, pin)) for indices in index_batches)
            for (indices, images), _next in pairwise(chain(submitted, [None])):
                yield indices, images.result().to(device, non_blocking=True)

    def _check(self, rows: np.ndarray) -> None:
        """Raises UserError for pictures of the file that are not as they were written, when they are first read."""
        for row in rows[self.unchecked[rows]]:
            if zlib.crc32(self.pictures[row]) != self.sums[row]:
                raise UserError(f"the cached image of {self.paths[row]} in {self.file} is damaged; remove that file")
            self.unchecked[row] = False

    def _decode(self, path: str) -> np.ndarray:
        return read_input(path, self.cfg.data)

    def _from_file(self) -> dict[int, str] | None:
        """Map the file of these images, written first if necessary. Returns the bad ones, or None if it has no room."""
        pictures, record = (self.directory / f"{self.name}-{self._digest()}{end}" for end in (".npy", ".json"))
        bad = self._map(pictures, record)
        if bad is None and self.bytes <= self.cfg.data.disk_gb * 1e9:
            with lock_directory(self.directory, wait=True, leftovers=f".*-{DIGEST}.*.tmp"):
                bad = self._map(pictures, record)  # another program may have written it meanwhile
                if bad is None and make_room(self.directory, self.bytes, self.cfg.data.disk_gb * 1e9):
                    bad = {}
                    sums: list[int] = []
                    with closing(self._decode_all(bad)) as blocks:
                        write_rows(pictures, len(self.paths), checksummed(blocks, sums))
                    write_json(record, {"bad": list(bad.items()), "crc": sums})  # last, as it makes the file valid
                    self._map(pictures, record)
        return bad

    def _map(self, pictures: Path, record: Path) -> dict[int, str] | None:
        """Map a valid file and return the bad images; None if there is none."""
        try:
            about = json.loads(record.read_text())
            bad, sums = dict(about["bad"]), np.array(about["crc"], np.uint32)
            mapped = np.asarray(np.lib.format.open_memmap(pictures, mode="c"))
            fits = mapped.shape == (len(sums), self.height, self.width, 3) and mapped.dtype == np.uint8
        except PermissionError:
            raise
        except Exception:  # missing, or damaged: a header may raise anything
            return None
        if not fits or len(sums) != len(self.paths):
            return None
        self.pictures, self.sums, self.file = mapped, sums, pictures
        self.unchecked = np.ones(len(sums), bool)
        with suppress(OSError):  # a file of another user
            os.utime(record)  # the time of its last use
        if self.bytes <= self.cfg.data.cache_gb * 1e9 and hasattr(os, "posix_fadvise"):
            with open(pictures, "rb") as file:  # read it in order now, not at random later
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        return bad

    def _without_file(self) -> dict[int, str]:
        """Decode all images, into memory if they fit there; returns the bad ones."""
        bad: dict[int, str] = {}
        if self.bytes <= self.cfg.data.cache_gb * 1e9:
            self.pictures = np.empty((len(self.paths), self.height, self.width, 3), np.uint8)
        with closing(self._decode_all(bad)) as blocks:
            for number, block in enumerate(blocks):
                if self.pictures is not None:
                    self.pictures[number * BLOCK : number * BLOCK + len(block)] = block
        return bad

    def _decode_all(self, bad: dict[int, str]) -> Iterator[np.ndarray]:
        """All images in blocks; bad ones are black, with their reasons in `bad`. Raises UserError at the end."""

        def attempt(index: int) -> np.ndarray:
            try:
                return self._decode(self.paths[index])
            except UserError as error:
                bad[index] = str(error)
                return np.zeros((self.height, self.width, 3), np.uint8)

        total = len(self.paths)
        with tqdm(total=total, desc=f"read {self.name}", unit="img", leave=False, disable=None) as bar:
            for start in range(0, total, BLOCK):
                block = np.stack(list(self.pool.map(attempt, range(start, min(start + BLOCK, total)))))
                bar.update(len(block))
                yield block
        self._refuse(bad)

    def _refuse(self, bad: dict[int, str]) -> None:
        if bad and self.cfg.data.on_bad_image == "refuse":
            raise UserError(
                f"{len(bad)} of {len(self.paths)} {self.name} images cannot be used: {summary(bad)}. "
                "--on-bad-image skip goes on without them"
            )

    def _digest(self) -> str:
        """Of all that the images depend on: the files (path, size, time of change), the input size, the decoder."""
        pixel_range = f"{self.cfg.data.pixel_range}\n" if any(self.cfg.data.pixel_range) else ""
        shrink = "bilinear\n" if self.cfg.data.shrink == "bilinear" else ""
        digest = hashlib.sha256(f"2 {cv2.__version__} {self.height} {self.width}\n{pixel_range}{shrink}".encode())
        for path in self.paths:
            try:
                status = os.stat(path)
                # ctime too: a file renamed to another name, or made readable, keeps its mtime.
                state = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
            except (OSError, ValueError):
                state = "missing"
            digest.update(f"{os.path.abspath(path)}\0{state}\n".encode(errors="surrogatepass"))
        return digest.hexdigest()[:16]


def checksummed(blocks: Iterable[np.ndarray], sums: list[int]) -> Iterator[np.ndarray]:
    """The blocks; `sums` gets the checksum of each image in them."""
    for block in blocks:
        sums += map(zlib.crc32, block)
        yield block


def summary(texts: dict[int, str]) -> str:
    """The first few texts in order, and how many more there are."""
    more = f" (and {len(texts) - MAX_LISTED} more)" if len(texts) > MAX_LISTED else ""
    return "; ".join(texts[index] for index in sorted(texts)[:MAX_LISTED]) + more


def make_room(directory: Path, size: int, limit: float) -> bool:
    """Remove the least recently used files, but none of this program, until one of `size` bytes fits into `limit`.

    Returns whether it fits. Also removes files of killed programs, which have no record. The directory must be locked.
    """
    for path in directory.glob(f"*-{DIGEST}.npy"):
        if not path.with_suffix(".json").is_file():
            path.unlink()
    records = sorted(directory.glob(f"*-{DIGEST}.json"), key=lambda record: record.stat().st_mtime)
    sizes = {r: p.stat().st_size if (p := r.with_suffix(".npy")).is_file() else 0 for r in records}
    if size + sum(sizes[record] for record in records if record.stat().st_mtime > STARTED) > limit:
        return False
    for record in records:
        if sum(sizes.values()) + size > limit:
            record.unlink()
            record.with_suffix(".npy").unlink(missing_ok=True)
            del sizes[record]
    return True
