"""Draw one pedestrian: an identity is a `Look` (body and clothes), a picture of it adds a `Pose` (view and gait).

A body is about thirty tapered capsules hung on a small 3-d skeleton. Each is drawn analytically, without rays or
meshes: a pixel's distance from the capsule's axis gives its depth and its normal, a depth buffer settles what hides
what, and clothes are textures wrapped around the capsules, so a print on the chest turns away with the body.
Lengths are in units of the person's height; x is the person's left, y is up, z is where the person faces.
"""

# ruff: noqa: RUF005 (joints are arrays: + adds, it does not append)
import math
from dataclasses import dataclass, field

import cv2
import numpy as np

SKINS = ((244, 208, 180), (232, 188, 152), (222, 172, 134), (190, 140, 104), (140, 96, 68), (92, 62, 46))
HAIRS = ((24, 20, 20), (34, 26, 22), (58, 38, 26), (98, 66, 40), (176, 136, 84), (150, 148, 146), (122, 54, 28))
# Few colours and many of them grey: identities must share them, so that the rest of the look has to be told apart.
TOPS = ((238, 238, 236), (28, 29, 33), (126, 129, 134), (32, 42, 76), (74, 77, 84), (176, 38, 42), (66, 112, 170))
TOPS += ((214, 200, 172), (62, 92, 62), (226, 184, 54), (206, 138, 156), (52, 132, 132), (112, 62, 114), (206, 104, 46))
TOP_WEIGHTS = (6, 6, 5, 5, 3, 3, 3, 2, 2, 1.5, 1.5, 1.2, 1, 1)
LOWERS = ((26, 27, 31), (40, 50, 76), (58, 78, 116), (104, 106, 112), (168, 148, 116), (112, 138, 172), (222, 220, 214))
LOWER_WEIGHTS = (6, 5, 4, 3, 3, 2, 1)
BAGS = ((30, 30, 34), (50, 58, 84), (96, 64, 42), (156, 44, 44), (96, 98, 102), (72, 90, 60), (196, 168, 120))
SHOES = ((234, 234, 232), (30, 30, 32), (84, 58, 40), (120, 122, 128), (160, 46, 46), (46, 64, 110))
TORSO, FRONT = (96, 160), 80  # texture of the trunk: rows from neck to crotch, columns once around
# The trunk from neck to crotch: half widths, half depths.
WIDE = np.array([0.032, 0.088, 0.098, 0.096, 0.092, 0.087, 0.083, 0.083, 0.088, 0.092, 0.086, 0.07])
DEEP = np.array([0.03, 0.046, 0.056, 0.062, 0.063, 0.060, 0.057, 0.056, 0.059, 0.064, 0.063, 0.05])
STEPS = np.linspace(0, 1, 48)  # where the radius along a capsule is tabulated
KNOTS = {count: np.linspace(0, 1, count) for count in range(1, 16)}


@dataclass
class Look:
    """What makes an identity: proportions, kinds of clothes and bags, and an RGB texture for each part."""

    build: float = 1.0  # thickness of everything
    shoulder: float = 0.098  # half width at the joints
    hip: float = 0.046
    leg: float = 0.47  # hip joint above the ground
    head: float = 1.0
    top: str = "tee"  # tee, shirt, jacket, hoodie, coat or dress
    lower: str = "trousers"  # trousers, shorts or skirt
    hair: str = "short"  # short, long, tail, bun, bald, cap, beanie or hood
    bag: str = "none"  # none, backpack, sling or hand
    sleeve: float = 1.0  # part of the arm that is covered
    skirt: float = 0.0  # length of a skirt or coat tail below the waist
    flare: float = 1.0
    side: int = 1  # where a sling or a hand bag hangs
    scarf: bool = False
    tex: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Pose:
    """How an identity stands in one picture. Angles in radians: yaw 0 faces the camera, pi shows the back."""

    yaw: float = 0.0
    pitch: float = 0.15  # of the camera, looking down
    phase: float = 0.0
    stride: float = 0.35
    arms: tuple[str, str] = ("swing", "swing")  # right and left: swing, pocket, phone or hold


def _tone(rng: np.random.Generator, colours, weights=None, spread: float = 7.0) -> np.ndarray:
    """One of `colours`, a little off, as an RGB float32 triple."""
    chances = None if weights is None else np.array(weights) / np.sum(weights)
    colour = np.array(colours[rng.choice(len(colours), p=chances)], np.float32)
    return np.clip(colour + rng.normal(0, spread / 2, 3) + rng.normal(0, spread), 8, 246).astype(np.float32)


def _ink(colour) -> tuple[float, ...]:
    return tuple(float(channel) for channel in colour)


def _cloth(rng: np.random.Generator, base: np.ndarray, second: np.ndarray, plain: float) -> tuple[np.ndarray, str]:
    """A trunk texture (96, 160, 3) of one colour or, with probability 1 - `plain`, of a pattern of two."""
    rows, columns = TORSO
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    kinds = ("hstripes", "vstripes", "checks", "dots", "block", "band", "fade")
    kind = "plain" if rng.random() < plain else kinds[rng.choice(7, p=(0.3, 0.1, 0.17, 0.11, 0.16, 0.1, 0.06))]
    step = float(rng.choice((8.0, 12.0, 16.0)))
    mix = np.zeros(TORSO, np.float32)
    if kind == "hstripes":
        mix = ((y % step) < step * rng.uniform(0.3, 0.55)).astype(np.float32)
    elif kind == "vstripes":
        mix = ((x % 8) < 3).astype(np.float32)
    elif kind == "checks":
        mix = ((y % step) < step / 2) * 0.5 + ((x % step) < step / 2) * 0.5
    elif kind == "dots":
        mix = (np.hypot(y % 10 - 5, (x + 5 * (y // 10 % 2)) % 10 - 5) < 2.7).astype(np.float32)
    elif kind == "block":
        mix = (y < rng.choice((26, 40))).astype(np.float32)
    elif kind == "band":
        mix = (np.abs(y - rng.choice((26, 36, 46))) < rng.choice((4, 8))).astype(np.float32)
    elif kind == "fade":
        mix = np.clip((y - 20) / 50, 0, 1)
    return base + (second - base) * mix[..., None].astype(np.float32), kind


def _print(rng: np.random.Generator, texture: np.ndarray, colour: np.ndarray, column: int) -> None:
    """A symmetric sign on chest or back: mirrored pictures must stay pictures of the same person."""
    ink, row, size = _ink(colour), int(rng.integers(26, 36)), int(rng.integers(7, 12))
    kind = rng.choice(("disc", "ring", "box", "diamond", "bars", "digit", "digit"))
    if kind in ("disc", "ring"):
        cv2.circle(texture, (column, row), size, ink, -1 if kind == "disc" else 4)
    elif kind == "box":
        cv2.rectangle(texture, (column - size - 4, row - size + 2), (column + size + 4, row + size - 2), ink, -1)
    elif kind == "diamond":
        corners = np.array([(0, -size - 3), (size, 0), (0, size + 3), (-size, 0)]) + (column, row)
        cv2.fillPoly(texture, [corners.astype(np.int32)], ink)
    elif kind == "bars":
        for offset in (-8, 0, 8):
            cv2.rectangle(texture, (column - 13, row + offset - 2), (column + 13, row + offset + 1), ink, -1)
    else:  # a shirt number of signs that look the same in a mirror: 8, 0, 1 or two of them
        number = rng.choice(("8", "0", "1", "11", "88", "80"))
        for n, sign in enumerate(number):
            x = column + int((n - (len(number) - 1) / 2) * 15)
            if sign == "1":
                cv2.rectangle(texture, (x - 2, row - 10), (x + 2, row + 10), ink, -1)
            for y in {"8": (-5, 5), "0": (0,)}.get(str(sign), ()):
                cv2.ellipse(texture, (x, row + y), (5, 5 if sign == "8" else 9), 0, 0, 360, ink, 3)


def _head(rng: np.random.Generator, look: Look, skin: np.ndarray, hair: np.ndarray) -> None:
    """Face (48, 96, 3) and hair (48, 96, 4, the last channel says where there is any): crown to chin, once around."""
    face = np.tile(skin, (48, 96, 1)).astype(np.float32)
    dark = _ink(skin * 0.35)
    for x in (40, 56):
        cv2.ellipse(face, (x, 24), (3, 1), 0, 0, 360, dark, -1)
        cv2.line(face, (x - 4, 20), (x + 4, 20), _ink(hair * 0.6 + skin * 0.25), 1)
    cv2.ellipse(face, (48, 38), (5, 1), 0, 0, 360, _ink(skin * (0.72, 0.5, 0.5)), -1)
    cv2.ellipse(face, (48, 32), (3, 1), 0, 0, 360, _ink(skin * 0.78), -1)
    if rng.random() < 0.18 and look.hair in ("short", "bald", "cap", "beanie"):  # a beard
        cv2.ellipse(face, (48, 44), (22, 8), 0, 0, 360, _ink(hair * 0.8 + skin * 0.2), -1)
        cv2.ellipse(face, (48, 38), (5, 1), 0, 0, 360, _ink(skin * (0.72, 0.5, 0.5)), -1)
    if rng.random() < 0.2:  # glasses, some of them dark
        for x in (40, 56):
            cv2.ellipse(face, (x, 24), (6, 4), 0, 0, 360, (24, 24, 26), -1 if rng.random() < 0.4 else 1)
        cv2.line(face, (22, 22), (74, 22), (24, 24, 26), 1)
    y, x = np.mgrid[:48, :96].astype(np.float32)
    around = np.abs(x - 48) / 48  # 0 at the nose, 1 at the back of the head
    line = np.interp(around, (0, 0.22, 0.36, 0.5, 0.62, 1), (13, 13, 20, 25, 40, 44))
    if look.hair in ("long", "bun", "tail"):
        line = np.interp(around, (0, 0.1, 0.3, 0.42, 0.6, 1), (10, 12, 20, 44, 48, 48))
    line = line + 1.6 * np.sin(x * 1.9) + 1.2 * np.sin(x * 0.8)
    if look.hair in ("cap", "beanie"):
        line = np.full_like(line, 16.0)
    if look.hair == "bald":  # stubble where hair would be
        face += 0.3 * (hair - skin) * ((y < line) & (around > 0.3))[..., None]
    if look.hair == "hood":
        line = np.where(around > 0.24, 48.0, 5.0)
    strands = 1 + 0.18 * np.sin(x * 2.1 + 3 * np.sin(y * 0.3)) * rng.uniform(0.4, 1)
    colour = look.tex["hat"] if look.hair in ("cap", "beanie", "hood") else hair * strands[..., None]
    look.tex["face"] = face
    look.tex["hair"] = np.dstack([np.broadcast_to(colour, (48, 96, 3)), (y < line) * 1.0]).astype(np.float32)


def _trunk(rng: np.random.Generator, look: Look, skin: np.ndarray, top: np.ndarray, lower: np.ndarray) -> None:
    """Textures of trunk and sleeves: cloth, neckline, open jacket, buttons, prints, straps of bags, and belt."""
    second = _tone(rng, TOPS, TOP_WEIGHTS)
    second = second if np.abs(second - top).sum() > 120 else (235.0, 235, 232) - 0.75 * top
    cloth, kind = _cloth(rng, top, second, {"tee": 0.5, "dress": 0.45, "shirt": 0.4}.get(look.top, 0.72))
    x = np.arange(TORSO[1])[None]
    sleeve = cloth[30:78].copy()
    if kind == "block":
        sleeve[:] = second if rng.random() < 0.5 else top
    if kind in ("plain", "fade") and look.top != "dress":
        for column, chance in ((FRONT, 0.45), (0, 0.3)):
            if rng.random() < chance and look.top not in ("shirt", "coat"):
                back = np.roll(cloth, FRONT - column, 1).copy()
                _print(rng, back, second, FRONT)
                cloth = np.roll(back, column - FRONT, 1)
        if rng.random() < 0.2:
            sleeve[:] = second  # raglan sleeves
    cloth = np.ascontiguousarray(cloth, np.float32)
    if look.top in ("jacket", "coat") and rng.random() < 0.75:
        inner, _ = _cloth(rng, second, _tone(rng, TOPS), 0.75)
        half = rng.uniform(8, 17) + np.arange(TORSO[0])[:, None] * rng.uniform(-0.03, 0.06)
        cloth = np.where((np.abs(x - FRONT) < half)[..., None], inner, cloth)
        cloth[np.abs(np.abs(x - FRONT) - half) < 1.2] *= 0.6
    elif look.top in ("shirt", "jacket", "coat", "hoodie"):
        cloth[:, FRONT - 1 : FRONT + 1] *= 0.7
    look.tex["hem"] = cloth[48:96].copy()
    cloth = np.ascontiguousarray(cloth, np.float32)
    if look.top in ("tee", "dress"):
        cv2.ellipse(cloth, (FRONT, 0), (13, int(rng.choice((5, 9, 15)))), 0, 0, 360, _ink(skin), -1)
    elif look.top == "hoodie":
        cv2.rectangle(cloth, (FRONT - 18, 58), (FRONT + 18, 76), _ink(top * 0.8), 1)
    else:
        cv2.fillPoly(cloth, [np.array([(FRONT - 8, 0), (FRONT + 8, 0), (FRONT, 14)])], _ink(skin * 0.9))
    hem = TORSO[0] if look.top in ("coat", "dress") else int(rng.integers(76, 92))
    cloth[hem:] = lower
    cloth[hem : hem + 2] *= 0.6
    strap = _ink(look.tex["bag"] * 0.85)
    if look.bag == "backpack":
        for column in (FRONT - 21, FRONT + 21):
            cv2.line(cloth, (column, 0), (column + (3 if column > FRONT else -3), 46), strap, 5)
    if look.bag == "sling":  # over one shoulder, down to the other hip, in front and behind
        a, b = FRONT - look.side * 24, FRONT + look.side * 30
        cv2.line(cloth, (a, 0), (b, 84), strap, 4)
        for shift in (0, TORSO[1]):
            cv2.line(cloth, (-look.side * 24 * -1 + shift, 0), (look.side * -30 + shift, 84), strap, 4)
    look.tex.update(trunk=cloth, sleeve=sleeve)


def make_look(rng: np.random.Generator) -> Look:
    """Draw an identity: every choice comes from `rng`, so the same generator state gives the same person."""
    slim = rng.random() < 0.5  # wider hips and narrower shoulders
    top = str(rng.choice(("tee", "shirt", "jacket", "hoodie", "coat", "dress"), p=(0.34, 0.16, 0.2, 0.14, 0.1, 0.06)))
    lower = str(rng.choice(("trousers", "shorts", "skirt"), p=(0.66, 0.22, 0.12)))
    cuts, chances = ("short", "long", "tail", "bun", "bald", "cap", "beanie", "hood"), (54, 4, 3, 2, 5, 14, 8, 5)
    if slim:
        chances = (18, 34, 20, 10, 0, 8, 5, 3)
    look = Look(top=top, lower="skirt" if top == "dress" else lower, side=int(rng.choice((-1, 1))))
    look.hair = str(rng.choice(cuts, p=np.array(chances) / sum(chances)))
    look.bag = str(rng.choice(("none", "backpack", "sling", "hand"), p=(0.46, 0.26, 0.15, 0.13)))
    look.build = float(np.clip(rng.normal(0.97 if slim else 1.06, 0.09), 0.84, 1.32))
    look.shoulder = float(rng.normal(0.087 if slim else 0.097, 0.004))
    look.hip, look.leg = float(rng.normal(0.05 if slim else 0.045, 0.003)), float(rng.normal(0.475, 0.012))
    look.head, look.scarf = float(rng.normal(1.0, 0.04)), bool(rng.random() < 0.08)
    look.flare = float(rng.choice((0.85, 1.0, 1.2), p=(0.35, 0.45, 0.2)))
    look.sleeve = float(rng.choice((0.3, 0.45))) if top in ("tee", "dress") else 1.0
    if top == "shirt" and rng.random() < 0.3:
        look.sleeve = 0.45
    look.skirt = {"coat": rng.uniform(0.12, 0.22), "dress": rng.uniform(0.14, 0.24)}.get(top, 0.0)
    if look.lower == "skirt" and top != "dress":
        look.skirt = float(rng.uniform(0.1, 0.26))
    skin, hair = _tone(rng, SKINS, (3, 5, 4, 2, 1, 1)), _tone(rng, HAIRS, (5, 5, 3, 2, 1, 1, 0.5))
    cloth, legs = _tone(rng, TOPS, TOP_WEIGHTS), _tone(rng, LOWERS, LOWER_WEIGHTS)
    legs = cloth.copy() if top == "dress" else legs
    look.tex.update(skin=skin[None, None], hat=_tone(rng, TOPS[:10]), bag=_tone(rng, BAGS), shoe=_tone(rng, SHOES))
    look.tex["bare"] = (_tone(rng, LOWERS[:2]) if look.lower == "skirt" and rng.random() < 0.4 else skin)[None, None]
    _trunk(rng, look, skin, cloth, legs)
    if look.hair == "hood":
        look.tex["hat"] = cloth * 0.92
    _head(rng, look, skin, hair)
    leg = np.tile(legs, (48, 24, 1)).astype(np.float32)
    if rng.random() < 0.3:  # faded jeans
        leg += 26 * np.exp(-(((np.arange(24) - 12) / 5) ** 2))[None, :, None]
    if rng.random() < 0.15 and look.lower != "skirt":  # side stripes
        leg[:, [5, 6, 17, 18]] = 225
    look.tex.update(leg=leg, locks=hair[None, None], strap=look.tex["bag"][None, None] * 0.85)
    pack = np.tile(look.tex["bag"], (24, 48, 1)).astype(np.float32)
    pack[[11, 12]] *= 0.6
    pack[14:22, [12, 36]] *= 0.6
    pack[2:5] += 22
    sole = (225.0, 225, 222) if rng.random() < 0.5 else look.tex["shoe"] * 0.5
    scarf = np.tile(_tone(rng, TOPS), (8, 48, 1)) * (1 + 0.25 * (np.arange(48) % 6 < 3))[None, :, None]
    look.tex.update(pack=pack, sole=np.array(sole)[None, None], hood=cloth[None, None] * 0.92, scarf=scarf)
    for name in ("hat", "shoe"):
        look.tex[name] = look.tex[name][None, None]
    look.tex = {name: np.ascontiguousarray(texture, np.float32) for name, texture in look.tex.items()}
    return look


class Figure:
    """A picture under way: `rgb` (H, W, 3) of 0-255, `depth` (H, W) in pixels toward the viewer, -inf if empty."""

    def __init__(self, height: int, width: int, light: tuple[float, float, float], folds: np.ndarray) -> None:
        self.rgb = np.zeros((height, width, 3), np.float32)
        self.depth = np.full((height, width), -np.inf, np.float32)
        self.light, self.folds = tuple(part / math.hypot(*light) for part in light), folds.ravel()
        self.columns = np.arange(width, dtype=np.float32)[None]
        self.rows = np.arange(height, dtype=np.float32)[:, None]

    def part(self, start, end, radii, texture, *, thick=1.0, yaw=0.0, cloth=0.0, cut=0) -> None:
        """Draw a capsule from `start` to `end` (x, y, depth) with `radii` along it, `thick` times as deep as wide.

        `texture` (rows along it, columns once around it, RGB or RGB and whether to draw) is turned by `yaw`;
        `cloth` is the strength of its folds; `cut` 1 ends it flat like a sleeve, 2 cuts both ends.
        """
        height, width = self.depth.shape
        reach = float(max(radii)) + 1
        left, right = max(int(min(start[0], end[0]) - reach), 0), min(int(max(start[0], end[0]) + reach) + 1, width)
        above, below = max(int(min(start[1], end[1]) - reach), 0), min(int(max(start[1], end[1]) + reach) + 1, height)
        if left >= right or above >= below:
            return
        dx, dy, dz = end[0] - start[0], end[1] - start[1], end[2] - start[2]
        length2 = max(dx * dx + dy * dy, 1e-3)
        x, y = self.columns[:, left:right] - start[0], self.rows[above:below] - start[1]
        raw = x * (dx / length2) + y * (dy / length2)
        along = np.minimum(np.maximum(raw, 0), 1)
        x, y = x - along * dx, y - along * dy
        table = np.interp(STEPS, KNOTS[len(radii)], radii).astype(np.float32)
        radius = table[(along * (len(STEPS) - 1)).astype(np.intp)]
        front = np.sqrt(np.maximum(1 - (x * x + y * y) / (radius * radius), 0))
        depth = start[2] + along * dz + thick * radius * front
        visible = (front > 0) & (depth > self.depth[above:below, left:right])
        if cut:
            visible &= (raw < 1 + 0.06 * front) & (raw > (0 if cut == 2 else -9))
        at = np.flatnonzero(visible)  # from here on only the pixels that are seen, in one dimension
        along, radius, front, depth = along.ravel()[at], radius.ravel()[at], front.ravel()[at], depth.ravel()[at]
        x, y = x.ravel()[at] / radius, y.ravel()[at] / radius
        high, wide = texture.shape[:2]
        across = (x * dy - y * dx) * (0.9999 / math.sqrt(length2))
        column = ((np.arcsin(across) - yaw) * (wide / (2 * math.pi)) + wide / 2).astype(np.intp) % wide
        colour = texture.reshape(high * wide, -1)[(along * (high - 0.01)).astype(np.intp) * wide + column]
        at = (at // (right - left) + above) * width + at % (right - left) + left
        light = 0.5 + 0.5 * (x * self.light[0] + y * self.light[1] + front * self.light[2])
        shade = 0.5 + 0.62 * light * np.sqrt(np.maximum(light, 0))
        if cloth:
            shade += cloth * self.folds[at]
        if colour.shape[1] == 4:
            keep = np.flatnonzero(colour[:, 3])
            at, colour, shade, depth = at[keep], colour[keep, :3], shade[keep], depth[keep]
        self.rgb.reshape(-1, 3)[at] = colour * shade[:, None]
        self.depth.reshape(-1)[at] = depth

    def settle(self) -> np.ndarray:
        """Darken what lies close behind something nearer (an arm's shade on the trunk); returns the mask (H, W)."""
        mask = np.isfinite(self.depth)
        depth = np.where(mask, self.depth, np.float32(0))
        weight = mask.astype(np.float32)
        reach = (self.depth.shape[0] // 30 * 2 + 1,) * 2
        near = cv2.blur(cv2.blur(depth, reach), reach) / np.maximum(cv2.blur(cv2.blur(weight, reach), reach), 1e-3)
        hollow = np.clip((near - depth) * (14 / self.depth.shape[0]), -0.12, 0.42)
        self.rgb *= (1 - hollow * mask)[..., None]
        return weight


def _turn(vector, angle: float) -> np.ndarray:
    """Limb direction: `angle` 0 hangs down, positive swings forward."""
    return np.array((vector, -math.cos(angle), math.sin(angle)))


def skeleton(look: Look, pose: Pose) -> dict[str, np.ndarray]:
    """Joints (x, y, z) in body units: neck, chin, crown, and hip, knee, ankle, toe, shoulder, elbow, hand by side."""
    joints: dict = {}
    thigh = 0.5 * (look.leg - 0.035)
    lift = []
    for side in (-1, 1):
        gait = pose.phase + (0 if side < 0 else math.pi)
        swing = pose.stride * math.sin(gait)
        bend = 0.06 + 0.5 * pose.stride + 1.3 * pose.stride * max(0.0, math.cos(gait)) - 0.4 * swing
        joints["hip", side] = np.array((side * look.hip, 0.0, 0.0))
        joints["knee", side] = joints["hip", side] + thigh * _turn(side * 0.02, swing + 0.1 * pose.stride)
        joints["ankle", side] = joints["knee", side] + thigh * _turn(-side * 0.03, swing - bend)
        foot = 0.4 * (swing - bend)
        joints["toe", side] = joints["ankle", side] + np.array((side * 0.02, -0.014 + 0.09 * foot, 0.085))
        lift.append(min(joints["ankle", side][1], joints["toe", side][1] + 0.014))
        back = -0.75 * pose.stride * math.sin(gait)
        joints["shoulder", side] = np.array((side * look.shoulder * 0.97, 0.31, 0.0))
        style = pose.arms[side > 0]
        upper, fore, spread = (back, back + 0.25 + 0.5 * pose.stride, 0.16)
        if style == "pocket":
            upper, fore, spread = -0.45, 0.5, 0.28
        elif style == "phone":
            upper, fore, spread = 0.3, 2.3, 0.1
        elif style == "hold":
            upper, fore, spread = 0.05, 0.12, 0.12
        joints["elbow", side] = joints["shoulder", side] + 0.16 * _turn(side * spread * look.build, upper)
        inward = -0.5 if style in ("phone", "pocket") else 0.12
        joints["hand", side] = joints["elbow", side] + 0.15 * _turn(side * spread * inward, fore)
    joints["neck"] = np.array((0.0, 0.385, 0.005))
    joints["chin"], joints["crown"] = np.array((0.0, 0.425, 0.03)), np.array((0.0, 0.495, 0.014))
    shift = np.array((0.0, 0.038 - min(lift), 0.0))
    return {name: point + shift for name, point in joints.items()}


def draw_person(look: Look, pose: Pose, figure: Figure, foot: tuple[float, float], size: float, deep=0.0) -> None:
    """Draw `look` into `figure`, `size` pixels tall, standing at pixel `foot` (x, y), `deep` heights nearer than 0."""
    joints, sin, cos = skeleton(look, pose), math.sin(pose.yaw), math.cos(pose.yaw)
    tilt, drop = math.sin(pose.pitch), math.cos(pose.pitch)

    def at(point) -> tuple[float, float, float]:
        x, y, z = point.tolist()
        side, near = x * cos + z * sin, z * cos - x * sin
        height = y * drop - near * tilt
        return foot[0] + size * side, foot[1] - size * height, size * (near * drop + y * tilt + deep)

    def limb(start, end, radii, name, *, grow=1.0, **options) -> None:
        radii = np.asarray(radii) * (size * grow)
        figure.part(at(start), at(end), radii, look.tex[name], yaw=pose.yaw, **options)

    def loft(start, end, wide, deep, name, *, grow=1.0, **options) -> None:  # elliptic: width depends on the view
        wide, deep = np.asarray(wide) * grow, np.asarray(deep) * grow
        seen, hidden = np.hypot(wide * cos, deep * sin), np.hypot(wide * sin, deep * cos)
        limb(start, end, seen, name, thick=float(hidden.mean() / seen.mean()), **options)

    _draw_legs(look, joints, limb)
    _draw_trunk(look, joints, limb, loft)
    _draw_arms(look, joints, limb, loft)
    _draw_head(look, joints, limb, loft)


def _draw_legs(look: Look, joints: dict, limb) -> None:
    build = look.build
    bare = "bare" if look.lower != "trousers" else "leg"
    for side in (-1, 1):
        hip, knee, ankle, toe = (joints[name, side] for name in ("hip", "knee", "ankle", "toe"))
        if bare == "leg":
            shin = np.array((0.042, 0.043, 0.037, 0.033)) * (1, 0.5 + 0.5 * look.flare, look.flare, look.flare)
            limb(hip, knee, (0.062, 0.058, 0.05, 0.042), "leg", grow=build, cloth=0.2)
            limb(knee, ankle, shin, "leg", grow=build, cloth=0.28)
        else:
            limb(hip + (knee - hip) * 0.4, knee, (0.05, 0.044, 0.037), "bare", grow=build)
            limb(knee, ankle, (0.036, 0.041, 0.033, 0.022), "bare", grow=build)
        if look.lower == "shorts":
            limb(hip, hip + (knee - hip) * 0.86, (0.062, 0.06, 0.056), "leg", grow=build, cloth=0.25, cut=1)
        heel = ankle + (0, -0.012, -0.012)
        limb(heel, toe + (0, 0.002, 0), (0.027, 0.025, 0.02), "shoe")
        limb(heel - (0, 0.01, 0.004), toe - (0, 0.01, -0.006), (0.021, 0.02, 0.018), "sole")


def _draw_trunk(look: Look, joints: dict, limb, loft) -> None:
    neck = joints["neck"]
    pelvis = (joints["hip", -1] + joints["hip", 1]) / 2
    crotch = pelvis - (0, 0.005, 0)
    wide, deep = WIDE.copy(), DEEP.copy()
    wide[:6] *= look.shoulder / 0.098
    wide[6:] *= look.hip / 0.046
    deep[6:9] += 0.03 * max(0.0, look.build - 1.05)
    thickness = look.build * (1.08 if look.top in ("hoodie", "jacket", "coat") else 1.0)
    limb(neck + (0, -0.02, 0), neck + (0, 0.05, 0.012), (0.03, 0.026), "skin", grow=0.5 + 0.5 * look.build)
    loft(neck - (0, 0.012, 0), crotch, wide, deep, "trunk", grow=thickness, cloth=0.2)
    if look.skirt:
        name = "hem" if look.top in ("coat", "dress") and "hem" in look.tex else "leg"
        waist, low = pelvis + (0, 0.09, 0), pelvis - (0, look.skirt - 0.02, 0)
        wide = 0.082 + np.array((0.0, 0.012, 0.018, 0.022)) * (1 + 2.2 * look.skirt * look.flare)
        apart = abs(joints["knee", -1][2] - joints["knee", 1][2])  # a step spreads the cloth
        deep = wide * 0.78 + np.linspace(0, 0.5 * apart, 4)
        loft(waist, low, wide, deep, name, grow=thickness, cloth=0.28, cut=2)
    if look.bag == "backpack":
        for x in (-0.027, 0.027):  # two soft halves make a box with round edges
            top, low = neck + (x, -0.055, -0.098), neck + (x, -0.235, -0.108)
            loft(top, low, (0.036, 0.043, 0.044, 0.044, 0.042), (0.03, 0.042, 0.045, 0.046, 0.042), "pack", cloth=0.15)
        loft(neck + (0, -0.175, -0.14), neck + (0, -0.225, -0.142), (0.046, 0.05), (0.02, 0.024), "strap", cloth=0.15)
    elif look.bag == "sling":
        hip = joints["hip", look.side] + (look.side * 0.075 * look.build, 0.03, 0.02)
        loft(hip, hip - (0, 0.1, 0), (0.02, 0.03, 0.032), (0.044, 0.056, 0.058), "pack", cut=1)
    if look.scarf:
        loft(neck + (0, 0.022, 0.006), neck - (0, 0.014, -0.006), (0.044, 0.05), (0.046, 0.054), "scarf", cloth=0.2)
    if look.top == "hoodie":
        loft(neck + (0, 0.018, -0.04), neck - (0, 0.02, 0.052), (0.045, 0.058), (0.03, 0.034), "hood", cloth=0.25)


def _draw_arms(look: Look, joints: dict, limb, loft) -> None:
    build = 0.3 + 0.7 * look.build
    puff = build * (1.12 if look.top in ("hoodie", "jacket", "coat") else 1.0)
    for side in (-1, 1):
        shoulder, elbow, hand = (joints[name, side] for name in ("shoulder", "elbow", "hand"))
        if look.sleeve < 1:
            limb(shoulder, elbow, (0.026, 0.031, 0.03, 0.026), "skin", grow=build)
            limb(elbow, hand, (0.026, 0.025, 0.018), "skin", grow=build)
            cuff = shoulder + (elbow - shoulder) * 1.6 * look.sleeve
            limb(shoulder, cuff, (0.033, 0.037, 0.038), "sleeve", grow=build, cloth=0.25, cut=1)
        else:
            limb(shoulder, elbow, (0.032, 0.037, 0.037, 0.033), "sleeve", grow=puff, cloth=0.22)
            limb(elbow, hand, (0.033, 0.031, 0.025), "sleeve", grow=puff, cloth=0.22)
        grip = hand + (hand - elbow) * 0.2
        limb(hand, grip, (0.019, 0.02, 0.015), "skin")
        if look.bag == "hand" and side == look.side:
            low = grip - (0, 0.07, 0)
            limb(grip, low, (0.006, 0.006), "strap")
            loft(low, low - (0, 0.085, 0), (0.014, 0.026, 0.03), (0.03, 0.062, 0.066), "pack", cut=1)


def _draw_head(look: Look, joints: dict, limb, loft) -> None:
    chin, crown = joints["chin"], joints["crown"]
    brow = crown - (0, 0.02, 0)
    grow = look.head
    loft(brow, chin, (0.043, 0.046, 0.043, 0.032), (0.052, 0.054, 0.048, 0.036), "face", grow=grow)
    nose = brow + (chin - brow) * 0.52 + (0, 0, 0.05 * grow)
    limb(nose, nose - (0, 0.01, -0.004), (0.007, 0.01), "skin")
    for side in (-1, 1):
        if look.hair in ("long", "hood", "beanie"):
            break  # covered
        ear = (brow + chin) / 2 + (side * 0.046 * grow, 0, -0.004)
        limb(ear, ear - (0, 0.012, 0), (0.01, 0.008), "skin")
    if look.hair != "bald":
        volume = grow * {"short": 1.1, "hood": 1.18}.get(look.hair, 1.14)
        wide, deep = (0.044, 0.047, 0.044, 0.034), (0.054, 0.056, 0.05, 0.04)
        loft(brow + (0, 0.002, -0.004), chin, wide, deep, "hair", grow=volume)
    back = brow - (0, 0.012, 0.03)
    if look.hair == "cap":
        limb(brow + (0, 0.004, 0.045), brow + (0, -0.004, 0.088), (0.034, 0.022), "hat", thick=0.25)
    elif look.hair == "long":
        loft(back, back - (0, 0.13, 0.02), (0.045, 0.05, 0.052, 0.04), (0.03, 0.034, 0.034, 0.02), "locks", cloth=0.3)
    elif look.hair == "tail":
        limb(back - (0, 0, 0.026), back - (0, 0.12, 0.05), (0.016, 0.022, 0.018, 0.008), "locks", cloth=0.3)
    elif look.hair == "bun":
        limb(back + (0, 0.03, -0.02), back + (0, 0.034, -0.03), (0.026, 0.024), "locks", cloth=0.3)
