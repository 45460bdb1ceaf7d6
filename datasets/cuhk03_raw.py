"""CUHK03's raw release: one MATLAB file with all pictures (HDF5, as of MATLAB 7.3), and the new protocol's two small
ones (MATLAB 5). What reads them are optional packages, so it is imported here alone and when it is needed."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from utils.errors import UserError
from utils.logging import log

MAT = "cuhk-03.mat"
CAMERA_IMAGES = 5  # columns of a person's row that belong to the first camera of the pair; the rest to the second


def extract(mat: Path, boxes: str) -> Path:
    """The folder beside `mat` with its pictures of one kind as PNG files, filled at the first call (a minute or two).

    1_002_2_06.png is camera pair 1, person 2 of it, camera 2, picture 6, as in the new protocol's lists. Raises
    UserError when h5py is missing or the file is not CUHK03's.
    """
    folder = mat.parent / f"images_{boxes}"
    if folder.exists():
        return folder
    log.info("writing the %s pictures of %s to %s, once", boxes, mat, folder)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # a killed run of the same process number may have left one
    try:
        partial.mkdir()
        for name, image in tqdm(_images(mat, boxes), desc=f"CUHK03 {boxes}", unit="img", leave=False, disable=None):
            (partial / name).write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
        partial.rename(folder)
    except OSError:
        if not folder.exists():  # else another process was quicker, with the same pictures
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def read_test_people(mat: Path, split: int) -> set[tuple[int, int]]:
    """Who is tested in one of the classic splits, from 0: camera pair and number in it, both from 1.

    Raises UserError when there is no such split, h5py is missing or the file is not CUHK03's.
    """
    with _opened(mat) as file:
        splits = file["testsets"][()].ravel()
        if not 0 <= split < len(splits):
            raise UserError(f"--split-seed {split}: the classic splits of CUHK03 are 0 to {len(splits) - 1}")
        return {(int(pair), int(person)) for pair, person in file[splits[split]][()].T}


def read_config(file: Path) -> dict[str, list[tuple[str, int]]]:
    """The new protocol: train, query and gallery, each a list of image name and pid, from 1.

    Raises UserError when scipy is missing or the file cannot be read.
    """
    scipy_io = _optional("scipy.io", "scipy", file)
    try:
        config = scipy_io.loadmat(file)
        names = [str(name[0]) for name in config["filelist"].ravel()]
        pids = config["labels"].ravel().tolist()
        splits = {split: config[f"{split}_idx"].ravel().tolist() for split in ("train", "query", "gallery")}
        return {split: [(names[i - 1], pids[i - 1]) for i in places] for split, places in splits.items()}
    except Exception as error:  # scipy has a dozen kinds for a file that is damaged
        raise UserError(f"{file} is no list of CUHK03's new protocol ({error}); get it anew") from error


def _images(mat: Path, boxes: str) -> Iterator[tuple[str, np.ndarray]]:
    """File name and picture (H, W, 3), RGB."""
    with _opened(mat) as file:
        for pair, people in enumerate(file[boxes][()].ravel(), 1):
            for person, places in enumerate(file[people][()].T, 1):
                for place, reference in enumerate(places, 1):
                    image = file[reference]
                    if image.ndim == 3:  # an empty cell, where there is no picture, is stored as its size
                        camera = 1 if place <= CAMERA_IMAGES else 2
                        # MATLAB writes column after column, so all axes are in reverse.
                        yield f"{pair}_{person:03d}_{camera}_{place:02d}.png", image[()].T


@contextmanager
def _opened(mat: Path) -> Iterator[Any]:
    h5py = _optional("h5py", "h5py", mat)
    try:
        with h5py.File(mat, "r") as file:
            yield file
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{mat} is damaged or not the one of CUHK03 ({error}); unpack cuhk03_release.zip again"
        ) from error


def _optional(module: str, package: str, file: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{file} is read by the package {package}; install it with: pip install {package}") from error
