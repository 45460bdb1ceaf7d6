"""Render the demo set: walking people (`pedestrian.py`) before six street cameras, laid out like Market-1501.

It needs no download and no licence, and it is a real task in small: identities share clothes colours, look partly
different from each side, and every camera has its own colours, blur, noise, background, light and hidden legs.
Every picture has a random generator of its own, so the bytes depend on `seed` alone. A plain loop draws them: the
work is many small array operations, which threads would not speed up.
"""

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datasets.pedestrian import Figure, Look, Pose, draw_person, make_look

HEIGHT, WIDTH, FINER = 128, 64, 2  # pictures are drawn FINER times larger
CAMERAS_SEEN, CAMERAS_CHANCE = (3, 4, 5, 6), (0.44, 0.32, 0.16, 0.08)  # cameras an identity walks past
PICTURES = (3, 4, 5, 6)  # of an identity in a camera
# Difficulty: 0 switches a nuisance off, 1 is what the README's figures were measured with.
CAST, EXPOSURE, BLUR, NOISE, JITTER, OCCLUSION, TURN = 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0
WALK, ALONE, PASSER, JUNK = range(4)  # what a random stream is for


@dataclass(frozen=True)
class Camera:
    """One street camera. `gain` is its white balance; `sharp` the share of the resolution it keeps."""

    ground: str
    back: str
    wall: float  # where the background meets the ground, as a share of the picture's height
    gain: tuple[float, float, float]
    exposure: float
    contrast: float
    colour: float  # saturation
    sharp: float
    noise: float
    pitch: float
    light: tuple[float, float, float]  # where the light comes from: right, down, toward the camera


CAMERAS = (
    Camera("slabs", "shop", 0.34, (1.04, 1.0, 0.94), 1.02, 1.05, 1.0, 1.0, 2.5, 0.12, (-0.6, -0.6, 0.6)),
    Camera("grass", "hedge", 0.22, (0.96, 1.03, 0.94), 1.06, 0.98, 1.08, 0.82, 3.0, 0.22, (0.7, -0.5, 0.5)),
    Camera("zebra", "brick", 0.28, (1.0, 1.0, 1.0), 0.9, 1.1, 0.9, 0.95, 4.0, 0.18, (-0.3, -0.9, 0.4)),
    Camera("asphalt", "cars", 0.3, (0.92, 0.99, 1.1), 0.98, 0.9, 0.8, 0.75, 4.5, 0.15, (0.5, -0.7, 0.2)),
    Camera("cobbles", "glass", 0.38, (1.08, 1.0, 0.88), 0.84, 1.05, 0.95, 0.85, 4.5, 0.1, (0.8, -0.3, 0.5)),
    Camera("plaza", "rail", 0.2, (0.99, 0.97, 1.06), 1.1, 0.88, 0.82, 0.64, 3.5, 0.26, (-0.8, -0.5, 0.7)),
)


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng([part + 1 for part in key])


def _cloud(rng: np.random.Generator, height: int, width: int, *sigma: float) -> np.ndarray:
    """Smooth noise (height, width) of unit variance; `sigma` in pixels, across and down."""
    step = max(int(min(sigma) / 4), 1)  # what is smooth can be drawn small
    noise = rng.standard_normal((height // step + 1, width // step + 1), np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigma[0] / step, sigmaY=sigma[-1] / step)
    return cv2.resize(noise / noise.std(), (width, height), interpolation=cv2.INTER_CUBIC)


def _ground(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    """Brightness-textured ground (height, width, 3), its rows shrinking with the distance as on a real photograph."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    far = 260 / (y + 110)  # the horizon lies above the picture
    across, along = (x - width / 2) * far, 900 * far
    grain = _cloud(rng, height, width, 0.8) * 7 + _cloud(rng, height, width, 14, 5) * 6
    colours = {"slabs": (158, 150, 142), "grass": (106, 122, 78), "zebra": (112, 112, 116), "asphalt": (126, 127, 130)}
    colours |= {"cobbles": (140, 126, 112), "plaza": (176, 172, 166)}
    shade = grain
    if kind in ("slabs", "cobbles", "plaza"):
        tall, wide = {"slabs": (90, 90), "cobbles": (34, 44), "plaza": (150, 190)}[kind]
        row = np.floor(along / tall)
        column = np.floor((across + row % 2 * wide / 2) / wide)
        tone = np.sin(row * 12.99 + column * 78.23) * 43758.5
        shade = grain * 0.7 + (tone - np.floor(tone) - 0.5) * {"cobbles": 44}.get(kind, 20)
        joint = (along % tall < 0.07 * tall) | ((across + row % 2 * wide / 2) % wide < 0.05 * wide)
        shade -= joint * 34
    elif kind == "grass":
        shade = _cloud(rng, height, width, 0.7, 2.2) * 13 + grain
    picture = np.array(colours[kind], np.float32) + shade[..., None] * ((1, 1, 0.7) if kind == "grass" else (1, 1, 1))
    if kind == "zebra":
        paint = ((across + 0.25 * along) % 150 < 66) & (along > 560) & (along < 900)
        worn = np.clip(0.62 + 0.16 * _cloud(rng, height, width, 5, 3), 0.15, 0.85) * paint
        picture += worn[..., None] * (206 - picture)
    elif kind == "asphalt":
        picture[np.abs(along - 1050) < 22] = (196, 170, 74)
        picture[:26] = picture[:26] * 0.4 + (110, 108, 104)
    elif kind == "grass":  # a path crosses it
        path = np.abs(across + 0.35 * along - 420) % 1500 < 260
        picture[path] = np.array((160, 154, 142), np.float32) + grain[path][:, None]
    return picture


def _back(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    """What stands behind the ground (height, width, 3): a shop front, hedge, wall, glass, railing or parked cars."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    grain = _cloud(rng, height, width, 1.0)[..., None]
    picture = np.full((height, width, 3), 150, np.float32)
    if kind == "brick":
        row = y // 9
        joint = (y % 9 < 1.6) | ((x + row % 2 * 11) % 22 < 1.8)
        picture = np.where(joint[..., None], (150, 140, 130), (142, 84, 66)) + grain * 8
    elif kind == "hedge":
        leaves = _cloud(rng, height, width, 2.2) * 20 + _cloud(rng, height, width, 9) * 18
        picture = np.array((52, 78, 40), np.float32) + leaves[..., None] * (0.8, 1.0, 0.5)
        for _ in range(14):
            foot = int(rng.integers(width))
            cv2.line(picture, (foot + int(rng.normal(0, 14)), 0), (foot, height), (74, 60, 46), int(rng.integers(4, 11)))
    elif kind in ("shop", "glass"):
        picture[:] = (70, 78, 88) if kind == "shop" else (44, 54, 62)
        picture += _cloud(rng, height, width, 26)[..., None] * 22
        for left in range(0, width, 84 if kind == "shop" else 58):
            for _ in range(9 if kind == "shop" else 0):  # goods on the shelves behind the window
                x0, y0 = left + int(rng.integers(8, 72)), height - 14 - 30 * int(rng.integers(0, 4))
                paint = (rng.uniform(50, 160) + rng.normal(0, 13, 3)).clip(20, 220).tolist()
                x1, y1 = x0 + int(rng.integers(5, 14)), y0 - int(rng.integers(8, 26))
                cv2.rectangle(picture, (x0, y1), (x1, y0), paint, -1)
            frame = (188, 184, 176) if kind == "shop" else (96, 98, 100)
            cv2.rectangle(picture, (left, 0), (left + 6, height), frame, -1)
        cv2.rectangle(picture, (0, height - 12), (width, height), (104, 96, 90), -1)
        if kind == "glass":
            picture += (np.maximum(0, np.sin((x + y) / 37)) ** 6 * 44)[..., None]
    elif kind == "cars":
        picture[:] = (124, 128, 128)
        for left in range(-60, width, 330):
            paint = (rng.choice((44, 80, 150, 196)) + rng.normal(0, 7, 3)).clip(15, 235)
            dark, low = (paint * 0.55).tolist(), height - 10
            cv2.ellipse(picture, (left + 140, low - 56), (96, 62), 0, 180, 360, paint.tolist(), -1)
            cv2.ellipse(picture, (left + 140, low - 56), (82, 50), 0, 180, 360, (44, 50, 58), -1)
            cv2.rectangle(picture, (left + 136, low - 110), (left + 143, low - 50), paint.tolist(), -1)
            cv2.rectangle(picture, (left, low - 62), (left + 290, low - 34), paint.tolist(), -1)
            cv2.rectangle(picture, (left, low - 36), (left + 290, low - 14), dark, -1)
            cv2.rectangle(picture, (left, low - 14), (left + 290, low), (34, 34, 36), -1)
            cv2.ellipse(picture, (left + 284, low - 48), (8, 6), 0, 0, 360, (214, 206, 190), -1)
            for wheel in (left + 62, left + 232):
                cv2.circle(picture, (wheel, low - 18), 27, (24, 24, 26), -1)
                cv2.circle(picture, (wheel, low - 18), 14, (118, 118, 122), -1)
        picture += grain * 5 - (np.abs(y / height - 0.5) * 40)[..., None]
    else:
        picture = np.array((150, 152, 150), np.float32) - (y / height * 30)[..., None] + grain * 5
        picture[:, np.arange(width) % 26 < 4] = (86, 90, 96)
        for row in (4, height // 2, height - 8):
            picture[row : row + 5] = (96, 100, 106)
    return picture.astype(np.float32)


class Studio:
    """What all pictures of one seed share: the cameras' scenes, the folds of cloth, and strangers who walk by."""

    def __init__(self, seed: int) -> None:
        rng = _rng(seed, 0)
        self.seed = seed
        height, width = (HEIGHT + 40) * FINER, 640 * FINER
        streams = [_rng(seed, 1, number) for number in range(len(CAMERAS))]
        self.scenes = [self._scene(*both, height, width) for both in zip(streams, CAMERAS, strict=True)]
        folds = _cloud(rng, 720, 720, 6, 1.8) + _cloud(rng, 720, 720, 9)  # creases, most of them slanting
        slant = cv2.getRotationMatrix2D((360, 360), 32, 1.0)
        self.folds = np.ascontiguousarray(0.22 * cv2.warpAffine(folds, slant, (720, 720))[104:616, 104:616])
        self.leaves = _cloud(rng, 256, 256, 2.0) * 22 + _cloud(rng, 256, 256, 8) * 14
        self.strangers = [make_look(_rng(seed, 2, number)) for number in range(24)]

    def _scene(self, rng: np.random.Generator, camera: Camera, height: int, width: int) -> np.ndarray:
        wall = int(camera.wall * HEIGHT * FINER) + 20 * FINER
        scene = _ground(rng, camera.ground, height, width)
        scene[:wall] = cv2.GaussianBlur(_back(rng, camera.back, wall, width), (0, 0), 1.6)  # out of focus
        scene[wall : wall + 8] *= np.linspace(0.55, 0.95, 8, dtype=np.float32)[:, None, None]
        scene *= (1 + 0.12 * _cloud(rng, height, width, 90, 40))[..., None]
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


def _shadow(background: np.ndarray, mask: np.ndarray, foot: tuple[float, float], camera: Camera) -> None:
    """Lay the figure's shadow on the ground: its outline, sheared away from the light and flattened, then blurred."""
    right, down, _ = camera.light
    shear, flat = 0.8 * right, 0.25 * (1.4 + down)
    matrix = np.float32([[1, shear, -shear * foot[1]], [0, flat, foot[1] * (1 - flat)]])
    cast = cv2.warpAffine(mask, matrix, mask.shape[::-1])
    feet = np.zeros_like(mask)
    cv2.ellipse(feet, (int(foot[0]), int(foot[1])), (36, 9), 0, 0, 360, 1.0, -1)
    dark = cv2.GaussianBlur(np.maximum(cast * 0.9, feet), (0, 0), 4)
    background *= 1 - np.float32(0.45) * dark[..., None]


def _occlude(rng: np.random.Generator, studio: Studio, picture: np.ndarray) -> None:
    """Put something of the street before the person: a pole, a bush, a bicycle or a railing."""
    height, width = picture.shape[:2]
    kind = rng.choice(("pole", "bush", "bicycle", "rail"))
    if kind == "pole":
        left, thick = int(rng.integers(0, width - 16)), int(rng.integers(9, 20))
        round_ = 0.55 + 0.45 * np.sin(np.linspace(0.3, 2.6, thick))[None, :, None]
        picture[:, left : left + thick] = (rng.uniform(80, 190) * round_)[:, : width - left]
    elif kind == "bush":
        edge = height * rng.uniform(0.66, 0.84) + 0.7 * np.roll(studio.leaves, int(rng.integers(256)), 1)[0, :width]
        bush = np.arange(height)[:, None] > edge + 0.25 * studio.leaves[:height, :width]
        leaf = (np.array((58, 86, 42)) + studio.leaves[:height, :width, None] * (1.0, 1.2, 0.6)).astype(np.float32)
        picture[bush] = leaf[bush]
    elif kind == "bicycle":
        x, y = int(rng.integers(0, width)), height - int(rng.integers(20, 46))
        paint = (rng.uniform(20, 170) + rng.normal(0, 25, 3)).clip(10, 200).tolist()
        for wheel in (x - 44, x + 44):
            cv2.circle(picture, (wheel, y), 30, (26, 26, 28), 3)
            cv2.circle(picture, (wheel, y), 30, (128, 128, 130), 1)
        for line in ((-44, 0, -10, -44), (-10, -44, 32, -42), (32, -42, 0, -4), (0, -4, -44, 0), (-14, -54, 4, -2)):
            cv2.line(picture, (x + line[0], y + line[1]), (x + line[2], y + line[3]), paint, 4)
        cv2.line(picture, (x + 44, y), (x + 28, y - 58), paint, 4)
        cv2.line(picture, (x + 20, y - 60), (x + 36, y - 56), (24, 24, 26), 4)
    else:
        top = int(height * rng.uniform(0.6, 0.8))
        for row in (top, top + 34):
            picture[row : row + 6] = np.array((150, 152, 154)) * np.linspace(1.1, 0.6, 6)[:, None, None]
        picture[top:, (np.arange(width) + int(rng.integers(30))) % 30 < 4] = (104, 106, 110)


def _record(rng: np.random.Generator, camera: Camera, picture: np.ndarray) -> np.ndarray:
    """What the camera makes of a float RGB picture: its colours, exposure, resolution and noise; BGR uint8 out."""
    gain = 1 + CAST * (np.array(camera.gain) - 1 + rng.normal(0, 0.025, 3))
    picture = picture * np.float32(gain * camera.exposure**EXPOSURE * math.exp(EXPOSURE * rng.normal(0, 0.07)))
    grey = picture.mean(2, keepdims=True)
    picture = grey + (picture - grey) * (1 + CAST * (camera.colour - 1))
    slope = rng.normal(0, 0.12, 2)  # light is uneven across the picture
    y, x = np.linspace(-0.5, 0.5, HEIGHT)[:, None], np.linspace(-0.5, 0.5, WIDTH)[None]
    picture = (picture - 118) * (1 + EXPOSURE * (camera.contrast * math.exp(rng.normal(0, 0.07)) - 1)) + 118
    picture = picture * np.float32(1 + EXPOSURE * (slope[0] * y + slope[1] * x))[..., None]
    sharp = 1 - BLUR * (1 - camera.sharp * rng.uniform(0.8, 1.0))
    small = (max(int(WIDTH * sharp), 16), max(int(HEIGHT * sharp), 32))
    picture = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
    if rng.random() < 0.12 * BLUR:  # moved while the shutter was open
        picture = cv2.blur(picture, (int(rng.integers(2, 5)), 1))
    picture += rng.standard_normal(picture.shape, np.float32) * np.float32(camera.noise * NOISE)
    picture = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture[..., ::-1], 0, 255).astype(np.uint8)


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
    size = height * (0.92 + JITTER * rng.normal(0, 0.035))
    foot = (width * (0.5 + JITTER * rng.normal(0, 0.045)), height * (0.965 + JITTER * rng.normal(0, 0.018)))
    if rng.random() < 0.07 * JITTER:
        shift = rng.uniform(0.06, 0.16)
    if shift:  # a badly placed box: cut feet or head, too large or too small
        size *= math.exp(rng.normal(0, shift * 0.8))
        foot = (foot[0] + width * rng.normal(0, shift * 0.7), foot[1] + height * rng.choice((-0.6, 1)) * shift)
    if look is not None:
        draw_person(look, _pose(rng, look, camera, yaw), figure, foot, size)
    if rng.random() < 0.13 * OCCLUSION:  # somebody else, mostly behind
        stranger = studio.strangers[rng.integers(len(studio.strangers))]
        beside = (foot[0] + width * rng.choice((-1, 1)) * rng.uniform(0.4, 0.75), foot[1] - rng.uniform(-6, 40))
        pose = _pose(rng, stranger, camera, rng.uniform(0, 2 * math.pi))
        draw_person(stranger, pose, figure, beside, size * rng.uniform(0.85, 1), deep=-2 if rng.random() < 0.75 else 2)
    mask = figure.settle()
    _shadow(picture, mask, foot, camera)
    picture = np.where(mask[..., None] > 0, figure.rgb, picture)
    if rng.random() < 0.12 * OCCLUSION:
        _occlude(rng, studio, picture)
    picture = cv2.resize(picture.astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return _record(rng, camera, picture)


def _write(path: Path, picture: np.ndarray) -> None:
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
    if not done:
        raise OSError(f"cannot encode {path}")
    path.write_bytes(data.tobytes())


def _name(pid: int, number: int, frame: int, box: int) -> str:
    who = "-1" if pid < 0 else f"{pid:04d}"
    return f"{who}_c{number + 1}s{1 + frame % 3}_{frame:06d}_{box:02d}.jpg"


def _identity(studio: Studio, root: Path, pid: int, train: bool) -> int:
    """Write all pictures of one identity; returns their number. Each camera's first test picture is the query."""
    look = make_look(_rng(studio.seed, 3, pid))
    rng = _rng(studio.seed, 4, pid)
    seen = rng.permutation(len(CAMERAS))[: rng.choice(CAMERAS_SEEN, p=CAMERAS_CHANCE)]
    written = 0
    for number in sorted(int(n) for n in seen):
        yaw, spot, start = rng.integers(8) * math.pi / 4, rng.random(), int(rng.integers(40, 4000)) * 25 + 1
        for index in range(int(rng.choice(PICTURES if train else PICTURES[:2]))):
            own = _rng(studio.seed, 5, pid, number, index)
            turned = rng.integers(8) * math.pi / 4 if rng.random() < 0.2 * TURN else yaw
            picture = draw_picture(studio, own, number, look, turned + TURN * own.normal(0, 0.25), spot)
            folder = "bounding_box_train" if train else "bounding_box_test" if index else "query"
            _write(root / folder / _name(pid, number, start + 25 * index, 0 if folder == "query" else 1), picture)
            written += 1
    return written


def _extra(studio: Studio, root: Path, pid: int, index: int, test_pids: list[int]) -> int:
    """Write one distractor (pid 0: street, stray parts of people, nobody's identity) or junk picture (pid -1)."""
    rng = _rng(studio.seed, 6, pid, index)
    number, look, shift = int(rng.integers(len(CAMERAS))), None, 0.0
    if pid < 0:
        look, shift = make_look(_rng(studio.seed, 3, int(rng.choice(test_pids)))), rng.uniform(0.3, 0.5)
    elif rng.random() < 0.7:
        look, shift = make_look(_rng(studio.seed, 7, index)), float(rng.choice((0.0, rng.uniform(0.3, 0.6))))
    picture = draw_picture(studio, rng, number, look, rng.uniform(0, 2 * math.pi), rng.random(), shift)
    _write(root / "bounding_box_test" / _name(pid, number, 51 + 25 * index, 1), picture)
    return 1


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

    The same seed gives the same bytes, whatever the number of threads. All is drawn in a hidden sibling directory
    that is renamed at the end, so what is at `directory` is complete.

    Raises:
        FileExistsError: `directory` exists and is not an empty directory.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not empty: remove it or name another place for the demo set.")
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    pids = (_rng(seed, 8).permutation(train_ids + test_ids) + 2).tolist()  # Market has no person 0001 for training
    train, test = sorted(pids[:train_ids]), sorted(pids[train_ids:])
    try:
        for folder in ("bounding_box_train", "query", "bounding_box_test"):
            (partial / folder).mkdir(parents=True)
        studio = Studio(seed)
        with tqdm(desc="drawing the demo set", unit=" pictures", disable=not progress) as bar:
            for pid in sorted(pids):
                bar.update(_identity(studio, partial, pid, pid in train))
            for pid, count in ((0, distractors), (-1, junk)):
                for index in range(count):
                    bar.update(_extra(studio, partial, pid, index, test))
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
