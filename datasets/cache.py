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
from contextlib import suppress
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
DIGEST = "[0-9a-f]" * 16  # in names of our files: other files in the directory are never removed
STARTED = time.time() - 1  # start of this program, less a second for file systems that round times


class Images:
    """The images at `paths` by index, resized to the size of the settings.

    Every file is decoded once at the start. Raises UserError that lists the unreadable files. With --on-bad-image skip,
    these are left out: `bad` maps their indices to the reasons, and `kept` has the indices into `paths` of the others.
    All later indices count only the kept images.
    """

    def __init__(self, cfg: Config, paths: Sequence[str], name: str):
        self.cfg, self.name, self.paths = cfg, name, list(paths)
        self.height, self.width = cfg.data.height, cfg.data.width
        self.bytes = len(self.paths) * self.height * self.width * 3
        self.directory = Path(cfg.data.cache_dir or Path(cfg.data.data_root) / ".cache")
        self.pool = ThreadPoolExecutor(cfg.data.workers, thread_name_prefix=f"read-{name}")
        self.pictures: np.ndarray | None = None  # (N, height, width, 3) uint8 of all paths; None: decode at every use
        self.sums = np.zeros(len(self.paths), np.uint32)  # checksum of each image
        self.unchecked = np.zeros(len(self.paths), bool)  # images of the file whose checksum was not compared yet
        self.bad: dict[int, str] = {}
        try:
            mapped = bool(self.paths) and cfg.data.disk_gb > 0 and self._from_file()
        except OSError as error:
            log.warning("warning: no cache of %s in --cache-dir %s: %s", name, self.directory, error.strerror or error)
            mapped = False
        if not mapped:
            self._without_file()
        if self.bad and cfg.data.on_bad_image == "refuse":
            raise UserError(
                f"{len(self.bad)} of {len(self.paths)} {name} images cannot be used: {summary(self.bad)}. "
                "--on-bad-image skip continues without them"
            )
        self.kept = np.setdiff1d(np.arange(len(self.paths)), list(self.bad))

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def note(self) -> str:
        """Number of images that cannot be read, in words; empty if there are none."""
        return f"{len(self.bad)} unreadable {self.name} images left out" if self.bad else ""

    def read(self, indices: Sequence[int] | np.ndarray, pin: bool = False) -> torch.Tensor:
        """Return the images at `indices`, (B, height, width, 3) uint8 RGB; pin: in page-locked memory, for a GPU."""
        rows = self.kept[list(indices)]  # raises IndexError for a wrong index
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
        """Yield (indices, images on `device`) per batch; the next batch is read while the current one is used."""
        pin = device.type == "cuda"  # a GPU copies from page-locked memory while the CPU prepares the next batch
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
            submitted = ((indices, thread.submit(self.read, indices, pin)) for indices in index_batches)
            for (indices, images), _next in pairwise(chain(submitted, [None])):
                yield indices, images.result().to(device, non_blocking=True)

    def _check(self, rows: np.ndarray) -> None:
        """Compare checksums of images of the file at their first use. Raises UserError if an image is damaged."""
        for row in rows[self.unchecked[rows]]:
            if zlib.crc32(self.pictures[row]) != self.sums[row]:
                raise UserError(f"the cached image of {self.paths[row]} in {self.file} is damaged; remove that file")
            self.unchecked[row] = False

    def _decode(self, path: str) -> np.ndarray:
        return read_input(path, self.cfg.data)

    def _from_file(self) -> bool:
        """Map the file of these images, and write it first if necessary. Returns False if there is no room for it."""
        file, limit = self.directory / f"{self.name}-{self._digest()}.npy", self.cfg.data.disk_gb * 1e9
        if not self._map(file) and self.bytes <= limit:
            with lock_directory(self.directory, wait=True, leftovers=f".*-{DIGEST}.*.tmp"):
                # another program may have written it meanwhile
                if not self._map(file) and make_room(self.directory, self.bytes, limit):
                    write_rows(file, len(self.paths), self._decode_all())
                    about = {"bad": list(self.bad.items()), "crc": self.sums.tolist()}
                    write_json(file.with_suffix(".json"), about)  # last, as it makes the file valid
                    self._map(file)
        return self.pictures is not None

    def _map(self, file: Path) -> bool:
        """Map the file if it is valid. Returns whether it is."""
        record, shape = file.with_suffix(".json"), (len(self.paths), self.height, self.width, 3)
        try:
            about = json.loads(record.read_text())
            bad, sums = dict(about["bad"]), np.array(about["crc"], np.uint32)
            mapped = np.asarray(np.lib.format.open_memmap(file, mode="c"))
        except PermissionError:
            raise
        except Exception:  # missing, or damaged: a header may raise anything
            return False
        if mapped.shape != shape or mapped.dtype != np.uint8 or sums.shape != shape[:1]:
            return False
        self.pictures, self.sums, self.file, self.bad = mapped, sums, file, bad
        self.unchecked = np.ones(len(sums), bool)
        with suppress(OSError):  # a file of another user
            os.utime(record)  # the time of its last use
        if self.bytes <= self.cfg.data.cache_gb * 1e9 and hasattr(os, "posix_fadvise"):
            with open(file, "rb") as opened:  # read it in order now, not at random later
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        return True

    def _without_file(self) -> None:
        """Decode all images, into memory if they fit there."""
        if self.bytes <= self.cfg.data.cache_gb * 1e9:
            self.pictures = np.empty((len(self.paths), self.height, self.width, 3), np.uint8)
        for number, block in enumerate(self._decode_all()):
            if self.pictures is not None:
                self.pictures[number * BLOCK : number * BLOCK + len(block)] = block

    def _decode_all(self) -> Iterator[np.ndarray]:
        """Decode all images in blocks; unreadable ones are black, with their reasons in `bad`."""

        def attempt(index: int) -> np.ndarray:
            try:
                image = self._decode(self.paths[index])
            except UserError as error:
                self.bad[index] = str(error)
                image = np.zeros((self.height, self.width, 3), np.uint8)
            self.sums[index] = zlib.crc32(image)
            return image

        total = len(self.paths)
        with tqdm(total=total, desc=f"read {self.name}", unit="img", leave=False, disable=None) as bar:
            for start in range(0, total, BLOCK):
                block = np.stack(list(self.pool.map(attempt, range(start, min(start + BLOCK, total)))))
                bar.update(len(block))
                yield block

    def _digest(self) -> str:
        """Digest of all that the images depend on: files (path, size, time of change), input size, decoder."""
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


def summary(texts: dict[int, str]) -> str:
    """Join the first few texts in order, and add how many more there are."""
    more = f" (and {len(texts) - MAX_LISTED} more)" if len(texts) > MAX_LISTED else ""
    return "; ".join(texts[index] for index in sorted(texts)[:MAX_LISTED]) + more


def make_room(directory: Path, size: int, limit: float) -> bool:
    """Remove the least recently used files, but none of this program, until a file of `size` bytes fits into `limit`.

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
