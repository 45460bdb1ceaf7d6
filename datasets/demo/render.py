"""Render the demo set: walking people (`pedestrian.py`) before six street cameras, laid out like Market-1501.

It needs no download and no licence, and it is a real task in small: identities share clothes colours, look partly
different from each side, and every camera has its own colours, blur, noise, background, light and hidden legs.
Every picture has a random generator of its own, so the bytes depend on `seed` alone. A plain loop draws them: the
work is many small array operations, which threads would not speed up.
"""

import math
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datasets.demo import street
from datasets.demo.pedestrian import Figure, Pose, draw_person
from datasets.demo.street import CAMERAS, FINER, HEIGHT, WIDTH, Camera, cloud
from datasets.demo.wardrobe import Look, make_look

CAMERAS_SEEN, CAMERAS_CHANCE = (3, 4, 5, 6), (0.44, 0.32, 0.16, 0.08)  # cameras an identity walks past
PICTURES = (3, 4, 5, 6)  # of an identity in a camera
SHARED, SCENE, STRANGER, LOOK, TRACK, PICTURE, EXTRA, NOBODY, SPLIT = range(9)  # what a random stream is for


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng([part + 1 for part in key])


class Studio:
    """What all pictures of one seed share: the cameras' scenes, the folds of cloth, and strangers who walk by."""

    def __init__(self, seed: int) -> None:
        rng = _rng(seed, SHARED)
        self.seed = seed
        height, width = (HEIGHT + 40) * FINER, 640 * FINER
        streams = [_rng(seed, SCENE, number) for number in range(len(CAMERAS))]
        self.scenes = [self._scene(*both, height, width) for both in zip(streams, CAMERAS, strict=True)]
        folds = cloud(rng, 720, 720, 6, 1.8) + cloud(rng, 720, 720, 9)  # creases, most of them slanting
        slant = cv2.getRotationMatrix2D((360, 360), 32, 1.0)
        self.folds = np.ascontiguousarray(0.22 * cv2.warpAffine(folds, slant, (720, 720))[104:616, 104:616])
        self.leaves = cloud(rng, 256, 256, 2.0) * 22 + cloud(rng, 256, 256, 8) * 14
        self.strangers = [make_look(_rng(seed, STRANGER, number)) for number in range(24)]

    def _scene(self, rng: np.random.Generator, camera: Camera, height: int, width: int) -> np.ndarray:
        wall = int(camera.wall * HEIGHT * FINER) + 20 * FINER
        scene = street.ground(rng, camera.ground, height, width)
        scene[:wall] = cv2.GaussianBlur(street.back(rng, camera.back, wall, width), (0, 0), 1.6)  # out of focus
        scene[wall : wall + 8] *= np.linspace(0.55, 0.95, 8, dtype=np.float32)[:, None, None]
        scene *= (1 + 0.12 * cloud(rng, height, width, 90, 40))[..., None]
        return cv2.GaussianBlur(scene, (0, 0), 1.2)

    def background(self, rng: np.random.Generator, number: int, spot: float) -> np.ndarray:
        """A crop (H, W, 3) of the camera's scene near `spot`, a share of its width."""
        scene, zoom = self.scenes[number], rng.uniform(0.85, 1.15)
        high, wide = int(HEIGHT * FINER * zoom), int(WIDTH * FINER * zoom)
        left = int(np.clip(spot + rng.normal(0, 0.04), 0, 1) * (scene.shape[1] - wide))
        above = int(rng.integers(0, scene.shape[0] - high + 1))
        crop = scene[above : above + high, left : left + wide]
        return cv2.resize(crop, (WIDTH * FINER, HEIGHT * FINER), interpolation=cv2.INTER_LINEAR)

    def figure(self, rng: np.random.Generator, number: int) -> Figure:
        y, x = rng.integers(0, 512 - HEIGHT * FINER + 1, 2)
        folds = self.folds[y : y + HEIGHT * FINER, x : x + WIDTH * FINER]
        return Figure(HEIGHT * FINER, WIDTH * FINER, CAMERAS[number].light, folds)


def _pose(rng: np.random.Generator, look: Look, camera: Camera, yaw: float) -> Pose:
    arms = [str(style) for style in rng.choice(("swing", "pocket", "phone"), 2, p=(0.8, 0.12, 0.08))]
    if look.bag == "hand":
        arms[look.side > 0] = "hold"
    stride = float(rng.choice((rng.uniform(0.22, 0.42), 0.05), p=(0.85, 0.15)))  # walks, or stands
    return Pose(yaw, camera.pitch + rng.normal(0, 0.03), rng.uniform(0, 2 * math.pi), stride, (arms[0], arms[1]))


def draw_picture(
    studio: Studio,
    rng: np.random.Generator,
    number: int,
    look: Look | None,
    yaw: float,
    spot: float,
    shift: float = 0.0,
) -> np.ndarray:
    """One BGR uint8 picture (128, 64, 3) of `look` (or of nobody) by camera `number`; `shift` displaces the box."""
    camera, height, width = CAMERAS[number], HEIGHT * FINER, WIDTH * FINER
    picture, figure = studio.background(rng, number, spot), studio.figure(rng, number)
    size = height * (0.92 + street.JITTER * rng.normal(0, 0.03))
    foot = (
        width * (0.5 + street.JITTER * rng.normal(0, 0.045)),
        height * (0.965 + street.JITTER * rng.normal(0, 0.018)),
    )
    if rng.random() < 0.06 * street.JITTER:
        shift = rng.uniform(0.06, 0.16)
    if shift:  # a badly placed box: cut feet or head, too large or too small
        size *= math.exp(rng.normal(0, shift * 0.8))
        foot = (foot[0] + width * rng.normal(0, shift * 0.7), foot[1] + height * rng.choice((-0.6, 1)) * shift)
    if look is not None:
        draw_person(look, _pose(rng, look, camera, yaw), figure, foot, size)
    if rng.random() < 0.11 * street.OCCLUSION:  # somebody else, mostly behind
        stranger = studio.strangers[rng.integers(len(studio.strangers))]
        beside = (foot[0] + width * rng.choice((-1, 1)) * rng.uniform(0.4, 0.75), foot[1] - rng.uniform(-6, 40))
        pose = _pose(rng, stranger, camera, rng.uniform(0, 2 * math.pi))
        draw_person(stranger, pose, figure, beside, size * rng.uniform(0.85, 1), deep=-2 if rng.random() < 0.75 else 2)
    mask = figure.settle()
    street.lay_shadow(picture, mask, foot, camera)
    picture = np.where(mask[..., None] > 0, figure.rgb, picture)
    if rng.random() < 0.11 * street.OCCLUSION:
        street.occlude(rng, studio.leaves, picture)
    picture = cv2.resize(picture.astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return street.record(rng, camera, picture)


def _write(path: Path, picture: np.ndarray) -> None:
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
    if not done:
        raise OSError(f"cannot encode {path}")
    path.write_bytes(data.tobytes())


def _name(pid: int, number: int, frame: int, box: int) -> str:
    who = "-1" if pid < 0 else f"{pid:04d}"
    return f"{who}_c{number + 1}s{1 + frame % 3}_{frame:06d}_{box:02d}.jpg"


def _identity(studio: Studio, root: Path, pid: int, train: bool) -> None:
    """Write all pictures of one identity. Of a test identity each camera's first picture is the query."""
    look = make_look(_rng(studio.seed, LOOK, pid))
    rng = _rng(studio.seed, TRACK, pid)
    seen = rng.permutation(len(CAMERAS))[: rng.choice(CAMERAS_SEEN, p=CAMERAS_CHANCE)]
    for number in sorted(int(n) for n in seen):
        yaw, spot, start = rng.integers(8) * math.pi / 4, rng.random(), int(rng.integers(40, 4000)) * 25 + 1
        for index in range(int(rng.choice(PICTURES if train else PICTURES[:2]))):
            own = _rng(studio.seed, PICTURE, pid, number, index)
            turned = rng.integers(8) * math.pi / 4 if rng.random() < 0.2 * street.TURN else yaw
            picture = draw_picture(studio, own, number, look, turned + street.TURN * own.normal(0, 0.25), spot)
            folder = "bounding_box_train" if train else "bounding_box_test" if index else "query"
            _write(root / folder / _name(pid, number, start + 25 * index, 0 if folder == "query" else 1), picture)


def _extra(studio: Studio, root: Path, pid: int, index: int, test_pids: list[int]) -> None:
    """Write one distractor (pid 0: street, stray parts of people, nobody's identity) or junk picture (pid -1)."""
    rng = _rng(studio.seed, EXTRA, pid, index)
    number, look, shift = int(rng.integers(len(CAMERAS))), None, 0.0
    if pid < 0:
        look, shift = make_look(_rng(studio.seed, LOOK, int(rng.choice(test_pids)))), rng.uniform(0.3, 0.5)
    elif rng.random() < 0.7:
        look, shift = make_look(_rng(studio.seed, NOBODY, index)), float(rng.choice((0.0, rng.uniform(0.3, 0.6))))
    picture = draw_picture(studio, rng, number, look, rng.uniform(0, 2 * math.pi), rng.random(), shift)
    _write(root / "bounding_box_test" / _name(pid, number, 51 + 25 * index, 1), picture)


def render_demo(
    directory: str | Path,
    *,
    seed: int = 0,
    train_ids: int = 72,
    test_ids: int = 60,
    distractors: int = 150,
    junk: int = 60,
    progress: bool = True,
) -> None:
    """Write a rendered set in the layout of Market-1501 (128 x 64 JPEG) into `directory`.

    `train_ids` and `test_ids` people are disjoint; `distractors` (pid 0) and `junk` (pid -1) pictures go to the
    gallery. The same seed gives the same bytes. All is drawn in a hidden sibling directory that is renamed at the
    end, so whatever is at `directory` is complete.

    Raises:
        ValueError: there is nobody to train on or to search for.
        FileExistsError: `directory` exists and is not an empty directory.
    """
    if train_ids < 1 or test_ids < 1:
        raise ValueError(f"train_ids and test_ids must be at least 1, got {train_ids} and {test_ids}.")
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not empty: remove it or name another place for the demo set.")
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    pids = (_rng(seed, SPLIT).permutation(train_ids + test_ids) + 2).tolist()  # Market has no person 0001 for training
    train, test = set(pids[:train_ids]), set(pids[train_ids:])
    shutil.rmtree(partial, ignore_errors=True)  # a killed run of the same process number may have left one
    try:
        for folder in ("bounding_box_train", "query", "bounding_box_test"):
            (partial / folder).mkdir(parents=True)
        studio = Studio(seed)
        for pid in tqdm(sorted(pids), desc="drawing the demo set", unit=" people", disable=None if progress else True):
            _identity(studio, partial, pid, pid in train)
        for pid, count in ((0, distractors), (-1, junk)):
            for index in range(count):
                _extra(studio, partial, pid, index, sorted(test))
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
