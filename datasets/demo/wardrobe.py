"""What pedestrians look like: `make_look` draws an identity's body, clothes and bags, as textures to wrap around it."""

from dataclasses import dataclass, field

import cv2
import numpy as np

SKINS = ((244, 208, 180), (232, 188, 152), (222, 172, 134), (190, 140, 104), (140, 96, 68), (92, 62, 46))
HAIRS = ((24, 20, 20), (34, 26, 22), (58, 38, 26), (98, 66, 40), (176, 136, 84), (150, 148, 146), (122, 54, 28))
# Few colors, many of them gray: identities share colors, so that the rest of the look must distinguish them.
TOPS = ((238, 238, 236), (28, 29, 33), (126, 129, 134), (32, 42, 76), (74, 77, 84), (176, 38, 42), (66, 112, 170))
TOPS += ((214, 200, 172), (62, 92, 62), (226, 184, 54), (206, 138, 156), (52, 132, 132), (112, 62, 114), (206, 104, 46))
TOP_WEIGHTS = (5, 5, 4, 4, 3, 3, 3, 2.5, 2.5, 2, 2, 2, 2, 2)
LOWERS = ((26, 27, 31), (40, 50, 76), (58, 78, 116), (104, 106, 112), (168, 148, 116), (112, 138, 172), (222, 220, 214))
LOWER_WEIGHTS = (5, 5, 4, 4, 4, 3, 2)
BAGS = ((30, 30, 34), (50, 58, 84), (96, 64, 42), (156, 44, 44), (96, 98, 102), (72, 90, 60), (196, 168, 120))
SHOES = ((234, 234, 232), (30, 30, 32), (84, 58, 40), (120, 122, 128), (160, 46, 46), (46, 64, 110))
TORSO, FRONT = (96, 160), 80  # texture of the trunk: rows from neck to crotch, columns once around


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
    beard: bool = False
    tex: dict[str, np.ndarray] = field(default_factory=dict)


def _tone(rng: np.random.Generator, colours, weights=None, spread: float = 10.0) -> np.ndarray:
    """One of `colours`, slightly changed, as an RGB float32 triple."""
    chances = None if weights is None else np.array(weights) / np.sum(weights)
    colour = np.array(colours[rng.choice(len(colours), p=chances)], np.float32)
    return np.clip(colour + rng.normal(0, spread / 2, 3) + rng.normal(0, spread), 8, 246).astype(np.float32)


def _cloth(rng: np.random.Generator, base: np.ndarray, second: np.ndarray, plain: float) -> tuple[np.ndarray, str]:
    """A trunk texture (96, 160, 3) of one color or, with probability 1 - `plain`, of a pattern of two colors."""
    rows, columns = TORSO
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    kinds = {  # the share of the second color
        "hstripes": lambda: (y % step) < step * rng.uniform(0.3, 0.55),
        "vstripes": lambda: (x % 8) < 3,
        "checks": lambda: ((y % step) < step / 2) * 0.5 + ((x % step) < step / 2) * 0.5,
        "dots": lambda: np.hypot(y % 10 - 5, (x + 5 * (y // 10 % 2)) % 10 - 5) < 2.7,
        "block": lambda: y < rng.choice((26, 40)),
        "band": lambda: np.abs(y - rng.choice((26, 36, 46))) < rng.choice((4, 8)),
        "fade": lambda: np.clip((y - 20) / 50, 0, 1),
    }
    kind = "plain" if rng.random() < plain else str(rng.choice(list(kinds), p=(0.3, 0.1, 0.17, 0.11, 0.16, 0.1, 0.06)))
    step = float(rng.choice((8.0, 12.0, 16.0)))
    mix = kinds.get(kind, lambda: np.zeros(TORSO))()
    return base + (second - base) * mix[..., None].astype(np.float32), kind


def _print(rng: np.random.Generator, texture: np.ndarray, colour: np.ndarray, column: int) -> None:
    """Print a symmetric sign on chest or back: mirrored pictures must still show the same person."""
    ink, row, size = colour.tolist(), int(rng.integers(26, 36)), int(rng.integers(7, 12))
    kind = rng.choice(("disc", "ring", "box", "diamond", "bars", "digit", "digit"))
    if kind in ("disc", "ring"):
        cv2.circle(texture, (column, row), size, ink, -1 if kind == "disc" else 4)
    elif kind == "box":
        cv2.rectangle(texture, (column - size - 4, row - size + 2), (column + size + 4, row + size - 2), ink, -1)
    elif kind == "diamond":
        corners = [(column, row - size - 3), (column + size, row), (column, row + size + 3), (column - size, row)]
        cv2.fillPoly(texture, [np.int32(corners)], ink)
    elif kind == "bars":
        for offset in (-8, 0, 8):
            cv2.rectangle(texture, (column - 13, row + offset - 2), (column + 13, row + offset + 1), ink, -1)
    else:  # a shirt number of signs that look the same in a mirror: 8, 0, 1 or two of them
        number = rng.choice(("8", "0", "1", "11", "88", "00"))
        for n, sign in enumerate(number):
            x = column + int((n - (len(number) - 1) / 2) * 15)
            if sign == "1":
                cv2.rectangle(texture, (x - 2, row - 10), (x + 2, row + 10), ink, -1)
            for y in {"8": (-5, 5), "0": (0,)}.get(str(sign), ()):
                cv2.ellipse(texture, (x, row + y), (5, 5 if sign == "8" else 9), 0, 0, 360, ink, 3)


def _head(rng: np.random.Generator, look: Look, skin, hair, hat) -> None:
    """Face (48, 96, 3) and hair (48, 96, 4, the last channel says where there is any): crown to chin, once around."""
    face = np.tile(skin, (48, 96, 1)).astype(np.float32)
    dark = (skin * 0.35).tolist()
    for x in (40, 56):
        cv2.ellipse(face, (x, 24), (3, 1), 0, 0, 360, dark, -1)
        cv2.line(face, (x - 4, 20), (x + 4, 20), (hair * 0.6 + skin * 0.25).tolist(), 1)
    cv2.ellipse(face, (48, 32), (3, 1), 0, 0, 360, (skin * 0.78).tolist(), -1)
    if look.beard:
        cv2.ellipse(face, (48, 44), (22, 8), 0, 0, 360, (hair * 0.8 + skin * 0.2).tolist(), -1)
    cv2.ellipse(face, (48, 38), (5, 1), 0, 0, 360, (skin * (0.72, 0.5, 0.5)).tolist(), -1)
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
    colour = hat if look.hair in ("cap", "beanie", "hood") else hair * strands[..., None]
    look.tex["face"] = face
    look.tex["hair"] = np.dstack([np.broadcast_to(colour, (48, 96, 3)), (y < line) * 1.0]).astype(np.float32)


def _trunk(rng: np.random.Generator, look: Look, skin, top, lower, bag) -> None:
    """Trunk and sleeves from RGB triples: cloth, neckline, open jacket, buttons, prints, straps of bags, belt."""
    second = _tone(rng, TOPS, TOP_WEIGHTS)
    second = second if np.abs(second - top).sum() > 120 else (235.0, 235, 232) - 0.75 * top
    cloth, kind = _cloth(rng, top, second, {"tee": 0.45, "dress": 0.4, "shirt": 0.35}.get(look.top, 0.65))
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
        cv2.ellipse(cloth, (FRONT, 0), (13, int(rng.choice((5, 9, 15)))), 0, 0, 360, skin.tolist(), -1)
    elif look.top == "hoodie":
        cv2.rectangle(cloth, (FRONT - 18, 58), (FRONT + 18, 76), (top * 0.8).tolist(), 1)
    else:
        cv2.fillPoly(cloth, [np.int32([(FRONT - 8, 0), (FRONT + 8, 0), (FRONT, 14)])], (skin * 0.9).tolist())
    hem = TORSO[0] if look.top in ("coat", "dress") else int(rng.integers(76, 92))
    cloth[hem:] = lower
    cloth[hem : hem + 2] *= 0.6
    strap = (bag * 0.85).tolist()
    if look.bag == "backpack":
        for column in (FRONT - 21, FRONT + 21):
            cv2.line(cloth, (column, 0), (column + (3 if column > FRONT else -3), 46), strap, 5)
    if look.bag == "sling":  # from one shoulder to the other hip, in front and, around both edges, behind
        near, far = look.side * 24, look.side * 30
        cv2.line(cloth, (FRONT - near, 0), (FRONT + far, 84), strap, 4)
        for back in (0, TORSO[1]):
            cv2.line(cloth, (back + near, 0), (back - far, 84), strap, 4)
    look.tex.update(trunk=cloth, sleeve=sleeve)


def _body(rng: np.random.Generator, slender: bool) -> Look:
    """Proportions and kinds of clothes; `slender` bodies have wider hips, narrower shoulders and other clothes."""
    tops, lowers = ("tee", "shirt", "jacket", "hoodie", "coat", "dress"), ("trousers", "shorts", "skirt")
    cuts, cut_chances = ("short", "long", "tail", "bun", "bald", "cap", "beanie", "hood"), (54, 4, 3, 2, 5, 14, 8, 5)
    top_chances, lower_chances = (0.38, 0.18, 0.2, 0.14, 0.1, 0), (0.74, 0.26, 0)
    if slender:
        cut_chances = (18, 34, 20, 10, 0, 8, 5, 3)
        top_chances, lower_chances = (0.3, 0.15, 0.19, 0.12, 0.1, 0.14), (0.54, 0.18, 0.28)
    top, lower = str(rng.choice(tops, p=top_chances)), str(rng.choice(lowers, p=lower_chances))
    look = Look(top=top, lower="skirt" if top == "dress" else lower, side=int(rng.choice((-1, 1))))
    look.hair = str(rng.choice(cuts, p=np.array(cut_chances) / sum(cut_chances)))
    look.beard = not slender and rng.random() < 0.25
    look.bag = str(rng.choice(("none", "backpack", "sling", "hand"), p=(0.38, 0.3, 0.17, 0.15)))
    look.build = float(np.clip(rng.normal(0.97 if slender else 1.06, 0.09), 0.84, 1.32))
    look.shoulder = float(rng.normal(0.087 if slender else 0.097, 0.004))
    look.hip, look.leg = float(rng.normal(0.05 if slender else 0.045, 0.003)), float(rng.normal(0.475, 0.012))
    look.head, look.scarf = float(rng.normal(1.0, 0.04)), bool(rng.random() < 0.08)
    look.flare = float(rng.choice((0.85, 1.0, 1.2), p=(0.35, 0.45, 0.2)))
    if top in ("tee", "dress") or (top == "shirt" and rng.random() < 0.3):
        look.sleeve = float(rng.choice((0.3, 0.45)))
    if top == "coat":
        look.skirt = float(rng.uniform(0.12, 0.22))
    elif look.lower == "skirt":
        look.skirt = float(rng.uniform(0.1, 0.25))
    return look


def make_look(rng: np.random.Generator) -> Look:
    """Draw an identity: every choice comes from `rng`, so the same generator state gives the same person."""
    look = _body(rng, slender=rng.random() < 0.5)
    skin, hair = _tone(rng, SKINS, (3, 5, 4, 2, 1, 1)), _tone(rng, HAIRS, (5, 5, 3, 2, 1, 1, 0.5))
    cloth, legs = _tone(rng, TOPS, TOP_WEIGHTS), _tone(rng, LOWERS, LOWER_WEIGHTS)
    legs = cloth.copy() if look.top == "dress" else legs
    hat, bag, shoe, scarf = _tone(rng, TOPS[:10]), _tone(rng, BAGS), _tone(rng, SHOES), _tone(rng, TOPS)
    tights = look.lower == "skirt" and rng.random() < 0.4
    look.tex.update(hat=hat, skin=skin, bare=_tone(rng, LOWERS[:2]) if tights else skin, locks=hair, strap=bag * 0.85)
    sole = np.float32((225, 225, 222)) if rng.random() < 0.5 else shoe * 0.5
    look.tex.update(shoe=shoe, sole=sole, hood=cloth * 0.92)
    look.tex = {name: colour[None, None] for name, colour in look.tex.items()}
    _trunk(rng, look, skin, cloth, legs, bag)
    _head(rng, look, skin, hair, cloth * 0.92 if look.hair == "hood" else hat)
    leg = np.tile(legs, (48, 24, 1))
    if rng.random() < 0.3:  # faded jeans
        leg += 26 * np.exp(-(((np.arange(24) - 12) / 5) ** 2))[None, :, None]
    if rng.random() < 0.15 and look.lower != "skirt":
        leg[:, [5, 6, 17, 18]] = 225  # side stripes
    pack = np.tile(bag, (24, 48, 1))
    pack[[11, 12]] *= 0.6
    pack[14:22, [12, 36]] *= 0.6
    pack[2:5] += 22
    folds = 1 + 0.25 * (np.arange(48) % 6 < 3)
    look.tex.update(leg=leg, pack=pack, scarf=np.tile(scarf, (8, 48, 1)) * folds[None, :, None])
    look.tex = {name: np.ascontiguousarray(texture, np.float32) for name, texture in look.tex.items()}
    return look
