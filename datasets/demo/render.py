"""Render the demo set: walking people (`pedestrian.py`) in front of six street cameras, laid out like Market-1501.

It needs no download and no license, and it is a small but real task: identities share colors of clothes, look partly
different from each side, and every camera has its own colors, blur, noise, background, light and hidden legs. Every
image has its own random generator, so the bytes depend on `seed` only.
"""

import math
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datasets.demo import street
from datasets.demo.pedestrian import Figure, Pose, draw_person
from datasets.demo.street import CAMERAS, HEIGHT, SCALE, WIDTH, Camera, cloud
from datasets.demo.wardrobe import Look, make_look
from datasets.new_directory import new_directory

SHARED, SCENE, STRANGER, LOOK, TRACK, IMAGE, EXTRA, DISTRACTOR, SPLIT = range(9)  # what a random stream is for
TALL, WIDE = HEIGHT * SCALE, WIDTH * SCALE  # of an image while it is drawn


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng([part + 1 for part in key])


class Studio:
    """What all images of one seed share: the cameras' scenes, the folds of cloth, and strangers who walk by."""

    def __init__(self, seed: int) -> None:
        rng = _rng(seed, SHARED)
        self.seed = seed
        self.scenes = [street.scene(_rng(seed, SCENE, number), camera) for number, camera in enumerate(CAMERAS)]
        folds = cloud(rng, 720, 720, 6, 1.8) + cloud(rng, 720, 720, 9)  # creases, most of them slanting
        slant = cv2.getRotationMatrix2D((360, 360), 32, 1.0)
        self.folds = np.ascontiguousarray(0.22 * cv2.warpAffine(folds, slant, (720, 720))[104:616, 104:616])
        self.leaves = cloud(rng, 256, 256, 2.0) * 22 + cloud(rng, 256, 256, 8) * 14
        self.strangers = [make_look(_rng(seed, STRANGER, number)) for number in range(24)]

    def background(self, rng: np.random.Generator, number: int, spot: float) -> np.ndarray:
        """A crop (H, W, 3) of the camera's scene near `spot`, a share of its width."""
        scene, zoom = self.scenes[number], rng.uniform(0.85, 1.15)
        high, wide = int(TALL * zoom), int(WIDE * zoom)
        left = int(np.clip(spot + rng.normal(0, 0.04), 0, 1) * (scene.shape[1] - wide))
        above = int(rng.integers(0, scene.shape[0] - high + 1))
        crop = scene[above : above + high, left : left + wide]
        return cv2.resize(crop, (WIDE, TALL), interpolation=cv2.INTER_LINEAR)

    def figure(self, rng: np.random.Generator, number: int) -> Figure:
        y, x = rng.integers(0, 512 - TALL + 1, 2)
        return Figure(TALL, WIDE, CAMERAS[number].light, self.folds[y : y + TALL, x : x + WIDE])


def _pose(rng: np.random.Generator, look: Look, camera: Camera, yaw: float) -> Pose:
    arms = [str(style) for style in rng.choice(("swing", "pocket", "phone"), 2, p=(0.8, 0.12, 0.08))]
    if look.bag == "hand":
        arms[look.side > 0] = "hold"
    stride = float(rng.choice((rng.uniform(0.22, 0.42), 0.05), p=(0.85, 0.15)))  # walks, or stands
    return Pose(yaw, camera.pitch + rng.normal(0, 0.03), rng.uniform(0, 2 * math.pi), stride, (arms[0], arms[1]))


def draw_image(
    studio: Studio, rng: np.random.Generator, number: int, look: Look | None, yaw: float, spot: float, shift: float = 0
) -> np.ndarray:
    """One BGR uint8 image (128, 64, 3) of `look` (None: no one) by camera `number`; `shift` displaces the box."""
    camera = CAMERAS[number]
    image, figure = studio.background(rng, number, spot), studio.figure(rng, number)
    size = TALL * (0.92 + rng.normal(0, 0.03))
    foot = (WIDE * (0.5 + rng.normal(0, 0.045)), TALL * (0.965 + rng.normal(0, 0.018)))
    if rng.random() < 0.06:
        shift = rng.uniform(0.06, 0.16)
    if shift:  # a badly placed box: cut feet or head, too large or too small
        size *= math.exp(rng.normal(0, shift * 0.8))
        foot = (foot[0] + WIDE * rng.normal(0, shift * 0.7), foot[1] + TALL * rng.choice((-0.6, 1)) * shift)
    if look is not None:
        draw_person(look, _pose(rng, look, camera, yaw), figure, foot, size)
    if rng.random() < 0.11:  # another person, mostly behind
        stranger = studio.strangers[rng.integers(len(studio.strangers))]
        next_to = (foot[0] + WIDE * rng.choice((-1, 1)) * rng.uniform(0.4, 0.75), foot[1] - rng.uniform(-6, 40))
        pose = _pose(rng, stranger, camera, rng.uniform(0, 2 * math.pi))
        draw_person(stranger, pose, figure, next_to, size * rng.uniform(0.85, 1), deep=-2 if rng.random() < 0.75 else 2)
    mask = figure.shade()
    street.cast_shadow(image, mask, foot, camera)
    image = np.where(mask[..., None] > 0, figure.rgb, image)
    if rng.random() < 0.11:
        street.occlude(rng, studio.leaves, image)
    image = cv2.resize(image.astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return street.record(rng, camera, image)


def _write(folder: Path, image: np.ndarray, pid: int, number: int, frame: int, box: int) -> None:
    name = f"{pid if pid < 0 else f'{pid:04d}'}_c{number + 1}s{1 + frame % 3}_{frame:06d}_{box:02d}.jpg"
    (folder / name).write_bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())


def _identity(studio: Studio, root: Path, pid: int, train: bool) -> None:
    """Write all images of one identity. For a test identity, the first image of each camera is a query."""
    look, rng = make_look(_rng(studio.seed, LOOK, pid)), _rng(studio.seed, TRACK, pid)
    seen = rng.permutation(len(CAMERAS))[: rng.choice((3, 4, 5, 6), p=(0.44, 0.32, 0.16, 0.08))]
    for number in sorted(seen.tolist()):
        yaw, spot, start = rng.integers(8) * math.pi / 4, rng.random(), int(rng.integers(40, 4000)) * 25 + 1
        for index in range(int(rng.choice((3, 4, 5, 6) if train else (3, 4)))):
            own = _rng(studio.seed, IMAGE, pid, number, index)
            turned = rng.integers(8) * math.pi / 4 if rng.random() < 0.2 else yaw
            image = draw_image(studio, own, number, look, turned + own.normal(0, 0.25), spot)
            folder = "bounding_box_train" if train else "bounding_box_test" if index else "query"
            _write(root / folder, image, pid, number, start + 25 * index, 0 if folder == "query" else 1)


def _extra(studio: Studio, root: Path, pid: int, index: int, test_pids: list[int]) -> None:
    """Write one distractor (pid 0: a street, or parts of people without identity) or junk image (pid -1)."""
    rng = _rng(studio.seed, EXTRA, pid, index)
    number, look, shift = int(rng.integers(len(CAMERAS))), None, 0.0
    if pid < 0:
        look, shift = make_look(_rng(studio.seed, LOOK, int(rng.choice(test_pids)))), rng.uniform(0.3, 0.5)
    elif rng.random() < 0.7:
        look = make_look(_rng(studio.seed, DISTRACTOR, index))
        shift = float(rng.choice((0.0, rng.uniform(0.3, 0.6))))
    image = draw_image(studio, rng, number, look, rng.uniform(0, 2 * math.pi), rng.random(), shift)
    _write(root / "bounding_box_test", image, pid, number, 51 + 25 * index, 1)


def render_demo(
    directory: str | Path,
    *,
    seed: int = 0,
    train_ids: int = 72,
    test_ids: int = 60,
    distractors: int = 150,
    junk: int = 60,
) -> None:
    """Write a rendered set in the layout of Market-1501 (128 x 64 JPEG) to `directory`, which must not exist.

    `train_ids` and `test_ids` people are disjoint; `distractors` (pid 0) and `junk` (pid -1) images go to the gallery.
    The same seed gives the same bytes. Raises OSError when it cannot be written.
    """
    pids = (_rng(seed, SPLIT).permutation(train_ids + test_ids) + 2).tolist()  # Market has no person 0001 for training
    with new_directory(directory) as partial:
        for folder in ("bounding_box_train", "query", "bounding_box_test"):
            (partial / folder).mkdir()
        studio = Studio(seed)
        for pid in tqdm(sorted(pids), desc="drawing the demo set", unit=" people", leave=False, disable=None):
            _identity(studio, partial, pid, pid in pids[:train_ids])
        for pid, count in ((0, distractors), (-1, junk)):
            for index in range(count):
                _extra(studio, partial, pid, index, sorted(pids[train_ids:]))
