"""Six street cameras for the demo set: their scenes, what hides people, and how they record an image."""

import math
from typing import NamedTuple

import cv2
import numpy as np

HEIGHT, WIDTH, SCALE = 128, 64, 2  # images are drawn SCALE times larger


class Camera(NamedTuple):
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
    Camera("slabs", "shop", 0.34, (1.03, 1.0, 0.95), 1.04, 1.05, 1.05, 1.0, 2.5, 0.12, (-0.6, -0.6, 0.6)),
    Camera("grass", "hedge", 0.22, (0.98, 1.02, 0.96), 1.06, 0.98, 1.08, 0.85, 3.0, 0.22, (0.7, -0.5, 0.5)),
    Camera("zebra", "brick", 0.28, (1.0, 1.0, 1.0), 0.94, 1.08, 0.95, 0.95, 3.5, 0.18, (-0.3, -0.9, 0.4)),
    Camera("asphalt", "cars", 0.3, (0.96, 0.99, 1.05), 1.0, 0.95, 0.92, 0.8, 3.5, 0.15, (0.5, -0.7, 0.2)),
    Camera("cobbles", "glass", 0.38, (1.04, 1.0, 0.94), 0.93, 1.04, 1.0, 0.88, 4.0, 0.1, (0.8, -0.3, 0.5)),
    Camera("plaza", "rail", 0.2, (0.99, 0.98, 1.04), 1.07, 0.93, 0.9, 0.72, 3.0, 0.26, (-0.8, -0.5, 0.7)),
)


def cloud(rng: np.random.Generator, height: int, width: int, *sigma: float) -> np.ndarray:
    """Smooth noise (height, width) of unit variance; `sigma` in pixels, across and down."""
    step = max(int(min(sigma) / 4), 1)  # smooth noise can be drawn at a smaller size
    noise = rng.standard_normal((height // step + 1, width // step + 1), np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigma[0] / step, sigmaY=sigma[-1] / step)
    return cv2.resize(noise / noise.std(), (width, height), interpolation=cv2.INTER_CUBIC)


def scene(rng: np.random.Generator, camera: Camera) -> np.ndarray:
    """The street (H, W, 3) before a camera, wider than its images: ground, and what stands behind it."""
    height, width, wall = (HEIGHT + 40) * SCALE, 640 * SCALE, int(camera.wall * HEIGHT * SCALE) + 20 * SCALE
    image = ground(rng, camera.ground, height, width)
    image[:wall] = cv2.GaussianBlur(back(rng, camera.back, wall, width), (0, 0), 1.6)  # out of focus
    image[wall : wall + 8] *= np.linspace(0.55, 0.95, 8, dtype=np.float32)[:, None, None]
    image *= (1 + 0.12 * cloud(rng, height, width, 90, 40))[..., None]
    return cv2.GaussianBlur(image, (0, 0), 1.2)


def ground(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    """Brightness-textured ground (height, width, 3), its rows shrinking with the distance as on a real photograph."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    far = 260 / (y + 110)  # the horizon lies above the picture
    across, along = (x - width / 2) * far, 900 * far
    grain = cloud(rng, height, width, 0.8) * 7 + cloud(rng, height, width, 14, 5) * 6
    colours = {"slabs": (158, 150, 142), "grass": (106, 122, 78), "zebra": (112, 112, 116), "asphalt": (126, 127, 130)}
    colours |= {"cobbles": (140, 126, 112), "plaza": (176, 172, 166)}
    stones = {"slabs": (90, 90), "cobbles": (34, 44), "plaza": (150, 190)}
    shade = grain
    if kind in stones:
        tall, wide = stones[kind]
        row = np.floor(along / tall)
        column = np.floor((across + row % 2 * wide / 2) / wide)
        tone = np.sin(row * 12.99 + column * 78.23) * 43758.5
        shade = grain * 0.7 + (tone - np.floor(tone) - 0.5) * {"cobbles": 44}.get(kind, 20)
        shade -= ((along % tall < 0.07 * tall) | ((across + row % 2 * wide / 2) % wide < 0.05 * wide)) * 34
    elif kind == "grass":
        shade = cloud(rng, height, width, 0.7, 2.2) * 13 + grain
    picture = np.array(colours[kind], np.float32) + shade[..., None] * ((1, 1, 0.7) if kind == "grass" else (1, 1, 1))
    if kind == "zebra":
        paint = ((across + 0.25 * along) % 150 < 66) & (along > 560) & (along < 900)
        worn = np.clip(0.62 + 0.16 * cloud(rng, height, width, 5, 3), 0.15, 0.85) * paint
        picture += worn[..., None] * (206 - picture)
    elif kind == "asphalt":
        picture[np.abs(along - 1050) < 22] = (196, 170, 74)
        picture[:26] = picture[:26] * 0.4 + (110, 108, 104)
    elif kind == "grass":  # a path crosses it
        path = np.abs(across + 0.35 * along - 420) % 1500 < 260
        picture[path] = np.array((160, 154, 142), np.float32) + grain[path][:, None]
    return picture


def _park(rng: np.random.Generator, picture: np.ndarray) -> None:
    """Park cars along the lower edge of `picture`."""
    height, width = picture.shape[:2]
    for left in range(-60, width, 330):
        paint = (rng.choice((44, 80, 150, 196)) + rng.normal(0, 7, 3)).clip(15, 235)
        paint, dark, low = paint.tolist(), (paint * 0.55).tolist(), height - 10
        cv2.ellipse(picture, (left + 140, low - 56), (96, 62), 0, 180, 360, paint, -1)
        cv2.ellipse(picture, (left + 140, low - 56), (82, 50), 0, 180, 360, (44, 50, 58), -1)
        boxes = ((136, -110, 143, -50, paint), (0, -62, 290, -34, paint), (0, -36, 290, -14, dark))
        for x0, y0, x1, y1, colour in (*boxes, (0, -14, 290, 0, (34, 34, 36))):
            cv2.rectangle(picture, (left + x0, low + y0), (left + x1, low + y1), colour, -1)
        cv2.ellipse(picture, (left + 284, low - 48), (8, 6), 0, 0, 360, (214, 206, 190), -1)
        for wheel in (left + 62, left + 232):
            cv2.circle(picture, (wheel, low - 18), 27, (24, 24, 26), -1)
            cv2.circle(picture, (wheel, low - 18), 14, (118, 118, 122), -1)
    picture -= np.abs(np.linspace(-40, 40, height, dtype=np.float32))[:, None, None]  # darker above and below


def back(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    """What stands behind the ground (height, width, 3): a shop front, hedge, wall, glass, railing or parked cars."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    grain = cloud(rng, height, width, 1.0)[..., None]
    picture = np.full((height, width, 3), 150, np.float32)
    if kind == "brick":
        row = y // 9
        joint = (y % 9 < 1.6) | ((x + row % 2 * 11) % 22 < 1.8)
        picture = np.where(joint[..., None], (150, 140, 130), (142, 84, 66)) + grain * 8
    elif kind == "hedge":
        leaves = cloud(rng, height, width, 2.2) * 20 + cloud(rng, height, width, 9) * 18
        picture = np.array((52, 78, 40), np.float32) + leaves[..., None] * (0.8, 1.0, 0.5)
        for _ in range(14):
            foot = int(rng.integers(width))
            top = foot + int(rng.normal(0, 14))
            cv2.line(picture, (top, 0), (foot, height), (74, 60, 46), int(rng.integers(4, 11)))
    elif kind in ("shop", "glass"):
        picture[:] = (70, 78, 88) if kind == "shop" else (44, 54, 62)
        picture += cloud(rng, height, width, 26)[..., None] * 22
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
        picture[:] = 126 + grain * 5
        _park(rng, picture)
    else:
        picture = np.array((150, 152, 150), np.float32) - (y / height * 30)[..., None] + grain * 5
        picture[:, np.arange(width) % 26 < 4] = (86, 90, 96)
        for row in (4, height // 2, height - 8):
            picture[row : row + 5] = (96, 100, 106)
    return picture.astype(np.float32)


def cast_shadow(image: np.ndarray, mask: np.ndarray, foot: tuple[float, float], camera: Camera) -> None:
    """Darken the ground in the figure's shadow: its outline, sheared away from the light, flattened and blurred."""
    right, down, _ = camera.light
    shear, flat = 0.8 * right, 0.25 * (1.4 + down)
    matrix = np.float32([[1, shear, -shear * foot[1]], [0, flat, foot[1] * (1 - flat)]])
    cast = cv2.warpAffine(mask, matrix, mask.shape[::-1])
    feet = np.zeros_like(mask)
    cv2.ellipse(feet, (int(foot[0]), int(foot[1])), (36, 9), 0, 0, 360, 1.0, -1)
    dark = cv2.GaussianBlur(np.maximum(cast * 0.9, feet), (0, 0), 4)
    image *= 1 - np.float32(0.45) * dark[..., None]


def occlude(rng: np.random.Generator, leaves: np.ndarray, picture: np.ndarray) -> None:
    """Put something in front of the person: a pole, a bush, a bicycle or a railing."""
    height, width = picture.shape[:2]
    kind = rng.choice(("pole", "bush", "bicycle", "rail"))
    if kind == "pole":
        left, thick = int(rng.integers(0, width - 16)), int(rng.integers(9, 20))
        round_ = 0.55 + 0.45 * np.sin(np.linspace(0.3, 2.6, thick))[None, :, None]
        picture[:, left : left + thick] = (rng.uniform(80, 190) * round_)[:, : width - left]
    elif kind == "bush":
        edge = height * rng.uniform(0.66, 0.84) + 0.7 * np.roll(leaves, int(rng.integers(256)), 1)[0, :width]
        bush = np.arange(height)[:, None] > edge + 0.25 * leaves[:height, :width]
        leaf = (np.array((58, 86, 42)) + leaves[:height, :width, None] * (1.0, 1.2, 0.6)).astype(np.float32)
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


def record(rng: np.random.Generator, camera: Camera, image: np.ndarray) -> np.ndarray:
    """Apply the camera's colors, exposure, resolution and noise to a float RGB image; returns BGR uint8."""
    gain = 1 + (np.array(camera.gain) - 1 + rng.normal(0, 0.018, 3))
    image = image * np.float32(gain * camera.exposure * math.exp(rng.normal(0, 0.055)))
    grey = image.mean(2, keepdims=True)
    image = grey + (image - grey) * camera.colour
    slope = rng.normal(0, 0.09, 2)  # light is uneven across the image
    y, x = np.linspace(-0.5, 0.5, HEIGHT)[:, None], np.linspace(-0.5, 0.5, WIDTH)[None]
    image = (image - 118) * (camera.contrast * math.exp(rng.normal(0, 0.05))) + 118
    image = image * np.float32(1 + (slope[0] * y + slope[1] * x))[..., None]
    sharp = camera.sharp * rng.uniform(0.85, 1.0)
    small = (max(int(WIDTH * sharp), 16), max(int(HEIGHT * sharp), 32))
    image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    if rng.random() < 0.08:  # moved while the shutter was open
        image = cv2.blur(image, (int(rng.integers(2, 5)), 1))
    image += rng.standard_normal(image.shape, np.float32) * np.float32(camera.noise)
    image = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.clip(image[..., ::-1], 0, 255).astype(np.uint8)
