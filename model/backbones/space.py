"""The space of networks that `tools/search_backbone.py` searches: what a specification says, what it costs, and how
others are made of it. MobileNetV2 (Sandler et al., CVPR 2018) is one of them."""

from __future__ import annotations

import copy
import itertools
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError

STEM, HEAD = 32, 1280  # channels of the first and of the last convolution
STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of each stage's first block, after a stem of stride 2; the sixth is the last stride
KERNELS, EXPANSIONS = (3, 5, 7), (3, 4, 6)
WIDTHS = ((8, 16, 24), (16, 24, 32), (24, 32, 40), (48, 64, 80), (64, 96, 112), (112, 160, 200), (192, 320, 400))
DEPTHS = ((1,), (1, 2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4), (2, 3, 4), (1, 2))
SHARES = (0.875, 0.75, 0.625)  # of the input's height and width, beside the whole
# The most that a specification may ask for, far beyond the space; what is more is taken for a mistake.
MOST = {"height": 4096, "width": 4096, "last_stride": 2, "depth": 32, "expansion": 16, "kernel": 31}
TRIES = 2000  # networks in a row that may be beyond a limit, or known, before chance is given up
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Stage:
    """Inverted residual blocks in a row: how many, their channels, and what each is like inside."""

    depth: int
    width: int
    expansion: int  # channels inside, as a multiple of those that come in
    kernel: int  # of the convolution within each channel
    se: bool  # squeeze-and-excitation inside


@dataclass(frozen=True)
class Spec:
    """A network: the images that it takes, the stride of its sixth stage, its seven stages."""

    height: int
    width: int
    last_stride: int
    stages: tuple[Stage, ...]

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Block:
    """One inverted residual, and the size of the map that it gets."""

    stage: int
    c_in: int
    c_out: int
    expansion: int
    kernel: int
    se: bool
    stride: int
    rows: int
    columns: int

    @property
    def hidden(self) -> int:
        """Channels inside."""
        return self.c_in * self.expansion

    @property
    def size_out(self) -> tuple[int, int]:
        return -(-self.rows // self.stride), -(-self.columns // self.stride)

    @property
    def multiply_adds(self) -> int:
        rows, columns = self.size_out
        expand = self.c_in * self.hidden * self.rows * self.columns if self.expansion > 1 else 0
        within = self.hidden * self.kernel**2 * rows * columns
        gate = 2 * self.hidden * squeezed(self.hidden) if self.se else 0
        return expand + within + gate + self.hidden * self.c_out * rows * columns


def squeezed(hidden: int) -> int:
    """Channels inside of squeeze-and-excitation, a quarter."""
    return max(hidden // 4, 8)


def blocks(spec: Spec) -> list[Block]:
    """The blocks in the order in which they run."""
    size = (-(-spec.height // 2), -(-spec.width // 2))
    c_in, found = STEM, []
    for number, stage in enumerate(spec.stages):
        for place in range(stage.depth):
            stride = (spec.last_stride if number == 5 else STRIDES[number]) if place == 0 else 1
            # MobileNetV2's first stage does not expand, and the searched ones follow it there.
            found.append(Block(number, c_in, stage.width, stage.expansion, stage.kernel, stage.se, stride, *size))
            c_in, size = stage.width, found[-1].size_out
    return found


def multiply_adds(spec: Spec) -> int:
    """Those of convolutions for one image, as torch's flop counter counts them."""
    found = blocks(spec)
    rows, columns = found[-1].size_out
    stem = 3 * STEM * 9 * found[0].rows * found[0].columns
    return stem + sum(block.multiply_adds for block in found) + found[-1].c_out * HEAD * rows * columns


def mobilenet_v2(height: int, width: int, last_stride: int = 2) -> Spec:
    """MobileNetV2 1.0: the point of the space that the others are measured by."""
    depths, widths = (1, 2, 3, 4, 3, 3, 1), (16, 24, 32, 64, 96, 160, 320)
    stages = (Stage(d, w, 1 if n == 0 else 6, 3, False) for n, (d, w) in enumerate(zip(depths, widths, strict=True)))
    return Spec(height, width, last_stride, tuple(stages))


class Space:
    """All networks for images of up to `height` × `width` pixels. most: multiply-adds that one drawn may have; sizes of
    images that none of them can take within it are left out."""

    def __init__(self, height: int, width: int, most: float = math.inf):
        if min(height, width) < 32:
            raise UserError(f"images of {height} x {width} are too small to search networks for; give 32 x 32 or more")
        smaller = {(round(height * s / 8) * 8, round(width * s / 8) * 8) for s in SHARES}
        self.most = most
        least = {size: multiply_adds(self.of_size(size).smallest()) for size in smaller | {(height, width)}}
        self.sizes = sorted((size for size in least if least[size] <= most), reverse=True)
        if not self.sizes:
            raise UserError(
                f"no network of the space is within {most / 1e6:.1f} M multiply-adds: the smallest has "
                f"{min(least.values()) / 1e6:.1f} M; allow more, or give a smaller --height and --width"
            )

    def genes(self) -> list[tuple[str, ...]]:
        """What can be chosen: ("size",), ("last_stride",), and (stage, field) for each stage and field."""
        stages = itertools.product(map(str, range(len(STRIDES))), (f.name for f in fields(Stage)))
        return [("size",), ("last_stride",), *stages]

    def choices(self, gene: tuple[str, ...]) -> tuple:
        """All values of a gene."""
        if gene == ("size",):
            return tuple(self.sizes)
        if gene == ("last_stride",):
            return (1, 2)
        stage, name = int(gene[0]), gene[1]
        named = {"depth": DEPTHS[stage], "width": WIDTHS[stage], "kernel": KERNELS, "se": (False, True)}
        return named.get(name, (1,) if stage == 0 else EXPANSIONS)

    def build(self, values: dict[tuple[str, ...], object]) -> Spec:
        """The network of these genes."""
        stages = (Stage(*(values[str(n), f.name] for f in fields(Stage))) for n in range(len(STRIDES)))
        return Spec(*values["size",], values["last_stride",], tuple(stages))

    def take_apart(self, spec: Spec) -> dict[tuple[str, ...], object]:
        """The genes of a network."""
        stages = {(str(n), name): value for n, s in enumerate(spec.stages) for name, value in asdict(s).items()}
        return {("size",): (spec.height, spec.width), ("last_stride",): spec.last_stride} | stages

    def random(self, rng: np.random.Generator) -> Spec:
        """Every gene by chance, all values alike, and anew while the network is beyond `most`. The size is drawn only
        once, as networks for small images are within it more often; the smallest of that size where chance finds none.
        """
        size = self.of_size(pick(self.sizes, rng))
        for _ in range(TRIES):
            spec = size.build({gene: pick(size.choices(gene), rng) for gene in size.genes()})
            if multiply_adds(spec) <= self.most:
                return spec
        return size.smallest()

    def of_size(self, size: tuple[int, int]) -> Space:
        """The part of this space that is for images of one of its sizes."""
        part = copy.copy(self)
        part.sizes = [size]
        return part

    def mutate(self, spec: Spec, rng: np.random.Generator, rate: float) -> Spec:
        """Each gene anew with probability `rate`."""
        values = self.take_apart(spec)
        for gene in self.genes():
            if rng.random() < rate:
                values[gene] = pick(self.choices(gene), rng)
        return self.build(values)

    def cross(self, a: Spec, b: Spec, rng: np.random.Generator) -> Spec:
        """Each gene from one of the two."""
        first, second = self.take_apart(a), self.take_apart(b)
        return self.build({gene: (first if rng.random() < 0.5 else second)[gene] for gene in self.genes()})

    def largest(self) -> Spec:
        """The network that all others are a part of."""
        return self.build({gene: self.choices(gene)[0 if gene == ("size",) else -1] for gene in self.genes()}
                          | {("last_stride",): 1})  # fmt: skip

    def smallest(self) -> Spec:
        return self.build({gene: self.choices(gene)[-1 if gene == ("size",) else 0] for gene in self.genes()}
                          | {("last_stride",): 2})  # fmt: skip


def pick(choices: tuple, rng: np.random.Generator):
    return choices[rng.integers(len(choices))]


def read_spec(source: str | Path) -> Spec:
    """A network from a file of JSON, or from JSON itself, as `Spec.to_dict` gives it; other entries are ignored.

    Relative names are looked for in the working directory, then in this repository. Raises UserError for what is none.
    """
    inline = str(source).lstrip().startswith("{")
    try:
        path = Path(source)
        text = str(source) if inline else (path if path.exists() else ROOT / path).read_text(encoding="utf-8")
        values = json.loads(text)
        stages = values["stages"] if isinstance(values, dict) and isinstance(values.get("stages"), list) else []
        if len(stages) != len(STRIDES) or not all(isinstance(stage, dict) for stage in stages):
            raise ValueError(f"it needs a list of {len(STRIDES)} stages")
        made = tuple(Stage(**{f.name: checked(stage, f.name) for f in fields(Stage)}) for stage in stages)
        return Spec(*(checked(values, name) for name in ("height", "width", "last_stride")), made)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{'this text' if inline else source} is no specification of a searched network ({reason}); "
            "tools/search_backbone.py writes them"
        ) from error


def checked(values: dict[str, Any], name: str) -> int | bool:
    """An entry of a specification. Raises ValueError where it is absent or cannot be."""
    if name not in values:
        raise ValueError(f"{name} is missing")
    value = values[name]
    if name == "se":
        if not isinstance(value, bool):
            raise ValueError(f"se is {value!r:.40}, neither true nor false")
    elif type(value) is not int or not 1 <= value <= MOST[name]:
        raise ValueError(f"{name} is {value!r:.40}, no whole number from 1 to {MOST[name]}")
    elif name == "kernel" and value % 2 == 0:
        raise ValueError(f"kernel {value} is even")
    return value
