"""Draw one pedestrian: a `Look` (body and clothes) is an identity, a `Pose` (view and gait) makes a picture of it.

A body is about thirty tapered capsules hung on a small 3-d skeleton. Each is drawn analytically, without rays or
meshes: a pixel's distance from the capsule's axis gives its depth and its normal, a depth buffer decides what hides
what, and clothes are textures wrapped around the capsules, so a print on the chest turns away with the body.
Lengths are in units of the person's height; x is the person's left, y is up, z is where the person faces.
"""

# ruff: noqa: RUF005 (joints are arrays: + adds, it does not append)
import math
from dataclasses import dataclass

import cv2
import numpy as np

from datasets.demo.wardrobe import Look

# The trunk from neck to crotch: half widths, half depths.
WIDE = np.array([0.032, 0.088, 0.098, 0.096, 0.092, 0.087, 0.083, 0.083, 0.088, 0.092, 0.086, 0.07])
DEEP = np.array([0.03, 0.046, 0.056, 0.062, 0.063, 0.060, 0.057, 0.056, 0.059, 0.064, 0.063, 0.05])
STEPS = np.linspace(0, 1, 48)  # where the radius along a capsule is tabulated
ARMS = {"pocket": (-0.45, 0.5, 0.28), "phone": (0.3, 2.3, 0.1), "hold": (0.05, 0.12, 0.12)}  # angles, spread
KNOTS = {count: np.linspace(0, 1, count) for count in range(1, 16)}


@dataclass
class Pose:
    """How an identity stands in one picture. Angles in radians: yaw 0 faces the camera, pi shows the back."""

    yaw: float = 0.0
    pitch: float = 0.15  # of the camera, looking down
    phase: float = 0.0
    stride: float = 0.35
    arms: tuple[str, str] = ("swing", "swing")  # right and left: swing, pocket, phone or hold


class Figure:
    """An unfinished picture: `rgb` (H, W, 3) of 0-255, `depth` (H, W) in pixels toward the viewer, -inf if empty."""

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
        colour = texture[(along * (high - 0.01)).astype(np.intp), column]
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

    def shade(self) -> np.ndarray:
        """Darken what lies close behind something nearer (an arm's shade on the trunk); returns the mask (H, W)."""
        mask = np.isfinite(self.depth)
        depth = np.where(mask, self.depth, np.float32(0))
        weight = mask.astype(np.float32)
        reach = (self.depth.shape[0] // 30 * 2 + 1,) * 2
        near = cv2.blur(cv2.blur(depth, reach), reach) / np.maximum(cv2.blur(cv2.blur(weight, reach), reach), 1e-3)
        hollow = np.clip((near - depth) * (14 / self.depth.shape[0]), -0.12, 0.42)
        self.rgb *= (1 - hollow * mask)[..., None]
        return weight


def _turn(side: float, angle: float) -> np.ndarray:
    """Direction of a limb: `angle` 0 hangs down, positive angles swing forward."""
    return np.array((side, -math.cos(angle), math.sin(angle)))


def skeleton(look: Look, pose: Pose) -> dict[str, np.ndarray]:
    """Joints (x, y, z) in body units: neck, chin, crown, and hip, knee, ankle, toe, shoulder, elbow, hand by side."""
    joints, lift, thigh = {}, [], 0.5 * (look.leg - 0.035)
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
        style, swinging = pose.arms[side > 0], (back, back + 0.25 + 0.5 * pose.stride, 0.28 if look.skirt else 0.16)
        upper, fore, spread = ARMS.get(style, swinging)
        joints["elbow", side] = joints["shoulder", side] + 0.16 * _turn(side * spread * look.build, upper)
        inward = -0.5 if style in ("phone", "pocket") else 0.12
        joints["hand", side] = joints["elbow", side] + 0.15 * _turn(side * spread * inward, fore)
    head = {"neck": (0.0, 0.385, 0.005), "chin": (0.0, 0.425, 0.03), "crown": (0.0, 0.495, 0.014)}
    return {name: point + np.array((0.0, 0.038 - min(lift), 0.0)) for name, point in (joints | head).items()}


def draw_person(look: Look, pose: Pose, figure: Figure, foot: tuple[float, float], size: float, deep=0.0) -> None:
    """Draw `look` into `figure`, `size` pixels tall, standing at pixel `foot` (x, y), `deep` heights nearer than 0."""
    joints, sin, cos = skeleton(look, pose), math.sin(pose.yaw), math.cos(pose.yaw)
    tilt, drop = math.sin(pose.pitch), math.cos(pose.pitch)
    x0, y0 = float(foot[0]), float(foot[1])  # a numpy scalar would turn all arrays into float64

    def at(point) -> tuple[float, float, float]:
        x, y, z = point.tolist()
        side, near = x * cos + z * sin, z * cos - x * sin
        height = y * drop - near * tilt
        return x0 + size * side, y0 - size * height, size * (near * drop + y * tilt + deep)

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
    for side in (-1, 1):
        hip, knee, ankle, toe = (joints[name, side] for name in ("hip", "knee", "ankle", "toe"))
        if look.lower == "trousers":
            shin = np.array((0.042, 0.043, 0.037, 0.033)) * (1, 0.5 + 0.5 * look.flare, look.flare, look.flare)
            limb(hip, knee, (0.062, 0.058, 0.05, 0.042), "leg", grow=build, cloth=0.2)
            limb(knee, ankle, shin, "leg", grow=build, cloth=0.28)
        else:
            limb(hip + (knee - hip) * 0.4, knee, (0.038, 0.041, 0.036), "bare", grow=build)
            limb(knee, ankle, (0.036, 0.041, 0.033, 0.022), "bare", grow=build)
        if look.lower == "shorts":
            limb(hip, hip + (knee - hip) * 0.86, (0.062, 0.06, 0.056), "leg", grow=build, cloth=0.25, cut=1)
        heel = ankle + (0, -0.012, -0.012)
        limb(heel, toe + (0, 0.002, 0), (0.027, 0.025, 0.02), "shoe")
        limb(heel - (0, 0.01, 0.004), toe - (0, 0.01, -0.006), (0.021, 0.02, 0.018), "sole")


def _draw_trunk(look: Look, joints: dict, limb, loft) -> None:
    neck, pelvis = joints["neck"], (joints["hip", -1] + joints["hip", 1]) / 2
    wide, deep = WIDE.copy(), DEEP.copy()
    wide[:6] *= look.shoulder / 0.098
    wide[6:] *= look.hip / 0.046
    deep[6:9] += 0.03 * max(0.0, look.build - 1.05)
    thickness = look.build * (1.08 if look.top in ("hoodie", "jacket", "coat") else 1.0)
    limb(neck + (0, -0.02, 0), neck + (0, 0.05, 0.012), (0.03, 0.026), "skin", grow=0.5 + 0.5 * look.build)
    loft(neck - (0, 0.012, 0), pelvis - (0, 0.005, 0), wide, deep, "trunk", grow=thickness, cloth=0.2)
    if look.skirt:
        name = "hem" if look.top in ("coat", "dress") else "leg"
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
    chin, brow, grow = joints["chin"], joints["crown"] - (0, 0.02, 0), look.head
    loft(brow, chin, (0.043, 0.046, 0.043, 0.032), (0.052, 0.054, 0.048, 0.036), "face", grow=grow)
    nose = brow + (chin - brow) * 0.52 + (0, 0, 0.05 * grow)
    limb(nose, nose - (0, 0.01, -0.004), (0.007, 0.01), "skin")
    for side in () if look.hair in ("long", "hood", "beanie") else (-1, 1):  # otherwise they are covered
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
