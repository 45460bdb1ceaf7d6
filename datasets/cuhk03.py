"""CUHK03 (Li et al., DeepReID: Deep Filter Pairing Neural Network for Person Re-identification, CVPR 2014), with its
own protocol and the new one (Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017).

The raw release is one MATLAB file with all images (HDF5, from MATLAB 7.3), and the new protocol adds two small ones
(MATLAB 5). The packages that read them are optional, so they are imported when they are needed.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from datasets.base import ReIDDataset, Sample
from datasets.layouts import check_counts, find_base, match_images, read_layout
from datasets.new_directory import new_directory
from utils.errors import UserError
from utils.files import reading
from utils.logging import log

NAMES = ("cuhk03-np", "CUHK03-NP", "cuhk03_np", "cuhk03/cuhk03-np", "cuhk03", "CUHK03", ".")
RAW_NAMES = ("cuhk03/cuhk03_release", "CUHK03/cuhk03_release", "cuhk03_release", "cuhk03", "CUHK03", ".")
MAT = "cuhk-03.mat"
CONFIGS = "github.com/zhunzhong07/person-re-ranking, evaluation/data/CUHK03"
PUBLISHED = {  # new protocol; boxes around the people are found by a detector or drawn by hand
    "detected": {"train": (7365, 767), "query": (1400, 700), "gallery": (5332, 700)},
    "labeled": {"train": (7368, 767), "query": (1400, 700), "gallery": (5328, 700)},
}
IMAGES = {"detected": 14097, "labeled": 14096}
TRAIN_IDS, TEST_IDS = 1367, 100  # of the classic protocol
CAMERA_IMAGES = 5  # columns of a person's row that belong to the first camera of the pair; the rest to the second


def cuhk03(root: str | Path, boxes: str) -> ReIDDataset:
    """List the new protocol, 767 people for training and 700 for testing, with boxes "detected" or "labeled".

    Read from the folders of cuhk03-np where they exist, otherwise from the raw release, which needs h5py and scipy.
    Warns when the counts are not the published ones.
    """
    name, folder = f"cuhk03_{boxes}", f"{boxes}/bounding_box_train"
    raw = next((Path(root) / name for name in RAW_NAMES if (Path(root) / name / MAT).exists()), None)
    if raw and not any((Path(root) / name / folder).exists() for name in NAMES):
        base, dataset = raw, _read_raw(name, raw, boxes)
    else:
        base = find_base(f"CUHK03 (folders, or the raw release's {MAT})", root, NAMES, folder)
        dataset = read_layout(name, base / boxes)
    return check_counts(f"CUHK03 ({boxes}) at {base}", dataset, PUBLISHED[boxes])


def _read_raw(name: str, base: Path, boxes: str) -> ReIDDataset:
    """Read the new protocol from its config file, with the images of the raw release."""
    file = f"cuhk03_new_protocol_config_{boxes}.mat"
    config = next((folder / file for folder in (base, base.parent) if (folder / file).exists()), None)
    if config is None:
        raise UserError(f"{base / file} is missing; it defines the new protocol of CUHK03, get it from {CONFIGS}")
    splits = read_config(config)
    folder = extract(base / MAT, boxes)
    images, lists = set(os.listdir(folder)), {}
    for split, rows in splits.items():
        if missing := next((image for image, _ in rows if image not in images), None):
            raise UserError(f"{folder} has no {missing}, which {config} names; remove the folder to make it again")
        lists[split] = [Sample(str(folder / image), pid, int(image.split("_")[2])) for image, pid in rows]
    return ReIDDataset(name, **lists)


def cuhk03_classic(root: str | Path, boxes: str, split: int) -> ReIDDataset:
    """List one of the 20 splits of the raw release (needs h5py): 100 people for testing, all others for training.

    The test images are both queries and gallery, scored in single-shot trials. The paper trained on the 1,160 people of
    camera pairs 1 to 3 and kept 100 for validation; we train on all 1,367, as open-reid and torchreid do.
    """
    base = find_base("CUHK03's raw release", root, RAW_NAMES, MAT)
    test_people = read_test_people(base / MAT, split)  # before the slow extraction
    found = [
        ((int(m[1]), int(m[2])), int(m[3]), path)
        for path, m in match_images(extract(base / MAT, boxes), r"(\d+)_(\d+)_(\d)_\d+\.png$", "1_002_2_06.png")
    ]
    pids = {person: pid for pid, person in enumerate(sorted({person for person, _, _ in found}), 1)}
    train, test = [], []
    for person, camid, path in found:
        (test if person in test_people else train).append(Sample(path, pids[person], camid))
    name = f"cuhk03_classic_{boxes}"
    dataset = ReIDDataset(name, train, test, list(test), protocol="single_shot", drawn=True)
    # The number of images on either side depends on the split.
    published = {"train": (IMAGES[boxes] - len(test), TRAIN_IDS), "gallery": (len(test), TEST_IDS)}
    return check_counts(f"CUHK03 ({boxes}, classic split {split}) at {base}", dataset, published)


# ---- the MATLAB files


def extract(mat: Path, boxes: str) -> Path:
    """Return the folder next to `mat` with its images of one kind as PNG files; the first call writes it (1-2 minutes).

    1_002_2_06.png is camera pair 1, person 2 of it, camera 2, image 6, as in the new protocol's lists.
    """
    folder = mat.parent / f"images_{boxes}"
    if folder.exists():
        return folder
    log.info("writing the %s images of %s to %s, once", boxes, mat, folder)
    try:
        with new_directory(folder) as partial:
            for name, image in tqdm(_images(mat, boxes), desc=f"CUHK03 {boxes}", unit="img", leave=False, disable=None):
                (partial / name).write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    except OSError:
        if not folder.exists():  # otherwise another process was faster, with the same images
            raise
    return folder


def _images(mat: Path, boxes: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield file name and image (H, W, 3), RGB."""
    with _open(mat) as file:
        for pair, people in enumerate(file[boxes][()].ravel(), 1):
            for person, places in enumerate(file[people][()].T, 1):
                for place, reference in enumerate(places, 1):
                    image = file[reference]
                    if image.ndim == 3:  # an empty cell, where there is no image, is stored as its size
                        camera = 1 if place <= CAMERA_IMAGES else 2
                        # MATLAB writes column after column, so all axes are in reverse.
                        yield f"{pair}_{person:03d}_{camera}_{place:02d}.png", image[()].T


def read_test_people(mat: Path, split: int) -> set[tuple[int, int]]:
    """Read the test identities of a classic split (from 0): camera pair and number in the pair, both from 1."""
    with _open(mat) as file:
        splits = file["testsets"][()].ravel()
        if not 0 <= split < len(splits):
            raise UserError(f"--split-seed {split}: the classic splits of CUHK03 are 0 to {len(splits) - 1}")
        return {(int(pair), int(person)) for pair, person in file[splits[split]][()].T}


def read_config(file: Path) -> dict[str, list[tuple[str, int]]]:
    """Read the new protocol: train, query and gallery, each a list of image name and pid, from 1."""
    scipy_io = _import("scipy.io", "scipy", file)
    try:
        config = scipy_io.loadmat(file)
        names = [str(name[0]) for name in config["filelist"].ravel()]
        pids = config["labels"].ravel().tolist()
        splits = {split: config[f"{split}_idx"].ravel().tolist() for split in ("train", "query", "gallery")}
        return {split: [(names[i - 1], pids[i - 1]) for i in places] for split, places in splits.items()}
    except Exception as error:  # scipy raises a dozen kinds for a damaged file
        raise UserError(f"{file} is not a list of CUHK03's new protocol ({error}); download it again") from error


@contextmanager
def _open(mat: Path) -> Iterator[Any]:
    h5py = _import("h5py", "h5py", mat)
    with reading(mat, "unpack cuhk03_release.zip again"), h5py.File(mat, "r") as file:
        yield file


def _import(module: str, package: str, file: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{file} is read by the package {package}; install it with: pip install {package}") from error
