"""Image files to uint8 arrays: decoded by cv2 in threads (it releases the GIL), kept in memory where they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from utils.errors import UserError

cv2.setNumThreads(0)  # our threads are one an image; cv2's own would only get in their way


def read_image(path: str | Path, height: int, width: int) -> np.ndarray:
    """One image file as (height, width, 3) uint8 RGB, whatever its colour space and depth.

    Raises UserError, naming the path, when the file is missing, unreadable, no image, or cut short.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not _jpeg_is_whole(data.tobytes()):
        raise UserError(f"{path} is cut short (a JPEG without its end); restore or remove it")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{path} is not an image that can be decoded ({len(data)} bytes); restore or remove it")
    if image.shape[:2] != (height, width):
        shrinks = image.shape[0] > height or image.shape[1] > width
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return image


def _jpeg_is_whole(data: bytes) -> bool:
    """False for a JPEG without its end marker, of which some cv2 versions decode what is left and fill up with grey."""
    if not data.startswith(b"\xff\xd8"):
        return True  # no JPEG: its own decoder will tell
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"", b"\xda"):  # up to the picture data:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")  # a thumbnail before it has an end marker of its own
    return data.find(b"\xff\xd9", at) >= 0


class Images:
    """The pictures of one split, by index. Decoded once into memory if they fit `cache_gb`, else at every use."""

    def __init__(self, paths: Sequence[str], height: int, width: int, cache_gb: float, workers: int, name: str):
        self.paths, self.height, self.width, self.name = list(paths), height, width, name
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix=f"read-{name}")
        self.fits = len(self.paths) * height * width * 3 <= cache_gb * 1e9
        self.cache: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def prepare(self) -> None:
        """Fill the memory cache, with progress. Raises UserError that lists the files that cannot be read."""
        if not self.fits or self.cache is not None:
            return
        cache = np.empty((len(self), self.height, self.width, 3), dtype=np.uint8)
        bad = []

        def fill(index: int) -> None:
            try:
                cache[index] = read_image(self.paths[index], self.height, self.width)
            except UserError as error:
                bad.append(str(error))

        try:
            done = self.pool.map(fill, range(len(self)))
            for _ in tqdm(done, f"read {self.name}", len(self), unit="img", leave=False, disable=None):
                pass
        except BaseException:  # stopped: without this, the program would read on to the last file before it ends
            self.pool.shutdown(cancel_futures=True)
            raise
        if bad:
            more = f" (and {len(bad) - 1} more: {'; '.join(sorted(bad)[1:10])})" if len(bad) > 1 else ""
            raise UserError(sorted(bad)[0] + more)
        self.cache = torch.from_numpy(cache)

    def read(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """(B, height, width, 3) uint8 RGB of the images at `indices`."""
        self.prepare()
        if self.cache is not None:
            return self.cache[torch.as_tensor(np.asarray(indices))]
        images = self.pool.map(lambda i: read_image(self.paths[i], self.height, self.width), indices)
        return torch.from_numpy(np.stack(list(images)))

    def batches(self, index_batches: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """(indices, images) for each batch of indices, the next one read while the current one is used."""
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as ahead:
            waiting = None
            for indices in index_batches:
                coming = (indices, ahead.submit(self.read, indices))
                if waiting:
                    yield waiting[0], waiting[1].result()
                waiting = coming
            if waiting:
                yield waiting[0], waiting[1].result()
